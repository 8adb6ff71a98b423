package transport

import (
	"net"

	"golang.org/x/sys/unix"
)

// boundUnsent bounds what the system holds of a connection beyond what is on its
// way: by itself it would hold some megabytes, which is half a minute of a camera.
func boundUnsent(c net.Conn, bytes int) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // without it the delay may be longer
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	})
}
