package tunnel

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
)

// BenchmarkRequestOverFreshStream is one small call of the device by the control
// plane, over loopback with mutual TLS.
func BenchmarkRequestOverFreshStream(b *testing.B) {
	s := startServer(b)
	startClient(b, s.address, node1)
	client := s.peer(b, node1).Client()
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Post(BaseURL+"/x", "application/proto", strings.NewReader("twenty bytes of data"))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkUpgradedStream carries bytes to the device over a bulk connection.
func BenchmarkUpgradedStream(b *testing.B) {
	s := startServer(b)
	c := startClient(b, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		conn, err := AcceptUpgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(io.Discard, conn)
	}))
	s.event(b, "connected")
	if err := c.DialBulk(b.Context()); err != nil {
		b.Fatal(err)
	}
	p, err := s.Bulk(b.Context(), node1)
	if err != nil {
		b.Fatal(err)
	}
	conn, err := p.Upgrade(b.Context(), "/", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	chunk := make([]byte, 32<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := conn.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdlePeer reports the memory of an idle device at the server, and of a
// raw TLS 1.3 connection with the same certificates. Both figures hold the
// dialling end as well, which is the same in both and reported on its own.
func BenchmarkIdlePeer(b *testing.B) {
	const n = 1000
	var rawServer, tunnelServer float64
	for b.Loop() {
		s := startServer(b)
		tunnelServer = held(b, n, func(config *tls.Config) net.Conn {
			config.NextProtos = []string{ALPNControl}
			conn, err := tls.Dial("tcp", s.address, config)
			if err != nil {
				b.Fatal(err)
			}
			s.event(b, "connected")
			return conn
		})
		s.stop()
		ln, err := tls.Listen("tcp", "127.0.0.1:0", testAuthority().serverTLS())
		if err != nil {
			b.Fatal(err)
		}
		kept := make([]net.Conn, 0, n)
		rawServer = held(b, n, func(config *tls.Config) net.Conn {
			accepted := make(chan net.Conn)
			go func() {
				conn, err := ln.Accept()
				if err == nil {
					err = conn.(*tls.Conn).Handshake()
				}
				if err != nil {
					b.Error(err)
				}
				accepted <- conn
			}()
			conn, err := tls.Dial("tcp", ln.Addr().String(), config)
			if err != nil {
				b.Fatal(err)
			}
			kept = append(kept, <-accepted)
			return conn
		})
		for _, c := range kept {
			c.Close()
		}
		ln.Close()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(tunnelServer, "B/pair-tunnel")
	b.ReportMetric(rawServer, "B/pair-rawtls")
	b.ReportMetric(tunnelServer-rawServer, "B/peer-above-rawtls")
}

// held returns the memory, in bytes of heap and stacks, that each of n
// connections holds while idle.
func held(b *testing.B, n int, connect func(*tls.Config) net.Conn) float64 {
	configs := make([]*tls.Config, n)
	for i := range configs {
		configs[i] = testAuthority().deviceTLS(protocol.NodeID{Serial: protocol.DeviceSerial(fmt.Sprintf("DBX%04d", i)), Node: 1})
	}
	conns := make([]net.Conn, n)
	before := inUse()
	for i, c := range configs {
		conns[i] = connect(c)
	}
	after := inUse()
	for _, c := range conns {
		c.(*tls.Conn).NetConn().Close()
	}
	runtime.KeepAlive(configs)
	return float64(after-before) / float64(n)
}

func inUse() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
