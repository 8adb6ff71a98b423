//go:build !linux || plainudp

package udp

import (
	"errors"
	"fmt"
	"net/netip"
)

// system is nothing here: package net does it all.
type system struct{}

func (c *Conn) setUp(cfg Config) error {
	return errors.Join(c.udp.SetReadBuffer(cfg.ReadBuffer), c.udp.SetWriteBuffer(cfg.WriteBuffer))
}

func (*system) segmentation() string { return "one write a datagram (sendmmsg is for Linux)" }

// Dest is a peer's address in the form that the system takes. Equal values are
// equal addresses. It is made once for a path, not for each datagram.
type Dest struct{ addr netip.AddrPort }

// Dest makes the address of a peer. An address of a family that the socket does
// not reach is an error.
func (c *Conn) Dest(to netip.AddrPort) (Dest, error) {
	if err := c.reachable(to); err != nil {
		return Dest{}, fmt.Errorf("address %v: %w", to, err)
	}
	return Dest{to}, nil
}

func (c *Conn) write(b []byte, to netip.AddrPort) error {
	_, err := c.udp.WriteToUDPAddrPort(b, to)
	return err
}

// Batch sends datagrams. One goroutine owns it. Conn.NewBatch makes one.
type Batch struct {
	conn  *Conn
	buf   []byte
	tally tally
}

// NewBatch returns an empty Batch.
func (c *Conn) NewBatch() *Batch { return &Batch{conn: c, buf: make([]byte, PacketRoom)} }

// Room returns where the next datagram goes: PacketRoom bytes, valid until the
// next Commit or Flush.
func (b *Batch) Room() []byte { return b.buf }

// Commit makes the first n bytes of Room a datagram for to, and sends it.
func (b *Batch) Commit(n int, to *Dest) {
	if n < 0 || n > PacketRoom {
		panic("udp: Commit of more than Room gave")
	}
	if _, err := b.conn.udp.WriteToUDPAddrPort(b.buf[:n], to.addr); err != nil {
		b.tally.refused++
		return
	}
	b.tally.packets++
	b.tally.bytes += uint64(n)
}

// Flush counts what was sent; nothing is left to send.
func (b *Batch) Flush() { b.conn.publish(&b.tally) }

// reader is what Serve reads with.
type reader struct {
	conn *Conn
	buf  [readSize]byte
}

func (c *Conn) newReader() *reader { return &reader{conn: c} }

// read waits for a datagram and hands it out.
func (r *reader) read(handle func([]byte, netip.AddrPort)) error {
	n, from, err := r.conn.udp.ReadFromUDPAddrPort(r.buf[:])
	if err != nil {
		return err
	}
	r.conn.packetsIn.Add(1)
	r.conn.bytesIn.Add(uint64(n))
	handle(r.buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	return nil
}
