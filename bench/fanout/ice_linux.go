package fanout

import (
	"net"
	"net/netip"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"
)

// check makes a check of the controlling agent that nominates its pair at once.
func (v *viewer) check() (*stun.Message, error) {
	return stun.Build(stun.BindingRequest, stun.TransactionID,
		stun.NewUsername(v.server.ufrag+":"+v.creds.ufrag), ice.UseCandidate(), ice.AttrControlling(v.creds.tie),
		ice.PriorityAttr(reflexivePriority), stun.NewShortTermIntegrity(v.server.pwd), stun.Fingerprint)
}

// stun takes a STUN message: the server's checks are answered, and answers to
// ours noted. The caller holds the reader's mu.
func (v *viewer) stun(b []byte) {
	m := &stun.Message{Raw: append([]byte(nil), b...)}
	if m.Decode() != nil {
		return
	}
	switch m.Type {
	case stun.BindingRequest:
		if stun.NewShortTermIntegrity(v.creds.pwd).Check(m) != nil || v.server == nil {
			return // the server sends it again
		}
		remote := v.server.remote
		answer, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
			&stun.XORMappedAddress{IP: net.IP(remote.Addr().AsSlice()), Port: int(remote.Port())},
			stun.NewShortTermIntegrity(v.creds.pwd), stun.Fingerprint)
		if err == nil {
			v.write(answer.Raw)
		}
	case stun.BindingSuccess:
		if v.server == nil || stun.NewShortTermIntegrity(v.server.pwd).Check(m) != nil {
			return
		}
		if m.TransactionID == v.transaction {
			select {
			case v.nominated <- struct{}{}:
			default:
			}
		}
	default: // errors show in that nothing comes
	}
}

// write sends to the server. What cannot be sent is lost, as on a network.
func (v *viewer) write(b []byte) { _ = v.socket.send(b, v.server.remote) }

// from is where the server's packets come from, for package dtls.
func from(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }
