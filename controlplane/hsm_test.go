//go:build cgo

package controlplane_test

import (
	"os"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/hsmtest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/token"
)

// asHelper has this test binary be lockbox-hsm.
const asHelper = "LOCKBOX_TEST_AS_HELPER"

func init() {
	if os.Getenv(asHelper) != "" {
		os.Exit(token.Main())
	}
	keyConfigs["pkcs11"] = func(t *testing.T, cfg *controlplane.Config) func() {
		has := hsmtest.New(t)
		t.Setenv(asHelper, "1")
		cfg.Keys.Service = "pkcs11"
		p := &cfg.Keys.PKCS11
		p.Helper, p.Module, p.Token, p.PINFile = os.Args[0], has.Module, has.Token, has.PINFile
		return func() {
			if err := os.WriteFile(has.PINFile, []byte("wrong"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}
