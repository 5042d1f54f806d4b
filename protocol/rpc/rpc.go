// Package rpc is how both sides speak Connect: no compression, bounded
// messages, and every error crossing the wire with its [protocol.Code].
//
// A handler returns a [protocol.Error], or an error wrapping one, to say
// something to its caller. Any other error is the handler's own business: the
// caller sees "internal error", and the error goes to the server's onInternal.
package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// MaxMessage is the largest message either side reads, in bytes. Bills of
// materials and copy logs are the large ones.
const MaxMessage = 4 << 20

// NewServer returns a server whose errors carry codes. onInternal is told of
// errors that carried none; it may be called concurrently. Further
// interceptors run inside, in order.
func NewServer(onInternal func(ctx context.Context, procedure string, err error), inner ...connect.ServerInterceptor) *connect.Server {
	coded := func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, s connect.ServerStream) error {
			err := next(ctx, spec, s)
			if err == nil {
				return nil
			}
			// Connect's own refusals (malformed, too large, unknown) stay as they are.
			if own, ok := errors.AsType[*connect.Error](err); ok && !own.IsRemote() {
				return own
			}
			if ctx.Err() != nil {
				return connect.NewError(connect.CodeCanceled, "the call was canceled or its deadline passed")
			}
			if protocol.CodeOf(err) == protocol.CodeInternal {
				onInternal(ctx, spec.Procedure, err)
			}
			return toWire(err)
		}
	}
	return connect.NewServer(append([]connect.ServerInterceptor{coded}, inner...)...)
}

// Mount serves s on mux.
func Mount(mux *http.ServeMux, s *connect.Server) {
	connecthttp.Mount(mux, s, connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(MaxMessage), connecthttp.WithSendMaxBytes(MaxMessage))
}

// NewClient returns a client for the services at baseURL. Errors it returns
// are [*protocol.Error] when the other side sent a code.
func NewClient(h *http.Client, baseURL string) *connect.Client {
	t := connecthttp.NewTransport(h, baseURL, connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(MaxMessage), connecthttp.WithSendMaxBytes(MaxMessage))
	return connect.NewClient(t, func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			s, err := next(ctx, spec)
			if err != nil {
				return nil, fromWire(err)
			}
			return clientStream{s}, nil
		}
	})
}

type clientStream struct{ connect.ClientStream }

func (s clientStream) SendHeaders() error { return fromWire(s.ClientStream.SendHeaders()) }

// Send refuses a message that the other side would. Connect on its own sends an
// empty one in its place, and the call takes effect.
func (s clientStream) Send(msg any) error {
	if m, ok := msg.(proto.Message); ok && proto.Size(m) > MaxMessage {
		_ = s.Close() // nothing was sent yet
		return protocol.Errorf(protocol.CodeLimit, "the message has %d bytes: at most %d are sent", proto.Size(m), MaxMessage)
	}
	return fromWire(s.ClientStream.Send(msg))
}

func (s clientStream) Receive(msg any) error { return fromWire(s.ClientStream.Receive(msg)) }

// connectCodes maps our codes to the nearest of Connect's, so that HTTP
// status and generic clients make sense. Codes not listed are refusals.
var connectCodes = map[protocol.Code]connect.Code{
	protocol.CodeInvalid:         connect.CodeInvalidArgument,
	protocol.CodeUnauthenticated: connect.CodeUnauthenticated,
	protocol.CodeForbidden:       connect.CodePermissionDenied,
	protocol.CodeNotFound:        connect.CodeNotFound,
	protocol.CodeConflict:        connect.CodeAborted,
	protocol.CodeBusy:            connect.CodeAborted,
	protocol.CodeUnavailable:     connect.CodeUnavailable,
	protocol.CodeOffline:         connect.CodeUnavailable,
	protocol.CodeKeyService:      connect.CodeUnavailable,
	protocol.CodeTimeout:         connect.CodeDeadlineExceeded,
	protocol.CodeLimit:           connect.CodeResourceExhausted,
	protocol.CodeStorageFull:     connect.CodeResourceExhausted,
	protocol.CodeRecording:       connect.CodeDataLoss,
	protocol.CodeInternal:        connect.CodeInternal,
}

// A bare [io.EOF] is not an error here: it ends a stream.
func toWire(err error) error {
	e, ok := errors.AsType[*protocol.Error](err)
	if !ok {
		e = &protocol.Error{Code: protocol.CodeInternal, Message: "internal error"}
	}
	code, ok := connectCodes[e.Code]
	if !ok {
		code = connect.CodeFailedPrecondition
	}
	ce := connect.NewError(code, e.Message)
	if detail, err := connectproto.NewErrorDetail(&lockboxv1.ErrorInfo{Code: string(e.Code)}); err == nil {
		ce = ce.WithDetail(detail)
	}
	return ce
}

func fromWire(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	for _, d := range ce.Details() {
		if m, err := connectproto.UnmarshalErrorDetail(d); err == nil {
			if info, ok := m.(*lockboxv1.ErrorInfo); ok {
				return &protocol.Error{Code: protocol.Code(info.Code), Message: ce.Message()}
			}
		}
	}
	if e, ok := errors.AsType[*protocol.Error](err); ok { // of this side's own transport
		return e
	}
	switch {
	case errors.Is(err, context.Canceled) || ce.Code() == connect.CodeCanceled:
		return err
	case ce.Code() == connect.CodeDeadlineExceeded:
		return protocol.Errorf(protocol.CodeTimeout, "no answer in time: %s", ce.Message())
	case ce.Code() == connect.CodeUnavailable:
		return protocol.Errorf(protocol.CodeUnavailable, "not reachable: %s", ce.Message())
	case ce.Code() == connect.CodeInvalidArgument:
		return protocol.Errorf(protocol.CodeInvalid, "%s", ce.Message())
	case ce.Code() == connect.CodeResourceExhausted:
		return protocol.Errorf(protocol.CodeLimit, "%s", ce.Message())
	case ce.Code() == connect.CodeUnimplemented:
		return protocol.Errorf(protocol.CodeNotFound, "the other side does not know this call: %s", ce.Message())
	}
	return err
}
