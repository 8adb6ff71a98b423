package simcam

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
)

func TestClips(t *testing.T) {
	if n := len(clipData) + len(longData); n > 1_000_000 {
		t.Errorf("the clips have %d bytes, want less than 1 MB", n)
	}
	for _, c := range []struct {
		interval time.Duration
		units    int
		every    int // frames between keyframes
	}{
		{0, 250, 25},
		{time.Second, 250, 25},
		{2 * time.Second, 50, 50},
		{10 * time.Second, 250, 250},
	} {
		clip, err := loadClip(c.interval)
		if err != nil {
			t.Fatal(err)
		}
		if len(clip.units) != c.units {
			t.Errorf("%v: %d pictures, want %d", c.interval, len(clip.units), c.units)
		}
		for i, u := range clip.units {
			if u.keyframe != (i%c.every == 0) {
				t.Errorf("%v: picture %d: keyframe is %v", c.interval, i, u.keyframe)
			}
			if u.keyframe && (len(u.nals) != 3 || u.nals[0][0]&0x1f != nalSPS || u.nals[1][0]&0x1f != nalPPS) {
				t.Errorf("%v: keyframe %d has no parameter sets", c.interval, i)
			}
		}
		var sps h264.SPS
		if err := sps.Unmarshal(clip.sps); err != nil {
			t.Fatal(err)
		}
		if sps.Width() != 640 || sps.Height() != 360 || sps.ProfileIdc != 66 {
			t.Errorf("%v: %dx%d, profile %d; want 640x360 and 66, baseline", c.interval, sps.Width(), sps.Height(), sps.ProfileIdc)
		}
	}
}

func TestFill(t *testing.T) {
	clip, err := loadClip(0)
	if err != nil {
		t.Fatal(err)
	}
	const size = 10_000 // 2 Mbit/s
	filled := 0
	for i, u := range clip.units {
		plain := u.stamped(time.Now())
		au := fill(slices.Clone(plain), size)
		got := 0
		for _, nal := range au {
			got += len(nal)
		}
		if len(au) == len(plain) {
			if got < size-1 {
				t.Errorf("picture %d has %d bytes and no filler", i, got)
			}
			continue
		}
		filled++
		filler := au[len(au)-1]
		if got != size || len(au) != len(plain)+1 || filler[0] != 12 || filler[len(filler)-1] != 0x80 || bytes.Count(filler, []byte{0xff}) != len(filler)-2 {
			t.Errorf("picture %d has %d bytes in %d NAL units, filled with %x…", i, got, len(au), filler[:2])
		}
	}
	if filled < len(clip.units)*9/10 {
		t.Errorf("%d of %d pictures were filled up", filled, len(clip.units))
	}
	slice := []byte{nalSlice, 1, 2}
	for size, want := range map[int]int{0: 1, 3: 1, 4: 1, 5: 2} {
		if au := fill([][]byte{slice}, size); len(au) != want {
			t.Errorf("3 bytes filled up to %d: %d NAL units, want %d", size, len(au), want)
		}
	}
}

func TestTimestampSEI(t *testing.T) {
	for _, want := range []time.Time{
		time.UnixMicro(0), time.UnixMicro(1), time.UnixMicro(3), time.UnixMicro(0x0000_0300_0001_0000),
		time.UnixMicro(0x0006_0000_0200_0000), time.Date(2026, 3, 4, 5, 6, 7, 890_123_000, time.UTC),
	} {
		nal := TimestampSEI(want)
		if bytes.Contains(nal, []byte{0, 0, 0}) || bytes.Contains(nal, []byte{0, 0, 1}) || bytes.Contains(nal, []byte{0, 0, 2}) {
			t.Errorf("%v: %x has what only a start code has", want, nal)
		}
		if nal[len(nal)-1] != 0x80 {
			t.Errorf("%v: %x does not end in a stop bit", want, nal)
		}
		if got, ok := ParseTimestamp(nal); !ok || !got.Equal(want) {
			t.Errorf("ParseTimestamp(%x) = %v, %v; want %v", nal, got, ok, want)
		}
		// After another message, as encoders that write SEI themselves have it.
		other := append([]byte{nalSEI, 1, 2, 0xaa, 0xbb}, nal[1:]...)
		if got, ok := ParseTimestamp(other); !ok || !got.Equal(want) {
			t.Errorf("ParseTimestamp(%x) = %v, %v; want %v", other, got, ok, want)
		}
	}
	for _, nal := range [][]byte{nil, {nalSEI}, {nalSEI, 5, 24, 1}, {nalSEI, 0xff, 0xff}, {nalIDR, 5, 24}, {nalSEI, 5, 0xff, 0xff, 0xff}} {
		if _, ok := ParseTimestamp(nal); ok {
			t.Errorf("ParseTimestamp(%x) found a time", nal)
		}
	}
}

func FuzzParseTimestamp(f *testing.F) {
	f.Add(TimestampSEI(time.UnixMicro(1 << 50)))
	f.Add([]byte{nalSEI, 1, 2, 0xaa, 0xbb, 0x80})
	f.Fuzz(func(t *testing.T, nal []byte) {
		got, ok := ParseTimestamp(nal)
		if !ok {
			return
		}
		if again, ok := ParseTimestamp(TimestampSEI(got)); !ok || !again.Equal(got) {
			t.Errorf("%v became %v, %v", got, again, ok)
		}
	})
}

func FuzzParseClip(f *testing.F) {
	f.Add(longData[:4000])
	f.Add([]byte{0, 0, 1, 0x67, 0, 0, 1, 0x68, 0, 0, 0, 1, 0x65, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		clip, err := parseClip(data)
		if err == nil && (len(clip.units) == 0 || !clip.units[0].keyframe) {
			t.Error("a clip without keyframe at its start was accepted")
		}
	})
}
