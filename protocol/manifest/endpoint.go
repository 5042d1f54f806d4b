package manifest

import (
	"net/netip"
	"net/url"
)

// CheckEndpoint returns what is wrong with the URL of an account's blob service:
// it is https://<host>…, or http://<address>… with an address of the loopback
// interface, for simulators.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return invalid("%.200q is not the endpoint of a blob service: want https://<account>.blob.core.windows.net", endpoint)
	}
	if u.Scheme == "https" {
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && err == nil && ip.IsLoopback() {
		return nil
	}
	return invalid("%.200q is not safe: want https://, or http:// with an address of the loopback interface", endpoint)
}
