package stream

import (
	"fmt"
	"testing"
)

// vp8Frame returns a frame of 640 x 360 and of size bytes, 10 at least.
func vp8Frame(i, size int, key bool) []byte {
	b := noise(i, max(size, 10))
	b[0] |= 1
	if key {
		copy(b, []byte{b[0] &^ 1, 2, 3, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01})
	}
	return b
}

// join returns the parts in one.
func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func vp8Cases() []videoCase {
	key, inter := vp8Frame(1, 150, true), vp8Frame(2, 150, false)
	desc := []byte{0x10}
	on := []byte{0x00}
	long := []byte{0xb0, 0xf0, 0x81, 0x02, 0x03, 0x44} // X, N, S; I, L, T, K; 15 bits of id
	longOn := []byte{0xa0, 0xf0, 0x81, 0x02, 0x03, 0x44}
	short := []byte{0x90, 0x80, 0x01}
	small := func(d []byte, b ...byte) []byte { return join(d, b) }
	start := inPacket{marker: true, payload: join(desc, key[:20])}
	started := outPacket{marker: true, payload: join(desc, key[:20])}
	return []videoCase{
		{
			name: "frames that fit", size: [2]int{640, 360}, frames: 2,
			in:  []inPacket{start, {step: frame, marker: true, payload: join(desc, inter[:20])}},
			out: []outPacket{started, {step: frame, marker: true, payload: join(desc, inter[:20])}}, keyframes: 1,
		},
		{
			name: "begins between keyframes",
			in:   []inPacket{{marker: true, payload: join(desc, inter[:20])}, {step: frame, marker: true, payload: join(desc, key[:20])}},
			out:  []outPacket{started}, keyframes: 1,
		},
		{
			name: "a frame too large", in: []inPacket{{marker: true, payload: join(desc, key)}},
			out: []outPacket{{payload: join(desc, key[:63])}, {payload: join(on, key[63:126])}, {marker: true, payload: join(on, key[126:])}}, keyframes: 1,
		},
		{
			name: "every piece has the extension", in: []inPacket{{marker: true, payload: join(long, key)}},
			out: []outPacket{{payload: join(long, key[:58])}, {payload: join(longOn, key[58:116])}, {marker: true, payload: join(longOn, key[116:])}}, keyframes: 1,
		},
		{
			name: "packets a little too large are cut across one another",
			in:   []inPacket{{payload: join(desc, key[:70])}, {payload: join(on, key[70:140])}, {marker: true, payload: join(on, key[140:])}},
			out:  []outPacket{{payload: join(desc, key[:63])}, {payload: join(on, key[63:126])}, {marker: true, payload: join(on, key[126:])}}, keyframes: 1,
		},
		{
			name: "not across partitions",
			in:   []inPacket{{payload: join(desc, key[:70])}, {marker: true, payload: join([]byte{0x11}, key[70:80])}},
			out:  []outPacket{{payload: join(desc, key[:63])}, {payload: join(on, key[63:70])}, {marker: true, payload: join([]byte{0x11}, key[70:80])}}, keyframes: 1,
		},
		{
			name: "no markers", in: []inPacket{{payload: join(desc, key)}, {step: frame, payload: join(desc, inter[:20])}, {step: frame, payload: join(desc, inter[:20])}},
			out: []outPacket{
				{payload: join(desc, key[:63])},
				{payload: join(on, key[63:126])},
				{marker: true, payload: join(on, key[126:])},
				{step: frame, marker: true, payload: join(desc, inter[:20])},
			}, keyframes: 1,
		},
		{
			name: "nothing of a frame of which a packet is lost",
			in:   []inPacket{{payload: join(desc, key[:70])}, {skip: 1, marker: true, payload: join(on, key[100:110])}, {step: frame, marker: true, payload: start.payload}},
			out:  []outPacket{started}, keyframes: 2, discards: Discards{Damaged: 3},
		},
		{
			name: "a keyframe without its beginning is none", in: []inPacket{{skip: 1, marker: true, payload: join(on, key[20:40])}, {step: frame, marker: true, payload: start.payload}},
			out: []outPacket{started}, keyframes: 1, frames: 2,
		},
		{
			name: "a keyframe of no size", in: []inPacket{{marker: true, payload: small(short, 0, 1)}},
			out: []outPacket{{marker: true, payload: small(short, 0, 1)}}, keyframes: 1,
		},
		{
			name: "malformed packets", in: []inPacket{
				{payload: nil},
				{payload: []byte{0x10}},
				{payload: []byte{0x90}},
				{payload: []byte{0x90, 0x80}},
				{payload: []byte{0x90, 0x80, 0x01}},
				{payload: []byte{0x90, 0x80, 0x81, 0x01}},
				{payload: []byte{0x90, 0xf0, 0x81, 0x01, 0x02, 0x03}},
				{payload: []byte{0x90, 0x00}},
				start,
			},
			out: []outPacket{started}, keyframes: 1, discards: Discards{Malformed: 8},
		},
	}
}

func TestVP8(t *testing.T) { testCases(t, "VP8", vp8Cases(), checkVP8) }

func FuzzVP8(f *testing.F) { fuzzVideo(f, "VP8", vp8Cases(), checkVP8) }

// checkVP8 checks what holds for whatever a camera sends.
func checkVP8(bursts []*Burst) error {
	for i, b := range bursts {
		for j, p := range b.Packets {
			n := vp8Descriptor(p.Payload)
			if n == 0 {
				return fmt.Errorf("descriptor % x", p.Payload[:min(6, len(p.Payload))])
			}
			if b.Keyframe && j == 0 && (p.Payload[0]&(vp8Start|vp8Partition) != vp8Start || p.Payload[n]&1 != 0) {
				return fmt.Errorf("keyframe burst %d does not begin with a keyframe", i)
			}
		}
	}
	return nil
}
