package audit_test

import (
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

// writers is how many append at once.
const writers = 64

// BenchmarkIntents appends durable records, which share commits.
func BenchmarkIntents(b *testing.B) {
	a := open(b, storetest.Open(b, filepath.Join(b.TempDir(), "store.db")))
	b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
	var n atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := a.RecordIntent(b.Context(), intent(int(n.Add(1)))); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkRecords appends the same with a commit for each.
func BenchmarkRecords(b *testing.B) {
	s := storetest.Open(b, filepath.Join(b.TempDir(), "store.db"))
	a := open(b, s)
	b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
	var n atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			err := s.Tx(b.Context(), func(tx *store.Tx) error {
				_, err := a.Record(b.Context(), tx, intent(int(n.Add(1))))
				return err
			})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkFsync is the peer: a record at the end of a file, and an fsync for
// each.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for n := range b.N {
		data, err := intent(n).Encode()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(append(data, '\n')); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}
