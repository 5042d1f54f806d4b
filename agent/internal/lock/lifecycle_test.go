package lock

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

var (
	states = []protocol.LockState{protocol.Locked, protocol.Challenged, protocol.Opening, protocol.Opened, protocol.Unlocked, protocol.Locking, protocol.Faulted}
	events = []event{challenged, expired, attempted, refused, opened, committed, dropping, dropped, failed}
)

// The whole table again, as a picture: a dash is what must not happen.
const picture = `
           challenged expired attempted refused opened committed dropping dropped failed
Locked     Challenged -       -         -       -      -         Locked   -       Faulted
Challenged Challenged Locked  Opening   -       -      -         Locked   -       -
Opening    -          -       -         Locked  Opened -         Locking  -       -
Opened     -          -       -         -       -      Unlocked  Locking  -       -
Unlocked   -          -       -         -       -      -         Locking  -       -
Locking    -          -       -         -       -      -         Locking  Locked  Faulted
Faulted    -          -       -         -       -      -         Locking  Locked  -
`

func TestTransitions(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(picture), "\n")
	head := strings.Fields(lines[0])
	if len(head) != len(events) || len(lines)-1 != len(states) {
		t.Fatalf("the picture has %d events and %d states", len(head), len(lines)-1)
	}
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		for i, want := range cells[1:] {
			got := moveFrom(protocol.LockState(cells[0]), event(head[i]))
			if got != want {
				t.Errorf("%s in state %s leads to %s, want %s", head[i], cells[0], got, want)
			}
		}
	}
	for s, row := range transitions {
		for e := range row {
			if !strings.Contains(picture, "\n"+string(s)+" ") || !strings.Contains(lines[0], string(e)) {
				t.Errorf("the picture does not know %s in state %s", e, s)
			}
		}
	}
}

// moveFrom returns where an event leads, "-" if it is refused.
func moveFrom(s protocol.LockState, e event) (to string) {
	m := &Machine{state: s}
	defer func() {
		if recover() != nil {
			to = "-"
		}
	}()
	if allowed := m.allowsLocked(e); !allowed {
		m.moveLocked(e) // must panic
		return "allowed though it is not"
	}
	m.moveLocked(e)
	return string(m.state)
}

// situations lead to each state for real.
var situations = map[protocol.LockState]func(s *scene) *attempt{
	protocol.Locked: func(s *scene) *attempt { return s.newAttempt(protocol.SupportAccess) },
	protocol.Challenged: func(s *scene) *attempt {
		a := s.newAttempt(protocol.SupportAccess)
		must(a.challenge())
		return a
	},
	protocol.Opening: func(s *scene) *attempt {
		a := s.newAttempt(protocol.SupportAccess)
		req := a.order(must(a.challenge()))
		s.disks.hangOpen = s.hang()
		go s.Unlock(s.t.Context(), nil, req, nil)
		synctest.Wait()
		return a
	},
	protocol.Opened: func(s *scene) *attempt {
		a := s.newAttempt(protocol.SupportAccess)
		must(a.unlock())
		return a
	},
	protocol.Unlocked: func(s *scene) *attempt { return s.open(protocol.SupportAccess) },
	protocol.Locking: func(s *scene) *attempt {
		a := s.open(protocol.SupportAccess)
		s.disks.hangClose = s.hang()
		go s.Lock(s.t.Context(), DeadMan, "", false)
		synctest.Wait()
		return a
	},
	protocol.Faulted: func(s *scene) *attempt {
		a := s.open(protocol.SupportAccess)
		s.disks.sticky, s.disks.cleanErr = true, errors.New("the mount cannot be undone")
		s.Lock(s.t.Context(), DeadMan, "", false)
		return a
	},
}

// hang returns a channel that is closed when the test ends.
func (s *scene) hang() chan struct{} {
	c := make(chan struct{})
	s.t.Cleanup(func() {
		select {
		case <-c:
		default:
			close(c)
		}
	})
	return c
}

// What every call does in every state: the code of its refusal, and the state
// after it.
func TestCallsInEveryState(t *testing.T) {
	calls := map[string]func(*scene, *attempt) error{
		"Challenge": func(s *scene, a *attempt) error { _, err := a.challenge(); return err },
		"Unlock": func(s *scene, a *attempt) error {
			a.sign()
			c := approval.Challenge{Nonce: make([]byte, approval.NonceSize), HPKEKey: anyHPKEKey()}
			_, err := s.Unlock(s.t.Context(), nil, a.order(c), nil)
			return err
		},
		"Commit": func(s *scene, a *attempt) error {
			a.sign()
			proof := must(approval.SignEd25519(approval.Opened{
				Node: approval.NameOf(s.nodes[0]), NodeKey: public("node 1"), OrderDigest: approval.DigestOf(nil), IntentDigest: approval.DigestOf(nil), RequestDigest: a.subject, OpenedAt: time.Now().Unix(),
			}, key("node 1")))
			_, _, err := s.Commit(s.t.Context(), a.commitEnvelope(proof))
			return err
		},
		"Lock": func(s *scene, a *attempt) error { _, err := s.Lock(s.t.Context(), Operator, "", false); return err },
	}
	const want = `
		Locked     Challenge ok Challenged   Unlock nonce-not-outstanding Locked   Commit not-opened Locked     Lock ok Locked
		Challenged Challenge ok Challenged   Unlock nonce-not-outstanding Locked   Commit not-opened Challenged Lock ok Locked
		Opening    Challenge busy Opening    Unlock busy Opening                   Commit not-opened Opening    Lock faulted Faulted
		Opened     Challenge busy Opened     Unlock busy Opened                    Commit not-opened Opened     Lock ok Locked
		Unlocked   Challenge busy Unlocked   Unlock busy Unlocked                  Commit not-opened Unlocked   Lock ok Locked
		Locking    Challenge busy Locking    Unlock busy Locking                   Commit not-opened Locking    Lock faulted Faulted
		Faulted    Challenge faulted Faulted Unlock faulted Faulted                Commit faulted Faulted       Lock faulted Faulted`
	for _, line := range strings.Split(strings.TrimSpace(want), "\n") {
		f := strings.Fields(line)
		for i := 1; i < len(f); i += 3 {
			state, call, code, after := protocol.LockState(f[0]), f[i], f[i+1], protocol.LockState(f[i+2])
			t.Run(string(state)+" "+call, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newScene(t)
					a := situations[state](s)
					s.stateIs(state)
					err := calls[call](s, a)
					if got := protocol.CodeOf(err); code == "ok" && err != nil || code != "ok" && string(got) != code {
						t.Errorf("%s in state %s: %v, want %s", call, state, err, code)
					}
					s.stateIs(after)
				})
			})
		}
	}
}

// Whatever hangs while the node locks, after 1.5 s the keys are gone, and after
// 2 s Lock has returned. When it ends at last, the node is Locked.
func TestLockingWaitsForNobody(t *testing.T) {
	for name, c := range map[string]struct {
		hang  func(*scene, chan struct{})
		limit time.Duration
		fault bool
	}{
		"nothing":      {func(*scene, chan struct{}) {}, 0, false},
		"sessions":     {func(s *scene, c chan struct{}) { s.cfg.EndSessions = func(Reason) { <-c } }, hooksWithin, false},
		"share server": {func(s *scene, c chan struct{}) { s.shares.hangStop = c }, lockWithin, true},
		"closing":      {func(s *scene, c chan struct{}) { s.disks.hangClose = c }, lockWithin, true},
		"wiping":       {func(s *scene, c chan struct{}) { s.disks.hangWipe = c }, lockWithin, true},
		"everything": {func(s *scene, c chan struct{}) {
			s.cfg.EndSessions = func(Reason) { <-c }
			s.shares.hangStop, s.disks.hangClose = c, c
		}, lockWithin, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				stuck := make(chan struct{})
				s := newScene(t, func(s *scene) { c.hang(s, stuck) })
				s.open(protocol.SupportAccess)
				disk := s.disks.get("disk1")
				start := time.Now()
				took, err := s.Lock(t.Context(), Operator, "", false)
				if took != c.limit || time.Since(start) > lockWithin {
					t.Errorf("it took %v, and Lock returned after %v; want %v", took, time.Since(start), c.limit)
				}
				if c.fault != (protocol.CodeOf(err) == protocol.CodeFaulted) {
					t.Errorf("Lock: %v", err)
				}
				if name != "wiping" {
					if disk.mu.Lock(); !disk.wiped || disk.wipedAt.Sub(start) > wipeWithin {
						t.Errorf("wiped %v after %v", disk.wiped, disk.wipedAt.Sub(start))
					}
					disk.mu.Unlock()
				}
				close(stuck)
				synctest.Wait()
				s.lockedBecause(Operator)
				s.open(protocol.SupportAccess)
			})
		})
	}
}

// A disk that opens, or a mount or share server that comes up, after the node
// was locked is undone.
func TestWhatComesTooLateIsUndone(t *testing.T) {
	for name, hang := range map[string]func(*scene, chan struct{}){
		"open":   func(s *scene, c chan struct{}) { s.disks.hangOpen = c },
		"mount":  func(s *scene, c chan struct{}) { s.disks.hangMount = c },
		"shares": func(s *scene, c chan struct{}) { s.shares.hangStart = c },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				stuck := make(chan struct{})
				hang(s, stuck)
				a := s.newAttempt(protocol.SupportAccess)
				req := a.order(must(a.challenge()))
				result := make(chan error, 1)
				go func() {
					proof, err := s.Unlock(t.Context(), nil, req, nil)
					if err == nil {
						_, _, err = s.Commit(t.Context(), a.commitEnvelope(proof))
					}
					result <- err
				}()
				synctest.Wait()
				took, err := s.Lock(t.Context(), Revoked, a.subject, false)
				if took > lockWithin || protocol.CodeOf(err) != protocol.CodeFaulted {
					t.Errorf("Lock: %v after %v", err, took)
				}
				close(stuck)
				if err := <-result; protocol.CodeOf(err) != protocol.CodeLocked {
					t.Errorf("what came too late was told %v", err)
				}
				synctest.Wait()
				s.lockedBecause(Revoked)
				if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
					t.Errorf("after the revocation: %v", err)
				}
			})
		})
	}
}

func TestLimitsOfALease(t *testing.T) {
	for name, c := range map[string]struct {
		during func(s *scene) // while unlocked
		after  time.Duration  // still unlocked after this
		until  time.Duration  // locked after this
		reason Reason
		spent  bool
	}{
		"end of the window": {func(s *scene) { s.keepAlive(2 * time.Hour) }, time.Hour - time.Second, time.Hour + time.Second, WindowOver, true},
		"date set back by a day": {func(s *scene) {
			s.clock.setBy(-24 * time.Hour)
			s.keepAlive(2 * time.Hour)
		}, time.Hour - time.Second, time.Hour + time.Second, WindowOver, true},
		"date set back and forth by a day": {func(s *scene) {
			s.clock.setBy(-24 * time.Hour)
			time.Sleep(10 * time.Second)
			s.clock.setBy(24 * time.Hour)
			s.keepAlive(2 * time.Hour)
		}, time.Hour - time.Second, time.Hour + time.Second, WindowOver, true},
		"date set forth by a day": {func(s *scene) {
			time.Sleep(10 * time.Second)
			s.clock.setBy(24 * time.Hour)
		}, 9 * time.Second, 11 * time.Second, ClockSet, false},
		"suspended": {func(s *scene) {
			time.Sleep(10 * time.Second)
			s.clock.mu.Lock()
			s.clock.slept += time.Hour
			s.clock.mu.Unlock()
		}, 9 * time.Second, 11 * time.Second, WindowOver, true},
		"dead man": {func(s *scene) { s.keepAlive(30 * time.Minute) }, 30*time.Minute + 59*time.Second, 30*time.Minute + 62*time.Second, DeadMan, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				a := s.newAttempt(protocol.SupportAccess)
				a.voteOf(approval.Customer).MaxDuration = 3600
				a.open()
				start := time.Now()
				var during sync.WaitGroup
				during.Go(func() { c.during(s) })
				defer during.Wait()
				time.Sleep(c.after)
				s.stateIs(protocol.Unlocked)
				time.Sleep(c.until - time.Since(start))
				s.lockedBecause(c.reason)
				if reason, spent := s.state.Spent(string(a.subject)); spent != c.spent || spent && reason != string(c.reason) {
					t.Errorf("spent: %v, for %q", spent, reason)
				}
			})
		})
	}
}

// keepAlive has the control plane heard of for d.
func (s *scene) keepAlive(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.Heard(time.Time{})
		time.Sleep(min(15*time.Second, time.Until(end)))
	}
	s.Heard(time.Time{})
}

func TestLongestLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, func(s *scene) { s.cfg.MaxLease = time.Hour })
		end := s.newAttempt(protocol.SupportAccess).open()
		if want := time.Now().Add(time.Hour); !end.Equal(want) {
			t.Errorf("the lease ends %v, want %v", end, want)
		}
		go s.keepAlive(2 * time.Hour)
		time.Sleep(time.Hour + time.Second)
		s.lockedBecause(WindowOver)
		time.Sleep(time.Hour)
	})
}

func TestOpenedButNotCommitted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		proof := must(a.unlock())
		time.Sleep(29 * time.Second)
		s.stateIs(protocol.Opened)
		time.Sleep(2 * time.Second)
		s.lockedBecause(NotCommitted)
		if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof)); protocol.CodeOf(err) != protocol.CodeNotOpened {
			t.Errorf("a commit that came too late: %v", err)
		}
		a.open() // not spent
	})
}

func TestCommitRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		code   protocol.Code
		commit func(a *attempt, proof []byte) []byte
	}{
		"by another service": {protocol.CodeServiceSignature, func(a *attempt, proof []byte) []byte {
			return must(approval.SignEd25519(approval.Commit{RequestDigest: a.subject, Opened: [][]byte{proof}, IssuedAt: time.Now().Unix()}, key("mallory")))
		}},
		"for another request": {protocol.CodeNotOpened, func(a *attempt, proof []byte) []byte {
			return must(approval.SignEd25519(approval.Commit{RequestDigest: approval.DigestOf(nil), Opened: [][]byte{proof}, IssuedAt: time.Now().Unix()}, key("service")))
		}},
		"proof by another key": {protocol.CodeNode, func(a *attempt, proof []byte) []byte {
			return a.commitEnvelope(must(approval.SignEd25519(approval.Opened{
				Node: "DBX0001/1", NodeKey: public("mallory"), OrderDigest: approval.DigestOf(nil), IntentDigest: a.intent, RequestDigest: a.subject, OpenedAt: time.Now().Unix(),
			}, key("mallory"))))
		}},
		"proof of an earlier order": {protocol.CodeNotOpened, func(a *attempt, proof []byte) []byte {
			return a.commitEnvelope(must(approval.SignEd25519(approval.Opened{
				Node: "DBX0001/1", NodeKey: public("node 1"), OrderDigest: approval.DigestOf(nil), IntentDigest: a.intent, RequestDigest: a.subject, OpenedAt: time.Now().Unix(),
			}, key("node 1"))))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				a := s.newAttempt(protocol.SupportAccess)
				proof := must(a.unlock())
				if _, _, err := s.Commit(t.Context(), c.commit(a, proof)); protocol.CodeOf(err) != c.code {
					t.Errorf("refused with %v, want %s", err, c.code)
				}
				if s.shares.started != 0 {
					t.Error("shares were opened")
				}
				s.stateIs(protocol.Opened)
				if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof)); err != nil {
					t.Errorf("the repaired commit: %v", err)
				}
			})
		})
	}
}

// What fails after a good commit locks at once, and leaves nothing.
func TestCommitThatFailsLocks(t *testing.T) {
	for name, c := range map[string]struct {
		code   protocol.Code
		fault  func(*scene)
		repair func(*scene)
	}{
		"mount":   {protocol.CodeDisks, func(s *scene) { s.disks.mountErr = errors.New("no") }, func(s *scene) { s.disks.mountErr = nil }},
		"shares":  {protocol.CodeUnavailable, func(s *scene) { s.shares.startErr = errors.New("no") }, func(s *scene) { s.shares.startErr = nil }},
		"journal": {protocol.CodeNotRecorded, func(s *scene) { s.journal.breaks(errors.New("no"), nil) }, func(s *scene) { s.journal.breaks(nil, nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				a := s.newAttempt(protocol.SupportAccess)
				proof := must(a.unlock())
				c.fault(s)
				if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof)); protocol.CodeOf(err) != c.code {
					t.Errorf("%v, want %s", err, c.code)
				}
				s.lockedBecause(UnlockFailed)
				c.repair(s)
				a.open()
			})
		})
	}
}

// Both nodes of a Heavy, or none.
func TestPeers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, func(s *scene) { s.nodes = append(s.nodes, protocol.NodeID{Serial: "DBX0001", Node: 2}) })
		a := s.newAttempt(protocol.SupportAccess)
		proof := must(a.unlock())
		if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof)); protocol.CodeOf(err) != protocol.CodeNotOpened {
			t.Fatalf("a commit without the peer's proof: %v", err)
		}
		// The peer's clock is a minute ahead, which is allowed.
		born := time.Now()
		intent := a.intent
		peerOpened := func(made time.Time, order string) []byte {
			return must(approval.SignEd25519(approval.Opened{
				Node: "DBX0001/2", NodeKey: public("node 2"), OrderDigest: approval.DigestOf([]byte(order)), RequestDigest: a.subject,
				IntentDigest: intent, OpenedAt: made.Add(time.Minute).Unix(),
			}, key("node 2")))
		}
		intent = approval.DigestOf([]byte("an attempt a moment ago"))
		if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof, peerOpened(born, "peer's"))); protocol.CodeOf(err) != protocol.CodeNotOpened {
			t.Fatalf("a commit with the peer's proof of an earlier attempt: %v", err)
		}
		intent = a.intent
		if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof, peerOpened(born, "peer's"))); err != nil {
			t.Fatal(err)
		}
		for range 20 { // five minutes of good proofs
			time.Sleep(15 * time.Second)
			s.Heard(time.Time{})
			s.PeersOpened([][]byte{[]byte("garbage"), peerOpened(time.Now(), "peer's")})
		}
		s.stateIs(protocol.Unlocked)
		last := time.Now()
		for range 3 { // proofs that were held back, or are of another unlock, keep nothing alive
			time.Sleep(15 * time.Second)
			s.Heard(time.Time{})
			s.PeersOpened([][]byte{peerOpened(last, "peer's"), peerOpened(time.Now(), "another")})
		}
		s.stateIs(protocol.Unlocked)
		time.Sleep(14 * time.Second)
		s.stateIs(protocol.Unlocked)
		time.Sleep(2 * time.Second)
		s.lockedBecause(PeerLost)
		if _, spent := s.state.Spent(string(a.subject)); spent {
			t.Error("losing the peer spent the approval")
		}
	})
}

// The proof for the peers is as old as it is, whatever the date says.
func TestOpenedProofFollowsBootTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		if s.Opened() != nil {
			t.Error("a locked node proves to be open")
		}
		a := s.open(protocol.SupportAccess)
		s.clock.setBy(-24 * time.Hour)
		time.Sleep(30 * time.Second)
		o, err := approval.VerifyOpened(s.Opened(), s.nodeRefs()[0], a.subject)
		if err != nil || time.Since(time.Unix(o.OpenedAt, 0)).Abs() > time.Second {
			t.Errorf("proof of %v at %v: %v", time.Unix(o.OpenedAt, 0), time.Now(), err)
		}
	})
}

func TestWhatSpends(t *testing.T) {
	for _, c := range []struct {
		reason Reason
		flag   bool
		want   bool
	}{
		{SessionDisabled, false, true}, {EngineerDone, false, true}, {Revoked, false, true}, {WindowOver, false, true}, {Tamper, false, true},
		{DeadMan, false, false}, {PeerLost, false, false}, {Operator, false, false}, {Operator, true, true}, {"anything-else", false, false}, {"NOT A REASON", false, false},
	} {
		t.Run(fmt.Sprint(c.reason, c.flag), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				a := s.open(protocol.SupportAccess)
				if _, err := s.Lock(t.Context(), c.reason, a.subject, c.flag); err != nil {
					t.Fatal(err)
				}
				want := protocol.Code("")
				switch {
				case c.reason == Revoked:
					want = protocol.CodeRevoked
				case c.want:
					want = protocol.CodeSpent
				}
				if _, err := a.unlock(); protocol.CodeOf(err) != want {
					t.Errorf("the approval again: %v, want %q", err, want)
				}
				if n := s.journal.count(auditlog.OpSpendApproval, auditlog.Success); (n == 1) != c.want {
					t.Errorf("%d records of spending", n)
				}
			})
		})
	}
}

// A session that ends while the request still waits changes nothing; a
// revocation does. A lock for another subject leaves the lease alone.
func TestLockOfAnotherSubject(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		held := s.open(protocol.SupportAccess)
		waiting := s.newAttempt(protocol.SupportAccess)
		waiting.sign()
		revoked := s.newAttempt(protocol.SupportAccess)
		revoked.sign()
		must(s.Lock(t.Context(), SessionDisabled, waiting.subject, false))
		must(s.Lock(t.Context(), Revoked, revoked.subject, false))
		s.stateIs(protocol.Unlocked)
		must(s.Lock(t.Context(), Operator, held.subject, false))
		s.lockedBecause(Operator)
		if _, err := revoked.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("a revoked approval: %v", err)
		}
		waiting.open()
	})
}

// A revocation that comes along with an order is remembered without it.
func TestRevocationInARequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		a.sign()
		revocation := must(approval.SignEd25519(approval.Revocation{
			SubjectDigest: a.subject, RevokedAt: time.Now().Unix(), Signer: string(approval.KeyFingerprint(public("service"))),
		}, key("service")))
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Revocations = [][]byte{revocation} }
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("with a revocation: %v", err)
		}
		a.onRequest = nil
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("with the revocation held back: %v", err)
		}
	})
}

// Whoever ends a session finds out whom the node is held for, from the challenge
// on, and can keep a later commit from opening it.
func TestHolder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		if h, held := s.Holder(); held {
			t.Errorf("a locked node is held for %v", h)
		}
		must(a.challenge())
		unsure := Holder{Purpose: protocol.SupportAccess, Subject: a.subject}
		if h, held := s.Holder(); !held || h != unsure {
			t.Errorf("challenged: %v, %v", h, held)
		}
		must(s.Lock(t.Context(), SessionDisabled, a.subject, false))
		sure := unsure
		sure.Engineer = a.statement.Engineer
		proof := must(a.unlock())
		if h, held := s.Holder(); !held || h != sure {
			t.Errorf("opened: %v, %v", h, held)
		}
		must(s.Lock(t.Context(), SessionDisabled, a.subject, true))
		if _, _, err := s.Commit(t.Context(), a.commitEnvelope(proof)); protocol.CodeOf(err) != protocol.CodeNotOpened {
			t.Errorf("a commit after that: %v", err)
		}
		s.lockedBecause(SessionDisabled)
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeSpent {
			t.Errorf("a second unlock: %v", err)
		}
	})
}

func TestWhatServesTheLeaseEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.open(protocol.SupportAccess)
		s.shares.last.Stop(t.Context(), ShareEnded)
		synctest.Wait()
		s.lockedBecause(ShareEnded)
		if got := s.Status().LastRelockDetail; got != "smb: it ended" {
			t.Errorf("detail: %q", got)
		}
		a.open()
		s.disks.get("disk2").Wipe()
		synctest.Wait()
		s.lockedBecause(DiskEnded)
	})
}

func (s *scene) jobEvents() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		list = append(list, e.Event)
	}
	return list
}

func TestCopyJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.open(protocol.DataCopy)
		synctest.Wait()
		if got := s.Status().Job; got.State != "running" || got.FilesTotal != 2 {
			t.Errorf("job %v", got)
		}
		must(s.Lock(t.Context(), DeadMan, "", false))
		synctest.Wait()
		s.lockedBecause(DeadMan)
		a.open() // the same consent
		synctest.Wait()
		s.jobs.end <- copyjob.Result{State: copyjob.Halted, CopyLog: []byte("<CopyLog/>")}
		synctest.Wait()
		s.lockedBecause(JobHalted)
		a.open()
		synctest.Wait()
		s.jobs.end <- copyjob.Result{State: copyjob.Completed}
		synctest.Wait()
		s.lockedBecause(JobCompleted)
		want := "started progress paused resumed progress halted resumed progress completed"
		if got := strings.Join(s.jobEvents(), " "); got != want {
			t.Errorf("events %q, want %q", got, want)
		}
		must(s.Lock(t.Context(), Revoked, a.subject, false))
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("after the consent was revoked: %v", err)
		}
	})
}

func TestProcessEndLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.open(protocol.SupportAccess)
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		s.lockedBecause(AgentStopped)
		if n := s.journal.count(auditlog.OpLockVolume, auditlog.Success); n != 1 {
			t.Errorf("%d records of locking", n)
		}
		if _, err := a.challenge(); protocol.CodeOf(err) != protocol.CodeUnavailable {
			t.Errorf("a challenge after the end: %v", err)
		}
		if _, err := s.Lock(t.Context(), Operator, "", false); protocol.CodeOf(err) != protocol.CodeUnavailable {
			t.Errorf("a lock after the end: %v", err)
		}
		s.run() // again, on the same state
		s.stateIs(protocol.Locked)
		if s.disks.cleaned < 2 {
			t.Error("nothing was cleaned up at the start")
		}
		a.open() // a restart does not spend
	})
}

func TestFaulted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, func(s *scene) { s.disks.cleanErr = errors.New("a mount of yesterday") })
		s.stateIs(protocol.Faulted)
		if _, err := s.newAttempt(protocol.SupportAccess).unlock(); protocol.CodeOf(err) != protocol.CodeFaulted || !strings.Contains(err.Error(), "yesterday") {
			t.Errorf("unlock: %v", err)
		}
		if _, err := s.Lock(t.Context(), Operator, "", false); protocol.CodeOf(err) != protocol.CodeFaulted {
			t.Errorf("lock, and still it cannot be undone: %v", err)
		}
		s.disks.cleanErr = nil
		if _, err := s.Lock(t.Context(), Operator, "", false); err != nil {
			t.Errorf("lock, after staff removed it: %v", err)
		}
		s.lockedBecause(Operator)
		s.open(protocol.SupportAccess)
	})
}

// While a lease lasts, the clock cannot be set back to before it later.
func TestHighWaterRisesWithTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.open(protocol.SupportAccess)
		s.keepAlive(10 * time.Minute)
		synctest.Wait()
		if high := s.state.HighWater(); time.Since(high) > 2*time.Minute {
			t.Errorf("after ten minutes the high-water mark is %v old", time.Since(high))
		}
		s.clock.setBy(time.Hour) // before the end of the lease
		s.keepAlive(2 * time.Minute)
		synctest.Wait()
		s.stateIs(protocol.Unlocked)
		if high := s.state.HighWater(); high.After(time.Now()) {
			t.Errorf("the date that was set became the high-water mark: %v", high)
		}
		s.clock.setBy(-time.Hour)
		must(s.Lock(t.Context(), Operator, "", false))
		s.clock.setBy(-time.Minute) // within what the order's time allows
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeClock {
			t.Errorf("with the date set back: %v", err)
		}
		s.clock.setBy(24 * time.Hour) // forth: that must not become the mark
		a.unlock()
		s.clock.setBy(-24*time.Hour + time.Minute)
		a.open()
	})
}

// The word of the control plane, where it agrees with the wall clock, keeps an
// approval that was never executed from coming back to life.
func TestHighWaterRisesWithHeartbeats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess) // signed, and nobody executes it
		a.sign()
		beat := func(theirs time.Time) time.Time {
			s.Heard(theirs)
			synctest.Wait()
			return s.state.HighWater()
		}
		if high := beat(time.Time{}); !high.IsZero() {
			t.Errorf("raised to %v by no time at all", high)
		}
		s.clock.setBy(24 * time.Hour)
		if high := beat(time.Now()); !high.IsZero() {
			t.Errorf("raised to %v by a wall clock that is wrong", high)
		}
		s.clock.setBy(-24 * time.Hour)
		if high := beat(time.Now().Add(24 * time.Hour)); !high.IsZero() {
			t.Errorf("raised to %v by a control plane that is wrong", high)
		}
		if high := beat(time.Now().Add(time.Minute)); time.Since(high).Abs() > time.Second {
			t.Errorf("raised to %v, want the earlier clock", high)
		}
		first := s.state.HighWater()
		time.Sleep(time.Minute)
		if high := beat(time.Now()); !high.Equal(first) {
			t.Errorf("written again after a minute")
		}
		late := time.Unix(a.statement.Expires+a.statement.MaxDuration, 0).Add(time.Hour)
		time.Sleep(time.Until(late))
		if high := beat(time.Now().Add(-time.Minute)); time.Since(high).Abs() > time.Minute+time.Second {
			t.Errorf("the mark is %v old", time.Since(high))
		}
		// The window is over; somebody sets both clocks back into it.
		s.clock.setBy(-time.Until(time.Unix(a.statement.Created, 0).Add(time.Minute)).Abs())
		a.onOrder = func(o *approval.Order) { o.IssuedAt = s.clock.Now().Unix() }
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeClock {
			t.Errorf("revived: %v", err)
		}
	})
}

// fullState remembers no more revocations of what it has never seen.
type fullState struct{ State }

func (f fullState) SpendUnknown(digest, reason string, until time.Time) error {
	if _, known := f.Spent(digest); known {
		return f.State.SpendUnknown(digest, reason, until)
	}
	return protocol.Errorf(protocol.CodeLimit, "full")
}

// Nobody fills disk, memory or journal by revoking what was never approved.
func TestMadeUpRevocationsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, func(s *scene) { s.cfg.State = fullState{s.state} })
		madeUp := approval.DigestOf([]byte("made up"))
		if _, err := s.Lock(t.Context(), Revoked, madeUp, false); protocol.CodeOf(err) != protocol.CodeLimit {
			t.Errorf("Lock: %v", err)
		}
		if n := s.journal.count(auditlog.OpSpendApproval, auditlog.Success); n != 0 {
			t.Errorf("%d records", n)
		}
		a := s.open(protocol.SupportAccess) // a real one is spent all the same
		for range 3 {
			must(s.Lock(t.Context(), SessionDisabled, a.subject, true))
		}
		if n := s.journal.count(auditlog.OpSpendApproval, auditlog.Success); n != 1 {
			t.Errorf("spending once made %d records", n)
		}
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeSpent {
			t.Errorf("unlock after that: %v", err)
		}
	})
}

// A flood of refusals does not fill the journal.
func TestRefusalsAreRecordedAtALimitedRate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		for range 3 * burst {
			s.Unlock(t.Context(), nil, nil, nil)
		}
		if n := s.journal.count(auditlog.OpRefuseUnlock, auditlog.Refused); n != burst {
			t.Errorf("%d refusals were recorded, want %d", n, burst)
		}
		time.Sleep(time.Minute)
		s.Unlock(t.Context(), nil, nil, nil)
		last := s.journal.records[len(s.journal.records)-1]
		if last.Properties["unrecordedBefore"] != fmt.Sprint(2*burst) {
			t.Errorf("the next record says %q were not recorded", last.Properties["unrecordedBefore"])
		}
	})
}
