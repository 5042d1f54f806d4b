package tunnel

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setTimeouts has the kernel end a connection whose other side does not answer
// for silence, whether something was sent or not. It needs no goroutine, no
// timer and no memory per device. Connections that are not TCP are left alone.
func setTimeouts(conn net.Conn, silence time.Duration) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable:   true,
		Idle:     max(time.Second, silence*3/4),
		Interval: max(time.Second, silence/4),
		Count:    2,
	})
	if err != nil {
		return fmt.Errorf("cannot set TCP keepalive: %w", err)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot set the TCP timeout: %w", err)
	}
	return setUserTimeout(raw, silence)
}

func setUserTimeout(raw syscall.RawConn, silence time.Duration) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("cannot set the TCP timeout: %w", err)
	}
	return nil
}
