// Package udp is the one UDP socket that all media of a node goes through.
//
// A Conn is the net.PacketConn under pion's ICE UDP mux, which tells the
// sessions apart by address and ICE user name fragment. It reads and writes
// netip.AddrPort values (ice.AddrPortReaderWriter), so that no packet allocates
// an address, and it counts what passes.
//
// Whoever writes a burst of packets calls Flush after it. Today every write is
// a system call of its own and leaves at once; Flush is the place where a batch
// is sent once writes of media are gathered into one (sendmmsg with
// segmentation offload), and callers need not change then.
//
// The mux gives up for good when a read fails, so a Conn returns an error from
// a read only after Close, and for a deadline; what else the system reports is
// counted and the read goes on.
//
// The package knows neither ICE nor RTP.
package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// bufferSize is asked for the socket's receive and send buffers, in bytes: a
// keyframe of 200 KB to 20 viewers at once. The system may grant less
// (net.core.rmem_max and wmem_max on Linux).
const bufferSize = 4 << 20

// readPause is how long a read waits after the system reported an error that
// is not the socket's end, so that a lasting error is no busy loop.
const readPause = 5 * time.Millisecond

// Config is how a Conn is made. Its zero value is good.
type Config struct {
	ReadBuffer  int // bytes asked of the system; 0: 4 MiB
	WriteBuffer int // bytes asked of the system; 0: 4 MiB
}

// Conn is a UDP socket that many sessions share. All methods may be called
// from any goroutine.
type Conn struct {
	// Static after Listen.
	udp    *net.UDPConn
	writer *writer
	addr   netip.AddrPort

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{} // closed by Close

	packetsIn, bytesIn, readErrors    atomic.Uint64
	packetsOut, bytesOut, writeErrors atomic.Uint64
	flushes                           atomic.Uint64
}

// Stats are a socket's counters since Listen.
type Stats struct {
	PacketsIn   uint64 // datagrams received
	BytesIn     uint64 // their bytes, without UDP and IP headers
	ReadErrors  uint64 // errors that the system reported on reading
	PacketsOut  uint64 // datagrams sent
	BytesOut    uint64 // their bytes, without UDP and IP headers
	WriteErrors uint64 // datagrams that the system refused
	Flushes     uint64 // calls of Flush
}

// Listen opens a socket on addr. Port 0 takes a free one. An unspecified IPv4
// address (0.0.0.0) takes packets of all the machine's IPv4 addresses, an
// unspecified IPv6 address ([::]) of all its addresses; answers then leave from
// the address that the system's routes choose, so a machine that viewers reach
// over several networks should listen on one of its addresses.
func Listen(addr netip.AddrPort, cfg Config) (*Conn, error) {
	if !addr.IsValid() {
		return nil, errors.New("listen for media over udp: no address")
	}
	network := "udp4"
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		network = "udp6"
		if addr.Addr().IsUnspecified() {
			network = "udp" // both families
		}
	}
	u, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("listen for media over udp: %w", err)
	}
	if err := setBuffers(u, cfg); err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("listen for media over udp on %v: %w", addr, err)
	}
	local, ok := u.LocalAddr().(*net.UDPAddr)
	if !ok {
		_ = u.Close()
		return nil, fmt.Errorf("listen for media over udp on %v: the socket is at %v", addr, u.LocalAddr())
	}
	bound := local.AddrPort()
	w, err := newWriter(u, network != "udp4")
	if err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("listen for media over udp on %v: %w", addr, err)
	}
	return &Conn{udp: u, writer: w, addr: netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()), closed: make(chan struct{})}, nil
}

func setBuffers(u *net.UDPConn, cfg Config) error {
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = bufferSize
	}
	if cfg.WriteBuffer == 0 {
		cfg.WriteBuffer = bufferSize
	}
	return errors.Join(u.SetReadBuffer(cfg.ReadBuffer), u.SetWriteBuffer(cfg.WriteBuffer))
}

// AddrPort returns the address that the socket is bound to, with the port that
// was chosen. Its IP address is unspecified if that is what Listen was given.
func (c *Conn) AddrPort() netip.AddrPort { return c.addr }

// LocalAddr returns the same as a *net.UDPAddr, as pion's mux demands.
func (c *Conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }

// Stats returns the counters.
func (c *Conn) Stats() Stats {
	return Stats{
		PacketsIn: c.packetsIn.Load(), BytesIn: c.bytesIn.Load(), ReadErrors: c.readErrors.Load(),
		PacketsOut: c.packetsOut.Load(), BytesOut: c.bytesOut.Load(), WriteErrors: c.writeErrors.Load(),
		Flushes: c.flushes.Load(),
	}
}

// ReadFromAddrPort reads one datagram into b. A longer one is cut. The error is
// net.ErrClosed after Close, or a deadline's.
func (c *Conn) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := c.udp.ReadFromUDPAddrPort(b)
		if err == nil {
			c.packetsIn.Add(1)
			c.bytesIn.Add(uint64(n))
			return n, from, nil
		}
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, netip.AddrPort{}, err
		}
		c.readErrors.Add(1)
		select {
		case <-c.closed:
			return 0, netip.AddrPort{}, net.ErrClosed
		case <-time.After(readPause):
		}
	}
}

// WriteToAddrPort sends one datagram. The socket does not keep b. An error is
// counted; it concerns this datagram only, unless it is net.ErrClosed.
func (c *Conn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	sent, err := c.writer.write(b, to)
	if !sent && err == nil { // no room: wait for it
		_, err = c.udp.WriteToUDPAddrPort(b, to)
	}
	if err != nil {
		c.writeErrors.Add(1)
		return 0, fmt.Errorf("write to %v over udp: %w", to, err)
	}
	c.packetsOut.Add(1)
	c.bytesOut.Add(uint64(len(b)))
	return len(b), nil
}

// ReadFrom is ReadFromAddrPort for callers who need a net.PacketConn. It
// allocates an address for each datagram.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo is WriteToAddrPort for callers who need a net.PacketConn. The
// address must be a *net.UDPAddr.
func (c *Conn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		c.writeErrors.Add(1)
		return 0, fmt.Errorf("write to %T over udp: %w", to, net.InvalidAddrError("not a UDP address"))
	}
	return c.WriteToAddrPort(b, u.AddrPort())
}

// Flush sends what earlier writes have left in the socket's batch. There is no
// batch yet, so there is never anything left; see the package comment.
func (c *Conn) Flush() { c.flushes.Add(1) }

// SetDeadline sets both deadlines of the shared socket.
func (c *Conn) SetDeadline(t time.Time) error { return c.udp.SetDeadline(t) }

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.udp.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.udp.SetWriteDeadline(t) }

// Close closes the socket; reads and writes that wait return net.ErrClosed. A
// second call does nothing and returns the same.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.closeErr = c.udp.Close()
	})
	return c.closeErr
}
