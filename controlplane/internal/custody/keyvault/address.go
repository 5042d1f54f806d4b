package keyvault

import (
	"net/url"
	"regexp"
	"strings"
)

// address names a key in a vault.
type address struct {
	vault   string // https://host
	name    string
	version string // "" for the newest
}

func (a address) path() string {
	path := "/keys/" + a.name
	if a.version != "" {
		path += "/" + a.version
	}
	return path
}

func (a address) id() string { return a.vault + a.path() }

var keyPath = regexp.MustCompile(`^/keys/([0-9A-Za-z-]{1,127})(?:/([0-9a-zA-Z]{1,64}))?$`)

// maxAddress is the longest address of a key, in bytes.
const maxAddress = 512

// parse reads the address of a key in a vault that may be asked.
func (c *Client) parse(raw string) (address, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || len(raw) > maxAddress || u.Host == "":
		return address{}, invalidURL("%.200q is no address", raw)
	case u.Scheme != "https":
		return address{}, invalidScheme()
	case !c.allowed(u.Host):
		return address{}, invalidHost(u.Host, c.cfg.Hosts)
	}
	path := keyPath.FindStringSubmatch(u.Path)
	if path == nil || u.RawPath != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return address{}, invalidURL("%.200q is no key in a vault", raw)
	}
	return address{"https://" + strings.ToLower(u.Host), path[1], path[2]}, nil
}

// allowed reports whether a host is one of those configured or below one.
func (c *Client) allowed(host string) bool {
	for _, h := range c.cfg.Hosts {
		if below(host, h) {
			return true
		}
	}
	return false
}

func below(host, parent string) bool {
	host, parent = strings.ToLower(host), strings.ToLower(parent)
	return parent != "" && (host == parent || strings.HasSuffix(host, "."+parent))
}
