package store_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// onDisk reads each of the store's files, as another process:
// opening one here would give SQLite's locks away when it is closed.
func onDisk(t *testing.T, s *store.Store) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, of := range []string{"", "-wal", "-shm"} {
		data, err := exec.Command("cat", s.Path()+of).Output()
		if err != nil {
			t.Fatal(err)
		}
		out["store"+of] = data
	}
	return out
}

func filesWith(files map[string][]byte, values ...[]byte) (names []string) {
	for name, data := range files {
		for _, v := range values {
			if bytes.Contains(data, v) {
				names = append(names, name)
			}
		}
	}
	return names
}

// Many wrappings of many sizes are put in, moved about and replaced. Of none
// that was replaced is anything left after a purge.
func TestPurgeLeavesNothing(t *testing.T) {
	s := storetest.New(t)
	now := time.Now()
	storetest.Fill(t, s, now, 1)
	node := protocol.NodeID{Serial: storetest.Serial, Node: 1}
	const disks = 70
	var old, current [][]byte
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		for i := range disks {
			id := protocol.DiskID(fmt.Sprintf("disk%d", i))
			if err := tx.InsertDisk(ctx, &store.Disk{Node: node, ID: id, Order: storetest.Order, Created: now}); err != nil {
				return err
			}
			wrapped := random(40 + 17*i)
			old = append(old, pieces(wrapped)...)
			row := store.DiskKey{Node: node, Disk: id, Kind: store.ExternalKey, Order: storetest.Order, Tenant: storetest.Tenant, Wrapper: "w", Wrapped: wrapped, Created: now}
			if err := tx.InsertDiskKey(ctx, &row); err != nil {
				return err
			}
		}
		return nil
	})
	if len(filesWith(onDisk(t, s), old...)) == 0 {
		t.Fatal("the search does not find what is there")
	}
	for round := range 2 {
		storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
			rows, err := tx.DiskKeys(ctx, storetest.Order)
			if err != nil {
				return err
			}
			current = nil
			for i, row := range rows {
				if round > 0 {
					old = append(old, pieces(row.Wrapped)...)
				}
				wrapped := random(30 + (i*31+round*400)%900)
				current = append(current, wrapped[:24])
				if err := tx.ReplaceDiskKey(ctx, row, "other", wrapped); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, name := range []string{"told what to look for", "not told"} {
		what := old
		if name == "not told" {
			what = nil
		}
		if err := s.Purge(t.Context(), what...); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		files := onDisk(t, s)
		if where := filesWith(files, old...); len(where) > 0 {
			t.Errorf("%s: replaced wrappings are still in %v", name, where)
		}
		if n := len(filesWith(files, current...)); n != disks {
			t.Errorf("%s: %d of %d current wrappings are there", name, n, disks)
		}
		if len(files["store-wal"]) != 0 {
			t.Errorf("%s: the log has %d bytes", name, len(files["store-wal"]))
		}
	}
}

// A page can hold what secure_delete does not know of, for example from before
// it was on. Purge finds it.
func TestPurgeFindsRemainsInPages(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, time.Now(), 1)
	secret := random(32)
	// Deleted by a connection without secure_delete: the bytes stay in the page.
	storetest.Exec(t, s, `INSERT INTO meta (key, value) VALUES ('x', $1)`, fmt.Sprintf("%x", secret))
	storetest.Exec(t, s, `DELETE FROM meta WHERE key = 'x'`)
	value := []byte(fmt.Sprintf("%x", secret))
	if err := s.Purge(t.Context(), []byte("nowhere to be found")); err != nil {
		t.Fatal(err)
	}
	if len(filesWith(onDisk(t, s), value)) == 0 {
		t.Fatal("there is nothing to find: the test tests nothing")
	}
	if err := s.Purge(t.Context(), append([]byte("sixteen bytes of"), value...)); err != nil { // a part of it is enough
		t.Fatal(err)
	}
	if where := filesWith(onDisk(t, s), value); len(where) > 0 {
		t.Errorf("it is still in %v", where)
	}
}

func TestPurgeWaitsForReadersAndKeepsNobodyOut(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, time.Now(), 1)
	reading, done := make(chan struct{}), make(chan struct{})
	view := make(chan error, 1)
	go func() {
		view <- s.View(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Order(t.Context(), storetest.Order)
			close(reading)
			<-done
			return err
		})
	}()
	<-reading
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.AddErasure(ctx, storetest.Order, time.Now()) })
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Purge(short, []byte("nowhere to be found")); err == nil {
		t.Error("it purged beneath a reader who needs the log")
	}
	purged := make(chan error, 1)
	go func() { purged <- s.Purge(t.Context(), []byte("nowhere to be found")) }()
	begin := time.Now()
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		return tx.DeleteErasure(ctx, store.Erasure{Order: storetest.Order})
	})
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("a writer waited %s", took)
	}
	close(done)
	if err := <-view; err != nil {
		t.Error(err)
	}
	if err := <-purged; err != nil {
		t.Error(err)
	}
}

// pieces cuts what must be gone into pieces: none may be left.
func pieces(b []byte) [][]byte {
	return slices.Collect(slices.Chunk(b[:len(b)/16*16], 16))
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestAnErasureOutlivesTheOneBeforeIt(t *testing.T) {
	s := storetest.New(t)
	now := time.Now()
	storetest.Fill(t, s, now, 1)
	add := func() (e store.Erasure) {
		storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
			if err := tx.AddErasure(ctx, storetest.Order, now); err != nil {
				return err
			}
			e, err = tx.Erasure(ctx, storetest.Order)
			return err
		})
		return e
	}
	first, second := add(), add() // in the same millisecond
	for _, e := range []store.Erasure{first, second} {
		storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
			if _, err := tx.Erasure(ctx, storetest.Order); err != nil {
				t.Errorf("it is gone with the first: %v", err)
			}
			return tx.DeleteErasure(ctx, e)
		})
	}
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		if list, err := tx.Erasures(ctx); err != nil || len(list) > 0 {
			t.Errorf("left: %v, %v", list, err)
		}
		return nil
	})
}
