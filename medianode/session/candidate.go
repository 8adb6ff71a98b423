package session

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/pion/ice/v4"

	"fanlight/internal/fleet"
)

// Candidate is an ICE candidate, as RTCIceCandidateInit (W3C WebRTC §4.8).
type Candidate struct {
	Candidate        string // candidate-attribute (RFC 8839 §5.1); empty: the end of candidates
	SDPMid           *string
	SDPMLineIndex    *uint16
	UsernameFragment *string
}

// maxCandidate is how long a candidate-attribute may be, in bytes. Chromium's
// have 150.
const maxCandidate = 1024

// AddCandidate adds one of the viewer's candidates. A .local name, with which
// browsers hide their address, is accepted and left alone: the address is
// learnt from the viewer's checks. The error is fleet.BadCandidate, with what is
// wrong; the session is as before then.
func (s *Session) AddCandidate(c Candidate) error {
	s.negotiating.Lock()
	defer s.negotiating.Unlock()
	if s.isClosed() {
		return badCandidate("the session has ended")
	}
	addr, err := s.checkCandidate(c)
	if err != nil {
		return err
	}
	if addr.IsValid() {
		s.transport.AddCandidate(addr)
	}
	return nil
}

func (s *Session) checkCandidate(c Candidate) (netip.AddrPort, error) {
	if m := c.SDPMid; m != nil && *m != "" && !s.remote.hasMid(*m) {
		return netip.AddrPort{}, badCandidate("sdpMid %q is none of the offer's", clip(*m))
	}
	if i := c.SDPMLineIndex; i != nil && int(*i) >= len(s.remote.sections) {
		return netip.AddrPort{}, badCandidate("sdpMLineIndex is %d, but the offer has %d media sections", *i, len(s.remote.sections))
	}
	if u := c.UsernameFragment; u != nil && *u != "" && *u != s.remote.ice.Fragment {
		return netip.AddrPort{}, badCandidate("usernameFragment is not the offer's: the candidate is of another ICE generation")
	}
	if c.Candidate == "" {
		return netip.AddrPort{}, nil
	}
	if len(c.Candidate) > maxCandidate {
		return netip.AddrPort{}, badCandidate("it has %d bytes; at most %d are read", len(c.Candidate), maxCandidate)
	}
	if s.remote.candidates >= maxCandidates {
		return netip.AddrPort{}, badCandidate("there are %d already, the most that are tried", maxCandidates)
	}
	addr, err := parseCandidate(strings.TrimPrefix(c.Candidate, "candidate:"))
	if err != nil {
		return netip.AddrPort{}, badCandidate("not a candidate-attribute of RFC 8839 §5.1: %s", clip(err.Error()))
	}
	s.remote.candidates++
	return addr, nil
}

// parseCandidate reads a candidate-attribute without "candidate:". The address is
// that of a candidate over UDP which has an IP address, else none.
func parseCandidate(value string) (netip.AddrPort, error) {
	c, err := ice.UnmarshalCandidate(value)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ip, err := netip.ParseAddr(c.Address())
	if err != nil || !c.NetworkType().IsUDP() || c.Port() < 0 || c.Port() > 1<<16-1 {
		return netip.AddrPort{}, nil //nolint:nilerr // a name: nobody resolves it
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(c.Port())), nil
}

func (o *offer) hasMid(mid string) bool {
	for _, s := range o.sections {
		if s.mid == mid {
			return true
		}
	}
	return false
}

func badCandidate(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fleet.BadCandidate, fmt.Sprintf(format, args...))
}

// local returns our candidates as they are trickled, the end of them last.
func (s *Session) local() []Candidate {
	fragment, index := s.transport.Local().Fragment, uint16(0)
	var out []Candidate
	for _, c := range s.engine.port.Candidates() {
		mid := s.remote.bundle()
		out = append(out, Candidate{Candidate: "candidate:" + c, SDPMid: &mid, SDPMLineIndex: &index, UsernameFragment: &fragment})
	}
	return append(out, Candidate{SDPMLineIndex: &index, UsernameFragment: &fragment})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
