package nfs

import (
	"encoding/binary"
	"slices"
	"sync"
)

// handleSize is the length of a file handle in bytes: which server it is of, and
// which node.
const handleSize = 16

// maxNodes is how many files have a handle at once. Beyond that, those longest
// unused lose theirs, and their clients look them up again.
const maxNodes = 500_000

// node is a file or folder that a client has a handle of, or one above it.
type node struct {
	id       uint64
	volume   *volume
	parent   *node // nil at the top of a share
	name     string
	children map[string]*node
	used     uint64 // when, by the tree's clock

	verifier uint64 // of the exclusive create that made it, 0 for none
}

// tree gives the files of all shares their handles. A handle stays good when its
// file is moved by a client of this server.
type tree struct {
	instance uint64 // of this server, so that no handle outlives it
	limit    int

	mu    sync.Mutex // guards what follows, and the nodes
	nodes map[uint64]*node
	clock uint64
}

func newTree(instance uint64) *tree {
	return &tree{instance: instance, limit: maxNodes, nodes: make(map[uint64]*node)}
}

// addTop gives a share its top node, whose handle never goes.
func (t *tree) addTop(v *volume) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v.top = t.newNode(v, nil, "")
}

func (t *tree) newNode(v *volume, parent *node, name string) *node {
	t.clock++
	n := &node{id: t.clock, volume: v, parent: parent, name: name, used: t.clock}
	t.nodes[n.id] = n
	if parent != nil {
		if parent.children == nil {
			parent.children = make(map[string]*node)
		}
		parent.children[name] = n
	}
	return n
}

// at returns the node of a path, made if it has none.
func (t *tree) at(v *volume, path []string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := v.top
	for _, name := range path {
		child := n.children[name]
		if child == nil {
			child = t.newNode(v, n, name)
		}
		n = child
	}
	t.clock++
	n.used = t.clock
	if len(t.nodes) > t.limit {
		t.shrink()
	}
	return n
}

func (t *tree) handle(n *node) []byte {
	b := binary.BigEndian.AppendUint64(nil, t.instance)
	return binary.BigEndian.AppendUint64(b, n.id)
}

// lookup returns the node of a handle, and its path.
func (t *tree) lookup(handle []byte) (n *node, path []string, ok bool) {
	if len(handle) != handleSize || binary.BigEndian.Uint64(handle) != t.instance {
		return nil, nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok = t.nodes[binary.BigEndian.Uint64(handle[8:])]
	if !ok {
		return nil, nil, false
	}
	t.clock++
	n.used = t.clock
	for at := n; at.parent != nil; at = at.parent {
		path = append(path, at.name)
	}
	slices.Reverse(path)
	return n, path, true
}

// find returns the node of a path that has one.
func (t *tree) find(v *volume, path []string) *node {
	n := v.top
	for _, name := range path {
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}

// id returns the number of the node that a path has, 0 if it has none.
func (t *tree) id(v *volume, path []string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.find(v, path); n != nil {
		return n.id
	}
	return 0
}

// remove forgets a path and all below it.
func (t *tree) remove(v *volume, path []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.find(v, path); n != nil && n.parent != nil {
		t.forget(n)
	}
}

func (t *tree) forget(n *node) {
	for _, child := range n.children {
		t.forget(child)
	}
	delete(t.nodes, n.id)
	delete(n.parent.children, n.name)
}

// move lets the handles of a path, and of all below it, be those of another path.
func (t *tree) move(v *volume, from, to []string) {
	target := t.at(v, to[:len(to)-1])
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.find(v, from)
	if n == nil {
		return
	}
	name := to[len(to)-1]
	if old := target.children[name]; old != nil && old != n {
		t.forget(old)
	}
	delete(n.parent.children, n.name)
	n.parent, n.name = target, name
	if target.children == nil {
		target.children = make(map[string]*node)
	}
	target.children[name] = n
}

// shrink forgets the half of the leaves that was not used for the longest time.
func (t *tree) shrink() {
	var leaves []*node
	for _, n := range t.nodes {
		if len(n.children) == 0 && n.parent != nil {
			leaves = append(leaves, n)
		}
	}
	slices.SortFunc(leaves, func(a, b *node) int { return int(int64(a.used - b.used)) })
	for _, n := range leaves[:len(leaves)/2] {
		t.forget(n)
	}
}
