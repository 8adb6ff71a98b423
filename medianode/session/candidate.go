package session

import (
	"fmt"
	"strings"
	"sync"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

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
	if err := s.checkCandidate(c); err != nil {
		return err
	}
	err := guard(func() error {
		return s.pc.AddICECandidate(webrtc.ICECandidateInit{
			Candidate: c.Candidate, SDPMid: c.SDPMid, SDPMLineIndex: c.SDPMLineIndex, UsernameFragment: c.UsernameFragment,
		})
	})
	if err != nil {
		return badCandidate("%v", err)
	}
	return nil
}

func (s *Session) checkCandidate(c Candidate) error {
	if m := c.SDPMid; m != nil && *m != "" && !s.remote.hasMid(*m) {
		return badCandidate("sdpMid %q is none of the offer's", clip(*m))
	}
	if i := c.SDPMLineIndex; i != nil && int(*i) >= len(s.remote.sections) {
		return badCandidate("sdpMLineIndex is %d, but the offer has %d media sections", *i, len(s.remote.sections))
	}
	if u := c.UsernameFragment; u != nil && *u != "" && *u != s.remote.ufrag {
		return badCandidate("usernameFragment is not the offer's: the candidate is of another ICE generation")
	}
	if c.Candidate == "" {
		return nil
	}
	if len(c.Candidate) > maxCandidate {
		return badCandidate("it has %d bytes; at most %d are read", len(c.Candidate), maxCandidate)
	}
	if s.remote.candidates >= maxCandidates {
		return badCandidate("there are %d already, the most that are tried", maxCandidates)
	}
	if _, err := ice.UnmarshalCandidate(strings.TrimPrefix(c.Candidate, "candidate:")); err != nil {
		return badCandidate("not a candidate-attribute of RFC 8839 §5.1: %s", clip(err.Error()))
	}
	s.remote.candidates++
	return nil
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

// gathering is our own candidates' way to the viewer.
type gathering struct {
	complete chan struct{} // holds a token when a gathering is complete; never closed
	wake     chan struct{} // holds a token while there may be something to send; never closed

	mu      sync.Mutex // guards the rest
	trickle bool       // candidates are to be sent as they come
	queue   []Candidate
}

func newGathering(trickle bool) *gathering {
	return &gathering{complete: make(chan struct{}, 1), wake: make(chan struct{}, 1), trickle: trickle}
}

// found is told of each candidate by pion, and of the end by nil.
func (g *gathering) found(c *webrtc.ICECandidate) {
	if c == nil {
		signal(g.complete)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.trickle {
		return
	}
	var next Candidate
	if c != nil {
		j := c.ToJSON()
		next = Candidate{Candidate: j.Candidate, SDPMid: j.SDPMid, SDPMLineIndex: j.SDPMLineIndex, UsernameFragment: j.UsernameFragment}
	} else {
		g.trickle = false // those of a restart are in its answer
		index := uint16(0)
		next.SDPMLineIndex = &index
	}
	g.queue = append(g.queue, next)
	signal(g.wake)
}

// stop ends trickling: what has not been sent is in the next answer.
func (g *gathering) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trickle, g.queue = false, nil
}

// take returns what is to be sent.
func (g *gathering) take() []Candidate {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queue
	g.queue = nil
	return q
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
