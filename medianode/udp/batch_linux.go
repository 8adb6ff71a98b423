//go:build !plainudp

package udp

import "golang.org/x/sys/unix"

// Limits of a Batch. The bytes are those it holds at most. It sends by itself
// when it has enoughMessages and enoughBytes, or maxMessages: beyond that a
// longer list gains nothing.
const (
	batchSize      = 192 << 10
	maxMessages    = 64
	enoughMessages = 8
	enoughBytes    = 32 << 10
)

// Limits of the kernel for a message with segments. Since 6.9 it takes 128
// (UDP_MAX_SEGMENTS). The bytes must fit a packet of IP with its headers.
const (
	maxSegments     = 64
	maxMessageBytes = 65_427
)

// Batch gathers datagrams and sends them together. One goroutine owns it.
// Conn.NewBatch makes one.
type Batch struct {
	// Static after NewBatch.
	conn *Conn
	buf  []byte
	do   func(fd uintptr) // send; made once, since a method value allocates

	segment bool // whether messages may have segments, as of the last send

	// What is gathered: n messages, whose bytes are the first used of buf.
	n, used  int
	open     bool // the last message may take another segment
	headers  [maxMessages]mmsghdr
	messages [maxMessages]message

	// Owned by send.
	sent    int // messages done with
	room    room
	one     mmsghdr // a segment that goes by itself
	oneData unix.Iovec
	tally   tally
}

// message is what a header points to.
type message struct {
	data     unix.Iovec
	control  control
	to       Dest
	at       int // where it begins in buf
	size     int // bytes of a segment; the last may be shorter
	segments int // datagrams
	bytes    int // of all
}

// NewBatch returns an empty Batch. It holds up to 192 KiB.
func (c *Conn) NewBatch() *Batch {
	b := &Batch{conn: c, buf: make([]byte, batchSize), segment: c.unsegmented.Load() == nil}
	b.do = b.send
	for i := range b.headers {
		m, h := &b.messages[i], &b.headers[i]
		h.Iov, h.Iovlen = &m.data, 1
		h.setName(&m.to.sa)
		h.setControl(&m.control)
		m.control.Level, m.control.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		m.control.SetLen(unix.CmsgLen(2)) // the size's
	}
	b.one.Iov, b.one.Iovlen = &b.oneData, 1
	return b
}

// Room returns where the next datagram goes: PacketRoom bytes, valid until the
// next Commit or Flush. It may send what is gathered.
func (b *Batch) Room() []byte {
	if b.used+PacketRoom > len(b.buf) {
		b.flush()
	}
	return b.buf[b.used : b.used+PacketRoom : b.used+PacketRoom]
}

// Commit makes the first n bytes of Room a datagram for to. It may send what is
// gathered. The Batch does not keep to.
func (b *Batch) Commit(n int, to *Dest) {
	if n < 0 || n > PacketRoom || b.used+n > len(b.buf) {
		panic("udp: Commit of more than Room gave")
	}
	if b.open && b.extend(n, to) {
		return
	}
	if b.n == maxMessages || b.n >= enoughMessages && b.used >= enoughBytes {
		at := b.used
		b.flush()
		copy(b.buf, b.buf[at:at+n])
	}
	h, m := &b.headers[b.n], &b.messages[b.n]
	m.to = *to
	m.at, m.size, m.segments, m.bytes = b.used, n, 1, n
	m.data.Base = &b.buf[b.used]
	m.data.SetLen(n)
	h.Namelen = to.len
	h.SetControllen(0)
	b.n++
	b.used += n
	b.open = b.segment && n > 0
}

// extend makes the n bytes a segment of the last message, if they can be one.
func (b *Batch) extend(n int, to *Dest) bool {
	h, m := &b.headers[b.n-1], &b.messages[b.n-1]
	if n > m.size || n == 0 || m.segments == maxSegments || m.bytes+n > maxMessageBytes || m.to != *to {
		return false
	}
	m.segments++
	m.bytes += n
	m.data.SetLen(m.bytes)
	if m.segments == 2 {
		m.control.size = uint16(m.size)
		h.SetControllen(controlSize)
	}
	b.used += n
	b.open = n == m.size
	return true
}

// Flush sends what is gathered. All that was sent since the last Flush waits
// for room in the socket for 2 ms at most; what has not left then is dropped.
func (b *Batch) Flush() {
	b.flush()
	b.room.reset()
}

func (b *Batch) flush() {
	if b.n > 0 {
		b.sent = 0
		if b.conn.control(b.do) != nil { // closed
			for i := range b.n {
				b.tally.refused += uint64(b.messages[i].segments)
			}
		}
		b.conn.publish(&b.tally)
		b.segment = b.conn.unsegmented.Load() == nil
	}
	b.n, b.used, b.open = 0, 0, false
}
