package session

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v4"
)

// ICE-TCP (RFC 6544): the viewer dials, for networks that let no UDP through.

const (
	// tcpBuffer bounds what waits for one viewer's TCP connection, in bytes:
	// 2 s of 2 Mbit/s. What does not fit is dropped, and the viewer asks for a
	// keyframe.
	tcpBuffer = 512 << 10
	// tcpHello is how long a new connection may take for its first STUN message.
	tcpHello = 5 * time.Second
	// tcpStray is how long a connection of an unknown user name fragment lives. A
	// viewer learns the fragment when its session is already there.
	tcpStray = time.Second
	// tcpQueue is how many packets from a viewer wait to be read.
	tcpQueue = 16
	// acceptPause is the pause after an error of accept, as too many open files.
	acceptPause = 50 * time.Millisecond
)

// tcpListener is the listener under pion's TCP mux. Unlike a plain one it
// survives errors of accept, bounds the connections, and closes them all at its
// end, for pion waits for each.
type tcpListener struct {
	net.Listener
	most int // connections at a time

	refused atomic.Uint64 // connections over the bound

	mu     sync.Mutex // guards the rest
	conns  map[*tcpConn]struct{}
	closed chan struct{}
}

func newTCPListener(l net.Listener, most int) *tcpListener {
	return &tcpListener{Listener: l, most: most, conns: make(map[*tcpConn]struct{}), closed: make(chan struct{})}
}

// Accept returns the next connection; an error only after Close.
func (l *tcpListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			if conn := l.add(c); conn != nil {
				return conn, nil
			}
			l.refused.Add(1)
			_ = c.Close()
		case errors.Is(err, net.ErrClosed):
			return nil, err
		default:
			select {
			case <-l.closed:
				return nil, net.ErrClosed
			case <-time.After(acceptPause):
			}
		}
	}
}

// add returns nil when there are too many.
func (l *tcpListener) add(c net.Conn) *tcpConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil
	default:
	}
	if len(l.conns) >= l.most {
		return nil
	}
	conn := &tcpConn{Conn: c, listener: l}
	l.conns[conn] = struct{}{}
	return conn
}

// Close ends the listener and its connections.
func (l *tcpListener) Close() error {
	l.mu.Lock()
	select {
	case <-l.closed:
		l.mu.Unlock()
		return nil
	default:
	}
	close(l.closed)
	conns := l.conns
	l.conns = make(map[*tcpConn]struct{})
	l.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	return l.Listener.Close()
}

// tcpConn is one viewer's connection. It says it is at one and the same local
// address of its IP version, whichever it came to: pion finds the session by
// that and the user name fragment.
type tcpConn struct {
	net.Conn
	listener *tcpListener
}

func (c *tcpConn) LocalAddr() net.Addr {
	a, ok := c.Conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return c.Conn.LocalAddr() // which pion refuses
	}
	return &net.TCPAddr{IP: anyAddress(a.IP.To4() == nil), Port: a.Port}
}

func (c *tcpConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

func anyAddress(v6 bool) net.IP {
	if v6 {
		return net.IPv6unspecified
	}
	return net.IPv4zero
}

// tcpMux hides from pion which of the machine's addresses a candidate is for.
type tcpMux struct{ mux *ice.TCPMuxDefault }

func newTCPMux(l *tcpListener, log pionLog) *tcpMux {
	return &tcpMux{ice.NewTCPMuxDefault(ice.TCPMuxParams{
		Listener:                     l,
		Logger:                       log.NewLogger("tcpmux"),
		ReadBufferSize:               tcpQueue,
		WriteBufferSize:              tcpBuffer,
		FirstStunBindTimeout:         tcpHello,
		AliveDurationForConnFromStun: tcpStray,
	})}
}

// GetConnByUfrag returns a session's end of the listener.
func (m *tcpMux) GetConnByUfrag(ufrag string, isIPv6 bool, _ net.IP) (net.PacketConn, error) {
	return m.mux.GetConnByUfrag(ufrag, isIPv6, anyAddress(isIPv6))
}

// RemoveConnByUfrag ends a session's connections.
func (m *tcpMux) RemoveConnByUfrag(ufrag string) { m.mux.RemoveConnByUfrag(ufrag) }

// Close ends all connections and waits for pion's goroutines.
func (m *tcpMux) Close() error { return m.mux.Close() }
