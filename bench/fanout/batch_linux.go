package fanout

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchMessages = 8       // of one sendmmsg: more gain nothing
	maxSegments   = 64      // UDP_MAX_SEGMENTS
	maxMessage    = 65_427  // bytes of a message with segments: what IP and UDP leave of 64 KiB, and some
	maxDatagram   = 1500    // bytes
	batchBuffer   = 1 << 18 // bytes; a picture of a viewer has its place with the others
)

// batch sends datagrams with sendmmsg, those of the same size to the same
// destination as one message (UDP_SEGMENT). The zero value must be initialized.
type batch struct {
	fd       int
	buffer   [batchBuffer]byte
	used     int
	n        int // messages
	last     *unix.RawSockaddrInet4
	size     int  // of the open message's segments
	segments int  // in it
	open     bool // it can take one more
	messages [batchMessages]mmsghdr
	vectors  [batchMessages]unix.Iovec
	control  [batchMessages]segmentSize
}

// segmentSize is the control message UDP_SEGMENT (udp(7)).
type segmentSize struct {
	header unix.Cmsghdr
	size   uint16
	_      [6]byte
}

func (b *batch) init(fd int) {
	b.fd = fd
	for i := range b.messages {
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.SetIovlen(1)
		b.control[i].header.Level, b.control[i].header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		b.control[i].header.SetLen(unix.CmsgLen(2))
	}
}

// room returns where the next datagram goes.
func (b *batch) room() ([]byte, error) {
	if b.used+maxDatagram > len(b.buffer) {
		if err := b.flush(); err != nil {
			return nil, err
		}
	}
	return b.buffer[b.used : b.used+maxDatagram], nil
}

// commit takes the first n bytes of what room returned as a datagram. A shorter
// one ends a message, and so does another destination.
func (b *batch) commit(to *unix.RawSockaddrInet4, n int) error {
	if b.open && to == b.last && n <= b.size && b.segments < maxSegments && b.segments*b.size+n <= maxMessage {
		i := b.n - 1
		b.segments++
		b.vectors[i].SetLen((b.segments-1)*b.size + n)
		b.open = n == b.size
		b.control[i].size = uint16(b.size)
		b.messages[i].header.Control = (*byte)(unsafe.Pointer(&b.control[i])) //nolint:gosec // what sendmmsg wants
		b.messages[i].header.SetControllen(int(unsafe.Sizeof(segmentSize{})))
		b.used += n
		return nil
	}
	if b.n == batchMessages {
		at := b.used
		if err := b.flush(); err != nil {
			return err
		}
		copy(b.buffer[:n], b.buffer[at:at+n])
	}
	i := b.n
	b.n++
	h := &b.messages[i].header
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(to)), unix.SizeofSockaddrInet4 //nolint:gosec // what sendmmsg wants
	h.Control = nil
	h.SetControllen(0)
	b.vectors[i].Base = &b.buffer[b.used]
	b.vectors[i].SetLen(n)
	b.used += n
	b.last, b.size, b.segments, b.open = to, n, 1, true
	return nil
}

// flush sends. The socket does not block, and what the kernel has no room for
// is sent again.
func (b *batch) flush() error {
	for sent := 0; sent < b.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(b.fd), uintptr(unsafe.Pointer(&b.messages[sent])), uintptr(b.n-sent), 0, 0, 0) //nolint:gosec // package unix has no call for it
		switch {
		case errno == 0:
			sent += int(n)
		case errors.Is(errno, unix.EAGAIN) || errors.Is(errno, unix.EINTR):
			if err := b.wait(); err != nil {
				return err
			}
		default:
			return errno
		}
	}
	b.n, b.used, b.open, b.last = 0, 0, false, nil
	return nil
}

// wait waits until the socket has room.
func (b *batch) wait() error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLOUT}}, 100)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}
