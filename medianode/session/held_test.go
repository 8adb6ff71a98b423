package session

import (
	"testing"
	"time"

	"fanlight/medianode/stream"
)

// A viewer that missed the keyframe which it had asked for asks again when there
// is a way for it: some cameras send one on demand only.
func TestHeldViewersAsk(t *testing.T) {
	r := newRig(t, 1)
	v := r.outlet.viewers[0]
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

// What was sent before a camera came back with another codec is not sent again:
// with the new payload type it would be another packet under the same nonce.
func TestResendAfterAnotherCodec(t *testing.T) {
	l := lane{payloads: map[string]uint8{"PCMU": 0, "PCMA": 8}}
	send := func(codec string, index uint64) uint64 {
		t.Helper()
		if !l.take(&stream.Burst{Codec: codec}) {
			t.Fatalf("%s was not taken", codec)
		}
		p := stream.Packet{Index: index, Marker: true}
		own := l.number(&p, false)
		l.sent(&p, own)
		return own
	}
	before := send("PCMU", 100)
	if _, _, ok := l.find(uint16(before)); !ok {
		t.Error("a packet just sent is not found")
	}
	if own := send("PCMA", 101); own != before+1 {
		t.Errorf("the number goes from %d to %d", before, own)
	} else if _, _, ok := l.find(uint16(own)); !ok {
		t.Error("the first packet of the new codec is not found")
	}
	if _, _, ok := l.find(uint16(before)); ok {
		t.Error("a packet of the codec before is found")
	}
	if l.take(&stream.Burst{Codec: "OPUS"}) {
		t.Error("a codec was taken that was not negotiated")
	}
}
