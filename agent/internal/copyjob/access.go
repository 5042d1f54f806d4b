package copyjob

import (
	"fmt"
	"io"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Target is a destination, with what lets into it.
type Target struct {
	approval.Destination
	Access *Access // nil: nothing does; a folder needs nothing
}

// Access is what lets into a storage account: a shared access signature, which is
// the query of a URL. It is in memory once, until it is wiped. It is safe for
// concurrent use.
type Access struct {
	mu    sync.Mutex
	query []byte // nil: it was wiped
}

// NewAccess takes over a query, which [Access.Wipe] overwrites.
func NewAccess(query []byte) *Access { return &Access{query: query} }

// AppendTo appends the query, and reports false once it was wiped. The caller
// wipes the result.
func (a *Access) AppendTo(b []byte) ([]byte, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append(b, a.query...), a.query != nil
}

// Wipe overwrites the query. Nothing goes out with it any more.
func (a *Access) Wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.query)
	a.query = nil
}

// Format prints no secret, whatever the verb.
func (*Access) Format(s fmt.State, _ rune) { io.WriteString(s, "copyjob.Access") }
