package uploadbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The account that Azurite has, and its key, which is public.
const (
	account    = "devstoreaccount1"
	accountKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// service is a running Azurite.
type service struct {
	endpoint string // of the account
	dir      string // what it stores
	cmd      *exec.Cmd
	ended    chan struct{}
}

// startService starts Azurite on a free port of the loopback interface, and waits
// until it answers.
func startService(ctx context.Context, azurite, dir string) (*service, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	s := &service{endpoint: "http://" + address + "/" + account, dir: dir, ended: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, "node", filepath.Join(azurite, "node_modules/azurite/dist/src/blob/main.js"),
		"--blobHost", "127.0.0.1", "--blobPort", fmt.Sprint(port), "--location", dir, "--silent", "--disableTelemetry", "--skipApiVersionCheck")
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // it is killed
	}()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		select {
		case <-s.ended:
			return nil, fmt.Errorf("azurite ended: %s", bytes.TrimSpace(out.Bytes()))
		case <-time.After(50 * time.Millisecond):
		}
		if conn, err := net.Dial("tcp", address); err == nil {
			return s, conn.Close()
		}
	}
	return nil, errors.Join(errors.New("azurite does not answer"), s.stop())
}

func (s *service) stop() error {
	_ = s.cmd.Process.Kill()
	<-s.ended
	return os.RemoveAll(s.dir)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
