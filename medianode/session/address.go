package session

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/pion/ice/v4"
	"github.com/pion/transport/v5"
	"github.com/pion/transport/v5/stdnet"
	"github.com/pion/webrtc/v4"

	"fanlight/medianode/udp"
)

// Every session has the same host candidates: an address list that is made once
// and given to pion's ICE agent in place of the machine's interfaces, so that a
// session asks the system for nothing, and UDP and TCP agree.

// pion's mux takes the socket without allocating an address for each packet.
var _ ice.AddrPortReaderWriter = (*udp.Conn)(nil)

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

// network is the transport.Net of all sessions: the system's, but for its
// interfaces, of which there is one with the candidates' addresses.
type network struct {
	transport.Net
	iface *transport.Interface
}

func newNetwork(addrs []netip.Addr) (*network, error) {
	n, err := stdnet.NewNet()
	if err != nil {
		return nil, fmt.Errorf("open the system's network: %w", err)
	}
	iface := transport.NewInterface(net.Interface{Index: 1, Name: "candidates", Flags: net.FlagUp})
	for _, a := range addrs {
		iface.AddAddress(&net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
	}
	return &network{Net: n, iface: iface}, nil
}

// Interfaces returns the one interface.
func (n *network) Interfaces() ([]*transport.Interface, error) {
	return []*transport.Interface{n.iface}, nil
}

// networkTypes returns the kinds of candidates that addresses can have.
func networkTypes(addrs []netip.Addr, tcp bool) []webrtc.NetworkType {
	var types []webrtc.NetworkType
	if slices.ContainsFunc(addrs, netip.Addr.Is4) {
		types = append(types, webrtc.NetworkTypeUDP4)
		if tcp {
			types = append(types, webrtc.NetworkTypeTCP4)
		}
	}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		types = append(types, webrtc.NetworkTypeUDP6)
		if tcp {
			types = append(types, webrtc.NetworkTypeTCP6)
		}
	}
	return types
}

// udpMux lets pion's mux of the shared socket stand for the candidates'
// addresses. pion's own accepts only the address that the socket is bound to,
// or, bound to an unspecified one, any; it goes by the IP version then.
type udpMux struct {
	*ice.UDPMuxDefault
	bound *net.UDPAddr
	addrs []net.Addr // of the candidates, with the port
}

func newUDPMux(conn *udp.Conn, addrs []netip.Addr, net *network, log pionLog) *udpMux {
	m := &udpMux{
		UDPMuxDefault: ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: conn, Net: net, Logger: log.NewLogger("udpmux")}),
		bound:         udpAddr(conn.AddrPort()),
	}
	for _, a := range addrs {
		m.addrs = append(m.addrs, udpAddr(netip.AddrPortFrom(a, conn.AddrPort().Port())))
	}
	return m
}

func udpAddr(a netip.AddrPort) *net.UDPAddr { return net.UDPAddrFromAddrPort(a) }

// GetListenAddresses returns the candidates' addresses.
func (m *udpMux) GetListenAddresses() []net.Addr { return m.addrs }

// GetConn returns a session's end of the socket.
func (m *udpMux) GetConn(ufrag string, addr net.Addr) (net.PacketConn, error) {
	if !m.bound.IP.IsUnspecified() {
		addr = m.bound
	}
	return m.UDPMuxDefault.GetConn(ufrag, addr)
}
