//go:build !linux || (!amd64 && !arm64)

package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
)

// Dest is a peer's address as the system takes it. Made once for many datagrams.
type Dest struct{ addr netip.AddrPort }

// Dest prepares a peer's address. The error is that the socket cannot reach it:
// it is of the other IP version, or has a zone.
func (c *Conn) Dest(to netip.AddrPort) (Dest, error) {
	addr := to.Addr()
	if !addr.IsValid() || addr.Zone() != "" || to.Port() == 0 || !c.v6 && !addr.Unmap().Is4() {
		return Dest{}, fmt.Errorf("send to %v over udp from %v: %w", to, c.addr, net.InvalidAddrError("not an address that this socket can send to"))
	}
	return Dest{netip.AddrPortFrom(addr.Unmap(), to.Port())}, nil
}

// Batch gathers datagrams and sends them together. It has one owner. On this
// system each datagram leaves when it is committed.
type Batch struct {
	conn *Conn
	buf  [PacketRoom]byte
}

// NewBatch returns an empty batch.
func (c *Conn) NewBatch() *Batch { return &Batch{conn: c} }

// Room returns where the next datagram goes: PacketRoom bytes, until the next
// Commit or Flush.
func (b *Batch) Room() []byte { return b.buf[:] }

// Commit makes the first n bytes of Room a datagram for a peer. It may send what
// is gathered.
func (b *Batch) Commit(n int, to *Dest) {
	if n <= 0 || n > PacketRoom {
		return
	}
	if _, err := b.conn.WriteToAddrPort(b.buf[:n], to.addr); err == nil { // counted
		b.conn.batches.Add(1)
		b.conn.messages.Add(1)
	}
}

// Flush sends what is gathered.
func (b *Batch) Flush() {}

func (c *Conn) prepare(Config) { c.how = "one write a datagram" }

func force(*net.UDPConn, int, int) {}

// reader reads one datagram at a time.
type reader struct {
	conn *Conn
	buf  [maxDatagram]byte
}

func (c *Conn) newReader() (*reader, error) { return &reader{conn: c}, nil }

// read waits for a datagram and hands it out.
func (r *reader) read(handle func(b []byte, from netip.AddrPort)) error {
	n, from, err := r.conn.udp.ReadFromUDPAddrPort(r.buf[:])
	if err != nil {
		if errors.Is(err, os.ErrClosed) {
			return net.ErrClosed
		}
		return err
	}
	r.conn.received(n)
	handle(r.buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	return nil
}
