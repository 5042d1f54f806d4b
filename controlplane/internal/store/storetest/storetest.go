// Package storetest gives tests a real store in a directory of their own.
package storetest

import (
	"path/filepath"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// New opens an empty store that is closed when the test ends.
func New(t testing.TB) *store.Store {
	t.Helper()
	return Open(t, filepath.Join(t.TempDir(), "store.db"))
}

// Open opens the store at path and closes it when the test ends.
func Open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
