package audit

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Sink is a syslog server that gets a copy of the log: messages of RFC 5424 over
// TCP, framed by octet counting (RFC 6587, section 3.4.1), or over TLS (RFC 5425).
//
// Syslog has no acknowledgement. A record counts as delivered when the connection
// still stands [settle] after it was written; one that breaks earlier makes the
// last records come twice, never not at all, unless the server takes and drops them.
type Sink struct {
	Name    string // names how far it got; a new name gets the whole log
	Address string // host:port
	TLS     *tls.Config
	Format  auditlog.Format
}

// Times and sizes of forwarding.
const (
	sinkTimeout  = 10 * time.Second // of connecting, and of each write
	sinkBatch    = 256              // records sent before looking whether they arrived
	settle       = 200 * time.Millisecond
	sinkInterval = time.Second // between two looks for new records
	longestWait  = time.Minute // between two attempts to connect
)

// forwarder sends one copy. It keeps nothing in memory but where it stands, so
// that a sink that is stuck costs nothing but a growing distance.
type forwarder struct {
	s    *Service
	sink Sink
	host string

	mu    sync.Mutex
	state sinkState
}

type sinkState struct {
	connected bool
	next      int64 // first record that is not delivered
	failure   string
	failing   time.Time // since when
}

// meta is the name under which the forwarder's place in the log is kept.
func (f *forwarder) meta() string { return "sink/" + f.sink.Name }

// run sends until ctx ends.
func (f *forwarder) run(ctx context.Context) error {
	wait := time.Second
	for {
		began := time.Now()
		err := f.send(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.failed(err)
		if time.Since(began) > longestWait {
			wait = time.Second // it worked for a while
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, longestWait)
	}
}

// send connects, and sends until the connection breaks.
func (f *forwarder) send(ctx context.Context) error {
	next, err := f.place(ctx)
	if err != nil {
		return err
	}
	conn, err := f.dial(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn) // servers say nothing, but that they close
		ended <- err
	}()
	defer func() { <-ended }()
	defer conn.Close()
	f.update(func(st *sinkState) { *st = sinkState{connected: true, next: next} })
	for {
		sent, err := f.sendBatch(ctx, conn, next)
		if err != nil {
			return err
		}
		pause := settle
		if sent == next {
			pause = sinkInterval
		}
		select {
		case err := <-ended:
			ended <- err
			return errors.Join(errors.New("the server closed the connection"), err)
		case <-time.After(pause):
		}
		if sent == next {
			continue
		}
		if err := f.delivered(ctx, sent); err != nil {
			return err
		}
		next = sent
	}
}

func (f *forwarder) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, sinkTimeout)
	defer cancel()
	if f.sink.TLS == nil {
		return (&net.Dialer{}).DialContext(ctx, "tcp", f.sink.Address)
	}
	return (&tls.Dialer{Config: f.sink.TLS}).DialContext(ctx, "tcp", f.sink.Address)
}

// sendBatch writes records from number next on, and returns the number of the one
// behind the last.
func (f *forwarder) sendBatch(ctx context.Context, conn net.Conn, next int64) (int64, error) {
	var rows []store.AuditRow
	err := f.s.store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.AuditRows(ctx, store.AuditFilter{From: next, Limit: sinkBatch})
		return err
	})
	if err != nil {
		return next, err
	}
	out := bufio.NewWriterSize(conn, 64<<10)
	for _, r := range rows {
		message, err := f.sink.Format.Syslog(f.host, r.Index, r.Record)
		if err != nil {
			return next, fmt.Errorf("cannot render record %d: %w", r.Index, err)
		}
		conn.SetWriteDeadline(time.Now().Add(sinkTimeout))
		out.WriteString(strconv.Itoa(len(message)) + " ")
		if _, err := out.Write(message); err != nil {
			return next, err
		}
		next = r.Index + 1
	}
	return next, out.Flush()
}

// place reads from which record on the sink wants the log.
func (f *forwarder) place(ctx context.Context) (next int64, err error) {
	err = f.s.store.View(ctx, func(tx *store.Tx) error {
		text, err := tx.Meta(ctx, f.meta())
		if err == nil && text != "" {
			next, err = strconv.ParseInt(text, 10, 64)
		}
		return err
	})
	return next, err
}

// delivered returns below which index every sink has got the log.
func (s *Service) delivered(ctx context.Context) (below int64, err error) {
	below = math.MaxInt64
	for _, f := range s.forwarders {
		next, err := f.place(ctx)
		if err != nil {
			return 0, err
		}
		below = min(below, next)
	}
	return below, nil
}

func (f *forwarder) delivered(ctx context.Context, next int64) error {
	err := f.s.store.Tx(ctx, func(tx *store.Tx) error { return tx.SetMeta(ctx, f.meta(), strconv.FormatInt(next, 10)) })
	if err == nil {
		f.update(func(st *sinkState) { st.next = next })
	}
	return err
}

// failed notes that the connection broke, and logs it once.
func (f *forwarder) failed(err error) {
	f.update(func(st *sinkState) {
		if st.failing.IsZero() {
			st.failing = f.s.now()
			f.s.log.Warn().Err(err).Str("sink", f.sink.Name).Msg("cannot send a copy of the activity log, will try again")
		}
		st.connected, st.failure = false, err.Error()
	})
}

func (f *forwarder) update(change func(*sinkState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}

// ListSinks says of each sink how far it is behind the log.
func (s *Service) ListSinks(ctx context.Context, _ auth.Caller, _ *lockboxv1.ListSinksRequest) (*lockboxv1.ListSinksResponse, error) {
	var size int64
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		size, err = tx.AuditSize(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.ListSinksResponse{}
	for _, f := range s.forwarders {
		next, err := f.place(ctx)
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		st := f.state
		f.mu.Unlock()
		shown := &lockboxv1.Sink{
			Name: f.sink.Name, Address: f.sink.Address, Tls: f.sink.TLS != nil, Format: string(f.sink.Format),
			Connected: st.connected, Delivered: next, Behind: size - next, LastError: st.failure,
		}
		if !st.failing.IsZero() {
			shown.FailingSince = st.failing.Unix()
		}
		out.Sinks = append(out.Sinks, shown)
	}
	return out, nil
}
