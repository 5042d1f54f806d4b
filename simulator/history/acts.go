package history

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// act is something that happens, as often as its weight says.
type act struct {
	name   string
	weight int
	do     func(*lane, context.Context) error // an error ends the run: it could not be played
}

func acts() []act {
	return []act{
		{"all", 6, (*lane).all},
		{"create", 2, (*lane).create},
		{"approve-internally", 3, func(l *lane, ctx context.Context) error { return l.approve(ctx, "ivan") }},
		{"approve", 3, func(l *lane, ctx context.Context) error { return l.approve(ctx, "olga") }},
		{"execute", 4, func(l *lane, ctx context.Context) error { return l.executeAny(ctx, nil) }},
		{"execute-and-crash", 1, func(l *lane, ctx context.Context) error {
			return l.executeAny(ctx, func(ctx context.Context) error { return l.crash(ctx, l.pause()) })
		}},
		{"execute-and-cut", 1, func(l *lane, ctx context.Context) error {
			return l.executeAny(ctx, func(ctx context.Context) error { l.cutLine(ctx, true, l.pause()); return nil })
		}},
		{"revoke", 2, (*lane).revoke},
		{"deny", 1, (*lane).deny},
		{"cancel", 1, (*lane).cancel},
		{"crash", 1, func(l *lane, ctx context.Context) error { return l.crash(ctx, l.pause()) }},
		{"cut", 2, func(l *lane, ctx context.Context) error { l.cutLine(ctx, l.rng.IntN(2) == 0, l.pause()); return nil }},
		{"cut-long", 4, func(l *lane, ctx context.Context) error {
			l.cutLine(ctx, l.rng.IntN(2) == 0, deadMan+slack+time.Second)
			return nil
		}},
		{"set-clock", 2, func(l *lane, ctx context.Context) error {
			return l.setClock(ctx, []time.Duration{0, 0, 0, 24 * time.Hour, -24 * time.Hour, time.Minute}[l.rng.IntN(6)])
		}},
		{"kill-control-plane", 1, func(l *lane, ctx context.Context) error { return l.killControl(ctx, l.pause()) }},
		{"wait", 3, func(l *lane, ctx context.Context) error { wait(ctx, 2*l.pause()); return nil }},
	}
}

// locking are the acts after which an open device has to lock.
var locking = []string{"cut-long", "crash", "set-clock", "revoke", "kill-control-plane", "wait"}

// pause is a moment of up to a second.
func (l *lane) pause() time.Duration { return time.Duration(l.rng.Int64N(int64(time.Second))) }

// step does something, and looks at what became of all requests.
func (l *lane) step(ctx context.Context) error {
	list, total := acts(), 0
	l.mu.Lock()
	open := l.state == protocol.Unlocked
	l.mu.Unlock()
	if open && l.rng.IntN(2) == 0 { // what is to lock it
		list = slices.DeleteFunc(list, func(a act) bool { return !slices.Contains(locking, a.name) })
	}
	for _, a := range list {
		total += a.weight
	}
	n := l.rng.IntN(total)
	for _, a := range list {
		if n -= a.weight; n < 0 {
			l.act(a.name)
			if err := a.do(l, ctx); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			break
		}
	}
	return l.check(ctx)
}

// call calls the control plane as long as an answer may take.
func (l *lane) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// some is one of the requests, the newest most often.
func (l *lane) some() *request {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.requests) == 0 {
		return nil
	}
	if l.rng.IntN(4) > 0 {
		return l.requests[len(l.requests)-1]
	}
	return l.requests[l.rng.IntN(len(l.requests))]
}

func (l *lane) create(ctx context.Context) error {
	_ = l.call(ctx, func(ctx context.Context) error { // refused while another is open
		r, err := l.crew.Request(ctx, l.serial, l.ticket)
		if err == nil {
			l.mu.Lock()
			l.requests = append(l.requests, &request{id: r.Id})
			l.mu.Unlock()
		}
		return err
	})
	return nil
}

// all is a story without anything wrong, if nothing else is.
func (l *lane) all(ctx context.Context) error {
	if err := l.create(ctx); err != nil {
		return err
	}
	for _, short := range []string{"ivan", "olga"} {
		if err := l.approve(ctx, short); err != nil {
			return err
		}
	}
	return l.executeAny(ctx, nil)
}

func (l *lane) approve(ctx context.Context, short string) error {
	r := l.some()
	if r == nil {
		return nil
	}
	duration := 3*time.Second + time.Duration(l.rng.Int64N(int64(longest-3*time.Second))).Truncate(time.Second)
	return l.call(ctx, func(ctx context.Context) error {
		yes, err := l.crew.Decision(ctx, short, r.id, approval.Approve, duration)
		if err != nil {
			return nil // too late, or not answered
		}
		l.mu.Lock()
		if short == "ivan" {
			r.internal = true
		} else if !r.sure {
			r.approved, r.duration = time.Now().Add(callTimeout), max(r.duration, duration)
		}
		l.mu.Unlock()
		_, err = l.crew.As(short).Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.id, Envelope: yes})
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case short == "ivan":
		case err == nil:
			r.approved, r.duration, r.sure = time.Now(), duration, true
		case refused(err) && !r.sure:
			r.approved = time.Time{}
		}
		return nil
	})
}

// refused reports whether the control plane itself said no.
func refused(err error) bool {
	switch protocol.CodeOf(err) {
	case protocol.CodeConflict, protocol.CodeForbidden, protocol.CodeInvalid, protocol.CodeWindow, protocol.CodeDecisionMissing, protocol.CodeDenied:
		return true
	}
	return false
}

// executeAny executes a request, with a fault on the way if there is one.
func (l *lane) executeAny(ctx context.Context, fault func(context.Context) error) error {
	r := l.some()
	if r == nil {
		return nil
	}
	var broken error
	var all sync.WaitGroup
	if fault != nil {
		delay := l.pause() / 4
		all.Go(func() {
			wait(ctx, delay)
			broken = fault(ctx)
		})
	}
	err := l.call(ctx, func(ctx context.Context) error { return l.execute(ctx, r.id) }) // what it may do is judged by who looks
	l.answered(err)
	all.Wait()
	return broken
}

// revoke revokes a request: from the device's confirmation on, or from the moment
// at which it locks by itself, nothing may be open under it.
func (l *lane) revoke(ctx context.Context) error {
	r := l.some()
	if r == nil {
		return nil
	}
	who := []string{"olga", "erin"}[l.rng.IntN(2)]
	return l.call(ctx, func(ctx context.Context) error {
		resp, err := l.crew.As(who).Requests.RevokeRequest(ctx, &lockboxv1.RevokeRequestRequest{Id: r.id, Reason: "changed my mind"})
		if err != nil {
			return nil
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		r.over = time.Now()
		for _, one := range resp.Relocked {
			if !one.Confirmed {
				r.over = time.Now().Add(deadMan)
			}
		}
		return nil
	})
}

func (l *lane) deny(ctx context.Context) error {
	r := l.some()
	if r == nil {
		return nil
	}
	_ = l.call(ctx, func(ctx context.Context) error {
		no, err := l.crew.Decision(ctx, "olga", r.id, approval.Deny, 0)
		if err == nil {
			_, err = l.crew.As("olga").Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.id, Envelope: no})
		}
		return err
	})
	return nil
}

func (l *lane) cancel(ctx context.Context) error {
	if r := l.some(); r != nil {
		_ = l.call(ctx, func(ctx context.Context) error {
			_, err := l.crew.As("erin").Requests.CancelRequest(ctx, &lockboxv1.CancelRequestRequest{Id: r.id})
			return err
		})
	}
	return nil
}

var terminal = []string{"Denied", "Expired", "Revoked", "Completed", "Error"}

// check holds what the control plane says of the requests against what it said
// before, and against the time.
func (l *lane) check(ctx context.Context) error {
	if !l.guard.TryRLock() { // it is being started again
		return nil
	}
	defer l.guard.RUnlock()
	l.mu.Lock()
	list := slices.Clone(l.requests)
	l.mu.Unlock()
	_, up := l.downSince()
	for _, r := range list {
		began := time.Now()
		var got *lockboxv1.Request
		err := l.call(ctx, func(ctx context.Context) (err error) {
			got, err = l.crew.As("olga").Requests.GetRequest(ctx, &lockboxv1.GetRequestRequest{Id: r.id})
			return err
		})
		if err != nil {
			if ctx.Err() == nil {
				l.violated("%s: request %s is not there: %v", l.name, r.id, err)
			}
			continue
		}
		was, open := l.ended[r.id], got.Status == "Initializing" || got.Status == "Pending"
		expires := time.Unix(got.Expires, 0)
		switch {
		case was != "" && was != got.Status:
			l.violated("%s: request %s left %s for %s", l.name, r.id, was, got.Status)
		case r.sure && open:
			l.violated("%s: request %s is %s, and was approved", l.name, r.id, got.Status)
		case open && began.After(expires.Add(slack)) && began.After(up.Add(slack)):
			l.violated("%s: request %s is %s, and expired at %s", l.name, r.id, got.Status, expires.Format("15:04:05"))
		case got.Status == "Expired" && time.Now().Before(expires):
			l.violated("%s: request %s expired before %s", l.name, r.id, expires.Format("15:04:05"))
		}
		if slices.Contains(terminal, got.Status) {
			l.ended[r.id] = got.Status
		}
	}
	return ignoreOutage(l.remember(ctx))
}

// ignoreOutage drops an error that says that nobody answered.
func ignoreOutage(err error) error {
	if code := protocol.CodeOf(err); code == protocol.CodeUnavailable || code == protocol.CodeOffline {
		return nil
	}
	return err
}
