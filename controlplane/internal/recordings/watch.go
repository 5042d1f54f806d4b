package recordings

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

const (
	lookGrace     = 5 * time.Second // between two calls of one look
	announceEvery = time.Second     // also how soon a node is told again
	announcement  = 5 * time.Minute // of one stream to a node
)

// look is somebody's looking at a recording.
type look struct {
	recording string
	person    protocol.Person
	live      bool
}

// looking is how it stands. Fields are guarded by the service's mu.
type looking struct {
	calls     int       // that are under way
	left      time.Time // when the last of them ended
	node      protocol.NodeID
	announced context.CancelFunc // ends the telling of the engineer; nil while nobody does
}

func (l *looking) over(now time.Time) bool { return l.calls == 0 && now.Sub(l.left) > lookGrace }

// enter begins a call of a look. The first is recorded; those that follow at once
// are the same look. leave ends the call.
func (s *Service) enter(ctx context.Context, who look, rec auditlog.Record) (leave func(), err error) {
	s.mu.Lock()
	l := s.looks[who]
	known := l != nil && !l.over(s.cfg.Now())
	s.mu.Unlock()
	if !known {
		if _, err := s.cfg.Audit.RecordIntent(ctx, rec); err != nil {
			return nil, err
		}
	}
	node, err := protocol.ParseNodeID(rec.Properties["node"])
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l = s.looks[who]; l == nil {
		l = &looking{node: node}
		s.looks[who] = l
	}
	l.calls++
	if who.live {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		l.calls--
		l.left = s.cfg.Now()
	}, nil
}

// watchers are those who watch a recording now, sorted.
func (s *Service) watchers(id string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for who, l := range s.looks {
		if who.recording == id && who.live && !l.over(s.cfg.Now()) {
			names = append(names, string(who.person))
		}
	}
	slices.Sort(names)
	return names
}

func (s *Service) followedLocked(id string) bool {
	for who, l := range s.looks {
		if who.recording == id && l.calls > 0 {
			return true
		}
	}
	return false
}

// announce tells nodes who watches, for as long as they do. What is shown comes
// from here: a node that cannot be told holds nobody up.
func (s *Service) announce(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		s.mu.Lock()
		for who, l := range s.looks {
			switch {
			case l.over(s.cfg.Now()):
				if l.announced != nil {
					l.announced()
				}
				delete(s.looks, who)
			case who.live && l.announced == nil:
				told, end := context.WithTimeout(ctx, announcement)
				l.announced = end
				all.Go(func() { s.tell(told, who, l) })
			}
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// tell holds open the stream by which a node knows of a watcher.
func (s *Service) tell(ctx context.Context, who look, l *looking) {
	err := s.hold(ctx, who, l.node)
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Debug().Err(err).Str("recording", who.recording).Stringer("node", l.node).Msg("a node is not told who watches")
		select { // not again at once
		case <-ctx.Done():
		case <-time.After(announceEvery):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.announced()
	l.announced = nil
}

// hold ends without error when the recording has ended.
func (s *Service) hold(ctx context.Context, who look, node protocol.NodeID) error {
	client, err := s.cfg.Nodes.Node(node)
	if err != nil {
		return err
	}
	stream, err := client.WatchRecording(ctx, &devicev1.WatchRecordingRequest{
		Recording: who.recording, Offset: onlyTell, Watcher: string(who.person),
	})
	if err != nil {
		return err
	}
	for {
		if _, err := stream.Receive(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// onlyTell is the offset that asks a node for no bytes.
const onlyTell = -1
