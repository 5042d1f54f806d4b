package controlplane

import (
	"net"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol"
)

// streams are the SSH connections that people have open, so that they can be
// ended with the person, or with their session. The zero streams is ready for use.
type streams struct {
	mu   sync.Mutex
	open map[protocol.Person]map[*stream]bool // guarded by mu
}

// stream is one connection among [streams]. Closing it takes it out.
type stream struct {
	net.Conn
	session protocol.SessionID
	forget  func()
}

// add puts a connection of person's to a session among the open ones. The one it
// returns is to be used and closed in its place.
func (s *streams) add(person protocol.Person, session protocol.SessionID, conn net.Conn) net.Conn {
	one := &stream{Conn: conn, session: session}
	one.forget = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open[person], one)
		if len(s.open[person]) == 0 {
			delete(s.open, person)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[protocol.Person]map[*stream]bool)
	}
	if s.open[person] == nil {
		s.open[person] = make(map[*stream]bool)
	}
	s.open[person][one] = true
	return one
}

// end closes every connection of person's.
func (s *streams) end(person protocol.Person) {
	for _, one := range s.of(person) {
		_ = one.Close() // whoever uses it sees that
	}
}

// endSession closes every connection to a session.
func (s *streams) endSession(id protocol.SessionID) {
	for _, one := range s.to(id) {
		_ = one.Close() // whoever uses it sees that
	}
}

func (s *streams) to(id protocol.SessionID) []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*stream
	for _, theirs := range s.open {
		for one := range theirs {
			if one.session == id {
				list = append(list, one)
			}
		}
	}
	return list
}

func (s *streams) of(person protocol.Person) []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*stream
	for one := range s.open[person] {
		list = append(list, one)
	}
	return list
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.forget()
	return s.Conn.Close()
}

// CloseWrite ends the sending side, if the connection has one of its own.
func (s *stream) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
