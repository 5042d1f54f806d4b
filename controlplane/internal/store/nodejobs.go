package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// NodeJob is how the copy job stands on one node.
type NodeJob struct {
	Node         protocol.NodeID
	Order        protocol.OrderID
	State        string // running | halted | paused | completed | completed-with-warnings | completed-with-errors
	FilesTotal   int64
	FilesDone    int64
	FilesErrored int64
	BytesDone    int64
	BytesTotal   int64
	Rate         int64 // bytes per second
	ErrorCodes   []string
	Updated      time.Time
}

var nodeJobs = table{"node_jobs", "copy job of node", 2, "serial, node, order_id, state, files_total, files_done, files_errored, bytes_done, bytes_total, bytes_per_second, error_codes, updated"}

func (r *NodeJob) fields() []any {
	return []any{
		&r.Node.Serial, &r.Node.Node, &r.Order, &r.State, &r.FilesTotal, &r.FilesDone, &r.FilesErrored, &r.BytesDone,
		&r.BytesTotal, &r.Rate, js[string]{&r.ErrorCodes}, ms{&r.Updated},
	}
}

// PutNodeJob replaces what is known of the job on r.Node.
func (tx *Tx) PutNodeJob(ctx context.Context, r *NodeJob) error {
	if _, err := exec(ctx, tx, `DELETE FROM node_jobs WHERE serial = $1 AND node = $2`, r.Node.Serial, r.Node.Node); err != nil {
		return err
	}
	return insert(ctx, tx, nodeJobs, r.fields())
}

// NodeJobs reads the jobs of an order's nodes.
func (tx *Tx) NodeJobs(ctx context.Context, order protocol.OrderID) ([]NodeJob, error) {
	return list[NodeJob](ctx, tx, nodeJobs, `WHERE order_id = $1 ORDER BY serial, node`, order)
}
