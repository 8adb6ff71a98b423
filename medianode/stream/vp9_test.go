package stream

import (
	"fmt"
	"testing"
)

// vp9Frame returns a frame of 640 x 360 and of size bytes, 10 at least.
func vp9Frame(i, size int, key bool) []byte {
	b := noise(i, max(size, 10))
	b[0] = 0x86 // frame_marker, profile 0, not a keyframe, shown
	if key {
		// A keyframe, the sync code, BT.601, 639 and 359.
		w := &bits{buf: []byte{0x82, 0x49, 0x83, 0x42}}
		w.u(3, 1)
		w.u(1, 0)
		w.u(16, 639)
		w.u(16, 359)
		w.u(4, 0)
		copy(b, w.buf[:9])
	}
	return b
}

func vp9Cases() []videoCase {
	key, inter := vp9Frame(1, 150, true), vp9Frame(2, 150, false)
	both := []byte{0x8c, 0x01} // I, B, E
	begin, middle, end := []byte{0x88, 0x01}, []byte{0x80, 0x01}, []byte{0x84, 0x01}
	start := inPacket{marker: true, payload: join(both, key[:20])}
	started := outPacket{marker: true, payload: join(both, key[:20])}
	// I, L, B, E, V; id, layers, TL0PICIDX; one size and two pictures.
	structured := []byte{0xae, 0x81, 0x02, 0x00, 0x07, 0x18, 0x02, 0x80, 0x01, 0x68, 0x02, 0x00, 0x04, 0x01}
	layersOn, layersEnd := []byte{0xa0, 0x81, 0x02, 0x00, 0x07}, []byte{0xa4, 0x81, 0x02, 0x00, 0x07}
	structuredBegin := append([]byte{0xaa}, structured[1:]...)
	flexible := []byte{0xdc, 0x01, 0x03, 0x02} // I, P, F, B, E; two references
	flexibleBegin, flexibleEnd := []byte{0xd8, 0x01, 0x03, 0x02}, []byte{0xd4, 0x01, 0x03, 0x02}
	flexibleOn := []byte{0xd0, 0x01, 0x03, 0x02}
	upper := []byte{0xac, 0x01, 0x02, 0x07} // spatial layer 1
	return []videoCase{
		{
			name: "frames that fit", size: [2]int{640, 360}, frames: 2,
			in:  []inPacket{start, {step: frame, marker: true, payload: join([]byte{0xcc, 0x02}, inter[:20])}},
			out: []outPacket{started, {step: frame, marker: true, payload: join([]byte{0xcc, 0x02}, inter[:20])}}, keyframes: 1,
		},
		{
			name: "a camera that says of no frame what it is predicted from",
			in:   []inPacket{{marker: true, payload: join(both, inter[:20])}, {step: frame, marker: true, payload: join(both, key[:20])}, {step: frame, marker: true, payload: join(both, inter[:20])}},
			out:  []outPacket{started, {step: frame, marker: true, payload: join(both, inter[:20])}}, keyframes: 1,
		},
		{
			name: "a frame too large", in: []inPacket{{marker: true, payload: join(both, key)}},
			out: []outPacket{{payload: join(begin, key[:62])}, {payload: join(middle, key[62:124])}, {marker: true, payload: join(end, key[124:])}}, keyframes: 1,
		},
		{
			name: "packets a little too large are cut across one another",
			in:   []inPacket{{payload: join(begin, key[:70])}, {payload: join(middle, key[70:140])}, {marker: true, payload: join(end, key[140:])}},
			out:  []outPacket{{payload: join(begin, key[:62])}, {payload: join(middle, key[62:124])}, {marker: true, payload: join(end, key[124:])}}, keyframes: 1,
		},
		{
			name: "the scalability structure stays with the first piece", in: []inPacket{{marker: true, payload: join(structured, key[:100])}},
			out: []outPacket{{payload: join(structuredBegin, key[:50])}, {marker: true, payload: join(layersEnd, key[50:100])}}, keyframes: 1,
		},
		{
			name: "and packets that go on with it have none",
			in:   []inPacket{{payload: join(structuredBegin, key[:60])}, {marker: true, payload: join(layersEnd, key[60:150])}},
			out:  []outPacket{{payload: join(structuredBegin, key[:50])}, {payload: join(layersOn, key[50:109])}, {marker: true, payload: join(layersEnd, key[109:150])}}, keyframes: 1,
		},
		{
			name: "references stay with every piece", in: []inPacket{start, {step: frame, marker: true, payload: join(flexible, inter)}},
			out: []outPacket{
				started,
				{step: frame, payload: join(flexibleBegin, inter[:60])},
				{payload: join(flexibleOn, inter[60:120])},
				{marker: true, payload: join(flexibleEnd, inter[120:])},
			}, keyframes: 1,
		},
		{
			name: "spatial layers are one picture", frames: 1,
			in:  []inPacket{{payload: join([]byte{0xac, 0x01, 0x00, 0x07}, key[:20])}, {marker: true, payload: join(upper, key[:20])}},
			out: []outPacket{{payload: join([]byte{0xac, 0x01, 0x00, 0x07}, key[:20])}, {marker: true, payload: join(upper, key[:20])}}, keyframes: 1,
		},
		{
			name: "an upper layer is none to start with", in: []inPacket{{marker: true, payload: join(upper, key[:20])}, {step: frame, marker: true, payload: start.payload}},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "no markers", in: []inPacket{{payload: join(both, key[:20])}, {step: frame, payload: join(both, inter[:20])}},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "malformed packets", in: []inPacket{
				{payload: nil},
				{payload: []byte{0x8c}},
				{payload: []byte{0x8c, 0x01}},
				{payload: []byte{0x8c, 0x81, 0x01}},
				{payload: []byte{0xac, 0x01, 0x02, 0x03}},
				{payload: []byte{0xdc, 0x01, 0x03, 0x03, 0x03, 0x02, 0x01}}, // four references
				{payload: []byte{0xdc, 0x01, 0x03}},
				{payload: []byte{0x0e, 0x18, 0x01, 0x02, 0x03}},
				{payload: []byte{0x0e, 0x08, 0xff, 0xff, 0xff}},
				start,
			},
			out: []outPacket{started}, keyframes: 1, discards: Discards{Malformed: 9},
		},
		{
			name: "a structure larger than the MTU",
			in:   []inPacket{{payload: join(append([]byte{0x8e, 0x01, 0x08, 70}, make([]byte, 70)...), key)}, {step: frame, marker: true, payload: start.payload}},
			out:  []outPacket{started}, keyframes: 1, discards: Discards{Oversized: 1},
		},
	}
}

func TestVP9(t *testing.T) { testCases(t, "VP9", vp9Cases(), checkVP9) }

func FuzzVP9(f *testing.F) { fuzzVideo(f, "VP9", vp9Cases(), checkVP9) }

// checkVP9 checks what holds for whatever a camera sends.
func checkVP9(bursts []*Burst) error {
	for i, b := range bursts {
		for j, p := range b.Packets {
			d, ok := readVP9Descriptor(p.Payload)
			if !ok {
				return fmt.Errorf("descriptor % x", p.Payload[:min(8, len(p.Payload))])
			}
			if b.Keyframe && j == 0 {
				if _, _, key := readVP9Keyframe(p.Payload[d.size:]); p.Payload[0]&(vp9Begin|vp9Inter) != vp9Begin || d.spatial != 0 || !key {
					return fmt.Errorf("keyframe burst %d does not begin with a keyframe", i)
				}
			}
		}
	}
	return nil
}
