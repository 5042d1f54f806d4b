package api

import (
	"context"
	"crypto/tls"
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
		conn.SetDeadline(time.Now().Add(callTimeout)) // not the server's own, of one answer
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", client.SSHProtocol)
		if err != nil {
			return
		}
		// Further reads go to conn itself: net/http ends the request's context when
		// its own reader sees the client's end.
		gatherWrites(conn)
		early := io.LimitReader(buffered, int64(buffered.Reader.Buffered()))
		splice(r.Context(), conn, device, io.MultiReader(early, conn))
	})
}

// gatherWrites has the bytes to a client leave in large pieces.
func gatherWrites(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		if limited, ok := secured.NetConn().(*limitedConn); ok {
			limited.Gather()
		}
	}
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

// linger is how long one end may still take in what the other end said last.
const linger = 5 * time.Second

// splice copies both ways, for as long as anything goes either way, or until ctx
// ends. When one end closes, the other may still say its last words, and the
// first take them in, for linger; then both connections are closed.
func splice(ctx context.Context, client, device net.Conn, fromClient io.Reader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		device.Close()
	})
	defer stop()
	alive := func() {
		until := time.Now().Add(sshIdle)
		client.SetDeadline(until)
		device.SetDeadline(until)
	}
	alive()
	var both sync.WaitGroup
	both.Go(func() {
		pass(device, fromClient, alive)
		time.AfterFunc(linger, cancel)
	})
	both.Go(func() {
		pass(client, device, alive)
		time.AfterFunc(linger, cancel)
	})
	both.Wait()
	client.Close()
	device.Close()
}

// passBuffer is what is passed on at once, in bytes.
const passBuffer = 64 << 10

// pass copies what from says, calling alive for every piece, and then ends the
// sending side of to, if it has one of its own. When to takes no more, the rest
// is thrown away: closing a connection with unread bytes would take back what
// was sent on it.
func pass(to net.Conn, from io.Reader, alive func()) {
	_, _ = io.CopyBuffer(to, tap{from, alive}, make([]byte, passBuffer)) // how an end was lost is the other end's to say
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, from)
}

// tap calls read after every piece.
type tap struct {
	io.Reader
	read func()
}

func (t tap) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.read()
	}
	return n, err
}
