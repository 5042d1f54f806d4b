package auditlog

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Tree is a log's hashes in memory. The zero value is an empty log. It is a
// [tlog.HashReader], and not safe for concurrent use.
type Tree struct {
	size   int64
	hashes []tlog.Hash
}

// Append adds a record's bytes and returns its number, from zero.
func (t *Tree) Append(record []byte) (int64, error) {
	hashes, err := Append(t.size, record, t)
	if err != nil {
		return 0, err
	}
	t.hashes = append(t.hashes, hashes...)
	t.size++
	return t.size - 1, nil
}

// Size returns the number of records.
func (t *Tree) Size() int64 { return t.size }

// Checkpoint signs the head of the log at its present size. The origin is the
// signer's name.
func (t *Tree) Checkpoint(s note.Signer) ([]byte, error) {
	hash, err := TreeHash(t.size, t)
	if err != nil {
		return nil, err
	}
	return Checkpoint{s.Name(), t.size, hash}.Sign(s)
}

// ReadHashes returns the stored hashes with those indexes.
func (t *Tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index < 0 || index >= int64(len(t.hashes)) {
			return nil, fmt.Errorf("audit log: no stored hash %d", index)
		}
		out[i] = t.hashes[index]
	}
	return out, nil
}

// frontier is the root of a growing log in logarithmic memory: the roots of
// the full subtrees that a log of n records is made of, largest first.
type frontier struct {
	n     int64
	roots []tlog.Hash
}

func (f *frontier) push(leaf tlog.Hash) {
	for i := f.n; i&1 == 1; i >>= 1 {
		last := len(f.roots) - 1
		leaf = tlog.NodeHash(f.roots[last], leaf)
		f.roots = f.roots[:last]
	}
	f.roots = append(f.roots, leaf)
	f.n++
}

func (f *frontier) root() tlog.Hash {
	if f.n == 0 {
		empty, _ := tlog.TreeHash(0, nil)
		return empty
	}
	last := len(f.roots) - 1
	hash := f.roots[last]
	for i := last - 1; i >= 0; i-- {
		hash = tlog.NodeHash(f.roots[i], hash)
	}
	return hash
}
