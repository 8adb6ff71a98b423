package session

import (
	"testing"
	"time"

	"fanlight/medianode/stream"
)

// A viewer that missed the keyframe which it had asked for asks again when there
// is a way for it: some cameras send one on demand only. Here nothing is kept that
// it could begin with.
func TestHeldViewersAsk(t *testing.T) {
	r := newRigOf(t, 1, stream.Config{CacheBytes: -1})
	v := r.outlet.seats[0]
	asked := 0
	r.writer.OnKeyframeRequest(func() { asked++ })
	way := v.route.Swap(nil)
	r.frame(false)
	r.send()
	r.frame(false)
	r.send()
	if !v.held || asked == 0 {
		t.Fatalf("without a way: held %v, asked %d times", v.held, asked)
	}
	r.frame(true) // the camera's answer
	r.send()
	v.route.Store(way)
	before := asked
	for end := time.Now().Add(10 * time.Second); asked == before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody asks again")
		}
		r.frame(false)
		r.send()
	}
	r.frame(true)
	r.send()
	r.frame(false)
	r.send()
	if v.held {
		t.Error("the viewer is still held")
	}
}

// What was sent before a camera came back with another codec is sent again with
// the payload type that it had: with the new one it would be another packet under
// the same nonce.
func TestResendAfterAnotherCodec(t *testing.T) {
	l := lane{payloads: map[string]uint8{"PCMU": 0, "PCMA": 8}}
	send := func(codec string, index uint64) uint64 {
		t.Helper()
		if !l.take(&stream.Burst{Codec: codec}) {
			t.Fatalf("%s was not taken", codec)
		}
		p := stream.Packet{Index: index, Marker: true}
		own := l.number(&p, false)
		l.sent(&p, own, 0)
		return own
	}
	check := func(own uint64, payload uint8) {
		t.Helper()
		if r, _, _ := l.find(uint16(own)); r == nil || r.payload != payload {
			t.Errorf("packet %d is not found as of payload type %d: %+v", own, payload, r)
		}
	}
	before := send("PCMU", 100)
	check(before, 0)
	after := send("PCMA", 101)
	if after != before+1 {
		t.Errorf("the number goes from %d to %d", before, after)
	}
	check(after, 8)
	check(before, 0)
	if l.take(&stream.Burst{Codec: "OPUS"}) {
		t.Error("a codec was taken that was not negotiated")
	}
}
