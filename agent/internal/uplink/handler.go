package uplink

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

// sshPath is where the control plane upgrades to the SSH bytes of a session,
// named by the query parameter "session".
const sshPath = "/ssh"

// handler answers what the control plane asks.
func (u *Uplink) handler() http.Handler {
	server := rpc.NewServer(func(_ context.Context, procedure string, err error) {
		u.cfg.Log.Error().Err(err).Str("procedure", procedure).Msg("internal error")
	})
	devicev1.RegisterNodeServiceHandler(server, node{u})
	mux := http.NewServeMux()
	rpc.Mount(mux, server)
	mux.HandleFunc("GET "+sshPath, u.serveSSH)
	return mux
}

// serveSSH refuses before it upgrades, so that the engineer is told why.
func (u *Uplink) serveSSH(w http.ResponseWriter, r *http.Request) {
	id := protocol.SessionID(r.URL.Query().Get("session"))
	if err := u.cfg.Sessions.Admits(id); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	conn, err := tunnel.AcceptUpgrade(w, r)
	if err != nil {
		return // it was answered
	}
	if err := u.cfg.Sessions.ServeConn(r.Context(), conn, id); err != nil {
		u.cfg.Log.Info().Err(err).Str("session", string(id)).Msg("a support connection ended")
	}
	u.hurry()
}

// node is the NodeService. The peer is the control plane: the tunnel verified
// its certificate against the enrolled server root.
type node struct{ *Uplink }

func (n node) Status(context.Context, *devicev1.StatusRequest) (*devicev1.StatusResponse, error) {
	return &devicev1.StatusResponse{Status: n.cfg.Lock.Status()}, nil
}

func (n node) Challenge(ctx context.Context, r *devicev1.ChallengeRequest) (*devicev1.ChallengeResponse, error) {
	envelope, err := n.cfg.Lock.Challenge(ctx, approval.Digest(r.SubjectDigest), protocol.Purpose(r.Purpose))
	if err != nil {
		return nil, err
	}
	return &devicev1.ChallengeResponse{Challenge: envelope, LogSize: n.cfg.LogSize()}, nil
}

func (n node) Unlock(ctx context.Context, r *devicev1.UnlockRequest, s devicev1.NodeServiceUnlockServerStream) error {
	var mu sync.Mutex // disks open side by side, a stream sends one at a time
	opened, err := n.cfg.Lock.Unlock(ctx, nil, r, func(disk protocol.DiskID, phase string) {
		mu.Lock()
		defer mu.Unlock()
		_ = s.Send(&devicev1.UnlockResponse{Disk: string(disk), Phase: phase}) // a lost reader shows at the end
	})
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return s.Send(&devicev1.UnlockResponse{Opened: opened})
}

func (n node) Commit(ctx context.Context, r *devicev1.CommitRequest) (*devicev1.CommitResponse, error) {
	end, shares, err := n.cfg.Lock.Commit(ctx, r.Commit)
	if err != nil {
		return nil, err
	}
	return &devicev1.CommitResponse{LeaseEnd: end.Unix(), Shares: shares}, nil
}

func (n node) Lock(ctx context.Context, r *devicev1.LockRequest) (*devicev1.LockResponse, error) {
	took, err := n.cfg.Lock.Lock(ctx, lock.Reason(r.Reason), approval.Digest(r.SubjectDigest), r.Spend)
	if err != nil {
		n.cfg.Log.Warn().Err(err).Str("reason", r.Reason).Msg("locking did not go as it should")
		return nil, err
	}
	return &devicev1.LockResponse{Status: n.cfg.Lock.Status(), TookMs: took.Milliseconds()}, nil
}

func (n node) EnableSession(ctx context.Context, r *devicev1.EnableSessionRequest) (*devicev1.EnableSessionResponse, error) {
	key, err := n.cfg.Sessions.Enable(ctx, SessionOrder{
		ID:       protocol.SessionID(r.Session),
		Engineer: protocol.Person(r.Engineer),
		Key:      r.SshKey,
		Ticket:   protocol.TicketID(r.Ticket),
		Expires:  time.Unix(r.Expires, 0),
		CAs:      r.CaKeys,
	})
	if err != nil {
		return nil, err
	}
	n.hurry()
	return &devicev1.EnableSessionResponse{HostKey: key}, nil
}

// DisableSession ends a session for good. If the node is opened or unlocked for
// the session's engineer, it relocks first, and the approval is spent. If the
// session is not known here, as after a restart, or nobody knows yet whom an
// unlock under way is for, it relocks to be sure, and nothing is spent.
func (n node) DisableSession(ctx context.Context, r *devicev1.DisableSessionRequest) (*devicev1.DisableSessionResponse, error) {
	id := protocol.SessionID(r.Session)
	engineer, known := n.cfg.Sessions.Engineer(id)
	h, held := n.cfg.Lock.Holder()
	unsure := !known || h.Engineer.Person == ""
	var err error
	if held && h.Purpose == protocol.SupportAccess && (unsure || engineer == h.Engineer.Person) {
		reason := lock.SessionDisabled
		switch {
		case unsure:
			reason = lock.UnknownSession
		case r.Reason == string(recording.EndKilled):
			reason = lock.SessionKilled
		}
		_, err = n.cfg.Lock.Lock(ctx, reason, h.Subject, !unsure)
	}
	n.cfg.Sessions.Disable(id, r.Reason)
	n.hurry()
	if err != nil {
		return nil, err
	}
	return &devicev1.DisableSessionResponse{Status: n.cfg.Lock.Status()}, nil
}

func (n node) OpenBulk(ctx context.Context, _ *devicev1.OpenBulkRequest) (*devicev1.OpenBulkResponse, error) {
	return &devicev1.OpenBulkResponse{}, n.client.DialBulk(ctx)
}

func (n node) UpdateTrustPolicy(ctx context.Context, r *devicev1.UpdateTrustPolicyRequest) (*devicev1.UpdateTrustPolicyResponse, error) {
	version, digest, err := n.cfg.ReplacePolicy(ctx, r.Policy)
	if err != nil {
		return nil, err
	}
	return &devicev1.UpdateTrustPolicyResponse{Version: int32(version), Digest: string(digest)}, nil
}

// WatchRecording sends a recording as it grows. The tunnel ends the stream of
// whoever takes nothing.
func (n node) WatchRecording(ctx context.Context, r *devicev1.WatchRecordingRequest, s devicev1.NodeServiceWatchRecordingServerStream) error {
	id := r.Recording
	if id == "" {
		id = n.cfg.Recorder.OfSession(protocol.SessionID(r.Session))
	}
	next := r.Offset
	err := n.cfg.Recorder.Watch(ctx, id, r.Offset, r.Watcher, func(offset int64, data []byte) error {
		next = offset + int64(len(data))
		return s.Send(&devicev1.WatchRecordingResponse{Recording: id, Offset: offset, Data: data})
	})
	if err != nil {
		return err
	}
	return s.Send(&devicev1.WatchRecordingResponse{Recording: id, Offset: next, Ended: true})
}

func (n node) EraseDisks(ctx context.Context, r *devicev1.EraseDisksRequest) (*devicev1.EraseDisksResponse, error) {
	certificate, err := n.cfg.Erase(ctx, protocol.OrderID(r.Order), protocol.Person(r.OrderedBy))
	n.hurry()
	if err != nil {
		return nil, err
	}
	return &devicev1.EraseDisksResponse{Certificate: certificate}, nil
}
