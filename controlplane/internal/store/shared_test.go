package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// sharing is several calls of Shared that wait behind one transaction.
type sharing struct {
	t    *testing.T
	s    *store.Store
	hold chan struct{} // closed to let them go
	errs [8]error      // by number of the call
	n    int
	all  sync.WaitGroup
}

// newSharing holds the store until let.
func newSharing(t *testing.T) *sharing {
	sh := &sharing{t: t, s: storetest.New(t), hold: make(chan struct{})}
	held := make(chan struct{})
	sh.all.Go(func() {
		err := sh.s.Tx(t.Context(), func(*store.Tx) error {
			close(held)
			<-sh.hold
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-held
	return sh
}

// add has one more wait.
func (sh *sharing) add(ctx context.Context, f func(context.Context, *store.Tx) error) {
	sh.t.Helper()
	i, before := sh.n, sh.s.Waiting()
	sh.n++
	sh.all.Go(func() { sh.errs[i] = sh.s.Shared(ctx, f) })
	sh.await(before + 1)
}

func (sh *sharing) await(waiting int) {
	sh.t.Helper()
	for range 1000 {
		if sh.s.Waiting() == waiting {
			return
		}
		time.Sleep(time.Millisecond)
	}
	sh.t.Fatalf("%d wait, want %d", sh.s.Waiting(), waiting)
}

func (sh *sharing) let() {
	close(sh.hold)
	sh.all.Wait()
}

// set is a small write.
func set(key string) func(context.Context, *store.Tx) error {
	return func(ctx context.Context, tx *store.Tx) error { return tx.SetMeta(ctx, key, "yes") }
}

func (sh *sharing) isSet(key string) bool {
	sh.t.Helper()
	value := ""
	storetest.Tx(sh.t, sh.s, func(ctx context.Context, tx *store.Tx) (err error) {
		value, err = tx.Meta(ctx, key)
		return err
	})
	return value == "yes"
}

func TestSharedErrorUndoesItsOwnOnly(t *testing.T) {
	sh := newSharing(t)
	mine := errors.New("mine")
	sh.add(t.Context(), set("a"))
	sh.add(t.Context(), func(ctx context.Context, tx *store.Tx) error { return errors.Join(mine, set("b")(ctx, tx)) })
	sh.add(t.Context(), set("c"))
	sh.let()
	if sh.errs[0] != nil || !errors.Is(sh.errs[1], mine) || sh.errs[2] != nil {
		t.Errorf("the outcomes are %v", sh.errs[:sh.n])
	}
	if !sh.isSet("a") || sh.isSet("b") || !sh.isSet("c") {
		t.Errorf("on disk are a %v, b %v, c %v", sh.isSet("a"), sh.isSet("b"), sh.isSet("c"))
	}
}

func TestSharedCommitFailsForAll(t *testing.T) {
	for _, broken := range []bool{true, false} { // the second is the control
		t.Run(fmt.Sprint("broken ", broken), func(t *testing.T) {
			sh := newSharing(t)
			sh.add(t.Context(), set("a"))
			sh.add(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if !broken {
					return nil
				}
				return store.BreakCommit(ctx, tx)
			})
			sh.add(t.Context(), set("c"))
			sh.let()
			for i, err := range sh.errs[:sh.n] {
				if (err != nil) != broken {
					t.Errorf("number %d has %v", i, err)
				}
			}
			if sh.isSet("a") == broken || sh.isSet("c") == broken {
				t.Errorf("on disk are a %v, c %v", sh.isSet("a"), sh.isSet("c"))
			}
		})
	}
}

// Whoever gives up gets an answer at once and costs the others nothing, be it
// the one who would have done it for all.
func TestSharedGivingUp(t *testing.T) {
	sh := newSharing(t)
	first, giveUp := context.WithCancel(t.Context())
	sh.add(first, set("a"))
	sh.add(t.Context(), set("b"))
	giveUp()
	sh.await(1)
	during, stop := context.WithCancel(t.Context())
	sh.add(during, func(ctx context.Context, tx *store.Tx) error {
		stop()
		return set("c")(ctx, tx)
	})
	sh.let()
	if protocol.CodeOf(sh.errs[0]) != protocol.CodeTimeout {
		t.Errorf("who gave up got %v", sh.errs[0])
	}
	if sh.errs[1] != nil {
		t.Errorf("another got %v", sh.errs[1])
	}
	if sh.isSet("a") || !sh.isSet("b") || !sh.isSet("c") {
		t.Errorf("on disk are a %v, b %v, c %v", sh.isSet("a"), sh.isSet("b"), sh.isSet("c"))
	}
}
