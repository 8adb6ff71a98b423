//go:build !linux

package transport

import "net"

// boundUnsent bounds what the system holds of a connection: by itself it would
// hold some megabytes, which is half a minute of a camera.
func boundUnsent(c net.Conn, bytes int) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(4 * bytes) // without it the delay may be longer
	}
}
