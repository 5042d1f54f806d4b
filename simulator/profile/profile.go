// Package profile says what simulated devices look like: how many nodes and
// disks, which shares are on them, and what the customer copied there.
//
// Sizes are scaled down: a Data Box has ten disks of ten terabytes, its profile
// four of a few megabytes. Everything else is as on the real device.
package profile

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Profile is one kind of device.
type Profile struct {
	Name     string // of the profile, which is the order's SKU
	Nodes    []Node
	DiskSize int64 // bytes of each image, a multiple of 4096
}

// Node is one node: its disks, in order.
type Node struct {
	Disks []Disk
}

// Disk is one disk and what the customer put on it.
type Disk struct {
	ID     protocol.DiskID
	Shares []Share
}

// Share is one share folder, <account>_<kind>.
type Share struct {
	Name  string
	Files map[string]string // path below the share folder → content
}

// DefaultDiskSize is the size of a simulated disk in bytes.
const DefaultDiskSize = 48 << 20

// WrongFolder is the folder that is no valid container name. What is in it
// halts the copy job.
const WrongFolder = "Wrong_Folder"

// RightFolder is where its content belongs.
const RightFolder = "reports"

// Names are the profiles there are.
var Names = []string{"databox", "databox-heavy"}

// Get returns the profile with this name.
func Get(name string) (Profile, error) {
	disks := fourDisks()
	switch name {
	case "databox":
		return Profile{Name: name, Nodes: []Node{{disks}}, DiskSize: DefaultDiskSize}, nil
	case "databox-heavy":
		// Two independent nodes, each with its own disks.
		return Profile{Name: name, Nodes: []Node{{disks[:2]}, {disks[2:]}}, DiskSize: DefaultDiskSize}, nil
	}
	return Profile{}, fmt.Errorf("there is no profile %q: want one of %s", name, strings.Join(Names, ", "))
}

// Accounts returns the storage accounts of all shares, sorted.
func (p Profile) Accounts() []string {
	var accounts []string
	for _, n := range p.Nodes {
		for _, d := range n.Disks {
			for _, s := range d.Shares {
				account, _, _ := strings.Cut(s.Name, "_")
				accounts = append(accounts, account)
			}
		}
	}
	slices.Sort(accounts)
	return slices.Compact(accounts)
}

// FS returns the disk's content as a file system: one folder per share.
func (d Disk) FS() fs.FS {
	tree := fstest.MapFS{}
	for _, s := range d.Shares {
		tree[s.Name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755, ModTime: madeAt}
		for name, content := range s.Files {
			tree[s.Name+"/"+name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644, ModTime: madeAt}
		}
	}
	return tree
}

var madeAt = time.Date(2026, 10, 1, 9, 0, 0, 0, time.UTC)

func fourDisks() []Disk {
	return []Disk{
		{"disk1", []Share{{"contosodata_BlockBlob", map[string]string{
			"photos/2026/harbour.jpg":       noise("harbour", 200_000),
			"photos/2026/market.jpg":        noise("market", 150_000),
			"invoices/august.csv":           table("invoice", 400),
			"invoices/größe & höhe.txt":     "non-ASCII names arrive as they are\n",
			WrongFolder + "/quarter-1.csv":  table("quarter-1", 300),
			WrongFolder + "/quarter-2.csv":  table("quarter-2", 300),
			WrongFolder + "/annual/all.csv": table("annual", 900),
		}}}},
		{"disk2", []Share{{"contosodata_PageBlob", map[string]string{
			"machines/web01.vhd": noise("web01", 512*900),
			"machines/db01.vhd":  noise("db01", 512*1500),
		}}}},
		{"disk3", []Share{{"contosodata_AzFile", map[string]string{
			"handbook/chapter1.txt":       table("chapter 1", 200),
			"handbook/annex/glossary.txt": table("glossary", 50),
		}}}},
		{"disk4", []Share{{"contosologs_BlockBlob", map[string]string{
			"web/2026-09.log": table("GET /", 3000),
			"web/2026-08.log": table("GET /", 2500),
			"mail/empty.log":  "",
		}}}},
	}
}

// table returns n lines of text.
func table(what string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s,%d,%d\n", what, i, i*i)
	}
	return b.String()
}

// noise returns n bytes that do not compress: a linear congruential generator
// seeded by name, so that a run can be repeated.
func noise(name string, n int) string {
	state := uint64(len(name))
	for _, c := range []byte(name) {
		state = state*31 + uint64(c)
	}
	b := make([]byte, n)
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	return string(b)
}
