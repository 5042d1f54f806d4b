// Package api is the public API and the device-facing handlers: one table of
// routes, with the roles that may call each.
//
//   - A procedure without a row in the table does not exist; a row without a
//     role lets nobody in. Who may call what is decided here, what they may see
//     of it in the service.
//   - A person is known by their certificate, a node by its tunnel. The rows
//     open to everybody are Login and Enrol, which check a token themselves.
//   - Every call has a deadline, every message a size limit, every node a rate.
package api

import (
	"context"
	"crypto/tls"
	"iter"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// Deadlines of calls.
const (
	callTimeout   = 60 * time.Second  // unary: the longest waits for devices to relock
	streamTimeout = 120 * time.Second // an unlock of a whole device
)

// Identify names the caller at the other end of a connection.
type Identify func(context.Context, tls.ConnectionState) (auth.Caller, error)

// DialSession opens the byte stream to the SSH server of a support session. It
// refuses everybody but the session's own engineer.
type DialSession func(ctx context.Context, caller auth.Caller, session protocol.SessionID) (net.Conn, error)

// Config are the services behind the API.
type Config struct {
	Services    Services
	Identify    Identify
	DialSession DialSession
	Log         zerolog.Logger
}

// NewHandler returns the handler of the API port.
func NewHandler(cfg Config) http.Handler {
	specs := specsOf(registerPublic)
	server := rpc.NewServer(logInternal(cfg.Log))
	open := map[string]bool{}
	for _, r := range publicRoutes(cfg.Services) {
		server.Register(connect.Method{Spec: specs[r.procedure], Handler: r.handler(cfg.Identify)})
		open[r.procedure] = r.roles == nil
	}
	mux := http.NewServeMux()
	rpc.Mount(mux, server)
	mux.Handle("GET /v1/sessions/{id}/ssh", sshHandler(cfg))
	return limitBodies(mux, open)
}

// Procedures lists what a role may call, sorted.
func Procedures(role auth.Role) []string {
	var list []string
	for _, r := range publicRoutes(Services{}) {
		if r.allows(role) {
			list = append(list, r.procedure)
		}
	}
	slices.Sort(list)
	return list
}

// route is one row: a procedure, who may call it, and what answers.
type route struct {
	procedure string
	roles     []auth.Role // nil: open to everybody
	bound     func(context.Context) (context.Context, context.CancelFunc)
	serve     func(ctx context.Context, caller auth.Caller, s connect.ServerStream) error
}

func (r route) allows(role auth.Role) bool { return r.roles == nil || slices.Contains(r.roles, role) }

func (r route) handler(identify Identify) connect.ServerFunc {
	return func(ctx context.Context, _ connect.Spec, s connect.ServerStream) error {
		ctx, cancel := r.bound(ctx)
		defer cancel()
		caller, err := r.authorize(ctx, identify)
		if err != nil {
			return err
		}
		return r.serve(ctx, caller, s)
	}
}

func (r route) authorize(ctx context.Context, identify Identify) (auth.Caller, error) {
	if r.roles == nil {
		return auth.Caller{}, nil
	}
	state, ok := tlsState(ctx)
	if !ok {
		return auth.Caller{}, protocol.Errorf(protocol.CodeUnauthenticated, "the API is only served over TLS")
	}
	caller, err := identify(ctx, state)
	if err != nil {
		return auth.Caller{}, err
	}
	if !r.allows(caller.Role) {
		return auth.Caller{}, protocol.Errorf(protocol.CodeForbidden, "%s has the role %s, which may not call %s: that is for %s",
			caller.Person, caller.Role, strings.TrimPrefix(r.procedure, "/lockbox.v1."), r.who())
	}
	return caller, nil
}

// who names the roles that may call it.
func (r route) who() string {
	var names []string
	for _, role := range r.roles {
		names = append(names, string(role))
	}
	return strings.Join(names, ", ")
}

func tlsState(ctx context.Context) (tls.ConnectionState, bool) {
	info, ok := connecthttp.ServerInfoForContext(ctx)
	if !ok || info.TLS() == nil {
		return tls.ConnectionState{}, false
	}
	return *info.TLS(), true
}

// message is a pointer to a protobuf message of type M.
type message[M any] interface{ *M }

// unary makes a row from a service method.
func unary[Req, Resp any, P message[Req]](procedure string, roles []auth.Role, call func(context.Context, auth.Caller, P) (*Resp, error)) route {
	return route{procedure, roles, within(callTimeout), func(ctx context.Context, caller auth.Caller, s connect.ServerStream) error {
		req := P(new(Req))
		if err := s.Receive(req); err != nil {
			return err
		}
		resp, err := call(ctx, caller, req)
		if err != nil {
			return err
		}
		return s.Send(resp)
	}}
}

// progress makes a row from a service method that tells how it goes. The call
// goes on when nobody reads that any more: closing a window stops no unlock
// half-way.
func progress[Req, Resp any, P message[Req]](procedure string, roles []auth.Role, call func(context.Context, auth.Caller, P, func(*Resp)) error) route {
	r := stream(procedure, roles, func(ctx context.Context, caller auth.Caller, req P, send func(*Resp) error) error {
		return call(ctx, caller, req, func(m *Resp) { _ = send(m) })
	})
	r.bound = func(ctx context.Context) (context.Context, context.CancelFunc) { return detached(ctx, streamTimeout) }
	return r
}

// stream makes a row from a service method that sends many messages, and is to
// stop when one cannot be sent.
func stream[Req, Resp any, P message[Req]](procedure string, roles []auth.Role, call func(context.Context, auth.Caller, P, func(*Resp) error) error) route {
	return route{procedure, roles, within(streamTimeout), func(ctx context.Context, caller auth.Caller, s connect.ServerStream) error {
		req := P(new(Req))
		if err := s.Receive(req); err != nil {
			return err
		}
		return call(ctx, caller, req, func(m *Resp) error { return s.Send(m) })
	}}
}

func within(timeout time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
	return func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, timeout)
	}
}

// open makes a row that needs no caller.
func open[Req, Resp any, P message[Req]](procedure string, call func(context.Context, P) (*Resp, error)) route {
	return unary(procedure, nil, func(ctx context.Context, _ auth.Caller, req P) (*Resp, error) { return call(ctx, req) })
}

// registerPublic names all procedures of the public API; their handlers are
// replaced by the table's.
func registerPublic(s *connect.Server) {
	lockboxv1.RegisterAccountServiceHandler(s, lockboxv1.UnimplementedAccountServiceHandler{})
	lockboxv1.RegisterTenantServiceHandler(s, lockboxv1.UnimplementedTenantServiceHandler{})
	lockboxv1.RegisterOrderServiceHandler(s, lockboxv1.UnimplementedOrderServiceHandler{})
	lockboxv1.RegisterDeviceServiceHandler(s, lockboxv1.UnimplementedDeviceServiceHandler{})
	lockboxv1.RegisterTicketServiceHandler(s, lockboxv1.UnimplementedTicketServiceHandler{})
	lockboxv1.RegisterSessionServiceHandler(s, lockboxv1.UnimplementedSessionServiceHandler{})
	lockboxv1.RegisterRecordingServiceHandler(s, lockboxv1.UnimplementedRecordingServiceHandler{})
	lockboxv1.RegisterRequestServiceHandler(s, lockboxv1.UnimplementedRequestServiceHandler{})
	lockboxv1.RegisterPolicyServiceHandler(s, lockboxv1.UnimplementedPolicyServiceHandler{})
	lockboxv1.RegisterContactServiceHandler(s, lockboxv1.UnimplementedContactServiceHandler{})
	lockboxv1.RegisterCatalogueServiceHandler(s, lockboxv1.UnimplementedCatalogueServiceHandler{})
	lockboxv1.RegisterStandingServiceHandler(s, lockboxv1.UnimplementedStandingServiceHandler{})
	lockboxv1.RegisterKeyServiceHandler(s, lockboxv1.UnimplementedKeyServiceHandler{})
	lockboxv1.RegisterAuditServiceHandler(s, lockboxv1.UnimplementedAuditServiceHandler{})
	lockboxv1.RegisterNoticeServiceHandler(s, lockboxv1.UnimplementedNoticeServiceHandler{})
	devicev1.RegisterEnrolmentServiceHandler(s, devicev1.UnimplementedEnrolmentServiceHandler{})
}

// specsOf returns the specs that register adds, by procedure.
func specsOf(register func(*connect.Server)) map[string]connect.Spec {
	s := connect.NewServer()
	register(s)
	byProcedure := func(yield func(string, connect.Spec) bool) {
		for spec := range s.Specs() {
			if !yield(spec.Procedure, spec) {
				return
			}
		}
	}
	return maps.Collect(iter.Seq2[string, connect.Spec](byProcedure))
}

func logInternal(log zerolog.Logger) func(context.Context, string, error) {
	return func(_ context.Context, procedure string, err error) {
		log.Error().Err(err).Str("procedure", procedure).Msg("internal error")
	}
}
