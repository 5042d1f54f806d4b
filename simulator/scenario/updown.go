package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// upUntil is the step after which [Up] leaves the world to its user: the job
// has halted, and everybody can go on from there.
const upUntil = "5"

// running is a daemon that was left running.
type running struct {
	Name    string
	PID     int
	Program string // resolved path, so that no other process is taken for it
}

// upWorld is what [Down] has to know of a world that is up.
type upWorld struct {
	Daemons []running
	Nodes   []world.Node
}

// runningFile holds an upWorld.
const runningFile = "running.json"

// Up plays the story until the copy job has halted, leaves the daemons running
// and prints what each kind of user may type next. [Down] ends them.
func Up(ctx context.Context, cfg Config) (err error) {
	if _, err := os.Stat(filepath.Join(cfg.Dir, runningFile)); err == nil {
		return fmt.Errorf("a world is up in %s already: end it first with 'make down'", cfg.Dir)
	}
	if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty: end the world in it with 'make down', or name another folder", cfg.Dir)
	}
	w, err := world.New(world.Config{Dir: cfg.Dir, Profile: cfg.Profile})
	if err != nil {
		return err
	}
	s := newStory(cfg, w)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.cleanUp(), os.RemoveAll(cfg.Dir))
		}
	}()
	for _, st := range steps {
		if err := s.playStep(ctx, st); err != nil {
			return err
		}
		if err := s.leaveRunning(); err != nil { // for Down, should Up be killed
			return err
		}
		if st.number == upUntil {
			break
		}
	}
	s.explain(cfg.Out)
	return nil
}

// leaveRunning writes down which daemons run.
func (s *Story) leaveRunning() error {
	s.procs.mu.Lock()
	defer s.procs.mu.Unlock()
	up := upWorld{Nodes: s.w.Nodes()}
	for i := range up.Nodes {
		up.Nodes[i].Disks = nil // with all that is on them
	}
	for name, p := range s.procs.all {
		program, err := filepath.EvalSymlinks(p.cmd.Path)
		if err != nil {
			return err
		}
		up.Daemons = append(up.Daemons, running{name, p.cmd.Process.Pid, program})
	}
	data, err := json.MarshalIndent(up, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.w.Dir, runningFile), data, 0o600)
}

// explain prints what to type next.
func (s *Story) explain(w io.Writer) {
	as := func(who string) string {
		return filepath.Join(s.cfg.Bin, "lockbox") + " --home " + s.w.People[who].Home()
	}
	n := s.w.Device.Nodes[0]
	agent := filepath.Join(s.cfg.Bin, "databox-agent") + " --config " + n.ConfigFile()
	fmt.Fprintf(w, `
The world is up in %s: the copy job of %s has halted, its disks are locked.
What to type next, for each kind of user (T is the ticket, S the session, N the
number of the request). In the story's order: the ticket, which sam assigns;
session and request; ivan approves, then olga; execute, repair while olga watches,
disable; olga sees what was touched; resume the job; erase the disks; the log.

customer (olga)
  %[3]s ticket file %[2]s --title "our copy has halted"
  %[3]s request list --pending
  %[3]s request show N
  %[3]s request approve N --key %[5]s
  %[3]s session watch S
  %[3]s session play S
  %[3]s request changes N
  %[3]s order show %[2]s

engineer (erin)
  %[6]s session enable --device %[7]s --ticket T
  %[6]s ssh --key %[8]s %[7]s
  %[6]s request create --device %[7]s --ticket T --reason-code copied-to-wrong-folder --justification "move the files"
  %[6]s request execute N
  %[6]s ssh --key %[8]s %[7]s 'mv %[14]s/%[15]s %[14]s/%[16]s && prepare-to-ship'
  %[6]s session disable S --reason repaired

internal approver (ivan)
  %[9]s request approve N --key %[10]s

datacenter staff (sam)
  %[12]s ticket assign T %[4]s
  %[11]s status
  %[11]s lock
  %[12]s order resume-job %[2]s
  %[12]s order show %[2]s --watch
  %[12]s order erase %[2]s --yes
  %[12]s order certificate %[2]s

administrator
  %[13]s audit list
  %[13]s device show %[7]s
  %[13]s audit export --out activity-log
  %[13]s audit verify activity-log --log-key %[17]s

'make down WORLD=%[1]s' ends it.
`, s.w.Dir, s.w.Device.Order, as("olga"), s.w.People["erin"].Name, s.w.People["olga"].KeyFile(), as("erin"), n.ID.Serial,
		s.w.People["erin"].KeyFile(), as("ivan"), s.w.People["ivan"].KeyFile(), agent, as("sam"), as("admin"),
		"/shares/"+s.shareName(), profile.WrongFolder, profile.RightFolder, s.logKey)
}

// Down ends the world in dir and removes it.
func Down(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, runningFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no world is up in %s", dir)
	}
	if err != nil {
		return err
	}
	var up upWorld
	if err := json.Unmarshal(data, &up); err != nil {
		return fmt.Errorf("cannot read %s: %w", runningFile, err)
	}
	for _, agentsFirst := range []bool{true, false} {
		for _, r := range up.Daemons {
			if (r.Name != controlPlane) == agentsFirst {
				if err := r.end(); err != nil {
					return err
				}
			}
		}
	}
	return errors.Join(removeRuns(up.Nodes), os.RemoveAll(dir))
}

// end ends a daemon, if the process of that id still is it.
func (r running) end() error {
	for deadline := time.Now().Add(stopWithin); r.alive(); time.Sleep(50 * time.Millisecond) {
		sig := syscall.SIGTERM
		if time.Now().After(deadline) {
			sig = syscall.SIGKILL
		}
		if err := syscall.Kill(r.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("cannot end %s: %w", r.Name, err)
		}
	}
	return nil
}

func (r running) alive() bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.PID))
	return err == nil && strings.TrimSuffix(exe, " (deleted)") == r.Program
}
