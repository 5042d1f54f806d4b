package lockbox

import "strings"

// cell names a place in a table of states and events.
type cell struct {
	state State
	event Event
}

// parseTable reads a table with events as columns and states as rows.
func parseTable(text string) map[cell]string {
	cells := make(map[cell]string)
	var head []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		f := strings.Fields(line)
		if head == nil {
			head = f
			continue
		}
		for i, e := range head {
			cells[cell{State(f[0]), Event(e)}] = f[i+1]
		}
	}
	return cells
}
