package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
)

// Clips of real encoders, taken apart, sent through a stream and put together
// again, decode to the same pictures. Each is skipped, with the reason, where
// ffmpeg or its encoder is missing.
func TestClips(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skipf("no ffmpeg: %v", err)
	}
	const clipFrames = 24
	for _, c := range []struct {
		name, codec string
		encoder     []string
		read        func([]byte) [][]byte
		write       func([][]byte) []byte
		extension   string
		keyframes   int64
		payloader   func() rtp.Payloader
		assembler   func() rtp.Depacketizer
	}{
		{
			"H265", "H265",
			[]string{"libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:repeat-headers=1:keyint=10:min-keyint=10:scenecut=0:bframes=2:aud=1:slices=2"},
			hevcAccessUnits, func(units [][]byte) []byte { return join(units...) }, "hevc", 3,
			func() rtp.Payloader { return &codecs.H265Payloader{} }, func() rtp.Depacketizer { return &codecs.H265Depacketizer{} },
		},
		{
			"VP8", "VP8",
			[]string{"libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "10", "-lag-in-frames", "0", "-auto-alt-ref", "0"},
			readIVF, writeIVF("VP80"), "ivf", 3,
			func() rtp.Payloader { return &codecs.VP8Payloader{EnablePictureID: true} }, func() rtp.Depacketizer { return &codecs.VP8Packet{} },
		},
		{
			"VP9, not flexible", "VP9",
			[]string{"libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "10", "-lag-in-frames", "0"},
			readIVF, writeIVF("VP90"), "ivf", 3,
			func() rtp.Payloader { return &codecs.VP9Payloader{InitialPictureIDFn: picture} }, func() rtp.Depacketizer { return &codecs.VP9Packet{} },
		},
		{
			"VP9, flexible", "VP9",
			[]string{"libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "10", "-lag-in-frames", "0"},
			readIVF, writeIVF("VP90"), "ivf", 3,
			func() rtp.Payloader { return &codecs.VP9Payloader{FlexibleMode: true, InitialPictureIDFn: picture} }, func() rtp.Depacketizer { return &codecs.VP9Packet{} },
		},
		{
			"AV1 of libaom", "AV1",
			[]string{"libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-g", "10", "-lag-in-frames", "0"},
			readIVF, writeIVF("AV01"), "ivf", 3,
			func() rtp.Payloader { return &codecs.AV1Payloader{} }, func() rtp.Depacketizer { return &codecs.AV1Depacketizer{} },
		},
		{
			"AV1 of SVT-AV1", "AV1",
			[]string{"libsvtav1", "-preset", "12", "-g", "10"},
			readIVF, writeIVF("AV01"), "ivf", 3,
			func() rtp.Payloader { return &codecs.AV1Payloader{} }, func() rtp.Depacketizer { return &codecs.AV1Depacketizer{} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			clip := filepath.Join(dir, "clip."+c.extension)
			args := append([]string{
				"-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=320x180:rate=25:duration=%v", clipFrames/25.0),
				"-pix_fmt", "yuv420p", "-b:v", "600k", "-c:v",
			}, c.encoder...)
			if out, err := exec.Command("ffmpeg", append(args, clip)...).CombinedOutput(); err != nil {
				t.Skipf("ffmpeg has no %s, or another version: %v\n%s", c.encoder[0], err, out)
			}
			raw, err := os.ReadFile(clip)
			if err != nil {
				t.Fatal(err)
			}
			units := c.read(raw)
			if len(units) < clipFrames-1 {
				t.Fatalf("%d access units in the clip", len(units))
			}
			for _, mtus := range [][2]int{{1200, 1400}, {600, 400}, {64, 1200}} {
				// The last access unit's end is not known, so that one is sent twice.
				ps, stats := pass(t, c.codec, mtus[0], mtus[1], c.payloader(), append(units[:len(units):len(units)], units[0]))
				got := assembled(t, c.assembler(), ps[:whole(ps)])
				if len(got) > len(units) {
					got = got[:len(units)]
				}
				again := filepath.Join(dir, "again."+c.extension)
				if err := os.WriteFile(again, c.write(got), 0o600); err != nil {
					t.Fatal(err)
				}
				want, have := pictures(t, clip), pictures(t, again)
				if len(want) < clipFrames-1 || strings.Join(want, " ") != strings.Join(have, " ") {
					t.Errorf("%d to %d: %d pictures of %d, or others", mtus[1], mtus[0], len(have), len(want))
				}
				if stats.Keyframes != c.keyframes+1 || stats.Width != 320 || stats.Height != 180 || stats.Discards != (Discards{}) {
					t.Errorf("%d to %d: %d keyframes, %d x %d, discards %+v; want %d, 320 x 180 and none",
						mtus[1], mtus[0], stats.Keyframes, stats.Width, stats.Height, stats.Discards, c.keyframes+1)
				}
			}
		})
	}
}

// pictures returns the checksum of each picture that ffmpeg decodes.
func pictures(t *testing.T, file string) (sums []string) {
	t.Helper()
	out, err := exec.Command("ffmpeg", "-nostdin", "-loglevel", "error", "-i", file, "-f", "framemd5", "-").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Split(strings.TrimSpace(line), ","); !strings.HasPrefix(line, "#") {
			sums = append(sums, strings.TrimSpace(fields[len(fields)-1]))
		}
	}
	return sums
}

// hevcAccessUnits divides H.265 with start codes at its access unit delimiters.
func hevcAccessUnits(raw []byte) (units [][]byte) {
	aud := []byte{0, 0, 0, 1, hevcAUD << 1, 1}
	for {
		n := bytes.Index(raw[min(1, len(raw)):], aud)
		if n < 0 {
			return append(units, raw)
		}
		units, raw = append(units, raw[:n+1]), raw[n+1:]
	}
}

// readIVF returns the frames of an IVF file: a header of 32 bytes, then frames
// with a header of 12 each.
func readIVF(raw []byte) (frames [][]byte) {
	for raw = raw[32:]; len(raw) >= 12; {
		n := 12 + int(binary.LittleEndian.Uint32(raw))
		frames, raw = append(frames, raw[12:n]), raw[n:]
	}
	return frames
}

func writeIVF(fourCC string) func([][]byte) []byte {
	return func(frames [][]byte) []byte {
		out := append([]byte("DKIF\x00\x00\x20\x00"+fourCC), make([]byte, 20)...)
		binary.LittleEndian.PutUint16(out[12:], 320)
		binary.LittleEndian.PutUint16(out[14:], 180)
		binary.LittleEndian.PutUint32(out[16:], 25)
		binary.LittleEndian.PutUint32(out[20:], 1)
		binary.LittleEndian.PutUint32(out[24:], uint32(len(frames)))
		for i, f := range frames {
			out = binary.LittleEndian.AppendUint32(out, uint32(len(f)))
			out = append(binary.LittleEndian.AppendUint64(out, uint64(i)), f...)
		}
		return out
	}
}
