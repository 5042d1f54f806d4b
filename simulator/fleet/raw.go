package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
)

// The peer that the control plane's memory is compared with: the least that a
// Go server can do for a device. It accepts mutual TLS 1.3 with certificates of
// the control plane's own authorities, and has one goroutine for each connection,
// which waits in Read.

const (
	rawCertTTL  = time.Hour // longer than any measurement
	rawDialTime = 10 * time.Second
	rawDialers  = 8 // connections made at once
)

// rawName is the server's name in its certificate.
const rawName = "localhost"

func newRawServer(authority string) (*part, error) {
	authorities, source, err := rawSource(authority, func(a *certs.Authorities, csr []byte) ([][]byte, error) {
		return a.IssueServer(csr, []string{rawName}, rawCertTTL)
	})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &rawServer{ln: ln, config: certs.DeviceListener(source, authorities.Roots().Devices, nil)}
	return &part{ready: ln.Addr().String(), count: func() int { return int(s.count.Load()) }, run: s.run}, nil
}

// rawSource makes a key and has it certified.
func rawSource(authority string, issue func(*certs.Authorities, []byte) ([][]byte, error)) (*certs.Authorities, *certs.Source, error) {
	authorities, _, err := certs.Open(authority)
	if err != nil {
		return nil, nil, err
	}
	source, err := certified(func(csr []byte) ([][]byte, error) { return issue(authorities, csr) })
	return authorities, source, err
}

func certified(issue func(csr []byte) ([][]byte, error)) (*certs.Source, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, err
	}
	chain, err := issue(csr)
	if err != nil {
		return nil, err
	}
	return certs.NewSource(key, chain, nil, nil)
}

type rawServer struct {
	ln     net.Listener
	config *tls.Config
	count  atomic.Int64
}

func (s *rawServer) run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	stop := context.AfterFunc(ctx, func() { s.ln.Close() })
	defer stop()
	for {
		conn, err := s.ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		serving.Go(func() { s.serve(ctx, conn) })
	}
}

func (s *rawServer) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	secured := tls.Server(conn, s.config)
	if secured.HandshakeContext(ctx) != nil {
		return
	}
	s.count.Add(1)
	defer s.count.Add(-1)
	secured.Read(make([]byte, 1)) // until the other end goes
}

// newRawClients holds N connections, each with a certificate of its own.
func newRawClients(args []string) (*part, error) {
	if len(args) != 3 {
		return nil, errors.New("want AUTHORITY ADDRESS N")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil || n < 1 || n > MaxDevices {
		return nil, fmt.Errorf("%q connections: want 1 to %d", args[2], MaxDevices)
	}
	authorities, _, err := certs.Open(args[0])
	if err != nil {
		return nil, err
	}
	return &part{ready: "dialling", run: func(ctx context.Context) error {
		return holdConnections(ctx, authorities, args[1], n)
	}}, nil
}

func holdConnections(ctx context.Context, authorities *certs.Authorities, address string, n int) error {
	conns := make([]*tls.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.NetConn().Close()
			}
		}
	}()
	g, dialling := errgroup.WithContext(ctx)
	g.SetLimit(rawDialers)
	for i := range conns {
		g.Go(func() (err error) {
			id := protocol.NodeID{Serial: protocol.DeviceSerial(fmt.Sprintf("RAW%05d", i+1)), Node: 1}
			conns[i], err = rawDial(dialling, authorities, address, id)
			return err
		})
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func rawDial(ctx context.Context, authorities *certs.Authorities, address string, id protocol.NodeID) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, rawDialTime)
	defer cancel()
	source, err := certified(func(csr []byte) ([][]byte, error) { return authorities.IssueDevice(csr, id, rawCertTTL) })
	if err != nil {
		return nil, err
	}
	dialer := tls.Dialer{Config: certs.DeviceDialer(source, authorities.Roots().Servers, rawName)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}
