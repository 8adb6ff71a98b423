package udp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// writer sends datagrams past the lock that package net holds for the length of
// each write. Under that lock sessions stand in line for a socket that the
// kernel lets all of them use at once, and every packet costs a switch from one
// goroutine to the next: on a busy machine, 50 sessions took twice the CPU and
// twice the time.
type writer struct {
	raw  syscall.RawConn
	v6   bool // the socket's family
	pool sync.Pool
}

func newWriter(u *net.UDPConn, v6 bool) (*writer, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &writer{raw: raw, v6: v6}, nil
}

// datagram is one write: what a call of the kernel needs, kept for reuse.
type datagram struct {
	do  func(fd uintptr)
	b   []byte
	to  unix.Sockaddr // &sa4 or &sa6
	sa4 unix.SockaddrInet4
	sa6 unix.SockaddrInet6
	err error
}

// write sends one datagram if the socket has room at once; sent is false if it
// has not, and the caller must wait.
func (w *writer) write(b []byte, to netip.AddrPort) (sent bool, err error) {
	d, _ := w.pool.Get().(*datagram)
	if d == nil {
		d = new(datagram)
		d.do = d.send
	}
	defer func() {
		d.b = nil
		w.pool.Put(d)
	}()
	addr := to.Addr()
	switch {
	case w.v6 && addr.Zone() != "":
		return false, nil // the zone is for package net to look up
	case w.v6:
		d.sa6.Addr, d.sa6.Port, d.to = addr.As16(), int(to.Port()), &d.sa6
	case addr.Unmap().Is4():
		d.sa4.Addr, d.sa4.Port, d.to = addr.As4(), int(to.Port()), &d.sa4
	default:
		return false, nil // package net says what is wrong
	}
	d.b, d.err = b, nil
	if err := w.raw.Control(d.do); err != nil {
		if errors.Is(err, os.ErrClosed) {
			err = net.ErrClosed
		}
		return false, err
	}
	if errors.Is(d.err, unix.EAGAIN) || errors.Is(d.err, unix.EINTR) {
		return false, nil
	}
	return d.err == nil, d.err
}

func (d *datagram) send(fd uintptr) {
	d.err = unix.Sendto(int(fd), d.b, unix.MSG_DONTWAIT, d.to)
}
