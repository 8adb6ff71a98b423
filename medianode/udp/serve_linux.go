//go:build !plainudp

package udp

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// readMessages is how many datagrams are read by one call of the kernel.
const readMessages = 32

// zonesFor is how long the names of interfaces are believed.
const zonesFor = time.Minute

// reader is what Serve reads with.
type reader struct {
	conn *Conn
	do   func(fd uintptr) bool // receive; made once, since a method value allocates

	headers [readMessages]mmsghdr
	data    [readMessages]unix.Iovec
	from    [readMessages]sockaddr
	buf     [readMessages * readSize]byte
	n       int
	errno   unix.Errno

	zones      map[uint32]string // names of interfaces
	zonesUntil time.Time
}

func (c *Conn) newReader() *reader {
	r := &reader{conn: c}
	r.do = r.receive
	for i := range r.headers {
		h := &r.headers[i]
		r.data[i].Base = &r.buf[i*readSize]
		r.data[i].SetLen(readSize)
		h.setName(&r.from[i])
		h.Namelen = sockaddrSize
		h.Iov, h.Iovlen = &r.data[i], 1
	}
	return r
}

// read waits for datagrams and hands them out.
func (r *reader) read(handle func([]byte, netip.AddrPort)) error {
	if err := r.conn.raw.Read(r.do); err != nil {
		return err
	}
	if r.errno != 0 {
		return r.errno
	}
	bytes := 0
	for i := range r.n {
		bytes += int(r.headers[i].n)
	}
	r.conn.packetsIn.Add(uint64(r.n))
	r.conn.bytesIn.Add(uint64(bytes))
	for i := range r.n {
		at, n := i*readSize, int(r.headers[i].n)
		handle(r.buf[at:at+n:at+readSize], r.source(i))
		r.headers[i].Namelen = sockaddrSize // the kernel has written to it
	}
	return nil
}

// receive returns false if there is nothing to read yet.
func (r *reader) receive(fd uintptr) bool {
	for {
		n, errno := recvmmsg(fd, &r.headers[0], len(r.headers))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			r.n, r.errno = n, errno
			return true
		}
	}
}

// source is where the i-th datagram came from.
func (r *reader) source(i int) netip.AddrPort {
	from, scope := r.from[i].addrPort(), r.from[i].Scope_id
	if r.from[i].Family == unix.AF_INET6 && scope != 0 && from.Addr().Is6() {
		from = netip.AddrPortFrom(from.Addr().WithZone(r.zone(scope)), from.Port())
	}
	return from
}

// zone is the name of an interface. Asking the system is expensive, and who
// sends from a link-local address must not make it so for others.
func (r *reader) zone(index uint32) string {
	if now := time.Now(); now.After(r.zonesUntil) {
		r.zones, r.zonesUntil = make(map[uint32]string), now.Add(zonesFor)
	}
	name, ok := r.zones[index]
	if !ok {
		name = strconv.Itoa(int(index))
		if link, err := net.InterfaceByIndex(int(index)); err == nil {
			name = link.Name
		}
		r.zones[index] = name
	}
	return name
}
