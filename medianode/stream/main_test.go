package stream

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pion/rtp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testMTU = 64

// bits writes H.264 syntax elements.
type bits struct {
	buf  []byte
	free int
}

func (b *bits) u(n int, v uint32) {
	for i := n - 1; i >= 0; i-- {
		if b.free == 0 {
			b.buf, b.free = append(b.buf, 0), 8
		}
		b.free--
		b.buf[len(b.buf)-1] |= byte(v>>i&1) << b.free
	}
}

func (b *bits) ue(v uint32) {
	n := 0
	for (v+1)>>(n+1) != 0 {
		n++
	}
	b.u(n, 0)
	b.u(n+1, v+1)
}

// testSPS returns a baseline sequence parameter set of a size that is even.
func testSPS(id, width, height uint32) []byte {
	b := &bits{buf: []byte{0x67, 66, 0xc0, 30}}
	columns, rows := (width+15)/16, (height+15)/16
	b.ue(id)
	b.ue(0) // log2_max_frame_num_minus4
	b.ue(2) // pic_order_cnt_type
	b.ue(1) // max_num_ref_frames
	b.u(1, 0)
	b.ue(columns - 1)
	b.ue(rows - 1)
	b.u(1, 1) // frame_mbs_only_flag
	b.u(1, 1) // direct_8x8_inference_flag
	b.u(1, 1) // frame_cropping_flag
	b.ue(0)
	b.ue((columns*16 - width) / 2)
	b.ue(0)
	b.ue((rows*16 - height) / 2)
	b.u(1, 0) // vui_parameters_present_flag
	b.u(1, 1) // rbsp_stop_one_bit
	return b.buf
}

// testPPS returns something with the id of a picture parameter set.
func testPPS(id uint32, fill ...byte) []byte {
	b := &bits{buf: []byte{0x68}}
	b.ue(id)
	b.u(1, 1)
	return append(b.buf, fill...)
}

var (
	sps = testSPS(0, 640, 360)
	pps = testPPS(0, 0xce, 0x38)
	aud = []byte{0x09, 0xf0}
	sei = []byte{0x06, 0x05, 0x01, 0xaa, 0x80}
)

// slice returns a slice of a size in bytes, the first of its picture. Its bytes
// are all different over 251 of them.
func slice(header byte, size int) []byte {
	nal := make([]byte, size)
	for i := range nal {
		nal[i] = byte(i % 251)
	}
	nal[0], nal[1] = header, 0x88
	return nal
}

func idr(size int) []byte   { return slice(0x65, size) }
func inter(size int) []byte { return slice(0x41, size) }

func stap(nals ...[]byte) []byte {
	out := []byte{0x78}
	for _, n := range nals {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(n))), n...)
	}
	return out
}

// fu returns the bytes from..to of a NAL unit's body as an FU-A payload.
func fu(nal []byte, from, to int) []byte {
	header := nal[0] & 0x1f
	if from == 0 {
		header |= 0x80
	}
	if to == len(nal)-1 {
		header |= 0x40
	}
	return append([]byte{nal[0]&0x60 | 28, header}, nal[1+from:1+to]...)
}

// camera writes a video track's packets as a camera would.
type camera struct {
	w     *Writer
	seq   uint16 // of track 0
	other uint16 // of track 1
	ts    uint32
}

func publish(t testing.TB, s *Stream, tracks ...Track) *camera {
	t.Helper()
	if len(tracks) == 0 {
		tracks = []Track{videoTrack}
	}
	w, err := s.Publish(tracks)
	if err != nil {
		t.Fatal(err)
	}
	return &camera{w: w, seq: 65530, ts: 0xfffffff0}
}

var (
	videoTrack = Track{Kind: Video, Codec: "H264", ClockRate: 90_000}
	audioTrack = Track{Kind: Audio, Codec: "PCMA", ClockRate: 8_000, Channels: 1}
)

func (c *camera) packet(track int, marker bool, payload []byte) {
	seq := &c.seq
	if track == 1 {
		seq = &c.other
	}
	c.w.WriteRTP(track, &rtp.Packet{
		Header:  rtp.Header{Version: 2, SequenceNumber: *seq, Timestamp: c.ts, Marker: marker},
		Payload: bytes.Clone(payload),
	})
	*seq++
}

// unit writes an access unit, one packet a NAL unit, and goes on by 40 ms.
func (c *camera) unit(nals ...[]byte) {
	for i, n := range nals {
		c.packet(0, i == len(nals)-1, n)
	}
	c.ts += 3600
}

// drain returns the bursts that are queued.
func drain(t testing.TB, sub *Subscription) []*Burst {
	t.Helper()
	var out []*Burst
	for {
		b, err := sub.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return out
		}
		out = append(out, b)
	}
}

func packets(bursts []*Burst) []Packet {
	var out []Packet
	for _, b := range bursts {
		out = append(out, b.Packets...)
	}
	return out
}
