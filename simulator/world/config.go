package world

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// reconnect bounds the devices' pauses between dials: a story has no minute to
// wait.
const (
	reconnectMin = 100 * time.Millisecond
	reconnectMax = time.Second
)

// writeConfigs writes the configuration files of all programs.
func (w *World) writeConfigs() error {
	if err := w.WriteControlConfig(0); err != nil {
		return err
	}
	for _, n := range w.Nodes() {
		for _, dir := range []string{n.Dir, filepath.Dir(n.Run)} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		if err := os.WriteFile(n.ConfigFile(), []byte(w.agentConfig(n)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// WriteControlConfig writes the configuration of lockboxd. A request expiry
// other than 0 is possible with demo_timers only, which it turns on.
func (w *World) WriteControlConfig(expiry time.Duration) error {
	var b strings.Builder
	fmt.Fprintf(&b, "data_dir: %s\n", w.DataDir())
	fmt.Fprintf(&b, "master_key_file: %s\n", filepath.Join(w.ControlDir(), "master.key"))
	fmt.Fprintf(&b, "notify:\n  file: %s\n", w.OutboxDir())
	fmt.Fprintf(&b, "api:\n  address: %s\n  names: [localhost, 127.0.0.1]\n", loopback(w.API))
	fmt.Fprintf(&b, "tunnel:\n  address: %s\n  names: [localhost, 127.0.0.1]\n", loopback(w.Tunnel))
	fmt.Fprintf(&b, "dead_man: %s\n", w.deadMan)
	if expiry != 0 {
		fmt.Fprintf(&b, "demo_timers: true\ntimers:\n  request_expiry: %s\n", expiry)
	}
	b.WriteString("log:\n  level: info\n  format: console\n")
	return os.WriteFile(w.ControlConfig(), []byte(b.String()), 0o600)
}

// OutboxDir is where lockboxd writes notices.
func (w *World) OutboxDir() string { return filepath.Join(w.ControlDir(), "outbox") }

// loopback is the address to listen on for a port of localhost.
func loopback(address string) string { return strings.Replace(address, "localhost", "127.0.0.1", 1) }

func (w *World) agentConfig(n Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "serial: %s\nnode: %d\n", n.ID.Serial, n.ID.Node)
	fmt.Fprintf(&b, "state_dir: %s\nrun_dir: %s\nbare: %t\n", n.StateDir(), n.Run, n.Bare)
	b.WriteString("disks:\n")
	for _, d := range n.Disks {
		fmt.Fprintf(&b, "  - id: %s\n    image: %s\n", d.ID, d.Image)
	}
	fmt.Fprintf(&b, "blob_roots:\n  - %s\n", w.BlobDir())
	if w.blobs.Endpoint != "" {
		b.WriteString("copy:\n  accounts:\n")
		for _, account := range w.Profile.Accounts() {
			fmt.Fprintf(&b, "    - account: %s\n      endpoint: %s\n", account, w.blobs.Endpoint)
		}
	}
	fmt.Fprintf(&b, "lock:\n  dead_man: %s\n", w.deadMan)
	fmt.Fprintf(&b, "share:\n  address: 127.0.0.1\n  port: %d\n", n.SMB)
	fmt.Fprintf(&b, "reconnect:\n  min: %s\n  max: %s\n", reconnectMin, reconnectMax)
	b.WriteString("log:\n  level: info\n  format: console\n")
	return b.String()
}
