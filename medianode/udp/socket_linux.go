//go:build !plainudp

package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// system is Linux's part of a Conn.
//
// Writes go past the lock that package net holds for the length of each write:
// RawConn.Control takes no more than a reference to the descriptor. Under that
// lock sessions stand in line for a socket that the kernel lets all of them use
// at once, and every packet costs a switch from one goroutine to the next: on a
// busy machine, 50 sessions took twice the CPU and twice the time.
type system struct {
	raw     syscall.RawConn // static after Listen
	singles sync.Pool       // of *single

	unsegmented atomic.Pointer[string] // why UDP_SEGMENT is not used; nil: it is
	refusals    atomic.Int32           // messages with segments refused since one last passed
}

// maxRefusals is how many messages in succession must be refused for their
// segments before the socket stops making any. One peer's path that can't take
// them does not get that far while another's can.
const maxRefusals = 3

// setUp sets the buffers' sizes and finds out whether the kernel segments.
func (c *Conn) setUp(cfg Config) error {
	raw, err := c.udp.SyscallConn()
	if err != nil {
		return err
	}
	c.raw = raw
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			setBuffer(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, cfg.ReadBuffer),
			setBuffer(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, cfg.WriteBuffer))
		if cfg.NoSegmentation {
			c.stopSegmenting("switched off")
		} else if _, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT); err != nil {
			c.stopSegmenting(fmt.Sprintf("the kernel has no UDP_SEGMENT: %v", err))
		}
	})
	return errors.Join(err, failed)
}

// setBuffer sets a buffer's size, past the system's maximum if the process may.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size))
}

func (s *system) stopSegmenting(why string) { s.unsegmented.Store(&why) }

func (s *system) segmentation() string {
	if why := s.unsegmented.Load(); why != nil {
		return "sendmmsg (" + *why + ")"
	}
	return "sendmmsg with UDP_SEGMENT"
}

// Dest is a peer's address in the form that the system takes. Equal values are
// equal addresses. It is made once for a path, not for each datagram.
type Dest struct {
	sa  sockaddr
	len uint32 // bytes of sa that count
}

// Dest makes the address of a peer. An IPv4 address becomes v4-mapped where the
// socket takes both families. An address of a family that the socket does not
// reach is an error, as is a zone that is no interface of this machine.
func (c *Conn) Dest(to netip.AddrPort) (Dest, error) {
	if err := c.reachable(to); err != nil {
		return Dest{}, fmt.Errorf("address %v: %w", to, err)
	}
	var d Dest
	d.len = d.sa.set(to, c.family)
	if zone := to.Addr().Zone(); zone != "" {
		index, err := zoneIndex(zone)
		if err != nil {
			return Dest{}, fmt.Errorf("address %v: %w", to, err)
		}
		d.sa.Scope_id = index
	}
	return d, nil
}

// zoneIndex is the number of the interface that a zone names, or is.
func zoneIndex(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	link, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(link.Index), nil
}

// single is one datagram on its way: what a call of the kernel needs, kept for
// reuse.
type single struct {
	do   func(fd uintptr)
	b    []byte
	to   unix.Sockaddr // &sa4 or &sa6
	sa4  unix.SockaddrInet4
	sa6  unix.SockaddrInet6
	room room
	err  error
}

// write sends one datagram.
func (c *Conn) write(b []byte, to netip.AddrPort) error {
	d, _ := c.singles.Get().(*single)
	if d == nil {
		d = new(single)
		d.do = d.send
	}
	defer func() {
		d.b = nil
		c.singles.Put(d)
	}()
	addr := to.Addr()
	switch {
	case c.reachable(to) != nil || addr.Zone() != "":
		// Package net says what is wrong, and keeps the zones.
		_, err := c.udp.WriteToUDPAddrPort(b, to)
		return err
	case c.family == ipv4:
		d.sa4.Addr, d.sa4.Port, d.to = addr.As4(), int(to.Port()), &d.sa4
	default:
		d.sa6.Addr, d.sa6.Port, d.to = addr.As16(), int(to.Port()), &d.sa6
	}
	d.b, d.err = b, nil
	if err := c.control(d.do); err != nil {
		return err
	}
	return d.err
}

func (d *single) send(fd uintptr) {
	d.room.reset()
	for {
		d.err = unix.Sendto(int(fd), d.b, unix.MSG_DONTWAIT, d.to)
		again := true
		switch {
		case errors.Is(d.err, unix.EINTR):
		case errors.Is(d.err, unix.EAGAIN):
			again = d.room.wait(fd, unix.EAGAIN)
		case errors.Is(d.err, unix.ENOBUFS):
			again = d.room.wait(fd, unix.ENOBUFS)
		default:
			return
		}
		if !again {
			d.err = errNoRoom
			return
		}
	}
}

// control calls do with the socket's descriptor, which stays open meanwhile.
// The error is net.ErrClosed or none.
func (s *system) control(do func(fd uintptr)) error {
	err := s.raw.Control(do)
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// roomWait is how long a burst waits for room in the socket, all its calls
// together. roomLook is the longest wait between two tries: poll(2) reports
// room only when half the buffer is free, and there may be some before.
const (
	roomWait = 2 * time.Millisecond
	roomLook = 250 * time.Microsecond
)

// room waits until the socket takes more. It is no timer of Go's: the wait is
// shorter than the scheduler's own delays on a busy machine.
type room struct {
	waited time.Duration // since reset
	poll   [1]unix.PollFd
	limit  unix.Timespec
}

func (r *room) reset() { r.waited = 0 }

// wait returns when the caller should try again; false is to give up.
func (r *room) wait(fd uintptr, why unix.Errno) bool {
	left := min(roomWait-r.waited, roomLook)
	if left <= 0 {
		return false
	}
	r.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	if why == unix.ENOBUFS { // a queue of the network's is full, not the socket
		r.poll[0].Events = 0
	}
	r.limit = unix.NsecToTimespec(left.Nanoseconds())
	start := time.Now()
	_, _ = unix.Ppoll(r.poll[:], &r.limit, nil) // the next try says how it is
	r.waited += max(time.Since(start), time.Microsecond)
	return true
}
