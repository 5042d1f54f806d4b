package lock

import (
	"fmt"

	"github.com/databox-lockbox/lockbox/protocol"
)

// event is what happens to a lock.
type event string

const (
	challenged event = "challenged" // a challenge was given out
	expired    event = "expired"    // nobody answered the challenge in time
	attempted  event = "attempted"  // an order came: the challenge is dead
	refused    event = "refused"    // the order was refused before anything was open
	opened     event = "opened"     // all disks are open
	committed  event = "committed"  // the shares are open, or the job runs
	dropping   event = "dropping"   // whatever is open has to end
	dropped    event = "dropped"    // nothing is open any more
	failed     event = "failed"     // something could not be undone, or not in time
)

// transitions is all that can happen to a lock. What is not here is refused.
//
// Faulted is left when what could not be undone in time is undone after all, or
// when staff lock again, which tries to undo it anew.
var transitions = map[protocol.LockState]map[event]protocol.LockState{
	protocol.Locked: {
		challenged: protocol.Challenged,
		dropping:   protocol.Locked,
		failed:     protocol.Faulted,
	},
	protocol.Challenged: {
		challenged: protocol.Challenged,
		expired:    protocol.Locked,
		attempted:  protocol.Opening,
		dropping:   protocol.Locked,
	},
	protocol.Opening: {
		refused:  protocol.Locked,
		opened:   protocol.Opened,
		dropping: protocol.Locking,
	},
	protocol.Opened: {
		committed: protocol.Unlocked,
		dropping:  protocol.Locking,
	},
	protocol.Unlocked: {
		dropping: protocol.Locking,
	},
	protocol.Locking: {
		dropping: protocol.Locking,
		dropped:  protocol.Locked,
		failed:   protocol.Faulted,
	},
	protocol.Faulted: {
		dropping: protocol.Locking,
		dropped:  protocol.Locked,
	},
}

// allowsLocked reports whether e can happen now.
func (m *Machine) allowsLocked(e event) bool {
	_, ok := transitions[m.state][e]
	return ok
}

// moveLocked makes e happen, which the caller has found to be allowed.
func (m *Machine) moveLocked(e event) {
	next, ok := transitions[m.state][e]
	if !ok {
		panic(fmt.Sprintf("lock: internal error: %s in state %s", e, m.state))
	}
	m.state = next
	if next != protocol.Faulted {
		m.fault = ""
	}
	m.noticeLocked()
}
