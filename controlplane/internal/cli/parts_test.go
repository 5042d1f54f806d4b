package cli

import (
	"testing"

	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// A node may say that its own is a part of another node's: it does not stand in the
// line of that.
func TestWholesAreOfOneNode(t *testing.T) {
	all := wholes([]*lockboxv1.Recording{
		{Id: "REC-3", Whole: "REC-1", Part: 9, Serial: "DBX0002", Node: 1, State: "complete"},
		{Id: "REC-2", Whole: "REC-1", Part: 2, Serial: "DBX0001", Node: 1, State: "complete"},
		{Id: "REC-1", Whole: "REC-1", Part: 1, Serial: "DBX0001", Node: 1, State: "complete"},
	}, false)
	if len(all) != 2 || len(all[1]) != 2 || all[1][0].Id != "REC-1" || nameOf(all[0]) != "REC-3" {
		t.Errorf("%v", all)
	}
}
