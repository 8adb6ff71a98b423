package fanout

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveBuffer is what the kernel keeps for a socket until it is read, in
// bytes: seconds of 2 Mbit/s, also where each packet is accounted as a page.
const receiveBuffer = 4 << 20

// receiver takes a socket's datagrams: those of GRO one by one. at is when the
// kernel got it, in nanoseconds since 1970; 0: the socket has no timestamps on.
// The bytes are the reader's, until the call returns.
type receiver interface {
	datagram(b []byte, at int64)
}

// socket is a UDP socket on loopback that a reader waits for.
type socket struct {
	// Static after newSocket.
	addr netip.AddrPort
	to   receiver

	mu     sync.Mutex // guards the rest, and fd's life
	fd     int
	closed bool
}

// newSocket opens a socket at 127.0.0.1. whole: a message that the sender made with
// UDP_SEGMENT stays one.
func newSocket(to receiver, whole bool) (*socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	s := &socket{to: to, fd: fd}
	if err := s.set(whole); err != nil {
		s.close()
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	return s, nil
}

func (s *socket) set(whole bool) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		// Not root: as much as net.core.rmem_max allows.
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return err
		}
	}
	if whole {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(s.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	in, ok := sa.(*unix.SockaddrInet4)
	if !ok {
		return errors.New("its address is none of IPv4")
	}
	s.addr = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	return nil
}

// timestamps has the kernel say when each datagram came, or no longer.
func (s *socket) timestamps(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	v := 0
	if on {
		v = 1
	}
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, v)
}

// send sends a datagram; one that the kernel has no room for is lost.
func (s *socket) send(b []byte, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	err := unix.Sendto(s.fd, b, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}

// drops returns how many messages the kernel dropped because the socket's
// buffer was full (SO_MEMINFO, SK_MEMINFO_DROPS). One that the sender made with
// UDP_SEGMENT counts once.
func (s *socket) drops() uint64 {
	const dropped = 8
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0
	}
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // package unix has no call for it
	if errno != 0 {
		return 0
	}
	return uint64(info[dropped])
}

func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		_ = unix.Close(s.fd) // nothing is written that could be lost
	}
}
