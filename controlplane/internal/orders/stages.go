package orders

import (
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// The stages of an order.
const (
	DeviceOrdered         = "DeviceOrdered"
	DevicePrepared        = "DevicePrepared"
	Dispatched            = "Dispatched"
	Delivered             = "Delivered"
	PickedUp              = "PickedUp"
	AtAzureDC             = "AtAzureDC"
	DataCopy              = "DataCopy"
	Completed             = "Completed"
	CompletedWithErrors   = "CompletedWithErrors"
	CompletedWithWarnings = "CompletedWithWarnings"
)

// The strings that people are shown for the copy job.
const (
	StatusCopying               = "Data copy in progress"
	StatusHalted                = "Data copy halted"
	StatusResolved              = "Data copy error resolved"
	StatusCompleted             = "Completed"
	StatusCompletedWithWarnings = "Completed with warnings"
	StatusPendingErasure        = "Data copy completed with errors. Device pending data erasure"
	StatusCompletedWithErrors   = "Completed with errors" // once the erasure does not wait any more
)

// trip is the device's way from the customer's click to the datacenter, in
// order, with what people are shown at each stage.
var trip = []struct{ stage, status, history string }{
	{DeviceOrdered, "Ordered", "OrderCreated"},
	{DevicePrepared, "Processed", "DevicePrepared"},
	{Dispatched, "Dispatched", "ShippingToCustomer"},
	{Delivered, "Delivered", "Delivered"},
	{PickedUp, "Picked up", "ShippingToDataCenter"},
	{AtAzureDC, "Received", "PhysicalVerification"},
}

// stageIndex returns where on the trip a stage is, -1 if it is not on it.
func stageIndex(stage string) int {
	for i, t := range trip {
		if t.stage == stage {
			return i
		}
	}
	return -1
}

// nextStage returns the index of the stage that AdvanceOrder may record next:
// one further, and none that something else leads to.
func nextStage(from, to string) (int, error) {
	i := stageIndex(to)
	if i < stageIndex(Dispatched) {
		return 0, invalid("stage %q cannot be recorded: want one of Dispatched, Delivered, PickedUp and AtAzureDC", to)
	}
	if stageIndex(from) != i-1 {
		return 0, conflict("the order is at stage %s: %s follows only %s", from, to, trip[i-1].stage)
	}
	return i, nil
}

// Finished reports whether an order is over, so that nothing about its device
// can be asked for any more.
func Finished(o store.Order) bool {
	return slices.Contains([]string{Completed, CompletedWithErrors, CompletedWithWarnings, "Cancelled", "Aborted"}, o.Stage)
}

// Halted reports whether an order's copy job stopped with errors.
func Halted(o store.Order) bool { return o.JobState == JobHalted }
