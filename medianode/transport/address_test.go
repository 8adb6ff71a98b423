package transport

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCandidateAddresses(t *testing.T) {
	machine := []string{"127.0.0.1/8", "::1/128", "192.0.2.7/24", "fe80::1/64", "2001:db8::7/64", "192.0.2.7/24"}
	tests := []struct {
		name      string
		listen    string
		advertise []string
		machine   []string
		want      []string // nil: an error
	}{
		{"one address", "192.0.2.7", nil, machine, []string{"192.0.2.7"}},
		{"loopback", "127.0.0.1", nil, machine, []string{"127.0.0.1"}},
		{"all IPv4", "0.0.0.0", nil, machine, []string{"192.0.2.7"}},
		{"all", "::", nil, machine, []string{"192.0.2.7", "2001:db8::7"}},
		{"all, and only loopback is there", "0.0.0.0", nil, machine[:2], []string{"127.0.0.1"}},
		{"all, and nothing is there", "0.0.0.0", nil, nil, nil},
		{"advertised", "0.0.0.0", []string{"203.0.113.1", "203.0.113.2", "203.0.113.1"}, machine, []string{"203.0.113.1", "203.0.113.2"}},
		{"advertised for one address", "10.0.0.1", []string{"203.0.113.1"}, machine, []string{"203.0.113.1"}},
		{"advertised for all, both versions", "::", []string{"203.0.113.1", "2001:db8::9"}, machine, []string{"203.0.113.1", "2001:db8::9"}},
		{"mapped", "0.0.0.0", []string{"::ffff:203.0.113.1"}, machine, []string{"203.0.113.1"}},
		{"IPv6 for IPv4", "0.0.0.0", []string{"2001:db8::9"}, machine, nil},
		{"IPv4 for one IPv6", "2001:db8::7", []string{"203.0.113.1"}, machine, nil},
		{"unspecified", "0.0.0.0", []string{"0.0.0.0"}, machine, nil},
		{"multicast", "0.0.0.0", []string{"224.0.0.1"}, machine, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var advertise []netip.Addr
			for _, a := range tt.advertise {
				advertise = append(advertise, netip.MustParseAddr(a))
			}
			got, err := candidateAddresses(netip.MustParseAddr(tt.listen), advertise, func() ([]net.Addr, error) {
				addrs := []net.Addr{&net.UnixAddr{}} // something else
				for _, s := range tt.machine {
					ip, n, err := net.ParseCIDR(s)
					if err != nil {
						t.Fatal(err)
					}
					addrs = append(addrs, &net.IPNet{IP: ip, Mask: n.Mask})
				}
				return addrs, nil
			})
			if (err != nil) != (tt.want == nil) {
				t.Fatalf("the error is %v", err)
			}
			var names []string
			for _, a := range got {
				names = append(names, a.String())
			}
			if diff := cmp.Diff(tt.want, names); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := candidateAddresses(netip.IPv4Unspecified(), nil, func() ([]net.Addr, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("the error is %v, want %v", err, broken)
	}
}
