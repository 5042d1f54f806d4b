package recordings

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

const (
	maxPiece   = recording.MaxFrame + 128<<10 // bytes that a node sends at once
	maxGrowing = 256                          // recordings of one node that have not ended
)

// growing is a recording that a node brings, or that somebody follows.
type growing struct {
	appending sync.Mutex // held while a piece is taken
	check     *checker   // guarded by appending; nil: nothing was read yet
	touched   time.Time  // guarded by appending
	full      bool       // guarded by appending: it was logged that there is no room for the rest

	mu      sync.Mutex
	size    int64         // guarded by mu: bytes that are checked and on disk
	changed chan struct{} // guarded by mu: closed when size changes or it has ended
}

// grew says how much is there now, to all who follow.
func (g *growing) grew(size int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.size = size
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *growing) progress() (size int64, changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.size, g.changed
}

// grows returns the recording among the growing ones.
func (s *Service) grows(id string) (*growing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.growing[id]; g != nil {
		return g, nil
	}
	size, err := s.sizeOf(id)
	if err != nil {
		return nil, err
	}
	g := &growing{size: size, changed: make(chan struct{})}
	s.growing[id] = g
	return g, nil
}

// Append takes a piece of a recording from the node it belongs to, and says where
// the next is to begin: all before it is on disk. Only whole frames are taken.
// What is there already is compared, not written again; a gap is not taken.
//
// A piece that contradicts what is there makes the recording broken; it is
// refused from then on, with [protocol.CodeRecording]. A limit that is reached is
// [protocol.CodeLimit] or [protocol.CodeStorageFull]: the node keeps the rest.
func (s *Service) Append(ctx context.Context, node protocol.NodeID, in *devicev1.AppendRecordingRequest) (*devicev1.AppendRecordingResponse, error) {
	if !recording.ValidID(in.Recording) || in.Offset < 0 || len(in.Data) > maxPiece {
		return nil, invalid("a piece of a recording has its id, where it begins, and at most %d bytes", maxPiece)
	}
	row, err := s.row(ctx, in.Recording)
	if protocol.CodeOf(err) == protocol.CodeNotFound {
		row, err = s.begin(ctx, node, in)
		if err == nil && row.ID == "" {
			return &devicev1.AppendRecordingResponse{}, nil // from its beginning, please
		}
	}
	switch {
	case err != nil:
		return nil, err
	case row.Node != node:
		return nil, forbidden("recording %s is of another node", in.Recording)
	}
	g, err := s.grows(row.ID)
	if err != nil {
		return nil, err
	}
	g.appending.Lock()
	defer g.appending.Unlock()
	return s.append(ctx, g, row, in)
}

// begin makes a recording known by its first frame. The row is empty if the piece
// does not hold it.
func (s *Service) begin(ctx context.Context, node protocol.NodeID, in *devicev1.AppendRecordingRequest) (store.Recording, error) {
	if in.Offset != 0 {
		return store.Recording{}, nil
	}
	r := recording.NewReader(bytes.NewReader(in.Data))
	if _, _, err := r.Next(); err != nil {
		return store.Recording{}, invalid("recording %s does not begin as one: %v", in.Recording, err)
	}
	meta := r.Meta()
	switch {
	case meta.ID != in.Recording:
		return store.Recording{}, invalid("recording %s says that it is %s", in.Recording, meta.ID)
	case meta.Node != node.String():
		return store.Recording{}, forbidden("recording %s is of node %s, not of %s", meta.ID, meta.Node, node)
	}
	row := store.Recording{
		ID: meta.ID, Kind: string(meta.Kind), Node: node, Session: meta.Session, Request: meta.Request,
		Engineer: meta.Engineer, Ticket: meta.Ticket, Began: meta.Started, State: store.RecordingGrows,
		Parts: store.Parts{Whole: meta.Whole(), Part: meta.Part(), Before: meta.Continues.Before, BeforeDigest: string(meta.Continues.Digest)},
	}
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := s.assign(ctx, tx, &row); err != nil {
			return err
		}
		return tx.InsertRecording(ctx, &row)
	})
	if err != nil {
		return store.Recording{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked(node, minCharge)
	return row, nil
}

// assign finds out whose a recording is: of the session it names, or else of the
// order that its node belongs to.
func (s *Service) assign(ctx context.Context, tx *store.Tx, row *store.Recording) error {
	open, err := tx.Recordings(ctx, store.RecordingFilter{Serial: row.Node.Serial, State: store.RecordingGrows, Limit: 2 * maxGrowing})
	if err != nil {
		return err
	}
	if len(open) >= 2*maxGrowing {
		return protocol.Errorf(protocol.CodeLimit, "device %s has %d recordings that have not ended: close them first", row.Node.Serial, len(open))
	}
	n, err := tx.Node(ctx, row.Node)
	if err != nil {
		return err
	}
	order, err := tx.Order(ctx, n.Order)
	if err != nil {
		return err
	}
	row.Order, row.Tenant = order.ID, order.Tenant
	if row.Session == "" {
		return nil
	}
	session, err := tx.Session(ctx, row.Session)
	if protocol.CodeOf(err) == protocol.CodeNotFound { // of before the backup that this store was restored from
		return nil
	}
	if err != nil {
		return err
	}
	if session.Node != row.Node || session.Engineer != row.Engineer {
		return forbidden("recording %s names session %s, which is of %s on node %s", row.ID, session.ID, session.Engineer, session.Node)
	}
	row.Order, row.Tenant = session.Order, session.Tenant
	return nil
}

// append takes a piece while g is held.
func (s *Service) append(ctx context.Context, g *growing, row store.Recording, in *devicev1.AppendRecordingRequest) (*devicev1.AppendRecordingResponse, error) {
	row, err := s.row(ctx, row.ID) // it may have ended since
	if err != nil {
		return nil, err
	}
	switch row.State {
	case store.RecordingComplete, store.RecordingDeleted:
		if in.Closed && in.Digest != row.Digest {
			return nil, protocol.Errorf(protocol.CodeRecording, "recording %s is complete with digest %s: %s is another", row.ID, row.Digest, in.Digest)
		}
		if lost, err := s.lost(row); err != nil {
			return nil, err
		} else if !lost {
			return &devicev1.AppendRecordingResponse{Acked: row.Size, Confirmed: true}, nil
		}
	case store.RecordingBroken:
		return nil, protocol.Errorf(protocol.CodeRecording, "recording %s is broken: %s", row.ID, row.Problem)
	}
	g.touched = s.cfg.Now()
	size, err := s.takePiece(g, row, in)
	if damage, ok := errors.AsType[*recording.Damage](err); ok {
		return nil, s.broken(ctx, g, row, damage.Error())
	}
	if err != nil {
		return nil, err
	}
	out := &devicev1.AppendRecordingResponse{Acked: size}
	if end := g.check.in.End(); end != nil {
		out.Confirmed = true
		return out, s.end(ctx, g, row, in, end)
	}
	if in.Closed && in.Offset <= size { // no gap: all of it is here
		return nil, s.broken(ctx, g, row, "its node says that it is closed, and it has no signed end")
	}
	return out, nil
}

// takePiece takes what is new of a piece, and returns how much there is then.
func (s *Service) takePiece(g *growing, row store.Recording, in *devicev1.AppendRecordingRequest) (int64, error) {
	f, err := s.openFile(g, row.ID)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size := g.check.size
	fresh, err := fresh(f, size, in)
	if err != nil || len(fresh) == 0 {
		return size, err
	}
	after := size + int64(len(fresh))
	if err := s.reserve(row, size, after); err != nil {
		if !g.full {
			s.cfg.Logger.Warn().Err(err).Str("recording", row.ID).Stringer("node", row.Node).Msg("a recording finds no room: its node keeps the rest")
		}
		g.full = true
		return size, err
	}
	g.full = false
	if err = g.check.take(fresh); err == nil {
		err = write(f, fresh, size)
	}
	if err != nil {
		g.check = nil // it reads again what is there
		s.mu.Lock()
		s.countLocked(row.Node, charge(size)-charge(after))
		s.mu.Unlock()
		if damage, ok := errors.AsType[*recording.Damage](err); ok {
			return size, damage
		}
		return size, protocol.Errorf(protocol.CodeStorageFull, "cannot keep recording %s: %v", row.ID, err)
	}
	g.grew(after)
	return after, nil
}

// write makes data durable in a file.
func write(f *os.File, data []byte, at int64) error {
	if _, err := f.WriteAt(data, at); err != nil {
		return err
	}
	return f.Sync()
}

// openFile opens the file of a recording, of which all is checked then. What a
// crash left of a frame was never acknowledged, and goes.
func (s *Service) openFile(g *growing, id string) (*os.File, error) {
	f, err := os.OpenFile(s.path(id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open recording %s: %w", id, err)
	}
	if g.check != nil {
		return f, nil
	}
	check := newChecker()
	err = syncDir(s.cfg.Dir) // the file may be new
	if err == nil {
		err = check.catchUp(f)
	}
	if err == nil {
		err = f.Truncate(check.size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot go on with recording %s: %w", id, err), f.Close())
	}
	g.check = check
	g.grew(check.size)
	return f, nil
}

// fresh returns what of a piece is new, and has whole frames. What is not new has
// to be what is there.
func fresh(f io.ReaderAt, size int64, in *devicev1.AppendRecordingRequest) ([]byte, error) {
	if in.Offset > size {
		return nil, nil
	}
	known := min(size-in.Offset, int64(len(in.Data)))
	have := make([]byte, known)
	if _, err := f.ReadAt(have, in.Offset); err != nil && known > 0 {
		return nil, fmt.Errorf("cannot read recording %s: %w", in.Recording, err)
	}
	if !bytes.Equal(have, in.Data[:known]) {
		return nil, &recording.Damage{Fault: recording.Changed, Offset: in.Offset, Reason: "its node sends something else than it sent before"}
	}
	rest := in.Data[known:]
	return rest[:recording.Whole(rest)], nil
}

// reserve counts the growth of a recording, within the limits.
func (s *Service) reserve(row store.Recording, from, to int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, limits := charge(to)-charge(from), s.cfg.Limits
	switch {
	case to > limits.Recording:
		return protocol.Errorf(protocol.CodeLimit, "recording %s has more than the %d bytes of recordings.max_mib here: raise that, and lower recording.part_mib on the device below it", row.ID, limits.Recording)
	case s.used[row.Node]+n > limits.Node:
		return protocol.Errorf(protocol.CodeLimit, "the recordings of node %s have %d bytes: recordings.node_mib allows %d", row.Node, s.used[row.Node], limits.Node)
	case s.total+n > limits.Total:
		return protocol.Errorf(protocol.CodeStorageFull, "all recordings have %d bytes: recordings.total_mib allows %d", s.total, limits.Total)
	}
	s.countLocked(row.Node, n)
	return nil
}

// end closes a recording whose signed end has come.
func (s *Service) end(ctx context.Context, g *growing, row store.Recording, in *devicev1.AppendRecordingRequest, end *recording.End) error {
	digest := g.check.digest()
	if in.Closed && in.Digest != "" && in.Digest != digest {
		return s.broken(ctx, g, row, fmt.Sprintf("its node says that its digest is %s: it is %s", in.Digest, digest))
	}
	if row.Digest != "" && row.Digest != digest { // it was lost, and is sent again
		return s.broken(ctx, g, row, fmt.Sprintf("its digest was %s: what its node sends again has %s", row.Digest, digest))
	}
	row.NodeKey = string(approval.KeyFingerprint(end.NodeKey))
	var n store.Node
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) { n, err = tx.Node(ctx, row.Node); return err })
	if err != nil {
		return err
	}
	if n.KeyFingerprint != row.NodeKey {
		return s.broken(ctx, g, row, fmt.Sprintf("it is signed with key %s: node %s is enrolled with %s", row.NodeKey, row.Node, n.KeyFingerprint))
	}
	row.State, row.Ended, row.Reason, row.Size, row.Digest = store.RecordingComplete, end.Ended, string(end.Reason), g.check.size, digest
	row.Parts.Next = end.Next
	err = s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := s.compare(ctx, tx, &row); err != nil {
			return err
		}
		if err := s.fit(ctx, tx, &row); err != nil {
			return err
		}
		return s.keep(ctx, tx, &row)
	})
	if err != nil {
		return err
	}
	s.forget(row.ID, g)
	if row.State == store.RecordingBroken {
		return protocol.Errorf(protocol.CodeRecording, "recording %s is broken: %s", row.ID, row.Problem)
	}
	return nil
}

// fit compares a part with the one before it and the one that goes on, as far as
// they are here.
func (s *Service) fit(ctx context.Context, tx *store.Tx, row *store.Recording) error {
	for _, id := range []string{row.Parts.Before, row.Parts.Next} {
		if id == "" {
			continue
		}
		other, err := tx.Recording(ctx, id)
		if protocol.CodeOf(err) == protocol.CodeNotFound {
			continue
		}
		if err != nil {
			return err
		}
		before, after := other, *row
		if id == row.Parts.Next {
			before, after = after, before
		}
		if before.State == store.RecordingComplete && !follows(before, after) {
			row.State = store.RecordingBroken
			row.Problem = fmt.Sprintf("part %d does not continue part %d as that is here, recording %s", after.Parts.Part, before.Parts.Part, before.ID)
		}
	}
	return nil
}

// follows reports whether a part continues the one before it, which is complete.
func follows(before, after store.Recording) bool {
	a, b := after.Parts, before.Parts
	return a.Before == before.ID && b.Next == after.ID && a.BeforeDigest == before.Digest && a.Whole == b.Whole && a.Part == b.Part+1 &&
		after.Node == before.Node && after.Kind == before.Kind && after.Session == before.Session && after.Engineer == before.Engineer
}

// lost reports whether the file of a complete recording is not here, as in a
// control plane that was restored from a backup without it: then its node may send
// it again.
func (s *Service) lost(row store.Recording) (bool, error) {
	if row.State != store.RecordingComplete {
		return false, nil
	}
	size, err := s.sizeOf(row.ID)
	return size < row.Size, err
}

// keep writes how a recording ended, and records it.
func (s *Service) keep(ctx context.Context, tx *store.Tx, row *store.Recording) error {
	result := auditlog.Success
	if row.State == store.RecordingBroken {
		result = auditlog.Failure
	}
	rec := s.about(auditlog.OpKeepRecording, result, "lockboxd", *row)
	rec.Properties[propertyDigest], rec.Properties["size"], rec.Properties["reason"] = row.Digest, fmt.Sprint(row.Size), row.Reason
	if row.Problem != "" {
		rec.Properties["problem"] = row.Problem
	}
	if _, err := s.cfg.Audit.Record(ctx, tx, rec); err != nil {
		return err
	}
	return tx.UpdateRecording(ctx, row)
}

// broken ends a recording that contradicts itself or its node. What is there of
// it stays.
func (s *Service) broken(ctx context.Context, g *growing, row store.Recording, problem string) error {
	size, _ := g.progress()
	row.State, row.Problem, row.Ended, row.Size = store.RecordingBroken, problem, s.now(), size
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error { return s.keep(ctx, tx, &row) })
	if err != nil {
		return err
	}
	s.cfg.Logger.Warn().Str("recording", row.ID).Stringer("node", row.Node).Str("problem", problem).Msg("a recording is broken")
	s.forget(row.ID, g)
	return protocol.Errorf(protocol.CodeRecording, "recording %s is broken: %s", row.ID, problem)
}

// forget takes a recording that has ended from among the growing ones, and tells
// those who follow.
func (s *Service) forget(id string, g *growing) {
	s.mu.Lock()
	delete(s.growing, id)
	s.mu.Unlock()
	size, _ := g.progress()
	g.grew(size)
}

// checker follows the chain of a growing recording.
type checker struct {
	in   *recording.Reader
	feed bytes.Buffer // what in has not read yet
	size int64        // bytes taken
}

func newChecker() *checker {
	c := &checker{}
	c.in = recording.NewReader(&c.feed)
	return c
}

// take checks whole frames. After an error the checker is of no more use.
func (c *checker) take(frames []byte) error {
	if len(frames) == 0 {
		return nil
	}
	c.feed.Write(frames)
	for {
		if _, _, err := c.in.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	c.size += int64(len(frames))
	return nil
}

// catchUp checks what is there.
func (c *checker) catchUp(r io.Reader) error { return wholeFrames(r, c.take) }

// digest is that of all that was taken.
func (c *checker) digest() string { return string(c.in.Digest()) }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
