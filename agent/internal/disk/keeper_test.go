package disk

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// A killed process whose end waits for something, here for its parent to ask, has
// no command line any more.
func TestDying(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	start := startTime(pid)
	if dying(pid, start) {
		t.Error("a process that runs is said to be dying")
	}
	if !dying(pid, start+1) {
		t.Error("another process of the same number is taken for the one that was")
	}
	cmd.Process.Kill()
	for end := time.Now().Add(5 * time.Second); !dying(pid, start); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a process that was killed and not waited for is not said to be dying")
		}
	}
	cmd.Wait()
	if !dying(pid, start) {
		t.Error("a process that is gone is not said to be dying")
	}
}

// Neither the end of the notes nor the signal comes when the agent's last thread
// hangs: the keeper sees it all the same.
func TestKeeperSeesThatTheAgentDies(t *testing.T) {
	notes := make(chan note)
	dead := make(chan struct{})
	left := make(chan []thing)
	go func() {
		left <- collect(notes, make(chan os.Signal), func() bool {
			select {
			case <-dead:
				return true
			default:
				return false
			}
		})
	}()
	notes <- note{Thing: thing{Mount: "/one"}}
	notes <- note{Thing: thing{Mount: "/two"}}
	notes <- note{Thing: thing{Mount: "/one"}, Forget: true}
	select {
	case <-left:
		t.Fatal("it undoes things of an agent that lives")
	case <-time.After(3 * lookEvery):
	}
	close(dead)
	select {
	case got := <-left:
		if len(got) != 1 || got[0].Mount != "/two" {
			t.Errorf("left: %v", got)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it does not see that the agent is dying")
	}
}
