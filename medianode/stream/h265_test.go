package stream

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// testHEVCSPS returns the beginning of a sequence parameter set of main profile, of
// a size that is even.
func testHEVCSPS(id, width, height uint32) []byte {
	b := &bits{buf: []byte{hevcSPS << 1, 1}}
	b.u(4, 0)                                    // sps_video_parameter_set_id
	b.u(3, 0)                                    // sps_max_sub_layers_minus1
	b.u(1, 1)                                    // sps_temporal_id_nesting_flag
	b.u(8, 0x01)                                 // general_profile_idc: main
	b.u(32, 0x6000_0000)                         // compatibility
	b.u(8, 0x90)                                 // progressive, frame only
	b.u(32, 0x0101_0101)                         // 40 bits that are zero, without start codes
	b.u(8, 0x01)                                 //
	b.u(8, 93)                                   // general_level_idc
	b.ue(id)                                     //
	b.ue(1)                                      // chroma_format_idc
	columns, rows := (width+7)&^7, (height+7)&^7 // of coding blocks
	b.ue(columns)
	b.ue(rows)
	b.u(1, 1) // conformance_window_flag
	b.ue(0)
	b.ue((columns - width) / 2)
	b.ue(0)
	b.ue((rows - height) / 2)
	b.ue(0)
	b.u(1, 1)
	return b.buf
}

func testHEVCPPS(id uint32, fill ...byte) []byte {
	b := &bits{buf: []byte{hevcPPS << 1, 1}}
	b.ue(id)
	b.u(1, 1)
	return append(b.buf, fill...)
}

var (
	vps5 = []byte{hevcVPS << 1, 1, 0x0c, 0x01, 0xff}
	sps5 = testHEVCSPS(0, 640, 360)
	pps5 = testHEVCPPS(0, 0xc1)
	aud5 = []byte{hevcAUD << 1, 1, 0x50}
	sei5 = []byte{39 << 1, 1, 0x05, 0x01, 0xaa, 0x80}
)

// hevc returns a NAL unit of a type and a size in bytes: the first slice of its
// picture, if it is one.
func hevc(typ byte, size int) []byte {
	nal := make([]byte, size)
	for i := range nal {
		nal[i] = byte(i % 251)
	}
	nal[0], nal[1], nal[2] = typ<<1, 1, 0x88
	return nal
}

func ap(nals ...[]byte) []byte {
	out := []byte{hevcAP << 1, 1}
	for _, n := range nals {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(n))), n...)
	}
	return out
}

// fu5 returns the bytes from..to of a NAL unit's body as a fragmentation unit.
func fu5(nal []byte, from, to int) []byte {
	header := hevcType(nal)
	if from == 0 {
		header |= fuStart
	}
	if to == len(nal)-hevcHeader {
		header |= fuEnd
	}
	return append([]byte{hevcFU << 1, nal[1], header}, nal[hevcHeader+from:hevcHeader+to]...)
}

// annexB returns an access unit with start codes.
func annexB(i, size int, key bool) (out []byte) {
	nals := [][]byte{append([]byte{1 << 1, 1, 0x88}, noise(i, size)...)}
	if key {
		nals = [][]byte{vps5, sps5, pps5, append([]byte{19 << 1, 1, 0x88}, noise(i, size)...)}
	}
	for _, n := range nals {
		out = append(append(out, 0, 0, 0, 1), n...)
	}
	return out
}

func h265Cases() []videoCase {
	big := hevc(19, 150) // MTU 64: body of 148 bytes in fragments of 61, 61, 26
	sets := ap(vps5, sps5, pps5)
	sdp := [][]byte{vps5, sps5, pps5}
	idr := func(size int) []byte { return hevc(19, size) }
	inter := func(size int) []byte { return hevc(1, size) }
	second := hevc(19, 30)
	second[2] = 0x08 // not the first slice
	enhanced := hevc(19, 20)
	enhanced[1] = 0x09 // nuh_layer_id is 1
	long := hevc(39, 100)
	large := testHEVCPPS(0, make([]byte, 60)...)
	return []videoCase{
		{
			name: "sets from the SDP before an IDR", sets: sdp, size: [2]int{640, 360}, frames: 2,
			in:  []inPacket{{marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{
			name: "sets in band, one by one, with an AUD and an SEI", size: [2]int{640, 360},
			in:  []inPacket{{payload: aud5}, {payload: vps5}, {payload: sps5}, {payload: pps5}, {payload: sei5}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {payload: sei5}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "sets in band, aggregated, with the picture", in: []inPacket{{marker: true, payload: ap(aud5, vps5, sps5, pps5, sei5, idr(20))}},
			out: []outPacket{{payload: sets}, {payload: sei5}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "every IRAP picture is one to start with", sets: sdp,
			in: []inPacket{{marker: true, payload: hevc(16, 20)}, {step: frame, marker: true, payload: hevc(21, 20)}, {step: frame, marker: true, payload: hevc(20, 20)}, {step: frame, marker: true, payload: hevc(22, 20)}},
			out: []outPacket{
				{payload: sets},
				{marker: true, payload: hevc(16, 20)},
				{step: frame, payload: sets},
				{marker: true, payload: hevc(21, 20)},
				{step: frame, payload: sets},
				{marker: true, payload: hevc(20, 20)},
				{step: frame, marker: true, payload: hevc(22, 20)},
			}, keyframes: 3,
		},
		{
			name: "an aggregate with a picture and no sets stays", sets: sdp, in: []inPacket{{marker: true, payload: ap(sei5, idr(20))}},
			out: []outPacket{{payload: sets}, {marker: true, payload: ap(sei5, idr(20))}}, keyframes: 1,
		},
		{
			name: "an aggregate too large", sets: sdp, in: []inPacket{{marker: true, payload: ap(idr(40), second)}},
			out: []outPacket{{payload: sets}, {payload: idr(40)}, {marker: true, payload: second}}, keyframes: 1,
		},
		{
			name: "a NAL unit too large", sets: sdp, in: []inPacket{{marker: true, payload: big}},
			out: []outPacket{{payload: sets}, {payload: fu5(big, 0, 61)}, {payload: fu5(big, 61, 122)}, {marker: true, payload: fu5(big, 122, 148)}}, keyframes: 1,
		},
		{
			name: "fragments that fit stay", sets: sdp, in: []inPacket{{payload: fu5(big, 0, 50)}, {payload: fu5(big, 50, 100)}, {marker: true, payload: fu5(big, 100, 148)}},
			out: []outPacket{{payload: sets}, {payload: fu5(big, 0, 50)}, {payload: fu5(big, 50, 100)}, {marker: true, payload: fu5(big, 100, 148)}}, keyframes: 1,
		},
		{
			name: "fragments too large are cut across one another", sets: sdp, in: []inPacket{{payload: fu5(big, 0, 70)}, {payload: fu5(big, 70, 140)}, {marker: true, payload: fu5(big, 140, 148)}},
			out: []outPacket{{payload: sets}, {payload: fu5(big, 0, 61)}, {payload: fu5(big, 61, 122)}, {marker: true, payload: fu5(big, 122, 148)}}, keyframes: 1,
		},
		{
			name: "a fragment that is a whole", sets: sdp, in: []inPacket{{marker: true, payload: fu5(idr(20), 0, 18)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "an SEI in fragments goes before the picture", sets: sdp,
			in:  []inPacket{{payload: fu5(long, 0, 50)}, {payload: fu5(long, 50, 98)}, {payload: vps5}, {payload: sps5}, {payload: pps5}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {payload: fu5(long, 0, 61)}, {payload: fu5(long, 61, 98)}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "a parameter set in fragments", sets: [][]byte{vps5, sps5},
			in:  []inPacket{{payload: fu5(large, 0, 30)}, {payload: fu5(large, 30, len(large)-2)}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: vps5}, {payload: sps5}, {payload: large}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "no markers", sets: sdp, in: []inPacket{{payload: idr(20)}, {step: frame, payload: inter(20)}, {step: frame, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{
			name: "the end of a sequence goes with its picture", sets: sdp, in: []inPacket{{payload: idr(20)}, {marker: true, payload: []byte{hevcEOS << 1, 1}}},
			out: []outPacket{{payload: sets}, {payload: idr(20)}, {marker: true, payload: []byte{hevcEOS << 1, 1}}}, keyframes: 1,
		},
		{
			name: "several slices", sets: sdp, in: []inPacket{{payload: idr(20)}, {marker: true, payload: second}},
			out: []outPacket{{payload: sets}, {payload: idr(20)}, {marker: true, payload: second}}, keyframes: 1, frames: 1,
		},
		{
			name: "a picture without its beginning is no keyframe", sets: sdp,
			in:  []inPacket{{payload: second}, {step: frame, marker: true, payload: inter(20)}, {skip: 1, step: frame, marker: true, payload: second}, {step: frame, marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1, discards: Discards{Damaged: 2},
		},
		{
			name: "a sequence parameter set replaced", sets: sdp, size: [2]int{1280, 720},
			in:  []inPacket{{payload: testHEVCSPS(0, 1280, 720)}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: ap(vps5, testHEVCSPS(0, 1280, 720), pps5)}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "new sets before a picture that is not IRAP", sets: sdp,
			in:  []inPacket{{marker: true, payload: idr(20)}, {step: frame, payload: testHEVCPPS(1)}, {marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, payload: ap(vps5, sps5, pps5, testHEVCPPS(1))}, {marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{name: "no sets", in: []inPacket{{marker: true, payload: idr(20)}}, frames: 1},
		{name: "sets without a VPS", sets: [][]byte{sps5, pps5}, in: []inPacket{{marker: true, payload: idr(20)}}, frames: 1},
		{
			name: "malformed packets", sets: sdp, in: []inPacket{
				{payload: nil},
				{payload: []byte{hevcFU << 1}},
				{payload: []byte{19 << 1, 1}},                              // a header alone
				{payload: []byte{19<<1 | 0x80, 1, 0x80}},                   // forbidden_zero_bit
				{payload: []byte{19 << 1, 0, 0x80}},                        // no temporal id
				{payload: []byte{hevcFU << 1, 1, 0x93}},                    // nothing after the FU header
				{payload: []byte{hevcFU << 1, 1, 0x80 | hevcAP, 1}},        // fragments of an aggregate
				{payload: []byte{hevcAP << 1, 1, 0, 9, 2, 1}},              // longer than its packet
				{payload: []byte{hevcAP << 1, 1, 0, 1, 2}},                 // shorter than a header
				{payload: append(ap(idr(20)), 0)},                          // a length cut off
				{payload: ap(ap(idr(9)))},                                  // an aggregate within
				{payload: []byte{50 << 1, 1, 1, 2}},                        // PACI
				{payload: enhanced},                                        // another layer
				{payload: []byte{hevcSPS << 1, 1, 1}},                      // sets that cannot be read
				{payload: []byte{hevcPPS << 1, 1, 0}},                      //
				{payload: []byte{hevcSPS << 1, 1, 0x0e, 1, 2, 3, 4, 5, 6}}, // 8 sub-layers
				{payload: fu5(long, 50, 98)},                               // an SEI without its beginning
				{marker: true, payload: idr(20)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
			discards: Discards{Malformed: 11, UnsupportedFormat: 2, ParameterSets: 3, Supplements: 1},
		},
	}
}

func TestH265(t *testing.T) { testCases(t, "H265", h265Cases(), checkH265) }

func FuzzH265(f *testing.F) { fuzzVideo(f, "H265", h265Cases(), checkH265) }

// checkH265 checks what holds for whatever a camera sends.
func checkH265(bursts []*Burst) error {
	var open *byte // type of the NAL unit that goes on in fragments
	var last Packet
	for i, b := range bursts {
		for j, p := range b.Packets {
			typ := hevcType(p.Payload)
			switch {
			case len(p.Payload) < hevcHeader || hevcLayer(p.Payload) != 0 || typ > hevcFU:
				return fmt.Errorf("packet % x", p.Payload[:min(4, len(p.Payload))])
			case j == 0 && b.Keyframe && firstHEVC(p.Payload) != hevcVPS:
				return fmt.Errorf("keyframe burst %d begins with type %d, not with a video parameter set", i, firstHEVC(p.Payload))
			case firstHEVC(p.Payload) == hevcAUD:
				return fmt.Errorf("access unit delimiter in burst %d", i)
			}
			if typ != hevcFU {
				open = nil
				continue
			}
			header := p.Payload[hevcHeader]
			inner := header &^ (fuStart | fuEnd)
			if open != nil && header&fuStart == 0 && *open != inner && p.Index == last.Index+1 && p.Timestamp == last.Timestamp {
				// The camera's own disorder: nothing that cutting could cause.
				if len(p.Payload) == testMTU && len(last.Payload) == testMTU {
					return fmt.Errorf("a fragment of type %d goes on with one of type %d", inner, *open)
				}
			}
			open, last = &inner, p
		}
	}
	return nil
}

// firstHEVC returns the type of the NAL unit that a payload begins with.
func firstHEVC(payload []byte) byte {
	switch typ := hevcType(payload); typ {
	case hevcAP:
		return hevcType(payload[4:])
	case hevcFU:
		return payload[hevcHeader] &^ (fuStart | fuEnd)
	default:
		return typ
	}
}

func TestHEVCSize(t *testing.T) {
	for _, size := range [][2]uint32{{640, 360}, {1920, 1080}, {352, 288}, {3840, 2160}, {8192, 4320}} {
		sps, ok := readHEVCSPS(testHEVCSPS(3, size[0], size[1]))
		if !ok || sps.id != 3 || sps.width != int(size[0]) || sps.height != int(size[1]) {
			t.Errorf("%v: read %+v, %v", size, sps, ok)
		}
	}
	// Of x265, main profile, 1920 x 1080, with emulation prevention.
	x265 := []byte{
		0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03,
		0x00, 0x78, 0xa0, 0x03, 0xc0, 0x80, 0x10, 0xe5, 0x96, 0x66, 0x69, 0x24, 0xca, 0xe0, 0x10, 0x00,
		0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x01, 0xe0, 0x80,
	}
	if sps, ok := readHEVCSPS(x265); !ok || sps.width != 1920 || sps.height != 1080 {
		t.Errorf("read %+v, %v; want 1920 x 1080", sps, ok)
	}
	for n := range 24 { // cut off before the window ends
		if sps, ok := readHEVCSPS(x265[:n]); ok {
			t.Errorf("%d bytes read as %+v", n, sps)
		}
	}
}
