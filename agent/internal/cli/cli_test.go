package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/config"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

const goodDigest = "sha256:1111"

// bench runs the command with an agent that remembers what it was asked.
type bench struct {
	t      *testing.T
	dir    string
	config string
	stdin  string
	status error
	calls  []string
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir()}
	b.config = b.file("agent.yaml", "serial: DBX0001\nstate_dir: /var/lib/databox-agent\nrun_dir: /run/databox-agent\ndisks:\n  - id: disk1\n    image: /srv/disk1.img\n")
	return b
}

func (b *bench) file(name, content string) string {
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

func (b *bench) program() Program {
	answer := func(call string) func(context.Context, config.Config) (*devicev1.NodeStatus, error) {
		return func(_ context.Context, cfg config.Config) (*devicev1.NodeStatus, error) {
			b.calls = append(b.calls, call+" "+cfg.Serial)
			return &devicev1.NodeStatus{
				Serial: "DBX0001", Node: 1, State: "Unlocked", Purpose: "support-access", LeaseEnd: 4102444800, LastRelockReason: string(lock.DeadMan),
				Disks:    []*devicev1.DiskStatus{{Disk: "disk1", State: "mounted", Method: "XTS-AES-128", LoopDevices: []string{"/dev/loop7"}}},
				Shares:   []*devicev1.ShareStatus{{Name: "contoso_BlockBlob", State: "open", Protocol: "smb", Address: "127.0.0.1:4450"}},
				Sessions: []*devicev1.SessionStatus{{Session: "ses-1", Engineer: "erin@provider.example", Connections: 2}},
				Job:      &devicev1.JobStatus{State: "halted", FilesDone: 3, FilesTotal: 5},
			}, b.status
		}
	}
	return Program{
		Run: func(_ context.Context, cfg config.Config) error {
			b.calls = append(b.calls, "run "+cfg.Serial)
			return nil
		},
		ReadPolicy: func(envelope []byte) (string, string, error) {
			if string(envelope) != "policy" {
				return "", "", errors.New("it is not signed")
			}
			return goodDigest, "Trust policy version 1 of tenant contoso", nil
		},
		Enroll: func(_ context.Context, _ config.Config, server, token string, policy []byte) error {
			b.calls = append(b.calls, "enroll "+server+" "+token+" "+string(policy))
			return nil
		},
		Status: answer("status"), Lock: answer("lock"),
		Keeper: func() error { b.calls = append(b.calls, "keeper"); return nil },
	}
}

func (b *bench) run(args ...string) (code int, out, errOut string) {
	b.calls = nil
	var o, e bytes.Buffer
	code = Run(b.t.Context(), b.program(), args, strings.NewReader(b.stdin), &o, &e)
	return code, o.String(), e.String()
}

func (b *bench) called(want ...string) {
	b.t.Helper()
	if strings.Join(b.calls, "; ") != strings.Join(want, "; ") {
		b.t.Errorf("calls: %q, want %q", b.calls, want)
	}
}

func TestStatusAndLock(t *testing.T) {
	b := newBench(t)
	for _, command := range []string{"status", "lock"} {
		code, out, errOut := b.run("--config", b.config, command)
		if code != ExitOK || errOut != "" {
			t.Errorf("%s: exit %d: %s", command, code, errOut)
		}
		b.called(command + " DBX0001")
		for _, want := range []string{"DBX0001/1", "Unlocked support-access", "2100-01-01", "dead-man", "/dev/loop7", "127.0.0.1:4450", "erin@provider.example, 2 connections", "3 of 5 files"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not show %q:\n%s", command, want, out)
			}
		}
		code, out, _ = b.run("--config", b.config, command, "--output", "json")
		var parsed struct {
			State string    `json:"state"`
			Lease time.Time `json:"lease_end"`
			Disks []struct {
				LoopDevices []string `json:"loop_devices"`
			} `json:"disks"`
		}
		if err := json.Unmarshal([]byte(out), &parsed); code != ExitOK || err != nil || parsed.State != "Unlocked" || parsed.Lease.Year() != 2100 || len(parsed.Disks) != 1 || len(parsed.Disks[0].LoopDevices) != 1 {
			t.Errorf("%s as JSON: exit %d, %v\n%s", command, code, err, out)
		}
		if code, _, errOut = b.run("--config", b.config, command, "--output", "yaml"); code != ExitUsage || !strings.Contains(errOut, "text, json, raw") {
			t.Errorf("%s as YAML: exit %d: %s", command, code, errOut)
		}
		b.called() // nothing was done before the mistake was found
	}
}

func TestErrorsAreOneLineWithAnExitCode(t *testing.T) {
	b := newBench(t)
	bad := b.file("bad.yaml", "serial: DBX0001\nstate_dir: /a\nrun_dir: /b\nlock:\n  dead_mann: 5s\ndisks:\n  - id: disk1\n    image: /i\n")
	for _, c := range []struct {
		name string
		args []string
		fail error
		code int
		want string
	}{
		{"unknown command", []string{"unlock"}, nil, ExitUsage, `unknown command "unlock"`},
		{"unknown flag", []string{"status", "--all"}, nil, ExitUsage, "--all"},
		{"flag without value", []string{"--config"}, nil, ExitUsage, "--config"},
		{"argument", []string{"--config", b.config, "lock", "disk1"}, nil, ExitUsage, "takes no arguments"},
		{"no file", []string{"--config", "/nowhere/agent.yaml", "status"}, nil, ExitUsage, "/nowhere/agent.yaml"},
		{"misspelt", []string{"--config", bad, "check-config"}, nil, ExitUsage, "lock.dead_mann"},
		{"not running", []string{"--config", b.config, "status"}, errors.New("cannot reach the agent"), ExitFailed, "cannot reach the agent"},
		{"refused", []string{"--config", b.config, "lock"}, protocol.Errorf(protocol.CodeFaulted, "faulted"), ExitRefused, "(faulted)"},
		{"enroll without flags", []string{"--config", b.config, "enroll"}, nil, ExitUsage, "--trust-policy are needed"},
	} {
		b.status = c.fail
		code, out, errOut := b.run(c.args...)
		if code != c.code || out != "" || !strings.HasPrefix(errOut, "databox-agent: ") || !strings.Contains(errOut, c.want) {
			t.Errorf("%s: exit %d\n%s%s", c.name, code, out, errOut)
		}
		if c.name != "misspelt" && strings.Count(errOut, "\n") != 1 { // all problems of a file are told at once
			t.Errorf("%s: more than one line:\n%s", c.name, errOut)
		}
	}
}

func TestRunAndCheckConfig(t *testing.T) {
	b := newBench(t)
	if code, _, errOut := b.run("--config", b.config, "run"); code != ExitOK {
		t.Errorf("exit %d: %s", code, errOut)
	}
	b.called("run DBX0001")
	if code, out, _ := b.run("--config", b.config, "check-config"); code != ExitOK || !strings.Contains(out, "is fine") {
		t.Errorf("check-config: exit %d: %s", code, out)
	}
	if code, _, _ := b.run(KeeperCommand); code != ExitOK {
		t.Errorf("keeper: exit %d", code)
	}
	b.called("keeper")
	if code, out, _ := b.run(); code != ExitOK || !strings.Contains(out, "enroll") || strings.Contains(out, KeeperCommand+" ") {
		t.Errorf("help: exit %d\n%s", code, out)
	}
}

func TestEnroll(t *testing.T) {
	b := newBench(t)
	token, policy := b.file("token", "lbxjoin.a.b.c\n"), b.file("policy", "policy")
	args := func(more ...string) []string {
		return append([]string{"--config", b.config, "enroll", "--server", "cp:8443", "--token-file", token, "--trust-policy", policy}, more...)
	}
	enrolled := "enroll cp:8443 lbxjoin.a.b.c policy"
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string
		calls       []string
	}{
		{"right digest", "", args("--digest", goodDigest), ExitOK, "", []string{enrolled}},
		{"wrong digest", "yes\n", args("--digest", "sha256:2222"), ExitRefused, "nothing was installed", nil},
		{"yes", "yes\n", args(), ExitOK, "", []string{enrolled}},
		{"no", "no\n", args(), ExitUsage, "nothing was installed", nil},
		{"just return", "\n", args(), ExitUsage, "nothing was installed", nil},
		{"nobody there", "", args(), ExitUsage, "nothing was installed", nil},
		{"bad policy", "yes\n", args("--trust-policy", b.file("other", "other")), ExitFailed, "it is not signed", nil},
		{"no policy", "yes\n", args("--trust-policy", "/nowhere"), ExitFailed, "/nowhere", nil},
		{"large policy", "yes\n", args("--trust-policy", b.file("large", strings.Repeat("x", maxFile+1))), ExitFailed, "too large", nil},
		{"token from stdin", "lbxjoin.a.b.c\n", args("--token-file", "-", "--digest", goodDigest), ExitOK, "", []string{enrolled}},
	} {
		b.stdin = c.stdin
		code, out, errOut := b.run(c.args...)
		if code != c.code || !strings.Contains(errOut, c.want) {
			t.Errorf("%s: exit %d\n%s%s", c.name, code, out, errOut)
		}
		if c.code == ExitOK && (!strings.Contains(out, goodDigest) || !strings.Contains(out, "contoso")) {
			t.Errorf("%s: the policy is not shown:\n%s", c.name, out)
		}
		if strings.Contains(out+errOut, "lbxjoin") {
			t.Errorf("%s: the token is shown", c.name)
		}
		b.called(c.calls...)
	}
}
