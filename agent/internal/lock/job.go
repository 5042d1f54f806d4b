package lock

import (
	"context"
	"strings"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// endings says, for each end of a job, why the node locks and what is recorded.
var endings = map[copyjob.State]struct {
	reason Reason
	op     auditlog.Operation
	result auditlog.Result
}{
	copyjob.Halted:                {JobHalted, auditlog.OpDataCopyHalted, auditlog.Failure},
	copyjob.Completed:             {JobCompleted, auditlog.OpDataCopyCompleted, auditlog.Success},
	copyjob.CompletedWithWarnings: {JobCompleted, auditlog.OpDataCopyCompleted, auditlog.Success},
	copyjob.CompletedWithErrors:   {JobCompleted, auditlog.OpDataCopyCompleted, auditlog.Failure},
	copyjob.Paused:                {JobPaused, auditlog.OpDataCopyPaused, auditlog.Success},
}

// startJobLocked runs the copy job of a lease. When it ends by itself, the node
// locks; when the lease ends first, the job is paused, and goes on under the
// same consent.
func (m *Machine) startJobLocked(ctx context.Context, l *lease) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.onDrop(cancel)
	l.work.Add(1)
	event := "started"
	if m.jobsSeen[l.subject] {
		event = "resumed"
	}
	m.jobsSeen[l.subject] = true
	m.tasks.Go(func() {
		defer cancel()
		m.reportJob(l, event, copyjob.Running, copyjob.Result{})
		result := m.runJob(ctx, l)
		l.work.Done()
		end := endings[result.State]
		m.relock(end.reason, "", false, l) // changes nothing if that is why the job ended
		m.recordAfter(m.record(l.scope, end.op, end.result, "codes", codeList(result)))
		m.reportJob(l, string(result.State), result.State, result)
	})
}

func (m *Machine) runJob(ctx context.Context, l *lease) copyjob.Result {
	var last copyjob.Progress
	result, err := m.cfg.Jobs.Run(ctx, l.orderID, l.shares, l.targets, func(p copyjob.Progress) {
		last = p
		m.reportJob(l, "progress", copyjob.Running, copyjob.Result{Progress: p})
	})
	if err == nil {
		return result
	}
	if ctx.Err() != nil {
		return copyjob.Result{State: copyjob.Paused, Progress: last}
	}
	// What keeps the job from running needs people, as a halted one does.
	return copyjob.Result{State: copyjob.Halted, Progress: last, Failure: err}
}

// reportJob keeps the job's status and passes it on.
func (m *Machine) reportJob(l *lease, event string, state copyjob.State, r copyjob.Result) {
	status := &devicev1.JobStatus{
		State: string(state), FilesTotal: r.Progress.FilesTotal, FilesDone: r.Progress.FilesDone,
		FilesErrored: r.Progress.FilesErrored, BytesDone: r.Progress.BytesDone,
		BytesTotal: r.Progress.BytesTotal, BytesPerSecond: r.Progress.BytesPerSecond,
	}
	m.mu.Lock()
	m.job = status
	m.noticeLocked()
	m.mu.Unlock()
	if m.cfg.JobEvent == nil {
		return
	}
	e := JobEvent{Event: event, Order: l.orderID, Disks: l.diskIDs, Status: status, CopyLog: r.CopyLog}
	for _, c := range r.Codes {
		e.Codes = append(e.Codes, string(c))
	}
	if r.Failure != nil {
		e.Codes = append(e.Codes, string(protocol.CodeOf(r.Failure)))
	}
	m.cfg.JobEvent(e)
}

// codeList says for a record why a job ended as it did.
func codeList(r copyjob.Result) string {
	var list []string
	for _, c := range r.Codes {
		list = append(list, string(c))
	}
	if r.Failure != nil {
		list = append(list, text(r.Failure))
	}
	return strings.Join(list, " ")
}
