package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
)

// sshIdle ends an SSH connection over which nothing went for so long, in both
// directions. OpenSSH's own keep-alives count.
const sshIdle = 15 * time.Minute

// sshHandler upgrades a request to the SSH bytes of a support session.
func sshHandler(cfg Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		device, err := dialSession(cfg, r)
		if err != nil {
			refuse(cfg, w, err)
			return
		}
		defer device.Close()
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			refuse(cfg, w, err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(callTimeout))
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", client.SSHProtocol)
		if err != nil {
			return
		}
		splice(r.Context(), peer{conn, buffered.Reader}, peer{device, nil})
	})
}

func dialSession(cfg Config, r *http.Request) (net.Conn, error) {
	if r.Header.Get("Upgrade") != client.SSHProtocol || r.TLS == nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "this path speaks %s only: use 'lockbox ssh' or 'lockbox ssh-proxy'", client.SSHProtocol)
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	caller, err := cfg.Identify(ctx, *r.TLS)
	if err != nil {
		return nil, err
	}
	return cfg.DialSession(ctx, caller, protocol.SessionID(r.PathValue("id")))
}

func refuse(cfg Config, w http.ResponseWriter, err error) {
	refused, ok := errors.AsType[*protocol.Error](err)
	if !ok {
		cfg.Log.Error().Err(err).Str("procedure", "ssh").Msg("internal error")
		refused = &protocol.Error{Code: protocol.CodeInternal, Message: "internal error"}
	}
	w.Header().Set(client.CodeHeader, string(refused.Code))
	http.Error(w, refused.Message, http.StatusForbidden)
}

// peer is one end of a spliced connection.
type peer struct {
	net.Conn
	buffered *bufio.Reader // bytes already read, or nil
}

func (p peer) Read(b []byte) (int, error) {
	p.SetReadDeadline(time.Now().Add(sshIdle))
	if p.buffered != nil && p.buffered.Buffered() > 0 {
		return p.buffered.Read(b)
	}
	return p.Conn.Read(b)
}

func (p peer) Write(b []byte) (int, error) {
	p.SetWriteDeadline(time.Now().Add(sshIdle))
	return p.Conn.Write(b)
}

// splice copies both ways until one end closes or ctx ends.
func splice(ctx context.Context, a, b peer) {
	end := func() {
		a.Close()
		b.Close()
	}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	var both sync.WaitGroup
	for _, d := range [][2]peer{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(d[0], d[1]) // how an end was lost is the other end's to say
			end()
		})
	}
	both.Wait()
}
