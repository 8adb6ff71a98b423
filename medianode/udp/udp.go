// Package udp is the one UDP socket that all media of a node goes through.
//
// A Conn is read by one goroutine in Serve, which hands out each datagram with
// the address it came from; telling the sessions apart is the caller's work. It
// is written in two ways:
//
//   - WriteToAddrPort sends one datagram at once: STUN, DTLS, RTCP.
//   - A Batch gathers the datagrams of a burst of media and sends them
//     together. Each goroutine that sends media has a Batch of its own, and
//     they don't stand in line for one another.
//
// On Linux a Batch leaves by sendmmsg(2), and neighbouring datagrams of one
// size to one peer are one message of it, which the kernel or the network card
// cuts into datagrams (UDP_SEGMENT): most of what a packet costs is paid once a
// message. Where the way to a peer can't do that, the datagrams of the message
// go one by one; if it is so for every peer, the socket stops trying.
// Segmentation says how datagrams leave. Serve reads by recvmmsg(2). Other
// systems do the same by a write or a read for each datagram.
//
// Nothing queues here. Sending waits for room in the socket for 2 ms at most
// and then drops, because late media is worth less than the next frame.
// Whatever does not leave is counted: WriteErrors is what the system refused,
// Dropped is what found no room.
//
// An error that concerns one datagram never costs another one, and reading ends
// only with Close.
//
// The package knows neither ICE nor RTP, and it does not pace.
package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// PacketRoom is the size in bytes of the longest datagram a Batch takes: an
// Ethernet frame's payload and something to spare.
const PacketRoom = 1600

// bufferSize is asked for the socket's receive and send buffers, in bytes: a
// keyframe of 200 KB to 20 viewers at once.
const bufferSize = 4 << 20

// readSize is the room in bytes for a datagram that comes in.
const readSize = 2048

// readPause is how long a read waits after the system reported an error that
// is not the socket's end, so that a lasting error is no busy loop.
const readPause = 5 * time.Millisecond

// errNoRoom is why a datagram was dropped.
var errNoRoom = errors.New("no room in the socket's send buffer")

// Config is how a Conn is made. Its zero value is good.
type Config struct {
	// The sizes in bytes that the system is asked for; 0 is 4 MiB. It may grant
	// less: Linux grants a process without CAP_NET_ADMIN at most
	// net.core.rmem_max and wmem_max.
	ReadBuffer, WriteBuffer int

	NoSegmentation bool // never use UDP_SEGMENT: for tests and comparison
}

// Conn is a UDP socket that many sessions share. All methods may be called
// from any goroutine.
type Conn struct {
	// Static after Listen.
	udp    *net.UDPConn
	addr   netip.AddrPort
	family family

	system // how this system reads and writes

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{} // closed by Close

	packetsIn, bytesIn, readErrors             atomic.Uint64
	packetsOut, bytesOut, writeErrors, dropped atomic.Uint64
	batches, messages                          atomic.Uint64
}

// family is what addresses a socket reaches.
type family int

const (
	ipv4 family = iota
	ipv6
	both // an IPv6 socket to which IPv4 addresses are v4-mapped
)

// Stats are a socket's counters since Listen.
type Stats struct {
	PacketsIn   uint64 // datagrams received
	BytesIn     uint64 // their bytes, without UDP and IP headers
	ReadErrors  uint64 // errors that the system reported on reading
	PacketsOut  uint64 // datagrams sent
	BytesOut    uint64 // their bytes, without UDP and IP headers
	WriteErrors uint64 // datagrams that the system refused
	Dropped     uint64 // datagrams dropped because the socket had no room within 2 ms
	Batches     uint64 // calls of sendmmsg
	Messages    uint64 // messages that they sent, each of one datagram or more
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
	network, reach := "udp4", ipv4
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		network, reach = "udp6", ipv6
		if addr.Addr().IsUnspecified() {
			network, reach = "udp", both
		}
	}
	u, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("listen for media over udp: %w", err)
	}
	c := &Conn{udp: u, family: reach, closed: make(chan struct{})}
	if err := c.prepare(cfg); err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("listen for media over udp on %v: %w", addr, err)
	}
	return c, nil
}

// prepare asks the open socket for its address and sets it up.
func (c *Conn) prepare(cfg Config) error {
	local, ok := c.udp.LocalAddr().(*net.UDPAddr)
	if !ok {
		return fmt.Errorf("the socket is at %v", c.udp.LocalAddr())
	}
	bound := local.AddrPort()
	c.addr = netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = bufferSize
	}
	if cfg.WriteBuffer == 0 {
		cfg.WriteBuffer = bufferSize
	}
	return c.setUp(cfg)
}

// AddrPort returns the address that the socket is bound to, with the port that
// was chosen. Its IP address is unspecified if that is what Listen was given.
func (c *Conn) AddrPort() netip.AddrPort { return c.addr }

// Stats returns the counters. What a Batch sent is in them once it has been
// flushed.
func (c *Conn) Stats() Stats {
	return Stats{
		PacketsIn: c.packetsIn.Load(), BytesIn: c.bytesIn.Load(), ReadErrors: c.readErrors.Load(),
		PacketsOut: c.packetsOut.Load(), BytesOut: c.bytesOut.Load(),
		WriteErrors: c.writeErrors.Load(), Dropped: c.dropped.Load(),
		Batches: c.batches.Load(), Messages: c.messages.Load(),
	}
}

// Segmentation says how the datagrams of a Batch leave, for the log: "sendmmsg
// with UDP_SEGMENT", "sendmmsg" or "one write a datagram", the latter two with
// the reason in parentheses. The answer changes when the network turns out to
// refuse segmentation.
func (c *Conn) Segmentation() string { return c.segmentation() }

// Serve reads until Close and gives each datagram to handle, one at a time, in
// the calling goroutine. The bytes are valid during the call only; a datagram
// of more than 2,048 bytes is cut. The address of an IPv4 peer is an IPv4
// address on every socket, never a v4-mapped one.
//
// Serve returns nil after Close. What else the system reports is counted, and
// the reading goes on after a pause of 5 ms.
func (c *Conn) Serve(handle func(b []byte, from netip.AddrPort)) error {
	r := c.newReader()
	for {
		err := r.read(handle)
		if err == nil {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		c.readErrors.Add(1)
		select {
		case <-c.closed:
			return nil
		case <-time.After(readPause):
		}
	}
}

// WriteToAddrPort sends one datagram, at once. The socket does not keep b. An
// error is counted; it concerns this datagram only, unless it is net.ErrClosed.
func (c *Conn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if err := c.write(b, to); err != nil {
		if errors.Is(err, errNoRoom) {
			c.dropped.Add(1)
		} else {
			c.writeErrors.Add(1)
		}
		return 0, fmt.Errorf("write to %v over udp: %w", to, err)
	}
	c.packetsOut.Add(1)
	c.bytesOut.Add(uint64(len(b)))
	return len(b), nil
}

// reachable is the reason why the socket can't send to an address of this
// family, if there is one.
func (c *Conn) reachable(to netip.AddrPort) error {
	addr := to.Addr()
	switch {
	case !addr.IsValid() || to.Port() == 0:
		return errors.New("no address of a peer")
	case c.family == ipv4 && !addr.Unmap().Is4():
		return errors.New("an IPv6 address on an IPv4 socket")
	case c.family == ipv6 && addr.Unmap().Is4():
		return errors.New("an IPv4 address on an IPv6 socket")
	}
	return nil
}

// Close closes the socket: Serve returns, and what is written later is refused
// with net.ErrClosed. A second call does nothing and returns the same.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.closeErr = c.udp.Close()
	})
	return c.closeErr
}

// tally is what a Batch counts by itself between two looks at the counters
// that all share.
type tally struct {
	packets, bytes, refused, dropped, batches, messages uint64
}

// publish adds t to the socket's counters and empties it.
func (c *Conn) publish(t *tally) {
	add := func(to *atomic.Uint64, n uint64) {
		if n != 0 {
			to.Add(n)
		}
	}
	add(&c.packetsOut, t.packets)
	add(&c.bytesOut, t.bytes)
	add(&c.writeErrors, t.refused)
	add(&c.dropped, t.dropped)
	add(&c.batches, t.batches)
	add(&c.messages, t.messages)
	*t = tally{}
}
