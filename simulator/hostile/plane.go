package hostile

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
	"github.com/databox-lockbox/lockbox/simulator/actor"
)

// logName is the origin of the activity log.
var logName = auditlog.LogOrigin("hostile")

// plane is the control plane in the attacker's hands: its authorities, its keys
// and its log.
type plane struct {
	devicev1.UnimplementedEnrolmentServiceHandler
	authorities       *certs.Authorities
	service, log      ed25519.PrivateKey
	signer            note.Signer // of the log
	server            *tunnel.Server
	device, api       net.Listener
	apiTLS            *tls.Config
	logs              sync.Mutex // guards the next two
	honest, rewritten merkle
}

func newPlane(dir string) (_ *plane, err error) {
	p := &plane{}
	if p.authorities, _, err = certs.Open(filepath.Join(dir, "authority")); err != nil {
		return nil, err
	}
	if p.service, err = certs.NewKey(); err != nil {
		return nil, err
	}
	if p.log, err = certs.NewKey(); err != nil {
		return nil, err
	}
	if p.signer, err = auditlog.NewSigner(logName, p.log); err != nil {
		return nil, err
	}
	source, err := p.source()
	if err != nil {
		return nil, err
	}
	roots := p.authorities.Roots()
	p.apiTLS = certs.APIListener(source, roots.People, nobody)
	heartbeats := actor.HeartbeatOnly()
	p.server = tunnel.NewServer(tunnel.ServerConfig{
		TLS: certs.DeviceListener(source, roots.Devices, nobody),
		Identify: func(s tls.ConnectionState) (protocol.NodeID, string, error) {
			id, fingerprint, _, err := certs.DeviceFromState(s)
			return id, fingerprint, err
		},
		Handler: func(*tunnel.Peer) http.Handler { return heartbeats },
	})
	for i, word := range []string{"begun", "rewritten"} { // two logs that differ from their first record on
		log := []*merkle{&p.honest, &p.rewritten}[i]
		r := auditlog.NewRecord(time.Now(), auditlog.OpStartAgent, auditlog.Success)
		r.Caller = word
		if _, err := log.append(r); err != nil {
			return nil, err
		}
	}
	return p, p.listen()
}

// nobody is revoked.
func nobody(string) bool { return false }

func (p *plane) listen() (err error) {
	if p.device, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	if p.api, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return errors.Join(err, p.device.Close())
	}
	return nil
}

func (p *plane) source() (*certs.Source, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, err
	}
	chain, err := p.authorities.IssueServer(csr, []string{"127.0.0.1"}, 24*time.Hour)
	if err != nil {
		return nil, err
	}
	return certs.NewSource(key, chain, nil, nil)
}

// run serves devices until ctx ends.
func (p *plane) run(ctx context.Context) error {
	s := rpc.NewServer(func(context.Context, string, error) {})
	devicev1.RegisterEnrolmentServiceHandler(s, p)
	mux := http.NewServeMux()
	rpc.Mount(mux, s)
	api := &http.Server{Handler: mux, ReadTimeout: callTimeout, WriteTimeout: callTimeout}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.server.Serve(ctx, p.device) })
	g.Go(func() error {
		if err := api.Serve(tls.NewListener(p.api, p.apiTLS)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return api.Close()
	})
	return g.Wait()
}

// token lets any node enrol.
func (p *plane) token() string {
	return "lbxjoin.id.secret." + strings.TrimPrefix(certs.Pin(p.authorities.Roots().Servers), "sha256:")
}

// Enrol takes in every node.
func (p *plane) Enrol(_ context.Context, r *devicev1.EnrolRequest) (*devicev1.EnrolResponse, error) {
	node := protocol.NodeID{Serial: protocol.DeviceSerial(r.Serial), Node: int(r.Node)}
	chain, err := p.authorities.IssueDevice(r.Csr, node, 24*time.Hour)
	if err != nil {
		return nil, err
	}
	host, err := p.authorities.CertifyHost(r.SshHostKey, node, 24*time.Hour)
	return &devicev1.EnrolResponse{
		Chain: chain, ServerRoots: [][]byte{p.authorities.Roots().Servers.Raw},
		TunnelAddress: p.device.Addr().String(), SshHostCertificate: host, Order: orderID,
	}, err
}

// node waits for a node's tunnel and returns a client of the node.
func (p *plane) node(ctx context.Context, id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	for {
		if peer, ok := p.server.Peer(id); ok {
			return devicev1.NewNodeServiceClient(rpc.NewClient(peer.Client(), tunnel.BaseURL)), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("node %s did not connect: %w", id, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// merkle is an activity log in memory.
type merkle struct {
	size   int64
	first  auditlog.Record
	hashes []tlog.Hash
}

// ReadHashes returns stored hashes.
func (m *merkle) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		out[i] = m.hashes[index]
	}
	return out, nil
}

func (m *merkle) append(r auditlog.Record) ([]byte, error) {
	data, err := r.Encode()
	if err != nil {
		return nil, err
	}
	hashes, err := auditlog.Append(m.size, data, m)
	if err != nil {
		return nil, err
	}
	if m.size == 0 {
		m.first = r
	}
	m.hashes, m.size = append(m.hashes, hashes...), m.size+1
	return data, nil
}

// begin returns a log that has only the first record of m: m rolled back.
func (m *merkle) begin() (*merkle, error) {
	back := &merkle{}
	_, err := back.append(m.first)
	return back, err
}

// evidence is what an order says about the log.
type evidence struct {
	checkpoint, record     []byte
	index                  int64
	inclusion, consistency [][]byte
}

// log appends a record and proves it to somebody who has seen a log of a size.
func (m *merkle) log(r auditlog.Record, seen int64, signer note.Signer) (e evidence, err error) {
	e.index = m.size
	if e.record, err = m.append(r); err != nil {
		return e, err
	}
	inclusion, err := tlog.ProveRecord(m.size, e.index, m)
	if err != nil {
		return e, err
	}
	e.inclusion = bytesOf(inclusion)
	if 0 < seen && seen <= m.size {
		consistency, err := tlog.ProveTree(m.size, seen, m)
		if err != nil {
			return e, err
		}
		e.consistency = bytesOf(consistency)
	}
	root, err := auditlog.TreeHash(m.size, m)
	if err != nil {
		return e, err
	}
	e.checkpoint, err = auditlog.Checkpoint{Origin: logName, Size: m.size, Hash: root}.Sign(signer)
	return e, err
}

func bytesOf(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}
