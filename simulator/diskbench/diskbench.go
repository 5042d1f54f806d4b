// Package diskbench measures the disk engine beside everybody else's, in the same
// minutes on the same machine.
//
// The rules:
//
//   - A figure is the median of some runs; those of peers take turns with ours.
//   - Peers run as their packages have them, with their own defaults.
//   - Work on one core is counted in CPU time, so that a busy machine changes
//     little; what has to wait for others is counted in time on the wall.
//   - A target that is missed is told, and no error.
package diskbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// Config says what to measure.
type Config struct {
	Dir    string    // for images of up to 2 GiB; made, and removed afterwards
	Runs   int       // of which a figure is the median
	Only   string    // the name of one figure; "" for all
	Volume int64     // size of the volume that is read, in bytes
	Self   []string  // how to start this program again for [UnlockPart]
	Out    io.Writer // gets the figures and the table
	Note   io.Writer // told of progress
}

// Names returns the names of all figures.
func Names() []string {
	var names []string
	for _, t := range targets {
		if !slices.Contains(names, t.figure) {
			names = append(names, t.figure)
		}
	}
	return names
}

// target is what is wanted of a figure: at least or at most so many times its
// peer's, or so much of its unit if it has no peer.
type target struct {
	what, figure, peer string
	atLeast, atMost    float64
}

// Who is measured.
const (
	ours           = "ours"
	peerOpenSSL    = "openssl"
	peerDislocker  = "dislocker"
	peerBdemount   = "bdemount"
	peerCryptsetup = "cryptsetup"
	peerInTurn     = "in_turn" // ourselves, one after the other on one core
)

// targets are the rows of the table.
var targets = []target{
	{what: "XTS-128 in memory, one core, sectors of 512 bytes", figure: "xts128_512", peer: peerOpenSSL, atLeast: 1.4},
	{what: "the same, sectors of 4096 bytes", figure: "xts128_4096", peer: peerOpenSSL, atLeast: 2},
	{what: "XTS-256 in memory, one core, sectors of 512 bytes", figure: "xts256_512", peer: peerOpenSSL},
	{what: "XTS-128 with AES-NI only", figure: "xts128_512_aesni", peer: peerOpenSSL, atLeast: 0.8},
	{what: "XTS-128 in plain Go", figure: "xts128_512_generic", atLeast: 1.2},
	{what: "read the volume through a mount, dd bs=1M", figure: "mount_read", peer: peerDislocker, atLeast: 6},
	{what: "the same", figure: "mount_read", peer: peerBdemount, atLeast: 15},
	{what: "read a file through a mount and ntfs-3g", figure: "ntfs_read", peer: peerDislocker, atLeast: 3},
	{what: "unlock one recovery password, CPU", figure: "unlock_recovery_cpu", peer: peerCryptsetup, atMost: 0.9},
	{what: "the same", figure: "unlock_recovery_cpu", peer: peerDislocker, atMost: 0.3},
	{what: "unlock 70 recovery passwords together", figure: "unlock_70_recovery", peer: peerInTurn, atMost: 0.35},
	{what: "unlock 70 external keys together", figure: "unlock_70_external", atMost: 100},
}

// measured returns what the target is about, and whether f reaches it.
func (t target) measured(f figure.Figure) (v float64, met bool) {
	v = f.Value
	if f.Peer != "" {
		v /= f.PeerValue
	}
	return v, v >= t.atLeast && (t.atMost == 0 || v <= t.atMost)
}

// row returns the target's row of the table.
func (t target) row(f figure.Figure) []string {
	unit := " " + f.Unit
	if f.Peer != "" {
		unit = "× " + f.Peer
	}
	v, met := t.measured(f)
	is := fmt.Sprintf("%.2f%s", v, unit)
	switch {
	case t.atLeast == 0 && t.atMost == 0:
		return []string{t.what, "", is, ""}
	case t.atMost == 0:
		return []string{t.what, fmt.Sprintf("≥ %g%s", t.atLeast, unit), is, yesNo(met)}
	}
	return []string{t.what, fmt.Sprintf("≤ %g%s", t.atMost, unit), is, yesNo(met)}
}

func yesNo(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// bench is one measurement.
type bench struct {
	Config
	figures []figure.Figure
}

// Run measures, prints every figure when it is there, and then the table. It needs
// root, and the peers.
func Run(ctx context.Context, cfg Config) (err error) {
	b := &bench{Config: cfg}
	if err := b.checkTools(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	for _, measure := range []func(context.Context) error{b.ciphers, b.mounts, b.unlockOne, b.unlockMany} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return b.table()
}

// wants reports whether any of the figures is to be measured.
func (b *bench) wants(names ...string) bool {
	return b.Only == "" || slices.Contains(names, b.Only)
}

// show prints a figure, if it is wanted, and keeps it for the table.
func (b *bench) show(f figure.Figure) {
	if b.wants(f.Name) {
		fmt.Fprintln(b.Out, f)
		b.figures = append(b.figures, f)
	}
}

func (b *bench) note(format string, args ...any) { fmt.Fprintf(b.Note, format+"\n", args...) }

func (b *bench) path(name string) string { return filepath.Join(b.Dir, name) }

func (b *bench) table() error {
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\ttarget\tmeasured\t")
	for _, t := range targets {
		for _, f := range b.figures {
			if f.Name == t.figure && f.Peer == t.peer {
				fmt.Fprintln(w, strings.Join(t.row(f), "\t"))
			}
		}
	}
	return w.Flush()
}

// median returns the median of what measurements in turn have given, by name.
func median(all map[string][]float64, name string) float64 {
	return figure.Percentile(all[name], 50)
}
