//go:build !plainudp

package udp

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2). Go pads its end as C does, on 32
// and on 64 bits.
type mmsghdr struct {
	unix.Msghdr
	n uint32 // bytes received, set by the kernel
}

// control is a control message with the size of the segments; its padding too
// is C's (CMSG_SPACE).
type control struct {
	unix.Cmsghdr
	size uint16 // bytes, in the machine's order
}

const controlSize = int(unsafe.Sizeof(control{}))

// sockaddr is an address as the kernel takes and gives it: of IPv6, or one of
// IPv4 in its place.
type sockaddr struct{ unix.RawSockaddrInet6 }

const sockaddrSize = unix.SizeofSockaddrInet6

func (sa *sockaddr) ipv4() *unix.RawSockaddrInet4 {
	return (*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) //nolint:gosec // G103: the smaller struct, with no pointers
}

// set makes sa an address of the socket's family and returns its size in bytes.
func (sa *sockaddr) set(to netip.AddrPort, f family) uint32 {
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, to.Port()))
	if f == ipv4 {
		sa4 := sa.ipv4()
		sa4.Family, sa4.Addr, sa4.Port = unix.AF_INET, to.Addr().As4(), port
		return unix.SizeofSockaddrInet4
	}
	sa.Family, sa.Addr, sa.Port = unix.AF_INET6, to.Addr().As16(), port
	return unix.SizeofSockaddrInet6
}

// addrPort is the address without its zone, as IPv4 if it is v4-mapped.
func (sa *sockaddr) addrPort() netip.AddrPort {
	addr, port := netip.AddrFrom16(sa.Addr).Unmap(), sa.Port
	if sa.Family == unix.AF_INET {
		sa4 := sa.ipv4()
		addr, port = netip.AddrFrom4(sa4.Addr), sa4.Port
	}
	var network [2]byte
	binary.NativeEndian.PutUint16(network[:], port)
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(network[:]))
}

// setName makes sa the message's address. It must be in memory as long as h.
func (h *mmsghdr) setName(sa *sockaddr) {
	h.Name = (*byte)(unsafe.Pointer(sa)) //nolint:gosec // G103: C's void *
}

// setControl does the same with a control message, of which no byte counts
// before SetControllen.
func (h *mmsghdr) setControl(c *control) {
	h.Control = (*byte)(unsafe.Pointer(c)) //nolint:gosec // G103: C's void *
}

// sendmmsg sends the first of n messages, and as many of the others as the
// kernel takes without waiting.
//
// It does not block, so syscall.RawSyscall6 would do, which spares the
// scheduler its account of the call. That gains nothing while the machine has
// time to spare, and 15 to 25 % of the CPU when it has none; but then a call of
// 100 µs after another keeps all other goroutines waiting, for 18 to 40 ms at
// the median where it is 0.1 to 0.5 ms with this one.
func sendmmsg(fd uintptr, first *mmsghdr, n int) (int, unix.Errno) {
	p := unsafe.Pointer(first) //nolint:gosec // G103: n headers in a row, whose pointers are Go's
	sent, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(p), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(sent), errno
}

// recvmmsg fills as many of n messages as have come in.
func recvmmsg(fd uintptr, first *mmsghdr, n int) (int, unix.Errno) {
	p := unsafe.Pointer(first) //nolint:gosec // G103: n headers in a row, whose pointers are Go's
	got, _, errno := syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(p), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(got), errno
}
