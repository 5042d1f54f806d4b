package api

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// nodeTimeout bounds a call of a node. Nodes send what they already have.
const nodeTimeout = 20 * time.Second

// NodeServices answer what nodes call over their tunnels. node is whose tunnel
// it is; what a message says of itself is to be compared with it.
type NodeServices struct {
	Heartbeat        func(ctx context.Context, node protocol.NodeID, in *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error)
	AppendRecords    func(ctx context.Context, node protocol.NodeID, in *devicev1.AppendRecordsRequest) (*devicev1.AppendRecordsResponse, error)
	RenewCertificate func(ctx context.Context, node protocol.NodeID, in *devicev1.RenewCertificateRequest) (*devicev1.RenewCertificateResponse, error)
	ReportJob        func(ctx context.Context, node protocol.NodeID, in *devicev1.ReportJobRequest) (*devicev1.ReportJobResponse, error)
	ReportManifest   func(ctx context.Context, node protocol.NodeID, in *devicev1.ReportManifestRequest) (*devicev1.ReportManifestResponse, error)
	AppendRecording  func(ctx context.Context, node protocol.NodeID, in *devicev1.AppendRecordingRequest) (*devicev1.AppendRecordingResponse, error)
	ReportChanges    func(ctx context.Context, node protocol.NodeID, in *devicev1.ReportChangesRequest) (*devicev1.ReportChangesResponse, error)
}

// nodeRoute makes the handler of a row, which keeps nodes to their limits.
type nodeRoute func(*limits) connect.ServerFunc

// nodeRoutes is the table of the device port, with what a call costs.
func nodeRoutes(s NodeServices) map[string]nodeRoute {
	const service = "/device.v1.ControlService/"
	return map[string]nodeRoute{
		service + "Heartbeat":        fromNode(cheap, s.Heartbeat),
		service + "AppendRecords":    fromNode(cheap, s.AppendRecords),
		service + "RenewCertificate": fromNode(dearer, s.RenewCertificate),
		service + "ReportJob":        fromNode(dear, s.ReportJob),
		service + "ReportManifest":   fromNode(dear, s.ReportManifest),
		service + "AppendRecording":  fromNode(cheap, s.AppendRecording),
		service + "ReportChanges":    fromNode(dear, s.ReportChanges),
	}
}

// fromNode makes a row from a service method.
func fromNode[Req, Resp any, P message[Req]](cost float64, call func(context.Context, protocol.NodeID, P) (*Resp, error)) nodeRoute {
	return func(l *limits) connect.ServerFunc { return limited(l, cost, call) }
}

func limited[Req, Resp any, P message[Req]](l *limits, cost float64, call func(context.Context, protocol.NodeID, P) (*Resp, error)) connect.ServerFunc {
	return func(ctx context.Context, _ connect.Spec, s connect.ServerStream) error {
		node, ok := ctx.Value(nodeKey{}).(protocol.NodeID)
		if !ok {
			return protocol.Errorf(protocol.CodeUnauthenticated, "only a node calls this, over its tunnel")
		}
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
		defer cancel()
		if err := l.admit(node, cost); err != nil {
			return err
		}
		req := P(new(Req))
		if err := s.Receive(req); err != nil {
			return err
		}
		if err := l.weigh(node, req); err != nil {
			return err
		}
		resp, err := call(ctx, node, req)
		if err != nil {
			return err
		}
		return s.Send(resp)
	}
}

type nodeKey struct{}

// NewNodeHandler returns what answers the nodes: a function that gives each
// tunnel its handler. The handlers share everything but the node's name, so an
// idle device costs next to nothing, and a busy one is held to its limits however
// many connections it has had.
func NewNodeHandler(s NodeServices, log zerolog.Logger) func(node protocol.NodeID) http.Handler {
	specs := specsOf(func(s *connect.Server) {
		devicev1.RegisterControlServiceHandler(s, devicev1.UnimplementedControlServiceHandler{})
	})
	server := rpc.NewServer(logInternal(log))
	l := newLimits(time.Now)
	for procedure, route := range nodeRoutes(s) {
		server.Register(connect.Method{Spec: specs[procedure], Handler: route(l)})
	}
	mux := http.NewServeMux()
	rpc.Mount(mux, server)
	return func(node protocol.NodeID) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nodeKey{}, node)))
		})
	}
}
