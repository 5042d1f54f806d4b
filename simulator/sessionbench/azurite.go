package sessionbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	account    = "devstoreaccount1"
	accountKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// container is where files are uploaded to.
const container = "upload"

// azurite is a running blob service.
type azurite struct {
	endpoint string // of the account
	dir      string // what it stores
	cmd      *exec.Cmd
	ended    chan struct{}
}

// startAzurite starts the blob service that is installed in a folder, on a free port
// of the loopback interface, and waits until it has made the container. It stores in
// dir. The caller ends it.
func startAzurite(ctx context.Context, installed, dir string) (*azurite, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	s := &azurite{endpoint: fmt.Sprintf("http://127.0.0.1:%d/%s", port, account), dir: dir, ended: make(chan struct{})}
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
		err := s.makeContainer(ctx)
		if err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("Azurite ended: %s", bytes.TrimSpace(out.Bytes()))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("Azurite does not answer: %w", err), s.end())
		}
	}
}

func (s *azurite) makeContainer(ctx context.Context) error {
	key, err := blob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		return err
	}
	query, err := sas.AccountSignatureValues{
		ExpiryTime: time.Now().Add(time.Hour), Permissions: (&sas.AccountPermissions{Create: true}).String(), ResourceTypes: (&sas.AccountResourceTypes{Container: true}).String(),
	}.SignWithSharedKey(key)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.endpoint+"/"+container+"?restype=container&"+query.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return errors.New(resp.Status)
	}
	return nil
}

func (s *azurite) end() error {
	_ = s.cmd.Process.Kill()
	<-s.ended
	return os.RemoveAll(s.dir)
}
