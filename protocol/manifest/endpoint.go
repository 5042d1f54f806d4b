package manifest

import (
	"bytes"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CheckEndpoint returns what is wrong with the URL of an account's blob service:
// it is https://<host>…, or http://<address>… with an address of the loopback
// interface, for simulators.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return invalid("%.200q is not the endpoint of a blob service: want https://<account>.blob.core.windows.net", endpoint)
	}
	if _, rest, _ := strings.Cut(strings.ToLower(u.Hostname()), "."); strings.HasPrefix(rest, "file.core.") {
		return invalid("%.200q is an endpoint of Azure Files, to which nothing is uploaded: want that of the blob service, https://<account>.blob.core.windows.net", endpoint)
	}
	if u.Scheme == "https" {
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && err == nil && ip.IsLoopback() {
		return nil
	}
	return invalid("%.200q is not safe: want https://, or http:// with an address of the loopback interface", endpoint)
}

// signatureParameters are those that a shared access signature of a container, a
// blob or an account has.
var signatureParameters = strings.Fields("sv ss srt sr sp st se sip spr si sig ses skoid sktid skt ske sks skv saoid suoid scid sdd")

// CheckSignature returns what is wrong with a shared access signature, which is a
// URL's query as it stands in a request, without question mark: it says who may
// do something, and nothing of what is done. The error does not quote it.
func CheckSignature(query []byte) error {
	for parameter := range bytes.SplitSeq(query, []byte("&")) {
		name, value, _ := bytes.Cut(parameter, []byte("="))
		if !slices.Contains(signatureParameters, string(name)) || bytes.ContainsFunc(value, isNoQuery) {
			return invalid("this is no shared access signature: it has other parameters than those, or characters that no query has")
		}
	}
	return nil
}

func isNoQuery(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("#\"<>\\", r) }
