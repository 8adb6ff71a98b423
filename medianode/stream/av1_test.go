package stream

import (
	"fmt"
	"testing"
)

// testSequence returns a sequence header OBU of the main profile, without a size.
func testSequence(width, height uint32) []byte {
	b := &bits{buf: []byte{obuSequence << 3}}
	b.u(3, 0)  // seq_profile
	b.u(1, 0)  // still_picture
	b.u(1, 0)  // reduced_still_picture_header
	b.u(1, 0)  // timing_info_present_flag
	b.u(1, 0)  // initial_display_delay_present_flag
	b.u(5, 0)  // operating_points_cnt_minus_1
	b.u(12, 0) // operating_point_idc
	b.u(5, 8)  // seq_level_idx
	b.u(1, 0)  // seq_tier
	b.u(4, 15) // frame_width_bits_minus_1
	b.u(4, 15) // frame_height_bits_minus_1
	b.u(16, width-1)
	b.u(16, height-1)
	b.u(24, 0x155555) // tools
	return b.buf
}

// obuOf returns an OBU without a size: of a type, and of so many bytes.
func obuOf(typ byte, size int) []byte {
	b := noise(int(typ), size)
	b[0] = typ << 3
	return b
}

// keyOBU and interOBU return frames.
func keyOBU(size int) []byte {
	b := obuOf(obuFrame, size)
	b[1] = 0x10 // a keyframe, shown
	return b
}

func interOBU(size int) []byte {
	b := obuOf(obuFrame, size)
	b[1] = 0x30
	return b
}

// av1Unit returns a temporal unit in the low-overhead format (AV1 bitstream
// specification §5.2), without a delimiter.
func av1Unit(i, size int, key bool) (out []byte) {
	frame := append([]byte{obuFrame << 3, 0x30}, noise(i, size)...)
	obus := [][]byte{frame}
	if key {
		frame[1] = 0x10
		obus = [][]byte{testSequence(640, 360), frame}
	}
	for _, o := range obus {
		out = append(out, o[0]|obuSized)
		out = append(out, leb(len(o)-1)...)
		out = append(out, o[1:]...)
	}
	return out
}

func leb(v int) (out []byte) {
	for ; v >= 0x80; v >>= 7 {
		out = append(out, byte(v)|0x80)
	}
	return append(out, byte(v))
}

// av1Packet returns a payload with the flags Z, Y and N that counts its elements,
// three at most.
func av1Packet(flags byte, obus ...[]byte) []byte {
	out := []byte{flags | byte(len(obus))<<4}
	for i, o := range obus {
		if i < len(obus)-1 {
			out = append(out, leb(len(o))...)
		}
		out = append(out, o...)
	}
	return out
}

// av1Lengths returns the same with a length for each element.
func av1Lengths(flags byte, obus ...[]byte) []byte {
	out := []byte{flags}
	for _, o := range obus {
		out = append(append(out, leb(len(o))...), o...)
	}
	return out
}

func av1Cases() []videoCase {
	const z, y, n = av1Continues, av1GoesOn, av1Sequence
	seq := testSequence(640, 360) // of 13 bytes
	other := testSequence(1280, 720)
	key, inter := keyOBU(20), interOBU(20)
	big := keyOBU(150)
	metadata, padding, delimiter := obuOf(5, 10), obuOf(obuPadding, 9), []byte{obuDelimiter << 3}
	still := &bits{buf: []byte{obuSequence << 3}}
	still.u(3, 0)
	still.u(2, 3)
	still.u(5, 8)
	still.u(8, 0xff)
	still.u(16, 639)
	still.u(16, 359)
	start := inPacket{marker: true, payload: av1Packet(n, seq, key)}
	started := outPacket{marker: true, payload: av1Packet(n, seq, key)}
	first := 64 - 2 - len(seq) // bytes of a frame beside the sequence header
	return []videoCase{
		{
			name: "units that fit", size: [2]int{640, 360}, frames: 2,
			in:  []inPacket{start, {step: frame, marker: true, payload: av1Packet(0, inter)}},
			out: []outPacket{started, {step: frame, marker: true, payload: av1Packet(0, inter)}}, keyframes: 1,
		},
		{
			name: "the sequence header once", in: []inPacket{start, {step: frame, marker: true, payload: av1Packet(0, keyOBU(30))}},
			out: []outPacket{started, {step: frame, marker: true, payload: av1Packet(n, seq, keyOBU(30))}}, keyframes: 2,
		},
		{
			name: "the sequence header in a packet of its own, with N", in: []inPacket{{payload: av1Packet(n, seq)}, {marker: true, payload: av1Packet(0, key)}},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "N forgotten, and a length for each element", in: []inPacket{{marker: true, payload: av1Lengths(0, delimiter, seq, key)}},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "the sequence header of a camera that sends frames before", in: []inPacket{{marker: true, payload: av1Packet(0, key)}, {step: frame, marker: true, payload: start.payload}},
			out: []outPacket{started}, keyframes: 1, frames: 2,
		},
		{
			name: "a sequence header replaced", size: [2]int{1280, 720}, in: []inPacket{start, {step: frame, marker: true, payload: av1Packet(n, other, key)}},
			out: []outPacket{started, {step: frame, marker: true, payload: av1Packet(n, other, key)}}, keyframes: 2,
		},
		{
			name: "metadata goes between the sequence header and the frame, padding nowhere",
			in:   []inPacket{{payload: av1Packet(0, metadata)}, {marker: true, payload: av1Lengths(n, delimiter, seq, padding, key)}},
			out:  []outPacket{{marker: true, payload: av1Packet(n, seq, metadata, key)}}, keyframes: 1,
		},
		{
			name: "metadata of no frame", in: []inPacket{{payload: av1Packet(0, metadata)}, {step: frame, marker: true, payload: start.payload}},
			out: []outPacket{started}, keyframes: 1, discards: Discards{Supplements: 1},
		},
		{
			name: "metadata in fragments", in: []inPacket{{payload: av1Packet(y, metadata[:4])}, {marker: true, payload: av1Packet(z, metadata[4:], seq, key)}},
			out: []outPacket{{marker: true, payload: av1Packet(n, seq, metadata, key)}}, keyframes: 1,
		},
		{
			name: "more elements than can be counted", in: []inPacket{{marker: true, payload: av1Lengths(n, seq, keyOBU(5), obuOf(obuTiles, 6), obuOf(obuTiles, 7))}},
			out: []outPacket{{payload: av1Packet(n, seq, keyOBU(5), obuOf(obuTiles, 6))}, {marker: true, payload: av1Packet(0, obuOf(obuTiles, 7))}}, keyframes: 1,
		},
		{
			name: "a frame too large", in: []inPacket{{marker: true, payload: av1Packet(n, seq, big)}},
			out: []outPacket{
				{payload: av1Packet(n|y, seq, big[:first])}, {payload: av1Packet(z|y, big[first:first+63])}, {marker: true, payload: av1Packet(z, big[first+63:])},
			}, keyframes: 1,
		},
		{
			name: "packets a little too large are cut across one another",
			in:   []inPacket{{payload: av1Packet(n|y, seq, big[:60])}, {payload: av1Packet(z|y, big[60:130])}, {marker: true, payload: av1Packet(z, big[130:])}},
			out: []outPacket{
				{payload: av1Packet(n|y, seq, big[:first])}, {payload: av1Packet(z|y, big[first:first+63])}, {marker: true, payload: av1Packet(z, big[first+63:])},
			}, keyframes: 1,
		},
		{
			name: "fragments that fit stay", in: []inPacket{start, {step: frame, payload: av1Packet(y, inter[:10])}, {marker: true, payload: av1Packet(z, inter[10:])}},
			out: []outPacket{started, {step: frame, payload: av1Packet(y, inter[:10])}, {marker: true, payload: av1Packet(z, inter[10:])}}, keyframes: 1,
		},
		{
			name: "nothing of a unit of which a packet is lost",
			in:   []inPacket{{payload: av1Packet(n|y, seq, big[:60])}, {skip: 1, marker: true, payload: av1Packet(z, big[130:])}, {step: frame, marker: true, payload: start.payload}},
			out:  []outPacket{started}, keyframes: 2, discards: Discards{Damaged: 3},
		},
		{
			name: "no markers", in: []inPacket{{payload: start.payload}, {step: frame, payload: av1Packet(0, inter)}},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "neither a hidden keyframe nor an upper layer's is one to start with",
			in: []inPacket{
				{payload: av1Packet(n, seq)},
				{step: frame, payload: av1Packet(0, append([]byte{obuFrame << 3, 0}, key[2:]...))},
				{step: frame, payload: av1Packet(0, append([]byte{obuFrame<<3 | obuExtension, 0x08, 0x10}, key[2:]...))},
				{step: frame, marker: true, payload: av1Packet(0, key)},
			},
			out: []outPacket{started}, keyframes: 1,
		},
		{
			name: "a unit that begins within a frame", in: []inPacket{{payload: av1Packet(z, key[4:])}, start, {step: frame, marker: true, payload: start.payload}},
			out: []outPacket{started}, keyframes: 1, frames: 2,
		},
		{
			name: "pictures that have no frame type", size: [2]int{640, 360}, in: []inPacket{{marker: true, payload: av1Packet(n, still.buf, obuOf(obuFrame, 9))}},
			out: []outPacket{{marker: true, payload: av1Packet(n, still.buf, obuOf(obuFrame, 9))}}, keyframes: 1,
		},
		{
			name: "malformed packets", in: []inPacket{
				{payload: nil},
				{payload: []byte{0x10}},
				{payload: []byte{0x00, 0x09, 0x30}},             // longer than its packet
				{payload: []byte{0x00, 0x01, 0x30, 0x00}},       // an element of no bytes
				{payload: []byte{0x20, 0x01, 0x30}},             // one element of two
				{payload: []byte{0x00, 0x80, 0x80, 0x80, 0x80}}, // a length without an end
				{payload: []byte{0x10, 0x80 | obuFrame<<3, 1}},  // obu_forbidden_bit
				{payload: av1Packet(0, []byte{obuSequence << 3, 0x00})},
				start,
			},
			out: []outPacket{started}, keyframes: 1, discards: Discards{Malformed: 7, ParameterSets: 1},
		},
	}
}

func TestAV1(t *testing.T) { testCases(t, "AV1", av1Cases(), checkAV1) }

func FuzzAV1(f *testing.F) { fuzzVideo(f, "AV1", av1Cases(), checkAV1) }

// checkAV1 checks what holds for whatever a camera sends.
func checkAV1(bursts []*Burst) error {
	for i, b := range bursts {
		for j, p := range b.Packets {
			all, n := elementsOf(p.Payload), 0
			continues := p.Payload[0]&av1Continues != 0
			for obu, _, ok := all.next(); ok; obu, _, ok = all.next() {
				typ := obuType(obu)
				switch {
				case b.Keyframe && j == 0 && n == 0 && (typ != obuSequence || p.Payload[0]&(av1Sequence|av1Continues) != av1Sequence):
					return fmt.Errorf("keyframe burst %d begins with % x", i, p.Payload[:2])
				case !continues && (typ == obuDelimiter || typ == obuPadding):
					return fmt.Errorf("burst %d has an OBU of type %d", i, typ)
				}
				continues = false
				n++
			}
			if all.bad || n == 0 {
				return fmt.Errorf("packet of %d elements, well formed %v", n, !all.bad)
			}
		}
	}
	return nil
}

func TestSequenceSize(t *testing.T) {
	for _, size := range [][2]uint32{{640, 360}, {1920, 1080}, {3840, 2160}} {
		h, ok := readAV1Sequence(testSequence(size[0], size[1]))
		if !ok || h.width != int(size[0]) || h.height != int(size[1]) {
			t.Errorf("%v: read %+v, %v", size, h, ok)
		}
	}
	// With a timing info, a decoder model and two operating points.
	b := &bits{buf: []byte{obuSequence<<3 | obuSized, 37}}
	b.u(5, 0)
	b.u(1, 1) // timing_info_present_flag
	b.u(32, 1)
	b.u(32, 25)
	b.u(1, 1) // equal_picture_interval
	b.ue(5)
	b.u(1, 1)  // decoder_model_info_present_flag
	b.u(5, 9)  // buffer_delay_length_minus_1
	b.u(32, 1) //
	b.u(10, 0)
	b.u(1, 1) // initial_display_delay_present_flag
	b.u(5, 1) // operating_points_cnt_minus_1
	for range 2 {
		b.u(12, 0)
		b.u(5, 9)
		b.u(1, 0)  // seq_tier
		b.u(1, 1)  // decoder_model_present_for_this_op
		b.u(21, 0) //
		b.u(1, 1)  // initial_display_delay_present_for_this_op
		b.u(4, 3)
	}
	b.u(8, 0xbb)
	b.u(12, 1919)
	b.u(12, 1079)
	b.u(24, 0)
	if h, ok := readAV1Sequence(b.buf); !ok || h.width != 1920 || h.height != 1080 {
		t.Errorf("read %+v, %v; want 1920 x 1080", h, ok)
	}
	for n := 1; n < 9; n++ {
		if h, ok := readAV1Sequence(testSequence(640, 360)[:n]); ok {
			t.Errorf("%d bytes read as %+v", n, h)
		}
	}
}
