package configs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/configs"
)

type serial string

type settings struct {
	Listen string        `mapstructure:"listen"`
	Serial serial        `mapstructure:"serial"`
	Debug  bool          `mapstructure:"debug"`
	Size   int64         `mapstructure:"size"`
	Lease  time.Duration `mapstructure:"lease"`
	Names  []string      `mapstructure:"names"`
	Tunnel tunnel        `mapstructure:"tunnel"`
	Disks  []disk        `mapstructure:"disks"`
}

type tunnel struct {
	Address   string        `mapstructure:"address"`
	DeadMan   time.Duration `mapstructure:"dead_man"`
	Retries   int           `mapstructure:"retries"`
	Inner     inner         `mapstructure:"inner"`
	Forbidden bool          `mapstructure:"forbidden"`
}

type inner struct {
	Depth uint8 `mapstructure:"depth"`
}

type disk struct {
	ID   string        `mapstructure:"id"`
	Wait time.Duration `mapstructure:"wait"`
}

func defaults() settings {
	return settings{
		Listen: "127.0.0.1:8443",
		Lease:  8 * time.Hour,
		Names:  []string{"a", "b", "c"},
		Tunnel: tunnel{Address: "lockbox.example:8444", DeadMan: time.Minute, Retries: 3},
		Disks:  []disk{{ID: "default1", Wait: time.Second}, {ID: "default2"}},
	}
}

func load(t *testing.T, yaml string) (settings, error) {
	t.Helper()
	return configs.Load(strings.NewReader(yaml), "LOCKBOXTEST", defaults())
}

func TestLoad(t *testing.T) {
	got, err := load(t, `
# what the file leaves out keeps its default
serial: DBX0001
size: 5
names: [x]
tunnel:
  dead_man: 90s
  inner: {depth: 7}
disks:
  - id: DISK1
    wait: 1m
  - id: with.dots
`)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Serial, want.Size, want.Names = "DBX0001", 5, []string{"x"}
	want.Tunnel.DeadMan, want.Tunnel.Inner.Depth = 90*time.Second, 7
	want.Disks = []disk{{ID: "DISK1", Wait: time.Minute}, {ID: "with.dots"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLoadNothingIsTheDefault(t *testing.T) {
	for _, yaml := range []string{"", "# only a comment\n", "---\n", "# a comment\n---\n"} {
		got, err := load(t, yaml)
		if err != nil {
			t.Fatalf("%q: %v", yaml, err)
		}
		if diff := cmp.Diff(defaults(), got); diff != "" {
			t.Errorf("%q: %s", yaml, diff)
		}
	}
}

func TestLoadDoesNotTouchTheDefault(t *testing.T) {
	def := defaults()
	if _, err := configs.Load(strings.NewReader("names: [x]\ndisks: [{id: other}]"), "LOCKBOXTEST", def); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaults(), def); diff != "" {
		t.Error(diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := []struct {
		name, yaml string
		want       []string // one per problem
	}{
		{"unknown key", "lisen: x", []string{"lisen: unknown key: remove it or correct it (known here: debug, disks, lease, listen, names, serial, size, tunnel)"}},
		{"unknown nested key", "tunnel: {inner: {deep: 1}}", []string{"tunnel.inner.deep: unknown key: remove it or correct it (known here: depth)"}},
		{"unknown key in a list", "disks: [{id: a}, {idd: b}]", []string{"disks[1].idd: unknown key: remove it or correct it (known here: id, wait)"}},
		{"unknown section", "tunel: {address: x}", []string{"tunel: unknown key"}},
		{"unknown key without a value", "lisen:", []string{"lisen: has no value"}},
		{"key without a value", "tunnel:\n  address:\n", []string{"tunnel.address: has no value"}},
		{"duration without a unit", "lease: 15", []string{"lease: 15 is not a duration: write a unit, as in 90s, 15m or 8h"}},
		{"duration without a unit, quoted", `lease: "15"`, []string{`lease: "15" is not a duration`}},
		{"duration as a fraction", "tunnel: {dead_man: 1.5}", []string{"tunnel.dead_man: 1.5 is not a duration"}},
		{"duration in a list", "disks: [{id: a, wait: 3}]", []string{"disks[0].wait: 3 is not a duration"}},
		{"number for a string", "listen: 8443", []string{"listen: expected type 'string', got unconvertible type 'int'"}},
		{"string for a number", `size: "5"`, []string{"size: expected type 'int64', got unconvertible type 'string'"}},
		{"fraction for a number", "size: 5.5", []string{"size: "}},
		{"negative for unsigned", "tunnel: {inner: {depth: -1}}", []string{"tunnel.inner.depth: "}},
		{"overflow", "tunnel: {inner: {depth: 300}}", []string{"tunnel.inner.depth: "}},
		{"string for a boolean", `debug: "true"`, []string{"debug: expected type 'bool'"}},
		{"number for a boolean", "debug: 1", []string{"debug: expected type 'bool'"}},
		{"scalar for a list", "names: x", []string{"names: "}},
		{"scalar for a section", "tunnel: x", []string{"tunnel: "}},
		{"list for a section", "tunnel: [x]", []string{"tunnel: "}},
		{"duplicate key", "listen: a\nlisten: b", []string{"the file is not valid YAML: "}},
		{"not YAML", "listen: [", []string{"the file is not valid YAML: "}},
		{"not a map", "- a\n- b", []string{"the file is not valid YAML: "}},
		{"two documents", "listen: a\n---\nsize: 3\n", []string{"the file has more than one YAML document"}},
		{"too big", "listen: " + strings.Repeat("x", 1<<20), []string{"the file has more than 1048576 bytes"}},
		{"all at once", "lisen: x\nlease: 15\ntunnel: {retries: many, adress: y}\ndisks: [{id: 3}]", []string{
			"disks[0].id: expected type 'string'",
			"lease: 15 is not a duration",
			"lisen: unknown key",
			"tunnel.adress: unknown key",
			"tunnel.retries: expected type 'int'",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.yaml)
			problem, ok := errors.AsType[*configs.Error](err)
			if !ok {
				t.Fatalf("got error %v, want a *configs.Error", err)
			}
			if len(problem.Problems) != len(tt.want) {
				t.Fatalf("got %d problems, want %d:\n%v", len(problem.Problems), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(problem.Problems[i], want) || strings.Contains(problem.Problems[i], "\n") {
					t.Errorf("got %q, want it to start with %q", problem.Problems[i], want)
				}
			}
			if diff := cmp.Diff(defaults(), got); diff != "" {
				t.Errorf("a refused file changed the settings: %s", diff)
			}
		})
	}
}

func TestEnvironmentOverrides(t *testing.T) {
	t.Setenv("LOCKBOXTEST_LISTEN", "12345") // text, though it looks like a number
	t.Setenv("LOCKBOXTEST_SERIAL", "DBX0009")
	t.Setenv("LOCKBOXTEST_DEBUG", "true")
	t.Setenv("LOCKBOXTEST_SIZE", "-7")
	t.Setenv("LOCKBOXTEST_TUNNEL_DEAD_MAN", "5s")
	t.Setenv("LOCKBOXTEST_TUNNEL_RETRIES", "9") // in neither file
	got, err := load(t, "listen: from-file\nlease: 1h\ntunnel: {dead_man: 1m}")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Listen, want.Serial, want.Debug, want.Size, want.Lease = "12345", "DBX0009", true, -7, time.Hour
	want.Tunnel.DeadMan, want.Tunnel.Retries = 5*time.Second, 9
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentIsCheckedToo(t *testing.T) {
	tests := []struct{ name, value, want string }{
		{"LOCKBOXTEST_LEASE", "15", `lease: environment variable LOCKBOXTEST_LEASE: "15" is not a duration`},
		{"LOCKBOXTEST_DEBUG", "1", "debug: environment variable LOCKBOXTEST_DEBUG: "},
		{"LOCKBOXTEST_SIZE", "5.0", "size: environment variable LOCKBOXTEST_SIZE: "},
		{"LOCKBOXTEST_NAMES", "a,b", "names: environment variable LOCKBOXTEST_NAMES: this key can be set in the file only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(tt.name, tt.value)
			_, err := load(t, "")
			problem, ok := errors.AsType[*configs.Error](err)
			if !ok || len(problem.Problems) != 1 || !strings.HasPrefix(problem.Problems[0], tt.want) {
				t.Errorf("got %v, want one problem: %s", err, tt.want)
			}
		})
	}
}

func TestStructsThatCannotWorkPanic(t *testing.T) {
	mustPanic(t, func() {
		configs.Load(strings.NewReader(""), "X", struct {
			M map[string]int `mapstructure:"m"`
		}{})
	})
	mustPanic(t, func() { configs.Load(strings.NewReader(""), "X", struct{ Untagged string }{}) })
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestLoadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	if _, err := configs.LoadFile(path, "X", defaults()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: got %v", err)
	}
	if err := os.WriteFile(path, []byte("listen: a\nbad: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := configs.LoadFile(path, "X", defaults()); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "bad: unknown key") {
		t.Errorf("got %v, want the path and the key", err)
	}
	if err := os.WriteFile(path, []byte("listen: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := configs.LoadFile(path, "X", defaults()); err != nil || c.Listen != "a" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("listen: a\ntunnel: {dead_man: 1s}\ndisks: [{id: x}]")
	f.Add("a: &a [*a]\n---\n")
	f.Fuzz(func(t *testing.T, yaml string) {
		c, err := configs.Load(strings.NewReader(yaml), "LOCKBOXTEST", defaults())
		if err != nil && !cmp.Equal(c, defaults()) {
			t.Error("a refused file changed the settings")
		}
	})
}
