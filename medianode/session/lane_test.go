package session

import (
	"math/rand/v2"
	"testing"

	"fanlight/medianode/stream"
)

// The viewer's numbers go on by one where packets were left out, show the gaps
// that the camera made, and find the stream's packets back.
func TestLane(t *testing.T) {
	var l lane
	at := uint64(70_000)
	send := func(marker, resumed bool) (own uint64) {
		p := stream.Packet{Index: at, Marker: marker}
		own = l.number(&p, resumed)
		l.sent(&p, own, 0)
		at++
		return own
	}
	if r, _, _ := l.find(0); r != nil {
		t.Error("found a packet before any was sent")
	}
	first := send(false, false)
	if first >= 1<<15 {
		t.Errorf("the first number is %d, want one below 2^15", first)
	}
	steps := []struct {
		name            string
		skip            uint64 // of the stream's packets
		marker, resumed bool
		want            uint64 // step of the viewer's number
	}{
		{"next", 0, true, false, 1},
		{"lost by the camera", 3, false, false, 4},
		{"the most that the stream shows at once", 63, true, false, 64},
		{"left out, after a whole picture", 1000, false, true, 1},
		{"left out, in the middle of a picture", 1000, false, true, 2},
		{"left out, without a word", 100, true, false, 2},
		{"a round of sequence numbers", 1 << 16, true, false, 1},
		{"next again", 0, true, false, 1},
	}
	last := first
	for _, s := range steps {
		at += s.skip
		own := send(s.marker, s.resumed)
		if own-last != s.want {
			t.Errorf("%s: the number went on by %d, want %d", s.name, own-last, s.want)
		}
		if r, index, found := l.find(uint16(own)); r == nil || index != at-1 || found != own {
			t.Errorf("%s: found %d as %d, %v; want %d as %d", s.name, index, found, r != nil, at-1, own)
		}
		last = own
	}
	if r, _, _ := l.find(uint16(last + 1)); r != nil {
		t.Error("found a packet that was not sent")
	}
	// Across what was left out, the packets before are found still; the number that
	// shows that a picture was cut off is nobody's.
	r := l.runs[1]
	if got, index, _ := l.find(uint16(r.end - 1)); got != &l.runs[1] || index != r.from+r.end-1-r.base {
		t.Errorf("the last before others were left out is not found: %v, %d", got != nil, index)
	}
	p := stream.Packet{Index: at + 1000}
	own := l.number(&p, true)
	l.sent(&p, own, 0)
	p.Index += 1000
	next := l.number(&p, true)
	l.sent(&p, next, 0)
	if got, _, _ := l.find(uint16(next - 1)); next != own+2 || got != nil {
		t.Errorf("number %d after %d, and one between them is found: %v", next, own, got != nil)
	}
}

// Numbers never repeat and never go back, whatever is left out: with a repeated
// one two packets would be sealed with one nonce. And they never leap by half a
// round, for the viewer could not follow (RFC 3711 §3.3.1).
func TestLaneNumbersAreUnique(t *testing.T) {
	var l lane
	at, last := rand.Uint64()&0xffff, uint64(0)
	for i := range 100_000 {
		at += 1
		if rand.IntN(10) == 0 {
			at += rand.Uint64N(100_000)
		}
		p := stream.Packet{Index: at, Marker: rand.IntN(3) == 0}
		own := l.number(&p, rand.IntN(50) == 0)
		if i > 0 && last > 0 && (own <= last || own-last > 1<<15) {
			t.Fatalf("number %d after %d", own, last)
		}
		last = own
		if rand.IntN(20) > 0 { // or there was no room for it
			l.sent(&p, own, 0)
		} else if last = 0; l.next > 0 {
			last = l.next - 1
		}
	}
}
