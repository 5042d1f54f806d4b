// Package localapi is the Unix socket for datacenter staff at the device: how
// the node is, and the lock command that always works.
//
// Whoever can open the socket, root alone, may ask. Nothing here can unlock.
package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Limits of one request.
const (
	requestTimeout = 15 * time.Second // locking takes 2 s, and its record up to 10
	stopWithin     = 5 * time.Second
	maxBody        = 4 << 10
	maxAnswer      = 4 << 20
)

// Lock is the node's lock.
type Lock interface {
	Status() *devicev1.NodeStatus
	Lock(ctx context.Context, reason lock.Reason, subject approval.Digest, spend bool) (took time.Duration, err error)
}

// Server serves the socket.
type Server struct {
	path string
	lock Lock
}

// New returns a server for the socket at path. It starts nothing.
func New(path string, l Lock) *Server { return &Server{path, l} }

// Run serves until ctx ends. A socket that an earlier process left is
// replaced; one that somebody still serves is an error.
func (s *Server) Run(ctx context.Context) error {
	ln, err := listen(s.path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("POST /v1/lock", s.relock)
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(mux, maxBody),
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       requestTimeout,
		MaxHeaderBytes:    maxBody,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("the local socket failed: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	err = srv.Shutdown(last) // a lock under way is answered
	if err != nil {
		err = errors.Join(err, srv.Close())
	}
	<-served
	return err
}

// listen makes the socket. The mode is that of the socket before it has a name,
// so that nobody else can ever connect.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, protocol.Errorf(protocol.CodeBusy, "another agent serves %s: stop it first", path)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("cannot replace the local socket: %w", err)
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var modeErr error
		err := c.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, modeErr)
	}}
	ln, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the local socket: %w", err)
	}
	return ln, nil
}

// removeSocket removes the socket that an earlier process left, and nothing
// that is no socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: move it away, or correct local_socket", path)
	}
	return os.Remove(path)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) { s.answer(w) }

func (s *Server) answer(w http.ResponseWriter) {
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(s.lock.Status())
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // a reader that left needs no answer
}

func (s *Server) relock(w http.ResponseWriter, r *http.Request) {
	_, err := s.lock.Lock(r.Context(), lock.Operator, "", false)
	if err != nil {
		code := protocol.CodeOf(err)
		message := strings.TrimSuffix(err.Error(), " ("+string(code)+")") // the client adds it again
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(refusal{code, message})
		return
	}
	s.answer(w)
}

type refusal struct {
	Code    protocol.Code `json:"code"`
	Message string        `json:"message"`
}

// Client asks the agent behind a socket.
type Client struct{ http *http.Client }

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	return &Client{&http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true,
		},
	}}
}

// Status asks how the node is.
func (c *Client) Status(ctx context.Context) (*devicev1.NodeStatus, error) {
	return c.ask(ctx, http.MethodGet, "/v1/status")
}

// Lock relocks the node and returns how it is afterwards.
func (c *Client) Lock(ctx context.Context) (*devicev1.NodeStatus, error) {
	return c.ask(ctx, http.MethodPost, "/v1/lock")
}

func (c *Client) ask(ctx context.Context, method, path string) (*devicev1.NodeStatus, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the agent, is it running, and are you root? %w", errors.Unwrap(err))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var r refusal
		if json.Unmarshal(data, &r) == nil && r.Code != "" {
			return nil, &protocol.Error{Code: r.Code, Message: r.Message}
		}
		return nil, fmt.Errorf("the agent answered %s: %s", resp.Status, strings.TrimSpace(string(data)))
	}
	status := &devicev1.NodeStatus{}
	return status, protojson.Unmarshal(data, status)
}
