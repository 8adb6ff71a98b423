//go:build linux && (amd64 || arm64)

package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchMessages is how many messages a batch sends at once. More than four
	// gain nothing that can be measured, and hold back what is ready.
	batchMessages = 8
	// batchBytes is the room of a batch.
	batchBytes = 192 << 10
	// maxSegments is how many datagrams a message may have: what kernels before
	// 6.9 take.
	maxSegments = 64
	// maxMessage is how many bytes a message may have: what fits into a datagram
	// over IPv6 (RFC 8200 §3), with room for headers.
	maxMessage = 65_427
	// maxRefusals is after how many messages that could not be cut the socket does
	// without.
	maxRefusals = 3
)

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	size   uint32
	_      [4]byte
}

// control is the control message that says the size of a message's datagrams.
type control struct {
	header unix.Cmsghdr
	size   uint16
	_      [6]byte
}

// Dest is a peer's address as the system takes it. Made once for many datagrams.
type Dest struct {
	addr unix.RawSockaddrInet6 // or a RawSockaddrInet4, which is smaller
	size uint32
}

// Dest prepares a peer's address. The error is that the socket cannot reach it:
// it is of the other IP version, or has a zone.
func (c *Conn) Dest(to netip.AddrPort) (Dest, error) {
	var d Dest
	addr, port := to.Addr(), to.Port()>>8|to.Port()<<8 // in network order
	switch {
	case !addr.IsValid() || addr.Zone() != "" || to.Port() == 0 || !c.v6 && !addr.Unmap().Is4():
		return Dest{}, fmt.Errorf("send to %v over udp from %v: %w", to, c.addr, net.InvalidAddrError("not an address that this socket can send to"))
	case c.v6:
		d.addr, d.size = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: addr.As16()}, unix.SizeofSockaddrInet6
	default:
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&d.addr)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: addr.Unmap().As4()}
		d.size = unix.SizeofSockaddrInet4
	}
	return d, nil
}

// Batch gathers datagrams and sends them together. It has one owner.
type Batch struct {
	conn *Conn
	raw  syscall.RawConn
	send func(fd uintptr) // set once: a closure for each call would be allocated

	buf  []byte
	used int // bytes of buf

	count    int // messages
	headers  [batchMessages]mmsghdr
	vectors  [batchMessages]unix.Iovec
	controls [batchMessages]control
	dests    [batchMessages]Dest
	segments [batchMessages]int // datagrams of each

	last *Dest // of the open message, as the caller has it
	open bool  // the latest message may get another datagram
	size int   // of its datagrams

	failure error // of the calls under way
}

// NewBatch returns an empty batch.
func (c *Conn) NewBatch() *Batch {
	b := &Batch{conn: c, raw: c.writer.raw, buf: make([]byte, batchBytes)}
	b.send = b.sendAll
	for i := range b.headers {
		h := &b.headers[i].header
		h.Name, h.Iov, h.Iovlen = (*byte)(unsafe.Pointer(&b.dests[i].addr)), &b.vectors[i], 1
		b.controls[i].header.Level, b.controls[i].header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		b.controls[i].header.SetLen(unix.CmsgLen(2))
	}
	return b
}

// Room returns where the next datagram goes: PacketRoom bytes, until the next
// Commit or Flush.
func (b *Batch) Room() []byte {
	if b.used+PacketRoom > len(b.buf) {
		b.Flush()
	}
	return b.buf[b.used : b.used+PacketRoom : b.used+PacketRoom]
}

// Commit makes the first n bytes of Room a datagram for a peer. It may send what
// is gathered.
func (b *Batch) Commit(n int, to *Dest) {
	if n <= 0 || n > PacketRoom {
		return
	}
	if b.open && n <= b.size && (to == b.last || *to == b.dests[b.count-1]) &&
		b.segments[b.count-1] < maxSegments && int(b.vectors[b.count-1].Len)+n <= maxMessage {
		i := b.count - 1
		b.vectors[i].Len += uint64(n)
		b.segments[i]++
		b.used += n
		b.open = n == b.size // a shorter one is the last
		return
	}
	if b.count == batchMessages {
		at := b.used
		b.Flush()
		copy(b.buf, b.buf[at:at+n])
	}
	i := b.count
	b.count++
	b.dests[i] = *to
	b.headers[i].header.Namelen = to.size
	b.vectors[i].Base = &b.buf[b.used]
	b.vectors[i].SetLen(n)
	b.segments[i] = 1
	b.used += n
	b.last, b.size, b.open = to, n, b.conn.segment.Load()
	b.controls[i].size = uint16(n)
}

// Flush sends what is gathered.
func (b *Batch) Flush() {
	if b.count == 0 {
		return
	}
	for i := range b.count {
		h := &b.headers[i].header
		h.Control = nil
		h.SetControllen(0)
		if b.segments[i] > 1 {
			h.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
			h.SetControllen(int(unsafe.Sizeof(control{})))
		}
	}
	if err := b.raw.Control(b.send); err != nil { // closed
		b.conn.writeErrors.Add(b.datagrams(0, b.count))
	}
	b.count, b.used, b.open, b.last = 0, 0, false, nil
}

// datagrams returns how many are in the messages from..to.
func (b *Batch) datagrams(from, to int) (n uint64) {
	for _, s := range b.segments[from:to] {
		n += uint64(s)
	}
	return n
}

// sendAll sends all messages, as far as they can be.
func (b *Batch) sendAll(fd uintptr) {
	sent, tried := 0, -1
	var waited time.Duration
	for sent < b.count {
		n, err := b.call(fd, sent, b.count)
		switch {
		case err == 0:
			b.account(sent, sent+n)
			sent += n
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == unix.ENOBUFS:
			if waited >= patience {
				b.conn.dropped.Add(b.datagrams(sent, b.count))
				return
			}
			waited += waitForRoom(fd, patience-waited)
		case b.segments[sent] > 1 && (err == unix.EIO || err == unix.EINVAL || err == unix.EMSGSIZE || err == unix.EOPNOTSUPP):
			if b.conn.refusals.Add(1) >= maxRefusals {
				b.conn.segment.Store(false)
			}
			b.oneByOne(fd, sent)
			sent++
		case tried != sent:
			tried = sent // the error may be of a datagram before: ICMP reports are asynchronous
		default:
			b.conn.writeErrors.Add(uint64(b.segments[sent]))
			sent++
		}
	}
}

// call is one sendmmsg(2) of the messages from..to.
func (b *Batch) call(fd uintptr, from, to int) (sent int, err syscall.Errno) {
	// The socket never blocks, so that the call is short and the scheduler need not
	// know of it.
	n, _, err := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.headers[from])), uintptr(to-from), unix.MSG_DONTWAIT, 0, 0)
	runtime.KeepAlive(b)
	if err != 0 {
		return 0, err
	}
	b.conn.batches.Add(1)
	return int(n), 0
}

// account counts what was sent.
func (b *Batch) account(from, to int) {
	var bytes uint64
	for _, v := range b.vectors[from:to] {
		bytes += v.Len
	}
	b.conn.packetsOut.Add(b.datagrams(from, to))
	b.conn.bytesOut.Add(bytes)
	b.conn.messages.Add(uint64(to - from))
}

// oneByOne sends the datagrams of a message each by itself.
func (b *Batch) oneByOne(fd uintptr, i int) {
	whole := unsafe.Slice(b.vectors[i].Base, b.vectors[i].Len)
	size := int(b.controls[i].size)
	for len(whole) > 0 {
		n := min(size, len(whole))
		if err := b.single(fd, whole[:n], &b.dests[i]); err != nil {
			b.conn.writeErrors.Add(1)
		} else {
			b.conn.packetsOut.Add(1)
			b.conn.bytesOut.Add(uint64(n))
			b.conn.messages.Add(1)
		}
		whole = whole[n:]
	}
}

// single sends one datagram.
func (b *Batch) single(fd uintptr, datagram []byte, to *Dest) error {
	for again := false; ; again = true {
		_, _, err := syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&datagram[0])), uintptr(len(datagram)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&to.addr)), uintptr(to.size))
		switch {
		case err == 0:
			return nil
		case err == unix.EINTR:
		case again:
			return err
		case err == unix.EAGAIN || err == unix.ENOBUFS:
			waitForRoom(fd, patience)
		}
	}
}

// waitForRoom waits until the socket has room, and returns how long it waited, at
// least some of it.
func waitForRoom(fd uintptr, most time.Duration) time.Duration {
	began := time.Now()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	timeout := unix.NsecToTimespec(int64(most))
	_, _ = unix.Ppoll(fds, &timeout, nil) // the next call says what there is
	return max(time.Since(began), 50*time.Microsecond)
}

// prepare finds out how the socket can send.
func (c *Conn) prepare(cfg Config) {
	if cfg.NoSegmentation {
		c.how = "sendmmsg (without UDP_SEGMENT: switched off)"
		return
	}
	var err error
	if e := c.writer.raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT) }); e != nil {
		err = e
	}
	if err != nil {
		c.how = fmt.Sprintf("sendmmsg (without UDP_SEGMENT: %v)", err)
		return
	}
	c.segment.Store(true)
	c.how = "sendmmsg with UDP_SEGMENT"
}

// force asks for buffers beyond the system's limits, which it grants to root.
func force(u *net.UDPConn, read, write int) {
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // without the right to, there is what was asked for before
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, read)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, write)
	})
}

// readMessages is how many datagrams are read at once.
const readMessages = 32

// reader reads with recvmmsg(2).
type reader struct {
	conn    *Conn
	raw     syscall.RawConn
	get     func(fd uintptr) bool
	headers [readMessages]mmsghdr
	vectors [readMessages]unix.Iovec
	names   [readMessages]unix.RawSockaddrInet6
	buf     []byte
	count   int
	err     syscall.Errno
}

func (c *Conn) newReader() (*reader, error) {
	r := &reader{conn: c, raw: c.writer.raw, buf: make([]byte, readMessages*maxDatagram)}
	r.get = r.receive
	for i := range r.headers {
		r.vectors[i].Base = &r.buf[i*maxDatagram]
		r.vectors[i].SetLen(maxDatagram)
		h := &r.headers[i].header
		h.Name, h.Iov, h.Iovlen = (*byte)(unsafe.Pointer(&r.names[i])), &r.vectors[i], 1
	}
	return r, nil
}

// read waits for datagrams and hands them out.
func (r *reader) read(handle func(b []byte, from netip.AddrPort)) error {
	if err := r.raw.Read(r.get); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return net.ErrClosed
		}
		return err
	}
	if r.err != 0 {
		return r.err
	}
	for i := range r.count {
		n := int(r.headers[i].size)
		r.conn.received(n)
		handle(r.buf[i*maxDatagram:i*maxDatagram+n], r.from(i))
	}
	return nil
}

// receive is one recvmmsg(2); false: there is nothing yet.
func (r *reader) receive(fd uintptr) bool {
	for i := range r.headers {
		r.headers[i].header.Namelen = unix.SizeofSockaddrInet6
	}
	n, _, err := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers[0])), readMessages, unix.MSG_DONTWAIT, 0, 0)
	if err == unix.EAGAIN || err == unix.EINTR {
		return false
	}
	r.count, r.err = int(n), err
	if err != 0 {
		r.count = 0
	}
	return true
}

func (r *reader) from(i int) netip.AddrPort {
	name := &r.names[i]
	port := name.Port>>8 | name.Port<<8
	if name.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port)
}
