//go:build cgo

package custody_test

import (
	"os"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/hsmtest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/token"
)

// hsmHelper makes this test binary the helper for tokens.
const hsmHelper = "LOCKBOX_TEST_HSM_HELPER"

func init() {
	if os.Getenv(hsmHelper) != "" {
		os.Exit(token.Main())
	}
	keyServices["pkcs11"] = func(t *testing.T) custody.KeyService {
		cfg := hsmtest.New(t)
		t.Setenv(hsmHelper, "1")
		cfg.Helper = os.Args[0]
		s := hsm.New(cfg)
		t.Cleanup(func() { s.Close() })
		return s
	}
}
