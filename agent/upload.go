package agent

import (
	"context"
	"fmt"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob/azure"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Upload is a copy job over a plain folder with shares, without an agent: for
// measuring what a job costs. No consent is asked for, because whoever has the
// files and the account needs none.
type Upload struct {
	Folder    string // with a folder for each share, as a disk has
	Account   string // that the shares belong to
	Endpoint  string // of its blob service
	Signature string // that lets in: the query of a shared access signature
	Ledgers   string // folder for what is uploaded already
	Parallel  int    // files at once
}

// Prepare writes the bills of materials of the shares.
func (u Upload) Prepare(ctx context.Context) error {
	shares, err := copyjob.Shares("disk1", u.Folder)
	if err != nil {
		return err
	}
	_, err = copyjob.PrepareToShip(ctx, shares)
	return err
}

// Run uploads every file, or returns an error.
func (u Upload) Run(ctx context.Context) error {
	shares, err := copyjob.Shares("disk1", u.Folder)
	if err != nil {
		return err
	}
	job := copyjob.New(copyjob.Config{
		Blobs: azure.New(azure.Config{
			Accounts: []azure.Account{{Name: u.Account, Endpoint: u.Endpoint}}, Parallel: u.Parallel,
		}),
		Parallel: u.Parallel,
		Dir:      u.Ledgers,
	})
	access := copyjob.NewAccess([]byte(u.Signature))
	defer access.Wipe()
	to := []copyjob.Target{{Destination: approval.Destination{Account: u.Account, Endpoint: u.Endpoint}, Access: access}}
	result, err := job.Run(ctx, protocol.OrderID("ORD-1"), shares, to, func(copyjob.Progress) {})
	if err == nil && result.State != copyjob.Completed {
		err = fmt.Errorf("the copy job is %s: %v", result.State, result.Codes)
	}
	return err
}
