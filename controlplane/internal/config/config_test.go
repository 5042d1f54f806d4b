package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/controlplane/internal/config"
)

func TestExampleIsTheDefaults(t *testing.T) {
	got, err := config.Load("../../../configs/lockboxd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.DataDir = "/var/lib/lockboxd"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the example differs from the documented defaults (-want +got):\n%s", diff)
	}
}

func TestExampleNamesEveryOption(t *testing.T) {
	data, err := os.ReadFile("../../../configs/lockboxd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var check func(reflect.Type)
	check = func(s reflect.Type) {
		for f := range s.Fields() {
			key := f.Tag.Get("mapstructure")
			if !regexp.MustCompile(`(?m)^[# -]*` + key + `:`).Match(data) {
				t.Errorf("the example does not name %s", key)
			}
			switch {
			case f.Type.Kind() == reflect.Struct:
				check(f.Type)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				check(f.Type.Elem())
			}
		}
	}
	check(reflect.TypeFor[config.Config]())
}

func TestDefaultsNeedOnlyADirectory(t *testing.T) {
	c := config.Default()
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "data_dir") {
		t.Errorf("without data_dir: %v", err)
	}
	c.DataDir = "/var/lib/lockboxd"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateReportsAllProblems(t *testing.T) {
	c := config.Config{
		DataDir: "relative", MasterKeyFile: "also/relative", PoliciesDir: "x",
		API:     config.Listener{Address: "nonsense"},
		Tunnel:  config.Listener{Address: "nonsense", Names: []string{"https://x", ""}},
		DeadMan: time.Hour,
		Log:     config.Log{Level: "loud", Format: "xml"},
		SignIn: []config.Provider{{ID: "a"}, {ID: "a", Session: time.Second, CAFile: "x"},
			{ID: "b", Domains: []string{"a.example"}, ACR: []string{""}}, {ID: "c", Domains: []string{"A.example"}, AMR: []string{""}}},
		Notify: config.Notify{
			BaseURL: "http://x", From: "nobody", File: "/a/../b",
			SMTP:     config.SMTP{Address: "mail", TLS: "none", CAFile: "x", Username: "u"},
			Webhooks: config.Webhooks{Networks: []string{"10.1.2.3/8"}, CAFile: "x"},
		},
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, key := range []string{
		"data_dir", "master_key_file", "policies_dir", "api.address", "api.names", "tunnel.address", "tunnel.names[0]",
		"tunnel.names[1]", "dead_man", "timers.request_expiry", "log.level", "log.format",
		"notify.base_url", "notify.from", "notify.file", "notify.smtp.address", "notify.smtp.tls", "notify.smtp.ca_file", "notify.smtp.username",
		"sign_in[1].id", "sign_in[0].issuer", "sign_in[0].client_id", "sign_in[0].domains", "sign_in[1].session", "sign_in[1].ca_file",
		"sign_in[2].mfa_acr", "sign_in[3].mfa_amr", "sign_in[3].domains",
		"notify.webhooks.networks", "notify.webhooks.ca_file",
	} {
		if !strings.Contains(err.Error(), "\n  "+key+": ") {
			t.Errorf("%s is not reported in:\n%v", key, err)
		}
	}
}

func TestTimersNeedDemo(t *testing.T) {
	c := config.Default()
	c.DataDir = "/var/lib/lockboxd"
	c.Timers.RequestExpiry = 3 * time.Second
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "demo_timers") {
		t.Errorf("without demo_timers: %v", err)
	}
	c.DemoTimers = true
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lockboxd.yaml")
	text := "data_dir: /srv/lockboxd\napi:\n  address: 0.0.0.0:443\n  names: [lockbox.example]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LOCKBOXD_DEAD_MAN", "30s")
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.API.Address != "0.0.0.0:443" || c.API.Names[0] != "lockbox.example" || c.DeadMan != 30*time.Second {
		t.Errorf("got %+v", c)
	}
	if c.MasterKeyPath() != "/srv/lockboxd/master.key" || c.Outbox() != "/srv/lockboxd/outbox" {
		t.Errorf("paths %s, %s", c.MasterKeyPath(), c.Outbox())
	}
	if err := os.WriteFile(path, []byte(text+"nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil {
		t.Error("an unknown key was accepted")
	}
}

func TestKeysAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		keys config.Keys
		want []string
	}{
		"nothing":          {config.Keys{}, []string{"keys.service"}},
		"no token":         {config.Keys{Service: config.PKCS11Keys}, []string{"keys.pkcs11.module"}},
		"half a token":     {config.Keys{Service: "local", PKCS11: config.PKCS11{Module: "lib.so", Helper: "x"}}, []string{"keys.pkcs11.module", "keys.pkcs11.helper", "keys.pkcs11.pin_file", "keys.pkcs11.token", "keys.pkcs11.label"}},
		"no key":           {config.Keys{Service: config.KeyVaultKeys}, []string{"keys.key_vault.key"}},
		"half an identity": {config.Keys{Service: "local", KeyVault: config.KeyVault{ClientID: "x", Authority: "http://a/b", Hosts: []string{"https://x/"}, CAFile: "y"}}, []string{"keys.key_vault.client_secret_file", "keys.key_vault.authority", "keys.key_vault.hosts", "keys.key_vault.ca_file"}},
		"a key alone":      {config.Keys{Service: "local", KeyVault: config.KeyVault{Key: "https://a/keys/b", Authority: "https://a"}}, []string{"keys.key_vault.client_id", "keys.key_vault.client_secret_file", "keys.key_vault.hosts"}},
	} {
		cfg := config.Default()
		cfg.DataDir, cfg.Keys = "/var/lib/lockboxd", c.keys
		err := cfg.Validate()
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, key := range c.want {
			if !strings.Contains(err.Error(), key+": ") {
				t.Errorf("%s: %s is not reported in: %v", name, key, err)
			}
		}
	}
}
