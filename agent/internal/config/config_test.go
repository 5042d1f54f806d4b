package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/protocol"
)

const example = "../../../configs/agent.yaml"

func TestExampleIsTheDefaults(t *testing.T) {
	got, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Serial = "DBX0001"
	want.StateDir = "/var/lib/databox-agent"
	want.RunDir = "/run/databox-agent"
	want.BlobRoots = []string{"/srv/blobs"}
	want.Copy.Accounts = []Account{{"contosodata", "https://contosodata.blob.core.windows.net"}}
	want.Disks = []Disk{{"disk1", "/srv/databox/DBX0001/disk1.img"}, {"disk2", "/srv/databox/DBX0001/disk2.img"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the example differs from the documented defaults (-want +got):\n%s", diff)
	}
	if id := (protocol.NodeID{Serial: "DBX0001", Node: 1}); got.NodeID() != id {
		t.Errorf("NodeID() = %v, want %v", got.NodeID(), id)
	}
	if got.Socket() != "/run/databox-agent/agent.sock" {
		t.Errorf("Socket() = %q", got.Socket())
	}
}

// Every option has to be in the example file.
func TestExampleIsComplete(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for f := range typ.Fields() {
			key := f.Tag.Get("mapstructure")
			if !strings.Contains(string(text), key+":") {
				t.Errorf("option %s is not in %s", key, example)
			}
			switch {
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				walk(f.Type.Elem())
			}
		}
	}
	walk(reflect.TypeFor[Config]())
}

func TestEnvironmentOverrides(t *testing.T) {
	t.Setenv("DATABOX_AGENT_LOCK_DEAD_MAN", "7s")
	got, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lock.DeadMan != 7*time.Second {
		t.Errorf("lock.dead_man = %v, want 7s from the environment", got.Lock.DeadMan)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key":   "lock:\n  dead_mann: 5s\n",
		"no unit":       "lock:\n  dead_man: 5\n",
		"empty":         "",
		"not YAML":      "serial: [",
		"string for it": "node: \"1\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "agent.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(path); err == nil {
				t.Error("it was accepted")
			}
		})
	}
}

func TestValidateNamesEveryProblemAtOnce(t *testing.T) {
	bad := Config{
		Serial: "dbx", Node: 3, StateDir: "state", RunDir: "/", LocalSocket: "/" + strings.Repeat("s", 120),
		Disks:        []Disk{{"Disk1", "rel"}, {"Disk1", "rel"}},
		BlobRoots:    []string{"/srv/../etc"},
		ControlPlane: ControlPlane{TunnelAddress: "nowhere"},
		Share: Share{
			SMBD: "smbd", Address: "localhost", Port: 70000, Allow: []string{"10.0.0.7/24"},
			NFS: NFS{Enabled: true, Address: "any", Port: -1, Allow: []string{"10.1.2.3/24"}},
		},
		Copy: Copy{Accounts: []Account{{"Contoso", "http://example.com"}, {"Contoso", ""}}},
		Log:  Log{Level: "loud", Format: "xml"},
	}
	err := bad.Validate()
	e, ok := errors.AsType[*configs.Error](err)
	if !ok {
		t.Fatalf("Validate() = %v, want a *configs.Error", err)
	}
	for _, key := range strings.Fields(`serial node state_dir run_dir disks[0].id disks[0].image disks[1].id disks[1].image
		blob_roots[0] local_socket control_plane.tunnel_address lock.dead_man lock.challenge_ttl lock.commit_within
		lock.max_lease share.smbd share.address share.port share.allow share.nfs.address share.nfs.port share.nfs.allow copy.parallel copy.accounts[0].account copy.accounts[0].endpoint
		copy.accounts[1].account copy.accounts[1].endpoint
		recording.quota_mib recording.part_mib recording.min_free_mib reconnect.min log.level log.format`) {
		if !strings.Contains("\n"+strings.Join(e.Problems, "\n"), "\n"+key+": ") {
			t.Errorf("no problem names %s", key)
		}
	}
	if t.Failed() {
		t.Logf("problems:\n%s", strings.Join(e.Problems, "\n"))
	}
}
