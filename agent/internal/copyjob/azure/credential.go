package azure

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
)

// credential is one of the two.
type credential struct {
	key string // of the account, in base64
	sas string // a query, as in sv=…&sig=…
}

// maxCredential bounds a credential file, in bytes.
const maxCredential = 8 << 10

// readCredential reads the credential of an account. The file has one line, with
// the names that connection strings use:
//
//	SharedAccessSignature=sv=…&sig=…
//	AccountKey=<base64>
//
// The first is better: it can be limited to the containers, to writing, and to a
// date. The file must be readable by its owner alone. Errors do not quote it.
func readCredential(name string) (credential, error) {
	f, err := os.Open(name)
	if err != nil {
		return credential{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return credential{}, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return credential{}, fmt.Errorf("%s holds a secret and others can read it: run 'chmod 600 %s'", name, name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredential))
	defer clear(data)
	if err != nil {
		return credential{}, err
	}
	kind, value, _ := strings.Cut(strings.TrimSpace(string(data)), "=")
	switch kind {
	case "AccountKey":
		if raw, err := base64.StdEncoding.DecodeString(value); err == nil && len(raw) > 0 {
			return credential{key: value}, nil
		}
	case "SharedAccessSignature":
		value = strings.TrimPrefix(value, "?")
		if q, err := url.ParseQuery(value); err == nil && q.Get("sig") != "" && !strings.ContainsAny(value, " \r\n") {
			return credential{sas: value}, nil
		}
	}
	return credential{}, errors.New(name + " has no line SharedAccessSignature=… or AccountKey=…")
}
