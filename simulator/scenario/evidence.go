package scenario

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/simulator/world"
)

// leftOf looks at the machine for what is open of a node's disks: mounts,
// loop devices, processes. It asks the kernel, not the agent.
func leftOf(n world.Node) []string {
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], n.Run+"/") {
			left = append(left, "mount "+fields[4])
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		backing, err := os.ReadFile(l)
		if err != nil {
			continue
		}
		file := strings.TrimSpace(string(backing))
		if strings.HasPrefix(file, n.Run+"/") || strings.HasPrefix(file, n.Dir+"/") {
			left = append(left, "loop device over "+file)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		args, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(args, []byte(n.Run+"/")) {
			continue
		}
		left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
	}
	return left
}

// secret is a value that must be nowhere in a locked agent's memory.
type secret struct {
	name  string
	value []byte
}

// findInMemory searches the memory of a process and returns the names of the
// secrets that are there.
func findInMemory(pid int, secrets []secret) ([]string, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	found := make(map[string]bool)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var perms string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perms); err != nil || perms[0] != 'r' {
			continue
		}
		searchRange(mem, from, to, secrets, found)
	}
	var names []string
	for _, s := range secrets {
		if found[s.name] {
			names = append(names, s.name)
		}
	}
	return names, nil
}

// searchRange reads one mapping in pieces that overlap by more than a secret.
func searchRange(mem io.ReaderAt, from, to int64, secrets []secret, found map[string]bool) {
	const piece, overlap = 4 << 20, 64
	buf := make([]byte, piece+overlap)
	for at := from; at < to; at += piece {
		n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
		for _, s := range secrets {
			if bytes.Contains(buf[:n], s.value) {
				found[s.name] = true
			}
		}
	}
}

// accessSecrets are the values of what lets into an account that must be nowhere.
func accessSecrets(credential string) []secret {
	const enough = 40 // bytes, to know it by
	if encoded, ok := strings.CutPrefix(credential, "AccountKey="); ok {
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil && len(raw) >= enough {
			return []secret{{"account key", raw[:enough]}, {"account key in base64", []byte(encoded[:enough])}}
		}
	}
	_, signature, _ := strings.Cut(credential, "sig=")
	return []secret{{"signature", []byte(signature[:min(len(signature), enough)])}}
}

var dumpLine = regexp.MustCompile(`(?m)^(?:MK dump:)?\s+((?:[0-9a-f]{2} )+)\s*$`)

// volumeKey asks cryptsetup, with the recovery password, for the key that
// encrypts a volume's sectors.
func volumeKey(ctx context.Context, image, recovery string) ([]byte, error) {
	c, err := run(ctx, recovery, "cryptsetup", "bitlkDump", "--dump-volume-key", "--batch-mode", image)
	if err != nil {
		return nil, err
	}
	if c.code != 0 {
		return nil, fmt.Errorf("cryptsetup bitlkDump: %s", strings.TrimSpace(c.err))
	}
	var text strings.Builder
	for _, m := range dumpLine.FindAllStringSubmatch(c.out, -1) {
		text.WriteString(strings.ReplaceAll(m[1], " ", ""))
	}
	return hex.DecodeString(text.String())
}

// secretsOf are the key values of a node's disks: the external key, the
// recovery password, and the halves of the volume key; and what lets into the
// accounts that it copies to.
func (s *Story) secretsOf(ctx context.Context, n world.Node) []secret {
	list := slices.Clone(s.access)
	for _, d := range n.Disks {
		name := world.KeyName(n.ID, d.ID)
		k := s.keys[name]
		list = append(list, secret{name + " external key", k.External}, secret{name + " recovery password", []byte(k.Recovery)})
		if s.volumeKeys[name] == nil {
			key, err := volumeKey(ctx, d.Image, k.Recovery)
			s.must(err)
			s.hold(len(key) == 32, "cryptsetup told a volume key of %d bytes: want 32", len(key))
			s.volumeKeys[name] = [][]byte{key[:16], key[16:]}
		}
		for i, half := range s.volumeKeys[name] {
			list = append(list, secret{fmt.Sprintf("%s volume key half %d", name, i+1), half})
		}
	}
	return list
}
