package shell

import (
	"context"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Node is what a shell sees and uses of its node. Its methods may be called
// concurrently.
type Node interface {
	Status() *devicev1.NodeStatus
	// Lease returns what the engineer of this session may use now, or a refusal
	// that says what to do.
	Lease() (Lease, error)
	// Ship writes new bills of materials for all shares of the lease, on record,
	// and returns those that were written, with an error as well, and how it ended,
	// as devices call it: "" if it did not begin.
	Ship(ctx context.Context) (state string, bills []Bill, err error)
}

// Session is the support session that a shell belongs to. Its methods may be
// called concurrently.
type Session interface {
	// Record makes something durable in the node's journal. Who records too fast
	// waits. An error says that it is not recorded: unless ctx has ended, so must
	// the session.
	Record(ctx context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error
	// Running is told when a command begins and when it has ended.
	Running(bool)
	// Hung is told that a command did not end in time although it was told to:
	// the connection must end.
	Hung()
}

// Config is what a shell is made of.
type Config struct {
	Node    Node
	Session Session
	FileLog files.FileLog // of what is done to files
	Client  string        // address or channel, as it is recorded with it
	Now     func() time.Time
	In      io.Reader // nil: nothing
	Out     io.Writer
	Err     io.Writer
	Console *Console // of a command with a terminal; then In, Out and Err are not used
	Log     zerolog.Logger
}

// Lease is what the engineer of a session may use, and until when.
type Lease struct {
	Request  protocol.RequestID
	Order    protocol.OrderID
	Ticket   protocol.TicketID
	Engineer protocol.Person
	Access   approval.Access
	End      time.Time
	Shares   []files.Share
	Address  string // of the share server, host:port; "" if there is none
	User     string // of the shares
	Password string // of the shares; shown in the session only
}

// Bill is a new bill of materials.
type Bill struct {
	Share      string
	Disk       protocol.DiskID
	Digest     string
	Previous   string   // digest of the bill before; "" for the first
	Difference string   // from the bill before, a line a file
	Issues     []string // files that the copy job will not take as they are: code and path
	Warnings   []string // files that it will copy without all that is known of them: code and path
}
