package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// load verifies the files against each other and finishes what a crash left
// unfinished.
func (j *Journal) load() error {
	stored, err := io.ReadAll(section(j.hashes))
	if err != nil {
		return fmt.Errorf("cannot read the stored hashes: %w", err)
	}
	good, torn, err := j.readRecords()
	if err != nil {
		return err
	}
	if err := checkStored(stored, good, int64(len(j.ends))); err != nil {
		return err
	}
	if err := j.loadAcked(); err != nil {
		return err
	}
	return state.Coded(j.repair(stored, good, torn))
}

func section(f file) io.Reader { return io.NewSectionReader(f, 0, math.MaxInt64) }

// readRecords fills in j.ends with the records that are whole. It returns the
// hashes that ought to be stored for them, and whether something follows that
// is no whole record.
func (j *Journal) readRecords() (good []byte, torn bool, err error) {
	in := bufio.NewReaderSize(section(j.records), auditlog.MaxRecord+1)
	var tree auditlog.Tree
	for {
		n, end := j.head()
		line, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, false, fmt.Errorf("cannot read record %d: %w", n, err)
		}
		record, whole := bytes.CutSuffix(line, []byte("\n"))
		r, err := auditlog.ParseRecord(record)
		if !whole || err != nil {
			return good, len(line) > 0, nil
		}
		if r.Origin != j.node.String() {
			return nil, false, damaged("record %d is of %q, and this is the journal of %s", n, r.Origin, j.node)
		}
		if good, err = appendHashes(good, &tree, record); err != nil {
			return nil, false, err
		}
		j.ends = append(j.ends, end+int64(len(line)))
	}
}

// appendHashes adds a record to the tree, and the hashes it brought to good.
func appendHashes(good []byte, tree *auditlog.Tree, record []byte) ([]byte, error) {
	hashes, err := auditlog.Append(tree.Size(), record, tree)
	if err != nil {
		return nil, err
	}
	if _, err := tree.Append(record); err != nil {
		return nil, err
	}
	return append(good, encodeHashes(hashes)...), nil
}

// checkStored refuses stored hashes that no crash can explain, n being the
// number of whole records and good their hashes. Only the hashes of the last
// record may be unfinished: cut short, or followed by zeros.
func checkStored(stored, good []byte, n int64) error {
	if len(stored) > len(good) {
		return damaged("record %d is missing or changed, though its hashes are stored", n)
	}
	same := commonPrefix(stored, good)
	rest := stored[same:]
	if len(rest) == 0 || int64(same) >= hashesEnd(n-1) && len(bytes.Trim(rest, "\x00")) == 0 {
		return nil
	}
	first := sort.Search(int(n), func(i int) bool { return hashesEnd(int64(i)+1) > int64(same) })
	return damaged("record %d and its stored hashes do not fit each other", first)
}

func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func (j *Journal) repair(stored, good []byte, torn bool) error {
	if torn {
		_, end := j.head()
		if err := truncateSync(j.records, end); err != nil {
			return err
		}
	}
	if bytes.Equal(stored, good) {
		return nil
	}
	same := commonPrefix(stored, good)
	return writeSync(j.hashes, good[same:], int64(same))
}

func (j *Journal) loadAcked() error {
	data, err := os.ReadFile(filepath.Join(j.dir, ackedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	j.acked, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || j.acked < 0 {
		return damaged("%s holds no number", ackedFile)
	}
	if n := int64(len(j.ends)); j.acked > n {
		return damaged("the control plane has %d records and %d are here: the journal was rolled back", j.acked, n)
	}
	return nil
}

func damaged(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeFaulted, "%s", "damaged: "+fmt.Sprintf(format, args...)+
		"; keep the files for the inquiry and enrol the node again with a new directory")
}

var _ tlog.HashReader = (*Journal)(nil)
