package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Every session has the same host candidates: an address list that is made once,
// so that a session asks the system for nothing, and UDP and TCP agree.

// candidateAddresses returns the IP addresses of a node's candidates: those
// advertised; else the one it listens on; else, listening on all, those of the
// machine, without loopback if there are others.
func candidateAddresses(listen netip.Addr, advertise []netip.Addr, machine func() ([]net.Addr, error)) ([]netip.Addr, error) {
	if len(advertise) > 0 {
		return advertised(listen, advertise)
	}
	if !listen.IsUnspecified() {
		return []netip.Addr{listen}, nil
	}
	addrs, err := machine()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var out, loopback []netip.Addr
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		switch {
		case !ok || ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.Contains(out, ip):
		case listen.Is4() && !ip.Is4(): // 0.0.0.0 does not take IPv6
		case ip.IsLoopback():
			loopback = append(loopback, ip)
		default:
			out = append(out, ip)
		}
	}
	if len(out) == 0 {
		out = loopback
	}
	if len(out) == 0 {
		return nil, errors.New("this machine has no address that a viewer could reach: advertise one")
	}
	return out, nil
}

func advertised(listen netip.Addr, advertise []netip.Addr) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range advertise {
		a = a.Unmap().WithZone("")
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
			return nil, fmt.Errorf("advertise %v: not an address of one machine", a)
		case listen.Is4() != a.Is4() && (listen.Is4() || !listen.IsUnspecified()):
			return nil, fmt.Errorf("advertise %v: media is listened for on %v, the other IP version", a, listen)
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	return out, nil
}

// candidates returns the candidate-attributes (RFC 8839 §5.1, RFC 6544 §4.5) of
// all addresses. The first have the highest priority, UDP before TCP.
func candidates(addrs []netip.Addr, port uint16, tcp bool) []string {
	var out []string
	for i, a := range addrs {
		// Type preference 126, local preference, component 1 (RFC 8445 §5.1.2).
		out = append(out, fmt.Sprintf("%d 1 udp %d %s %d typ host", i+1, 126<<24|uint32(65535-i)<<8|255, a, port))
	}
	if !tcp {
		return out
	}
	for i, a := range addrs {
		// Type preference below UDP's; direction preference 4 of passive ones (RFC 6544 §4.2).
		out = append(out, fmt.Sprintf("%d 1 tcp %d %s %d typ host tcptype passive", len(addrs)+i+1, 99<<24|uint32(4<<13|8191-i)<<8|255, a, port))
	}
	return out
}
