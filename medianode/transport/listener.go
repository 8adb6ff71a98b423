package transport

import (
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ICE-TCP (RFC 6544): the viewer dials, for networks that let no UDP through.

const (
	// tcpAnswer is how long a connection lives that no session has answered.
	// Sessions answer a viewer's first check.
	tcpAnswer = 5 * time.Second
	// tcpWaiting bounds the connections of one address that no session has
	// answered: of an office that connects at once.
	tcpWaiting = 256
	// tcpFragment bounds the connections of one session. A viewer opens one from
	// each of its interfaces to each of the node's addresses.
	tcpFragment = 8
	// acceptPause is the pause after an error of accept, as too many open files.
	acceptPause = 50 * time.Millisecond
)

// tcpLimits bound the connections of a listener.
type tcpLimits struct {
	conns    int           // at a time
	waiting  int           // of one address that no session has answered yet
	fragment int           // for one user name fragment, so of one session
	answer   time.Duration // that a session has to answer
}

// tcpListener accepts viewers' connections. Unlike a plain one it survives errors
// of accept, bounds the connections, and closes them all at its end.
//
// A connection costs nothing to open, so what counts is whether a session has
// answered: it answers only checks with its password (RFC 8445 §7.3), and none of
// its viewer's connections is closed by what others do. One that is not answered
// is closed, and an address may have few of those; after that it is not bounded
// by address, for many viewers may be behind one.
type tcpListener struct {
	net.Listener
	limits tcpLimits

	refused atomic.Uint64 // connections over a bound

	mu        sync.Mutex // guards the rest
	conns     map[*tcpConn]struct{}
	waiting   map[netip.Prefix]int // connections not answered
	fragments map[string]int       // connections
	closed    chan struct{}
}

func newTCPListener(l net.Listener, limits tcpLimits) *tcpListener {
	return &tcpListener{
		Listener: l, limits: limits, closed: make(chan struct{}),
		conns: make(map[*tcpConn]struct{}), waiting: make(map[netip.Prefix]int), fragments: make(map[string]int),
	}
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
	from := senderOf(c.RemoteAddr())
	if len(l.conns) >= l.limits.conns || l.waiting[from] >= l.limits.waiting {
		return nil
	}
	boundUnsent(c, tcpUnsent)
	conn := &tcpConn{Conn: c, listener: l, from: from}
	conn.deadline = time.AfterFunc(l.limits.answer, conn.expire)
	l.conns[conn] = struct{}{}
	l.waiting[from]++
	return conn
}

// claim notes which session a connection is for. It returns false when that has
// too many, or it is for none.
func (l *tcpListener) claim(c *tcpConn, fragment string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return false
	}
	if fragment == "" || l.fragments[fragment] >= l.limits.fragment {
		l.refused.Add(1)
		return false
	}
	l.fragments[fragment]++
	c.fragment = fragment
	return true
}

// answer notes that a session has answered.
func (l *tcpListener) answer(c *tcpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; ok && !c.settled {
		c.settled = true
		c.deadline.Stop()
		decrement(l.waiting, c.from)
	}
}

// remove forgets a connection. A second time it does nothing.
func (l *tcpListener) remove(c *tcpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	c.deadline.Stop()
	if !c.settled {
		decrement(l.waiting, c.from)
	}
	if c.fragment != "" {
		decrement(l.fragments, c.fragment)
	}
}

// decrement lowers a count, and removes it at 0.
func decrement[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] <= 0 {
		delete(counts, key)
	}
}

// senderOf returns an address as far as one sender has it to itself: the whole
// IPv4 address, the first 64 bits of an IPv6 address.
func senderOf(addr net.Addr) netip.Prefix {
	a, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := a.AddrPort().Addr().Unmap()
	length := 64
	if ip.Is4() {
		length = 32
	}
	p, _ := ip.Prefix(length) // the length fits
	return p
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
	conns := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	return l.Listener.Close()
}

// errTooMany is what is read from a connection that no session gets: there are
// too many, or it does not say for which.
var errTooMany = errors.New("too many connections for one session, or for none")

// tcpConn is one viewer's connection.
type tcpConn struct {
	net.Conn
	listener *tcpListener
	from     netip.Prefix
	deadline *time.Timer // closes it, unless it is answered

	// Owned by the reader.
	hello   []byte // of the first message, so far
	claimed bool   // the first message is complete

	answered atomic.Bool // something was written

	// Guarded by listener.mu.
	fragment string // "": none has been claimed
	settled  bool   // the listener knows that it was answered
}

// Read reads. The first message is only given out if the session that it names
// may have one more connection.
func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.claimed || n <= 0 {
		return n, err
	}
	c.hello = append(c.hello, b[:n]...) // at most maxFrame
	fragment, complete := fragmentOf(c.hello)
	if !complete {
		return n, err
	}
	c.hello, c.claimed = nil, true
	if !c.listener.claim(c, fragment) {
		return 0, errTooMany
	}
	return n, err
}

// Write writes to a viewer that has passed a check of its session; nothing is
// written to anybody before.
func (c *tcpConn) Write(b []byte) (int, error) {
	if !c.answered.Swap(true) {
		c.listener.answer(c)
	}
	return c.Conn.Write(b)
}

// expire closes a connection that no session has answered.
func (c *tcpConn) expire() {
	if !c.answered.Load() {
		_ = c.Close()
	}
}

// fragmentOf returns the user name fragment that a framed STUN message
// (RFC 4571 §2, RFC 8489 §5) is for: its USERNAME up to the colon (RFC 8445
// §7.2.2), "" if there is none. complete is false while the message is not.
func fragmentOf(b []byte) (fragment string, complete bool) {
	const header, username = 20, 0x0006
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return "", false
	}
	b = b[2:]
	if len(b) < header {
		return "", true
	}
	for b = b[header:]; len(b) >= 4; {
		kind, length := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if b = b[4:]; length > len(b) {
			break
		}
		if kind == username {
			fragment, _, _ = strings.Cut(string(b[:length]), ":")
			return fragment, true
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return "", true
}

func (c *tcpConn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}
