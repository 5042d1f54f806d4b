// Package azuretest gives tests a blob service: Azurite, as 'make deps-azurite'
// installs it.
package azuretest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

// The account that Azurite has, and its key, which is public.
const (
	Name = "devstoreaccount1"
	Key  = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Start runs a blob service until the test ends, and returns the endpoint of its
// account. Where Azurite is not installed the test is skipped; under CI=true it
// fails.
func Start(t testing.TB) (endpoint string) {
	t.Helper()
	program := find(t)
	for range 3 { // the port may be taken between looking and listening
		port := freePort(t)
		if run(t, program, port) {
			return fmt.Sprintf("http://127.0.0.1:%d/%s", port, Name)
		}
	}
	t.Fatal("Azurite does not answer")
	return ""
}

// Sign makes a shared access signature for all that a copy job does.
func Sign(t testing.TB) string {
	t.Helper()
	key, err := blob.NewSharedKeyCredential(Name, Key)
	if err != nil {
		t.Fatal(err)
	}
	query, err := sas.AccountSignatureValues{
		ExpiryTime: time.Now().Add(time.Hour), Permissions: (&sas.AccountPermissions{Create: true, Read: true, Write: true, Delete: true}).String(),
		ResourceTypes: (&sas.AccountResourceTypes{Container: true, Object: true}).String(),
	}.SignWithSharedKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return query.Encode()
}

func find(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	// Every one that was installed whole will do.
	found, err := filepath.Glob(filepath.Join(cache, "lockbox/azurite/*/installed"))
	if err != nil || len(found) == 0 {
		const missing = "the test needs Azurite: run 'make deps-azurite'"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return filepath.Join(filepath.Dir(found[len(found)-1]), "node_modules/azurite/dist/src/blob/main.js")
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// run starts Azurite and waits until it answers.
func run(t testing.TB, program string, port int) bool {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "node", program, "--blobHost", "127.0.0.1", "--blobPort", fmt.Sprint(port),
		"--location", t.TempDir(), "--silent", "--disableTelemetry", "--skipApiVersionCheck")
	cmd.Env = append(os.Environ(), "NODE_OPTIONS=--max-old-space-size=512")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-ended:
			t.Logf("Azurite ended: %s", strings.TrimSpace(out.String()))
			return false
		default:
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			return true
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	return false
}
