package orders

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// States of the copy job, of a node and of the whole order.
const (
	JobRunning               = "running"
	JobHalted                = "halted"
	JobPaused                = "paused"
	JobCompleted             = "completed"
	JobCompletedWithWarnings = "completed-with-warnings"
	JobCompletedWithErrors   = "completed-with-errors"
)

// jobStates says which state a node's event leads to.
var jobStates = map[string]string{
	"started": JobRunning, "resumed": JobRunning, "progress": JobRunning,
	"halted": JobHalted, "paused": JobPaused,
	"completed": JobCompleted, "completed-with-warnings": JobCompletedWithWarnings, "completed-with-errors": JobCompletedWithErrors,
}

// maxCodes bounds the distinct error codes of one report.
const maxCodes = 32

var codeForm = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,95}$`)

// StartJob starts the copy job, or resumes it, under the consent in force: the
// disks of all nodes are unlocked for data-copy only, and no share opens. A
// device that is open for support refuses with [protocol.CodeBusy].
func (s *Service) StartJob(ctx context.Context, caller auth.Caller, in *lockboxv1.StartJobRequest, progress func(*lockboxv1.ProgressEvent)) error {
	o, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return o, err
		}
		return o, s.mayCopy(ctx, tx, o)
	})
	if err != nil {
		return err
	}
	began := s.now()
	out, err := s.cfg.Custody.Unlock(ctx, caller, custody.UnlockIn{Consent: o.Consent}, progress)
	if err != nil {
		return err
	}
	if err := s.jobStarted(ctx, caller, o, began); err != nil {
		return err
	}
	progress(&lockboxv1.ProgressEvent{
		Time: s.now().Unix(), Node: string(o.Serial), Phase: "done",
		Message: "the copy job of order " + string(o.ID) + " runs", LeaseEnd: unix(out.LeaseEnd),
	})
	return nil
}

func (s *Service) mayCopy(ctx context.Context, tx *store.Tx, o store.Order) error {
	switch {
	case o.Stage != AtAzureDC && o.Stage != DataCopy:
		return conflict("order %s is at stage %s: its data is copied at %s or %s", o.ID, o.Stage, AtAzureDC, DataCopy)
	case o.Consent == "":
		return protocol.Errorf(protocol.CodeNotApproved, "order %s has no data-copy consent: the customer has to sign one", o.ID)
	}
	return s.hasAccess(ctx, tx, o)
}

// jobStarted notes that the job runs. before is the order as it was when the
// unlock began: what nodes have reported since is newer, and stays. A short job
// may even have ended.
func (s *Service) jobStarted(ctx context.Context, caller auth.Caller, before store.Order, began time.Time) error {
	op, what := auditlog.OpDataCopyStarted, "DataCopy Started"
	if before.Stage == DataCopy {
		op, what = auditlog.OpDataCopyResumed, "DataCopy Resumed"
	}
	return s.change(ctx, string(caller.Person), op, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := tx.Order(ctx, before.ID)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["consent"] = o.ConsentDigest
		if err := s.addHistory(ctx, tx, o, what, "by "+string(caller.Person)); err != nil {
			return err
		}
		jobs, err := tx.NodeJobs(ctx, o.ID)
		if err != nil {
			return err
		}
		for i, j := range jobs {
			if j.Updated.Before(began) {
				jobs[i].State, jobs[i].ErrorCodes, jobs[i].Updated = JobRunning, nil, s.now()
				if err := tx.PutNodeJob(ctx, &jobs[i]); err != nil {
					return err
				}
			}
		}
		return s.settle(ctx, tx, o, jobs)
	})
}

// ReportJob takes a node's report of its copy job. The same report twice
// changes nothing.
func (s *Service) ReportJob(ctx context.Context, node protocol.NodeID, in *devicev1.ReportJobRequest) (*devicev1.ReportJobResponse, error) {
	job, err := readJob(node, in)
	if err != nil {
		return nil, err
	}
	eraseAccess := func() {}
	err = s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		o, err := s.orderOfNode(ctx, tx, node, in.Order)
		if err != nil {
			return err
		}
		if Finished(o) {
			return nil
		}
		if o.Stage != AtAzureDC && o.Stage != DataCopy {
			return conflict("order %s is at stage %s: no copy job can run", o.ID, o.Stage)
		}
		if err := s.takeJob(ctx, tx, o, job, in); err != nil {
			return err
		}
		eraseAccess, err = s.dropAccess(ctx, tx, o.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	eraseAccess()
	return &devicev1.ReportJobResponse{}, nil
}

func (s *Service) takeJob(ctx context.Context, tx *store.Tx, o store.Order, job store.NodeJob, in *devicev1.ReportJobRequest) error {
	jobs, err := tx.NodeJobs(ctx, o.ID)
	if err != nil {
		return err
	}
	news := !slices.ContainsFunc(jobs, func(j store.NodeJob) bool { return sameJob(j, job) })
	job.Order, job.Updated = o.ID, s.now()
	if err := tx.PutNodeJob(ctx, &job); err != nil {
		return err
	}
	if news {
		if err := s.recordJob(ctx, tx, o, job, in.CopyLog); err != nil {
			return err
		}
	}
	if jobs, err = tx.NodeJobs(ctx, o.ID); err != nil {
		return err
	}
	return s.settle(ctx, tx, o, jobs)
}

func readJob(node protocol.NodeID, in *devicev1.ReportJobRequest) (store.NodeJob, error) {
	state, ok := jobStates[in.Event]
	if !ok {
		return store.NodeJob{}, invalid("event %q of the copy job is unknown", in.Event)
	}
	if len(in.ErrorCodes) > maxCodes || slices.ContainsFunc(in.ErrorCodes, func(c string) bool { return !codeForm.MatchString(c) }) {
		return store.NodeJob{}, invalid("a report has at most %d error codes, of capital letters, digits and underscores", maxCodes)
	}
	if len(in.CopyLog) > 0 {
		if _, err := manifest.ParseCopyLog(in.CopyLog); err != nil {
			return store.NodeJob{}, invalid("copy log: %v", err)
		}
	}
	j := in.GetJob()
	return store.NodeJob{
		Node: node, State: state, FilesTotal: j.GetFilesTotal(), FilesDone: j.GetFilesDone(),
		FilesErrored: j.GetFilesErrored(), BytesDone: j.GetBytesDone(), BytesTotal: j.GetBytesTotal(), Rate: j.GetBytesPerSecond(),
		ErrorCodes: in.ErrorCodes,
	}, nil
}

// sameJob reports whether two reports say the same.
func sameJob(a, b store.NodeJob) bool {
	return a.Node == b.Node && a.State == b.State && a.FilesTotal == b.FilesTotal && a.FilesDone == b.FilesDone &&
		a.FilesErrored == b.FilesErrored && a.BytesDone == b.BytesDone && a.BytesTotal == b.BytesTotal && a.Rate == b.Rate && slices.Equal(a.ErrorCodes, b.ErrorCodes)
}

// orderOfNode reads the order that a node serves. A node speaks for no other.
func (s *Service) orderOfNode(ctx context.Context, tx *store.Tx, node protocol.NodeID, id string) (store.Order, error) {
	n, err := tx.Node(ctx, node)
	if err != nil {
		return store.Order{}, err
	}
	if id != "" && id != string(n.Order) {
		return store.Order{}, protocol.Errorf(protocol.CodeForbidden, "node %s does not serve order %s", node, id)
	}
	return tx.Order(ctx, n.Order)
}

// settle moves the order on as the jobs of its nodes say.
func (s *Service) settle(ctx context.Context, tx *store.Tx, o store.Order, jobs []store.NodeJob) error {
	if Finished(o) {
		return nil
	}
	was := o
	count(&o, jobs)
	o.Stage, o.JobState, o.ErrorCodes, o.Updated = DataCopy, stateOf(jobs, nodesOf[o.SKU]), codesOf(jobs), s.now()
	switch o.JobState {
	case JobRunning:
		o.Status = StatusCopying
		if was.JobState == JobHalted || was.Status == StatusResolved {
			o.Status = StatusResolved
		}
	case JobHalted:
		o.Status = StatusHalted
	case JobCompleted:
		o.Stage, o.Status = Completed, StatusCompleted
	case JobCompletedWithWarnings:
		o.Stage, o.Status = CompletedWithWarnings, StatusCompletedWithWarnings
	case JobCompletedWithErrors:
		o.Stage, o.Status = CompletedWithErrors, StatusPendingErasure
		if err := tx.SetTimer(ctx, TimerPendingErasure, string(o.ID), s.now().Add(pendingErasure)); err != nil {
			return err
		}
	}
	if err := tx.UpdateOrder(ctx, &o); err != nil {
		return err
	}
	return s.jobHistory(ctx, tx, was, o)
}

// stateOf is the state of the whole job: halted as soon as one node is, over
// when all nodes are.
func stateOf(jobs []store.NodeJob, nodes int) string {
	has := func(state string) bool {
		return slices.ContainsFunc(jobs, func(j store.NodeJob) bool { return j.State == state })
	}
	switch {
	case has(JobHalted):
		return JobHalted
	case has(JobRunning) || len(jobs) < nodes && !has(JobPaused):
		return JobRunning
	case has(JobPaused):
		return JobPaused
	case has(JobCompletedWithErrors):
		return JobCompletedWithErrors
	case has(JobCompletedWithWarnings):
		return JobCompletedWithWarnings
	}
	return JobCompleted
}

func count(o *store.Order, jobs []store.NodeJob) {
	o.FilesTotal, o.FilesDone, o.FilesErrored, o.BytesDone = 0, 0, 0, 0
	for _, j := range jobs {
		o.FilesTotal += j.FilesTotal
		o.FilesDone += j.FilesDone
		o.FilesErrored += j.FilesErrored
		o.BytesDone += j.BytesDone
	}
}

func codesOf(jobs []store.NodeJob) []string {
	var codes []string
	for _, j := range jobs {
		codes = append(codes, j.ErrorCodes...)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// jobOperations are the records of what a node's job does. Starting is recorded
// by whoever starts it.
var jobOperations = map[string]auditlog.Operation{
	JobHalted: auditlog.OpDataCopyHalted, JobPaused: auditlog.OpDataCopyPaused,
	JobCompleted: auditlog.OpDataCopyCompleted, JobCompletedWithWarnings: auditlog.OpDataCopyCompleted,
	JobCompletedWithErrors: auditlog.OpDataCopyCompleted,
}

func (s *Service) recordJob(ctx context.Context, tx *store.Tx, o store.Order, job store.NodeJob, copyLog []byte) error {
	if len(copyLog) > 0 {
		if err := tx.PutCopyLog(ctx, &store.CopyLog{Order: o.ID, Node: job.Node, State: job.State, Time: s.now(), XML: copyLog}); err != nil {
			return err
		}
	}
	op, ok := jobOperations[job.State]
	if !ok {
		return nil
	}
	result := auditlog.Success
	if job.State == JobHalted || job.State == JobCompletedWithErrors {
		result = auditlog.Failure
	}
	rec := auditlog.NewRecord(s.now(), op, result)
	rec.Caller, rec.Properties = job.Node.URI().String(), map[string]string{
		"node": job.Node.String(), "errorCodes": strings.Join(job.ErrorCodes, " "),
		"filesTotal": fmt.Sprint(job.FilesTotal), "filesDone": fmt.Sprint(job.FilesDone), "filesErrored": fmt.Sprint(job.FilesErrored),
	}
	about(&rec, o)
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// jobHistory adds what people want to read to the order's history.
func (s *Service) jobHistory(ctx context.Context, tx *store.Tx, was, o store.Order) error {
	if was.JobState == o.JobState {
		return nil
	}
	switch o.JobState {
	case JobRunning:
		if o.Status == StatusResolved && was.JobState == JobHalted {
			return s.addHistory(ctx, tx, o, StatusResolved, "")
		}
	case JobHalted:
		return s.addHistory(ctx, tx, o, StatusHalted, strings.Join(o.ErrorCodes, " "))
	case JobPaused:
		return s.addHistory(ctx, tx, o, "DataCopy Paused", "")
	case JobCompleted, JobCompletedWithWarnings, JobCompletedWithErrors:
		return s.addHistory(ctx, tx, o, "DataCopy Completed", fmt.Sprintf("%s: %d files copied, %d not", o.Status, o.FilesDone, o.FilesErrored))
	}
	return nil
}

// TimerPendingErasure is the kind of the timers that end the wait of orders whose
// data was not copied whole. Whoever runs timers hands them to
// [Service.EndPendingErasure].
const TimerPendingErasure = "order-pending-erasure"

// pendingErasure is how long the customer of such an order has to object.
const pendingErasure = approval.UncopiedKept

// EndPendingErasure completes an order with errors whose time to object is over:
// nothing keeps its device from being erased any more.
func (s *Service) EndPendingErasure(ctx context.Context, t store.Timer) error {
	return s.change(ctx, string(auth.SystemCaller().Person), auditlog.OpDataCopyCompleted, func(tx *store.Tx, rec *auditlog.Record) error {
		if err := tx.FinishTimer(ctx, t); err != nil {
			return err
		}
		o, err := tx.Order(ctx, protocol.OrderID(t.Subject))
		if err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["status"] = StatusCompletedWithErrors
		o.Status, o.Updated = StatusCompletedWithErrors, s.now()
		if err := tx.UpdateOrder(ctx, &o); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, StatusCompletedWithErrors, "nobody objected within 14 days: the device may be erased")
	})
}

// GetCopyLog shows the newest copy log of each node to who may know the names of
// the customer's files.
func (s *Service) GetCopyLog(ctx context.Context, caller auth.Caller, in *lockboxv1.GetCopyLogRequest) (*lockboxv1.GetCopyLogResponse, error) {
	o, err := s.orderWithFiles(ctx, caller, in.Order, readCopyLog)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.GetCopyLogResponse, error) {
		logs, err := tx.CopyLogs(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.GetCopyLogResponse{}
		for _, l := range logs {
			out.CopyLogs = append(out.CopyLogs, l.XML)
		}
		return out, nil
	})
}
