// Package udp is the one UDP socket that all media of a node goes through.
//
// What is read is given to one function, datagram by datagram (Serve). What is
// written leaves at once (WriteToAddrPort), or is gathered in a Batch, which has
// one owner: a goroutine that sends media has its own, and they send through the
// socket at the same time without a lock between them.
//
// On Linux (amd64, arm64) a Batch sends all it has with one system call
// (sendmmsg), and consecutive datagrams of one size to one peer as a single
// message that the kernel or the network card cuts (UDP_SEGMENT): a frame of ten
// packets is one walk through the network stack instead of ten. Where the kernel
// lacks segmentation, each datagram is a message; where a path refuses it, as one
// through a device without checksums does, that is noticed, the datagrams go one
// by one, and after three such refusals the socket does without. Other systems
// write each datagram by itself. Segmentation says how it is.
//
// Nothing waits on the way out: when the socket has no room for 2 ms, what does
// not fit is dropped and counted.
//
// The package knows neither ICE nor RTP.
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

// bufferSize is asked for the socket's receive and send buffers, in bytes: a
// keyframe of 200 KB to 20 viewers at once. The system may grant less
// (net.core.rmem_max and wmem_max on Linux).
const bufferSize = 4 << 20

// maxDatagram is how many bytes of a datagram are read; what is longer is cut.
const maxDatagram = 2048

// PacketRoom is how many bytes a Batch has room for in one datagram.
const PacketRoom = 1600

// patience is how long a Batch waits, in all, for room in the socket's buffer.
const patience = 2 * time.Millisecond

// readPause is how long a read waits after the system reported an error that
// is not the socket's end, so that a lasting error is no busy loop.
const readPause = 5 * time.Millisecond

// Config is how a Conn is made. Its zero value is good.
type Config struct {
	ReadBuffer  int // bytes asked of the system; 0: 4 MiB
	WriteBuffer int // bytes asked of the system; 0: 4 MiB

	NoSegmentation bool // never let the kernel cut datagrams
}

// Conn is a UDP socket that many sessions share. All methods may be called
// from any goroutine.
type Conn struct {
	// Static after Listen.
	udp    *net.UDPConn
	writer *writer
	addr   netip.AddrPort

	v6     bool // the socket's family
	how    string
	closed chan struct{} // closed by Close

	segment  atomic.Bool // let the kernel cut
	refusals atomic.Int32

	closeOnce sync.Once
	closeErr  error

	packetsIn, bytesIn, readErrors    atomic.Uint64
	packetsOut, bytesOut, writeErrors atomic.Uint64
	dropped, batches, messages        atomic.Uint64
}

// Stats are a socket's counters since Listen.
type Stats struct {
	PacketsIn   uint64 // datagrams received
	BytesIn     uint64 // their bytes, without UDP and IP headers
	ReadErrors  uint64 // errors that the system reported on reading
	PacketsOut  uint64 // datagrams sent
	BytesOut    uint64 // their bytes, without UDP and IP headers
	WriteErrors uint64 // datagrams that the system refused
	Dropped     uint64 // datagrams that the socket had no room for
	Batches     uint64 // system calls that sent batches
	Messages    uint64 // messages in them, of one datagram or more
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
	c := &Conn{udp: u, writer: w, v6: network != "udp4", addr: netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()), closed: make(chan struct{})}
	c.prepare(cfg)
	return c, nil
}

func setBuffers(u *net.UDPConn, cfg Config) error {
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = bufferSize
	}
	if cfg.WriteBuffer == 0 {
		cfg.WriteBuffer = bufferSize
	}
	err := errors.Join(u.SetReadBuffer(cfg.ReadBuffer), u.SetWriteBuffer(cfg.WriteBuffer))
	force(u, cfg.ReadBuffer, cfg.WriteBuffer)
	return err
}

// AddrPort returns the address that the socket is bound to, with the port that
// was chosen. Its IP address is unspecified if that is what Listen was given.
func (c *Conn) AddrPort() netip.AddrPort { return c.addr }

// Segmentation says how a Batch sends, for the log.
func (c *Conn) Segmentation() string { return c.how }

// Stats returns the counters.
func (c *Conn) Stats() Stats {
	return Stats{
		PacketsIn: c.packetsIn.Load(), BytesIn: c.bytesIn.Load(), ReadErrors: c.readErrors.Load(),
		PacketsOut: c.packetsOut.Load(), BytesOut: c.bytesOut.Load(), WriteErrors: c.writeErrors.Load(),
		Dropped: c.dropped.Load(), Batches: c.batches.Load(), Messages: c.messages.Load(),
	}
}

// Serve reads until Close and gives each datagram to handle, one at a time, in
// the calling goroutine. b is valid during the call only. What the system reports
// otherwise is counted, and the reading goes on after a pause. It returns nil
// after Close, and has one caller.
func (c *Conn) Serve(handle func(b []byte, from netip.AddrPort)) error {
	r, err := c.newReader()
	if err != nil {
		return fmt.Errorf("read media over udp: %w", err)
	}
	for {
		err := r.read(handle)
		switch {
		case err == nil:
			continue
		case errors.Is(err, net.ErrClosed):
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

// received counts a datagram.
func (c *Conn) received(bytes int) {
	c.packetsIn.Add(1)
	c.bytesIn.Add(uint64(bytes))
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

// Close closes the socket: Serve returns, and writes fail with net.ErrClosed. A
// second call does nothing and returns the same.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.closeErr = c.udp.Close()
	})
	return c.closeErr
}
