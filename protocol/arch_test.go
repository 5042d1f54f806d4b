package protocol

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The plan of the house, as the README draws it. A package that is not here
// fails the test: change the plan first.
var plan = strings.Fields(`
	protocol protocol/device/v1 protocol/lockbox/v1 protocol/rpc protocol/gather protocol/tunnel
	protocol/approval protocol/sealing protocol/auditlog protocol/manifest protocol/recording
	certs configs
	agent agent/bitlocker agent/cmd/databox-agent
	agent/internal/config agent/internal/state agent/internal/journal agent/internal/recorder agent/internal/disk agent/internal/disk/disktest
	agent/internal/share agent/internal/share/nfs agent/internal/changes agent/internal/erasure agent/internal/copyjob agent/internal/copyjob/azure agent/internal/copyjob/azure/azuretest agent/internal/shell agent/internal/shell/files agent/internal/lock
	agent/internal/uplink agent/internal/support agent/internal/support/transfer agent/internal/localapi agent/internal/cli
	controlplane controlplane/client controlplane/cmd/lockboxd controlplane/cmd/lockbox
	controlplane/internal/config controlplane/internal/store controlplane/internal/store/storetest
	controlplane/internal/auth controlplane/internal/policy controlplane/internal/audit controlplane/internal/recordings
	controlplane/internal/broker controlplane/internal/custody controlplane/internal/notify
	controlplane/internal/custody/keyvault controlplane/internal/custody/keyvault/keyvaulttest
	controlplane/internal/custody/hsm controlplane/internal/custody/hsm/wire controlplane/internal/custody/hsm/token controlplane/internal/custody/hsm/hsmtest
	controlplane/cmd/lockbox-hsm
	controlplane/internal/orders controlplane/internal/orders/orderstest controlplane/internal/lockbox
	controlplane/internal/api
	controlplane/internal/cli
	simulator/simtest simulator/profile simulator/image simulator/netfault simulator/azurite simulator/figure simulator/fleet simulator/history simulator/diskbench simulator/sessionbench simulator/actor simulator/hostile simulator/world
	simulator/scenario simulator/cli simulator/cmd/databox-sim
`)

// topLevel is all that lies beside dot-files.
var topLevel = strings.Fields("agent controlplane protocol simulator certs configs go.mod go.sum Makefile README.md LICENSE")

// floors is the plan of the two houses, lowest floor first. Within its house a
// package imports only what lies on a lower floor.
var floors = map[string][]string{
	"agent/internal": {
		"config state",
		"journal disk recorder",
		"share copyjob changes erasure shell",
		"lock",
		"uplink support localapi cli",
	},
	"controlplane/internal": {
		"config store",
		"auth",
		"policy audit recordings broker",
		"custody notify",
		"orders",
		"lockbox",
		"api portal cli",
	},
}

// folders says which folders' exported packages a folder may import.
var folders = map[string]string{
	"protocol":     "protocol",
	"certs":        "protocol",
	"configs":      "",
	"agent":        "protocol certs configs",
	"controlplane": "protocol certs configs",
	"simulator":    "protocol certs configs agent controlplane",
}

// pure packages have no clock, no logger, no files and no network, and import
// nothing of ours beyond protocol.
var pure = "agent/bitlocker controlplane/internal/policy protocol/approval protocol/sealing protocol/auditlog protocol/manifest protocol/recording"

var impure = "os net net/http log log/slog github.com/rs/zerolog"

// owners are the only packages that may import a given library.
var owners = map[string]string{
	"github.com/hashicorp/yamux":      "protocol/tunnel",
	"github.com/spf13/viper":          "configs",
	"golang.org/x/crypto/ssh":         "certs protocol/approval agent/internal/support controlplane/internal/cli simulator/actor",
	"github.com/willscott/go-nfs":     "agent/internal/share/nfs",
	"github.com/go-git/go-billy":      "agent/internal/share/nfs",
	"os/exec":                         "agent/internal/copyjob/azure/azuretest agent/internal/disk agent/internal/share controlplane/internal/cli controlplane/internal/custody/hsm simulator/simtest simulator/image simulator/azurite simulator/fleet simulator/diskbench simulator/sessionbench simulator/scenario",
	"github.com/Azure":                "agent/internal/copyjob/azure simulator/azurite simulator/sessionbench",
	"github.com/ThalesGroup/crypto11": cgoPackage,
	"github.com/miekg/pkcs11":         cgoPackage,
	"unsafe":                          "protocol/device/v1 protocol/lockbox/v1", // generated
}

// cgoPackage is the only one that needs C. Only cgoProgram contains it.
const (
	cgoPackage = "controlplane/internal/custody/hsm/token"
	cgoProgram = "controlplane/cmd/lockbox-hsm"
)

const module = "github.com/databox-lockbox/lockbox"

type pkg struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

func TestPlan(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if !slices.Contains(plan, name) {
			t.Errorf("%s is not on the plan: add it to the plan, here and in the README's picture, first", name)
		}
		for _, imp := range p.Imports {
			if why := forbidden(name, imp); why != "" {
				t.Errorf("%s imports %s: %s", name, strings.TrimPrefix(imp, module+"/"), why)
			}
		}
		ours := slices.DeleteFunc(slices.Clone(p.Imports), func(i string) bool { return !strings.HasPrefix(i, module) })
		if path.Base(path.Dir(name)) == "cmd" && len(ours) != 1 {
			t.Errorf("%s imports %d packages of ours: a main imports exactly one", name, len(ours))
		}
		if has(pure, name) {
			checkClock(t, p)
		}
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s lies beside the agreed top level", e.Name())
		}
	}
}

func forbidden(name, imp string) string {
	dep, ours := strings.CutPrefix(imp, module+"/")
	if !ours {
		for lib, who := range owners {
			if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !owned(who, name) {
				return "only these may: " + who
			}
		}
		if has(pure, name) && has(impure, imp) {
			return "a pure package has no clock, logger, files or network"
		}
		return ""
	}
	from, to := top(name), top(dep)
	switch {
	case dep == cgoPackage && name != cgoProgram:
		return "it needs C: only " + cgoProgram + " contains it"
	case strings.HasPrefix(dep, name+"/"): // its own inner packages
		return ""
	case has(pure, name) && to != "protocol":
		return "it is pure"
	case from == "protocol" && name == "protocol":
		return "it imports nothing of ours"
	case from != to && !has(folders[from], to):
		return from + " may import only: " + folders[from]
	case from != to || floors[path.Dir(name)] == nil || floors[path.Dir(dep)] == nil:
		return ""
	case floor(path.Dir(dep), path.Base(dep)) >= floor(path.Dir(name), path.Base(name)):
		return "it is not on a lower floor"
	}
	return ""
}

// checkClock finds calls of time.Now in p's sources.
func checkClock(t *testing.T, p pkg) {
	for _, f := range p.GoFiles {
		src, err := os.ReadFile(filepath.Join(p.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "time.Now") {
			t.Errorf("%s/%s calls time.Now: a pure package takes now as an argument", p.ImportPath, f)
		}
	}
}

func packages(t *testing.T) (list []pkg) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func floor(dir, name string) int {
	return slices.IndexFunc(floors[dir], func(names string) bool { return has(names, name) })
}

// owned reports whether name is one of who, or below one of them.
func owned(who, name string) bool {
	return slices.ContainsFunc(strings.Fields(who), func(w string) bool { return name == w || strings.HasPrefix(name, w+"/") })
}

func top(pkg string) string      { s, _, _ := strings.Cut(pkg, "/"); return s }
func has(list, name string) bool { return slices.Contains(strings.Fields(list), name) }
