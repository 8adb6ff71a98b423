package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pion/rtp/codecs"

	"fanlight/internal/fleet"
)

// sliceOf returns a slice with a header of these (H.264 §7.3.3), of 20 bytes.
func sliceOf(header byte, firstMB, typ uint32) []byte {
	b := &bits{buf: []byte{header}}
	b.ue(firstMB)
	b.ue(typ)
	b.u(1, 1)
	return append(b.buf, bytes.Repeat([]byte{0xab}, 20-len(b.buf))...)
}

// bSlice is a B slice that no picture refers to; bReference one that others do.
func bSlice(firstMB uint32) []byte     { return sliceOf(0x01, firstMB, 6) }
func bReference(firstMB uint32) []byte { return sliceOf(0x41, firstMB, 1) }

// bFrameCases have B-frames: their timestamps go back from those of the picture
// before, which they refer to.
func bFrameCases() []h264Case {
	sets := stap(sps, pps)
	back := func(frames uint32) uint32 { return -frames * frame }
	large := append(bSlice(0), make([]byte, 130)...)
	pSlice, key := sliceOf(0x41, 0, 5), idr(20)
	return []h264Case{
		{
			name: "B-frames", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 3 * frame, marker: true, payload: pSlice},
				{step: back(2), marker: true, payload: bSlice(0)},
				{step: frame, marker: true, payload: bSlice(0)},
				{step: 4 * frame, marker: true, payload: pSlice},
				{step: back(2), marker: true, payload: bSlice(0)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 3 * frame, marker: true, payload: pSlice}, {step: 3 * frame, marker: true, payload: pSlice}}, keyframes: 1,
			discards: Discards{BFrames: 3},
		},
		{
			name: "B-frames in several packets, with sets and an SEI", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 2 * frame, payload: pSlice}, // no marker
				{step: back(1), payload: aud},
				{payload: testPPS(1)},
				{payload: sei},
				{payload: bSlice(0)},
				{payload: bSlice(40)},
				{payload: sei},
				{payload: fu(large, 0, 70)},
				{payload: fu(large, 70, 149), marker: true},
				{step: 3 * frame, marker: true, payload: pSlice},
			},
			out: []outPacket{
				{payload: sets},
				{marker: true, payload: key},
				{step: 2 * frame, marker: true, payload: pSlice},
				{step: 2 * frame, payload: stap(sps, pps, testPPS(1))},
				{marker: true, payload: pSlice},
			}, keyframes: 1,
			discards: Discards{BFrames: 6},
		},
		{
			name: "B-frames in aggregates", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 2 * frame, marker: true, payload: stap(sei, pSlice)},
				{step: back(1), marker: true, payload: stap(sei, bSlice(0), bSlice(9))},
				{step: 3 * frame, marker: true, payload: pSlice},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 2 * frame, marker: true, payload: stap(sei, pSlice)}, {step: 2 * frame, marker: true, payload: pSlice}}, keyframes: 1,
			discards: Discards{BFrames: 3},
		},
		{
			name: "B-frames that are far back", sets: [][]byte{sps, pps}, // 3 of them at 5 a second
			in: []inPacket{
				{marker: true, payload: key},
				{step: 20 * frame, marker: true, payload: pSlice},
				{step: back(15), marker: true, payload: bSlice(0)},
				{step: 5 * frame, marker: true, payload: bSlice(0)},
				{step: 30 * frame, marker: true, payload: pSlice},
				{step: back(15), marker: true, payload: bSlice(0)},
				{step: 35 * frame, marker: true, payload: pSlice},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 20 * frame, marker: true, payload: pSlice}, {step: 20 * frame, marker: true, payload: pSlice}, {step: 20 * frame, marker: true, payload: pSlice}}, keyframes: 1,
			discards: Discards{BFrames: 3},
		},
		{
			name: "a packet of a B-frame is lost", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 2 * frame, marker: true, payload: pSlice},
				{step: back(1), payload: fu(large, 0, 50)},
				{skip: 1, marker: true, payload: fu(large, 100, 149)},
				{step: 3 * frame, marker: true, payload: pSlice},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 2 * frame, marker: true, payload: pSlice}, {step: 2 * frame, marker: true, payload: pSlice}}, keyframes: 1,
			discards: Discards{BFrames: 2},
		},
		{
			name: "the end of a B-frame is lost, and who knows what else", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 2 * frame, marker: true, payload: pSlice},
				{step: back(1), payload: bSlice(0)},
				{skip: 1, step: 3 * frame, marker: true, payload: pSlice},
				{step: frame, marker: true, payload: key},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 2 * frame, marker: true, payload: pSlice}, {step: 3 * frame, payload: sets}, {marker: true, payload: key}}, keyframes: 2,
			discards: Discards{BFrames: 1, Damaged: 1},
		},
		{
			name: "a picture of another kind behind a B-frame, told apart by the marker only", sets: [][]byte{sps, pps},
			in:  []inPacket{{marker: true, payload: key}, {step: frame, marker: true, payload: bSlice(0)}, {marker: true, payload: pSlice}},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: frame, marker: true, payload: pSlice}}, keyframes: 1,
			discards: Discards{BFrames: 1},
		},
		{
			name: "B-frames that others refer to", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: key},
				{step: 4 * frame, marker: true, payload: pSlice},
				{step: back(2), marker: true, payload: bReference(0)},
				{step: back(1), marker: true, payload: bSlice(0)},
				{step: 2 * frame, marker: true, payload: bSlice(0)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: 4 * frame, marker: true, payload: pSlice}, {step: back(2), marker: true, payload: bReference(0)}}, keyframes: 1,
			discards: Discards{BFrames: 2},
		},
		{
			name: "pictures that no picture refers to, and no B-frames", sets: [][]byte{sps, pps},
			in:  []inPacket{{marker: true, payload: key}, {step: frame, payload: sliceOf(0x01, 0, 5)}, {marker: true, payload: sliceOf(0x01, 9, 5)}, {step: frame, marker: true, payload: stap(sliceOf(0x01, 0, 5))}},
			out: []outPacket{{payload: sets}, {marker: true, payload: key}, {step: frame, payload: sliceOf(0x01, 0, 5)}, {marker: true, payload: sliceOf(0x01, 9, 5)}, {step: frame, marker: true, payload: sliceOf(0x01, 0, 5)}}, keyframes: 1,
		},
	}
}

// leavesBFrame tells whether a payload begins a B-frame that no picture refers to.
func leavesBFrame(payload []byte) bool {
	b := func(header byte, body []byte) bool {
		first, b := sliceHeader(header, body)
		return isVCL(header&nalType) && header&nalRef == 0 && first && b
	}
	switch payload[0] & nalType {
	case nalFUA:
		return payload[1]&fuStart != 0 && b(payload[0]&nalRef|payload[1]&nalType, payload[2:])
	case nalSTAPA:
		for rest := payload[1:]; ; {
			nal, after, ok := cutUnit(rest)
			if !ok || b(nal[0], nal[1:]) {
				return ok
			}
			rest = after
		}
	}
	return b(payload[0], payload[1:])
}

func TestSliceHeader(t *testing.T) {
	for _, mb := range []uint32{0, 1, 7, 130, 8159, 32_399, 139_263} { // of a level 6.2 picture, at most
		for typ := range uint32(10) {
			nal := sliceOf(0x41, mb, typ)
			first, b := sliceHeader(nal[0], nal[1:])
			if first != (mb == 0) || b != (typ == 1 || typ == 6) {
				t.Errorf("first_mb_in_slice %d, slice_type %d: first %v, B %v", mb, typ, first, b)
			}
		}
	}
	long := &bits{} // 16 zeros, which are escaped
	long.ue(1<<16 - 1)
	long.ue(6)
	escaped := append([]byte{0, 0, 3}, long.buf[2:]...)
	for _, tt := range []struct {
		name     string
		header   byte
		body     []byte
		first, b bool
	}{
		{"nothing", 0x01, nil, false, false},
		{"no type", 0x01, []byte{0x80}, true, false},
		{"zeros", 0x01, make([]byte, 100), false, false},
		{"escaped", 0x01, escaped, false, true},
		{"escaped and cut off", 0x01, []byte{0, 0, 3}, false, false},
		{"an IDR picture", 0x65, sliceOf(0x65, 0, 6)[1:], true, false},
	} {
		if first, b := sliceHeader(tt.header, tt.body); first != tt.first || b != tt.b {
			t.Errorf("%s: first %v, B %v", tt.name, first, b)
		}
	}
}

// The stream says what it has seen, and tells the watches when nobody can watch.
func TestBFrames(t *testing.T) {
	s := New(Config{})
	w := s.Watch()
	defer w.Close()
	<-w.Changed()
	check := func(want fleet.BFrames, woken bool) {
		t.Helper()
		got := false
		select {
		case <-w.Changed():
			got = true
		default:
		}
		if s.BFrames() != want || s.Stats().BFrames != want || got != woken {
			t.Errorf("B-frames %d, woken %v; want %d, %v", s.BFrames(), got, want, woken)
		}
	}
	video := videoTrack
	video.FMTP = "profile-level-id=4d001f"
	cam := publish(t, s, video)
	check(fleet.BFramesUnknown, false)
	pictures := func(n int) {
		for range n {
			cam.unit(inter(20))
		}
	}
	cam.unit(sps, pps, idr(20))
	pictures(bOrderPictures - 2)
	check(fleet.BFramesUnknown, false)
	pictures(1)
	check(fleet.BFramesNone, false)
	cam.unit(bSlice(0))
	check(fleet.BFramesDropped, false)
	pictures(2 * bOrderPictures)
	check(fleet.BFramesDropped, false) // there may be more
	cam.unit(bReference(0))
	check(fleet.BFramesReferenced, true)
	cam.unit(bReference(0))
	cam.unit(bSlice(0))
	check(fleet.BFramesReferenced, false)

	cam = publish(t, s, video) // the same again, until it has told otherwise
	check(fleet.BFramesReferenced, false)
	cam.unit(bSlice(0))
	check(fleet.BFramesReferenced, false)
	pictures(bOrderPictures)
	check(fleet.BFramesDropped, false)
	video.FMTP = "profile-level-id=42e01f"
	cam = publish(t, s, video)
	check(fleet.BFramesUnknown, false)
	cam.unit(bSlice(0), bReference(9))
	check(fleet.BFramesReferenced, true)

	publish(t, s, audioTrack)
	check(fleet.BFramesUnknown, false)
	cam = publish(t, s)
	cam.unit(sliceOf(0x01, 0, 5), bSlice(9)) // the connection may have begun within it
	check(fleet.BFramesDropped, false)
	cam.unit(sliceOf(0x01, 0, 5), bSlice(9)) // what has begun to leave is not left out
	check(fleet.BFramesReferenced, true)
	if err := ErrBFrames; !errors.Is(err, fleet.CodecUnsupported) {
		t.Errorf("the error %v has another reason", err)
	}
}

// What x264 makes: without a pyramid no B-frame is left and what is decodes
// without errors; with one the stream says that browsers cannot play it.
func TestBFramesOfX264(t *testing.T) {
	for _, tt := range []struct {
		pyramid string
		slices  int
		want    fleet.BFrames
	}{
		{"none", 1, fleet.BFramesDropped},
		{"none", 4, fleet.BFramesDropped},
		{"normal", 1, fleet.BFramesReferenced},
	} {
		t.Run(fmt.Sprintf("pyramid %s, %d slices", tt.pyramid, tt.slices), func(t *testing.T) {
			clip := encode(t, "-bf", "3", "-b_strategy", "0", "-g", "50",
				"-x264-params", fmt.Sprintf("b-pyramid=%s:slices=%d:scenecut=0", tt.pyramid, tt.slices))
			c := newClock()
			s := New(Config{Clock: c.time})
			sub := s.Subscribe(SubscribeOptions{QueueBursts: 1 << 16, QueueBytes: 1 << 28})
			cam := publish(t, s)
			pictures := play(cam, c, clip)
			st := s.Stats()
			if st.BFrames != tt.want || st.Frames != int64(pictures) || st.Discards.Damaged != 0 {
				t.Errorf("B-frames %d of %d pictures, want %d of %d; discards %+v", st.BFrames, st.Frames, tt.want, pictures, st.Discards)
			}
			out := packets(drain(t, sub))
			if len(out) == 0 {
				t.Fatal("nothing has left")
			}
			last, left := out[0], 0
			var d codecs.H264Packet
			var annexB []byte
			for _, p := range out {
				if p.Index-last.Index > 1 {
					t.Errorf("index %d after %d", p.Index, last.Index)
				}
				if tt.want == fleet.BFramesDropped && int32(p.Timestamp-last.Timestamp) < 0 {
					t.Errorf("timestamp %d after %d", p.Timestamp, last.Timestamp)
				}
				if p.Marker {
					left++
				}
				nals, err := d.Unmarshal(p.Payload)
				if err != nil {
					t.Fatal(err)
				}
				annexB = append(annexB, nals...)
				last = p
			}
			if tt.want != fleet.BFramesDropped {
				return
			}
			if left >= pictures/2 || left < pictures/4 { // one in four is no B-frame
				t.Errorf("%d of %d pictures have left", left, pictures)
			}
			if got := decode(t, annexB); got != left {
				t.Errorf("%d pictures were decoded of %d that have left", got, left)
			}
		})
	}
}

// encode returns six seconds of a test picture in x264's H264 (Annex B), or skips
// the test.
func encode(t *testing.T, args ...string) []byte {
	t.Helper()
	args = append([]string{"-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=6", "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast"}, args...)
	return ffmpeg(t, append(args, "-f", "h264", "-")...)
}

// decode returns how many pictures ffmpeg decodes. Errors fail the test.
func decode(t *testing.T, annexB []byte) (pictures int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "out.h264")
	if err := os.WriteFile(file, annexB, 0o600); err != nil {
		t.Fatal(err)
	}
	sums := ffmpeg(t, "-v", "warning", "-xerror", "-err_detect", "explode", "-i", file, "-f", "framemd5", "-fps_mode", "passthrough", "-")
	for line := range bytes.Lines(sums) {
		if line[0] != '#' {
			pictures++
		}
	}
	return pictures
}

func ffmpeg(t *testing.T, args ...string) []byte {
	t.Helper()
	name, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Skipf("ffmpeg is needed to encode: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, append([]string{"-nostdin", "-hide_banner"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("ffmpeg: %v: %s", err, said.Bytes())
	}
	if said.Len() > 0 {
		t.Errorf("ffmpeg says: %s", said.Bytes())
	}
	return out.Bytes()
}

// play writes a clip as a camera would, and returns how many pictures there are.
// Timestamps are those of the pictures' places in the order they are shown in:
// B-frames come after the picture that they are shown before.
func play(cam *camera, c *clock, annexB []byte) (pictures int) {
	units, b := accessUnits(annexB)
	payloader := &codecs.H264Payloader{}
	start := cam.ts
	next := 0 // the first place that is free
	for i, unit := range units {
		place := next
		next++
		if !b[i] {
			for j := i + 1; j < len(b) && b[j]; j++ {
				place++
			}
			if place >= next { // B-frames are shown before
				next--
			}
		} else if i+1 == len(b) || !b[i+1] {
			next++ // past the picture before
		}
		payloads := payloader.Payload(1400, unit)
		for j, p := range payloads {
			cam.ts = start + uint32(place)*frame
			cam.packet(0, j == len(payloads)-1, p)
		}
		c.now = c.now.Add(40 * time.Millisecond)
	}
	return len(units)
}

// accessUnits cuts a clip, and tells which units are B-frames.
func accessUnits(annexB []byte) (units [][]byte, bFrames []bool) {
	begun := false // the unit's picture
	for _, nal := range bytes.Split(annexB, []byte{0, 0, 1}) {
		if nal = bytes.TrimRight(nal, "\x00"); len(nal) == 0 {
			continue
		}
		first, b := sliceHeader(nal[0], nal[1:])
		vcl := isVCL(nal[0] & nalType)
		if len(units) == 0 || begun && (!vcl || first) {
			units, bFrames, begun = append(units, nil), append(bFrames, false), false
		}
		i := len(units) - 1
		units[i] = append(append(units[i], 0, 0, 0, 1), nal...)
		begun = begun || vcl
		bFrames[i] = bFrames[i] || vcl && b
	}
	return units, bFrames
}
