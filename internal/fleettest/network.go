package fleettest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"sync"
)

// Network is where a fleet's processes run: all on loopback ([Loopback]), or
// each in a place of its own between which links can be cut ([Namespaces]). This
// process itself, with its cameras, viewers and balancer, is at the place
// "harness".
type Network interface {
	// Place returns the address of the process of a name, having made what it
	// needs. The same name gets the same address again.
	Place(name string) (netip.Addr, error)
	// Wrap has a command that is about to be started run at its place.
	Wrap(name string, cmd *exec.Cmd) error
	// Close removes what was made. The processes have ended.
	Close() error
}

// Harness is the place of this process.
const Harness = "harness"

// Loopback has everything at 127.0.0.1. It is the default.
type Loopback struct{}

// Place returns 127.0.0.1.
func (Loopback) Place(string) (netip.Addr, error) { return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil }

// Wrap leaves the command as it is.
func (Loopback) Wrap(string, *exec.Cmd) error { return nil }

// Close does nothing.
func (Loopback) Close() error { return nil }

// Ports that no system hands out by itself, so that those of a process that has
// ended are still free when it is started again.
const (
	firstPort = 12_000
	lastPort  = 31_999
)

// portBook hands out ports, none twice.
type portBook struct {
	mu    sync.Mutex // guards the rest
	given map[uint16]bool
}

// FreeAddrs returns addresses on 127.0.0.1, host:port, that are free for TCP and
// UDP, with ports that no system hands out by itself.
func FreeAddrs(n int) ([]string, error) {
	var b portBook
	addrs := make([]string, 0, n)
	for range n {
		a, err := b.next(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a.String())
	}
	return addrs, nil
}

// next returns a port that is free on this machine for TCP and UDP. On another
// machine's address, as that of a namespace, it is taken to be.
func (b *portBook) next(ip netip.Addr) (netip.AddrPort, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.given == nil {
		b.given = make(map[uint16]bool)
	}
	for range 200 {
		port := uint16(firstPort + rand.N(lastPort-firstPort))
		addr := netip.AddrPortFrom(ip, port)
		if b.given[port] || ip.IsLoopback() && !free(addr) {
			continue
		}
		b.given[port] = true
		return addr, nil
	}
	return netip.AddrPort{}, errors.New("no free port")
}

func free(addr netip.AddrPort) bool {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return false
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err == nil {
		err = c.Close()
	}
	return errors.Join(err, l.Close()) == nil
}

// place returns the addresses of a process: as many as it needs, each with a
// port of its own, and behind them one on its loopback.
func (f *Fleet) place(name string, ports int) ([]string, error) {
	ip, err := f.network.Place(name)
	if err != nil {
		return nil, fmt.Errorf("place %s: %w", name, err)
	}
	addrs := make([]string, 0, ports+1)
	for i := range ports + 1 {
		if i == ports {
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		a, err := f.ports.next(ip)
		if err != nil {
			return nil, fmt.Errorf("place %s: %w", name, err)
		}
		addrs = append(addrs, a.String())
	}
	return addrs, nil
}
