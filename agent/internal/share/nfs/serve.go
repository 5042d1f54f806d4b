package nfs

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	gonfs "github.com/willscott/go-nfs"

	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// The server's process finds its order in one variable, and another one says that
// it is confined already.
const (
	orderVariable    = "DATABOX_NFS_ORDER"
	confinedVariable = "DATABOX_NFS_CONFINED"
)

// What the process inherits.
const (
	listenerFD = 3
	eventsFD   = 4
)

// order is what the server's process is told.
type order struct {
	Shares []share.Share   `json:"shares"`
	Access approval.Access `json:"access"`
	Allow  []netip.Prefix  `json:"allow"`
}

func (o order) writable() bool {
	return o.Access == approval.ReadWrite || o.Access == approval.Delete
}

// Main is all that the server's process does: it confines itself, then serves until
// it is killed. The agent starts it.
func Main() error {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(orderVariable)), &o); err != nil {
		return fmt.Errorf("no order to serve: the agent starts this itself: %w", err)
	}
	if os.Getenv(confinedVariable) == "" {
		return confine(o)
	}
	s, err := newServer(o, sharesDir, os.NewFile(eventsFD, "events"))
	if err != nil {
		return err
	}
	file := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(file)
	if err != nil {
		return err
	}
	file.Close()
	told := make(chan os.Signal, 1)
	signal.Notify(told, endSignal)
	go func() {
		<-told
		s.end()
	}()
	s.events.say(frame{Ready: true})
	return s.serve(listener)
}

// endSignal tells the process to end soon: it will be killed if it does not.
const endSignal = syscall.SIGTERM

// end answers nobody any more, records how much was read and written of the files
// that are open, and ends the process.
func (s *server) end() {
	s.answering.Lock() // for good
	s.open.closeAll()
	os.Exit(0)
}

const (
	maxConns = 64              // at once; more are turned away
	keepOpen = 5 * time.Second // a file nobody uses
	sayEvery = time.Second     // how much of an open file was read or written
	maxOpen  = 128             // files at once
)

// server is what the process serves.
type server struct {
	order   order
	events  *events
	tree    *tree
	volumes []*volume
	open    *openFiles
	conns   chan struct{} // holds one for each connection
	naming  sync.Mutex    // held while files get names

	answering sync.RWMutex // read-locked while a request is served
}

// newServer returns a server of the folders in dir.
func newServer(o order, dir string, file *os.File) (*server, error) {
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	var random [8]byte
	rand.Read(random[:])
	s := &server{
		order: o, events: &events{file: file},
		tree:  newTree(binary.BigEndian.Uint64(random[:])),
		conns: make(chan struct{}, maxConns),
	}
	s.open = newOpenFiles(s.events)
	for _, one := range o.Shares {
		root, err := os.OpenRoot(filepath.Join(dir, one.Name))
		if err != nil {
			return nil, err
		}
		v := &volume{name: one.Name, root: root}
		s.tree.addTop(v)
		s.volumes = append(s.volumes, v)
	}
	return s, nil
}

// serve serves until the listener fails.
func (s *server) serve(listener net.Listener) error {
	go s.open.tend()
	for {
		c, err := listener.Accept()
		if err != nil {
			return err
		}
		if !s.allowed(c.RemoteAddr()) {
			c.Close()
			continue
		}
		select {
		case s.conns <- struct{}{}:
			go func() {
				defer func() { <-s.conns }()
				s.attend(context.Background(), c)
			}()
		default:
			c.Close()
		}
	}
}

func (s *server) allowed(address net.Addr) bool {
	from, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return false
	}
	ip := from.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(s.order.Allow, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// volume returns the share of a name.
func (s *server) volume(name string) *volume {
	i := slices.IndexFunc(s.volumes, func(v *volume) bool { return v.name == name })
	if i < 0 {
		return nil
	}
	return s.volumes[i]
}
