// Package azurite runs Azurite, a blob service on this machine, that copy jobs are
// tried and measured with.
package azurite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

// The account that Azurite has, and its key, which is public.
const (
	Account = "devstoreaccount1"
	Key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// patience is how long a step may take that takes no time.
const patience = 30 * time.Second

// Service is a running Azurite.
type Service struct {
	Endpoint string // of the account

	key   *blob.SharedKeyCredential
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Installed returns the folder that 'make deps-azurite' has installed Azurite in,
// "" if it has not.
func Installed() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	// Every one that was installed whole will do.
	found, err := filepath.Glob(filepath.Join(cache, "lockbox/azurite/*/installed"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// Start starts the Azurite that is installed in a folder, on a free port of the
// loopback interface, and waits until it answers. It stores in dir. The caller ends it;
// it ends with ctx, too.
func Start(ctx context.Context, installed, dir string) (*Service, error) {
	key, err := blob.NewSharedKeyCredential(Account, Key)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	s := &Service{Endpoint: fmt.Sprintf("http://127.0.0.1:%d/%s", port, Account), key: key, dir: dir, ended: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, "node", filepath.Join(installed, "node_modules/azurite/dist/src/blob/main.js"),
		"--blobHost", "127.0.0.1", "--blobPort", fmt.Sprint(port), "--location", dir, "--silent", "--disableTelemetry", "--skipApiVersionCheck")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start Azurite: %w", err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // it is killed
	}()
	for end := time.Now().Add(patience); ; {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			return s, conn.Close()
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("azurite ended: %s", bytes.TrimSpace(out.Bytes()))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("azurite does not answer: %w", err), s.End())
		}
	}
}

// MakeContainer makes a container.
func (s *Service) MakeContainer(ctx context.Context, name string) error {
	query, err := s.Sign()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.Endpoint+"/"+name+"?restype=container&"+query, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("cannot make container %s: %s", name, resp.Status)
	}
	return nil
}

// Sign makes a shared access signature, for an hour, for all that a copy job does: the
// query of a URL.
func (s *Service) Sign() (string, error) {
	query, err := sas.AccountSignatureValues{
		ExpiryTime: time.Now().Add(time.Hour), Permissions: (&sas.AccountPermissions{Create: true, Read: true, Write: true, Delete: true}).String(),
		ResourceTypes: (&sas.AccountResourceTypes{Container: true, Object: true}).String(),
	}.SignWithSharedKey(s.key)
	return query.Encode(), err
}

// Hang has the service answer nobody, until Wake.
func (s *Service) Hang() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Wake has the service go on after Hang.
func (s *Service) Wake() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// client keeps no connection.
var client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// Get returns the content of a blob.
func (s *Service) Get(ctx context.Context, container, name string) ([]byte, error) {
	options := blob.ClientOptions{}
	options.Transport = client
	one, err := blob.NewClientWithSharedKeyCredential(s.Endpoint+"/"+container+"/"+url.PathEscape(name), s.key, &options)
	if err != nil {
		return nil, err
	}
	reply, err := one.DownloadStream(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	return io.ReadAll(reply.Body)
}

// End ends the service, and removes what it stored.
func (s *Service) End() error {
	_ = s.cmd.Process.Kill()
	<-s.ended
	return os.RemoveAll(s.dir)
}
