package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
)

const examplesDir = "../../../configs/jit/examples"

func TestTheExamplesHold(t *testing.T) {
	set, err := policy.Load(configs.JIT())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(examplesDir + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	var out bytes.Buffer
	if err := testPolicies(&out, set, files); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	// Every factor of the rules is blocked by some example, and they notice when a
	// rule is gone.
	for _, r := range set.Rules() {
		if r.Factor != "" && !strings.Contains(blockedIn(t, files), r.Factor) {
			t.Errorf("no example is blocked by %s", r.Factor)
		}
	}
}

func blockedIn(t *testing.T, files []string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range files {
		list, err := configs.LoadFile(f, "LOCKBOX_EXAMPLE", policyExamples{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Examples {
			all.WriteString(strings.Join(e.Want.Blocked, " ") + " ")
		}
	}
	return all.String()
}

func TestAWrongExampleIsFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.json")
	for text, want := range map[string]string{
		`{"examples": [{"name": "nobody", "facts": {"engineer": "e"}, "want": {"passed": true}}]}`:  "1 of 1 examples failed",
		`{"examples": [{"name": "nobody", "facts": {"engineeer": "e"}, "want": {"passed": true}}]}`: "engineeer",
		`{"examples": []}`: "holds no examples",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code := Run(t.Context(), []string{"policy", "test", file, "--dir", "../../../configs/jit"}, nil, &out, &errs)
		if code == ExitOK || !strings.Contains(errs.String(), want) {
			t.Errorf("%s: %d, %s%s", text, code, out.String(), errs.String())
		}
	}
}
