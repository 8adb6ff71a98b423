//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// compatCamera is a row of the matrix: a camera that is like one that people
// have, which testdata/gstclips.py plays.
type compatCamera struct {
	Name  string
	Title string // in docs/compatibility.md
	Codec string // of its video, as in SDP
	About string // what is special about it, in docs/compatibility.md

	video []string // ffmpeg's arguments; nil: h264Baseline
	audio []string // likewise; nil: no sound
	large bool     // 3840x2160, 5 frames a second
	probe string   // the profile and the depth of reordering that ffprobe must find; empty: not asked
	fault cameraFault
	want  outcome // of clients that take the codec; empty: plays
}

// cameraFault is what testdata/gstclips.py can do to a camera. The zero value
// is a good one over TCP.
type cameraFault struct {
	UDP        bool
	MTU        int     // 0: 1,400
	Loss       float64 // share of video packets
	Clock      string  // empty: good
	NoNTP      bool    // sender reports with a clock that was never set
	NoSDPSets  bool
	NoBandSets bool
}

// The clocks of RTP timestamps.
const (
	clockLeaps = "leaps"
	clockSlow  = "slow"
)

// x264 returns the arguments for H264 with so many B-frames between two other
// frames.
func x264(profile string, bFrames int, params ...string) []string {
	return []string{
		"-c:v", "libx264", "-preset", "veryfast", "-profile:v", profile, "-bf", strconv.Itoa(bFrames),
		"-x264-params", strings.Join(append(params, "scenecut=0", "b-adapt=0"), ":"),
	}
}

// vpx returns the arguments for VP8 or VP9 at the speed of a camera.
func vpx(encoder string) []string {
	return []string{"-c:v", encoder, "-deadline", "realtime", "-cpu-used", "8"}
}

// Sound as cameras send it.
var (
	aLaw = []string{"-c:a", "pcm_alaw", "-ar", "8000", "-ac", "1"}
	uLaw = []string{"-c:a", "pcm_mulaw", "-ar", "8000", "-ac", "1"}
	opus = []string{"-c:a", "libopus", "-ac", "2", "-b:a", "48k"}
	aac  = []string{"-c:a", "aac", "-ar", "48000", "-ac", "1"}
)

// compatCameras are the rows of the matrix, in its order.
var compatCameras = []compatCamera{
	{Name: "h264-baseline", Title: "H264 baseline", Codec: "H264", About: "Constrained baseline profile, as doorbells and old cameras send.", probe: "Constrained Baseline,0"},
	{Name: "h264-main", Title: "H264 main", Codec: "H264", About: "Main profile, CABAC, no B-frames.", video: x264("main", 0), probe: "Main,0"},
	{Name: "h264-high", Title: "H264 high", Codec: "H264", About: "High profile, 8x8 transform, no B-frames: what most cameras send.", video: x264("high", 0), probe: "High,0"},
	{
		Name: "h264-b-frames", Title: "H264 high, B-frames", Codec: "H264", About: "Three B-frames between two others, which no picture refers to. Browsers play pictures in the order in which they come, so that one in four is left.",
		video: x264("high", 3, "b-pyramid=none"), probe: "High,1", want: thinned,
	},
	{
		Name: "h264-b-pyramid", Title: "H264 high, B-pyramid", Codec: "H264", About: "B-frames that other B-frames refer to.",
		video: x264("high", 3, "b-pyramid=normal"), probe: "High,2", want: bFrames,
	},
	{Name: "h264-slices", Title: "H264, four slices", Codec: "H264", About: "Each picture is four slices, so that it is more than a packet even if small.", video: x264("main", 0, "slices=4")},
	{Name: "h264-4k", Title: "H264, 4K", Codec: "H264", About: "3840x2160, 5 frames a second.", video: x264("high", 0), large: true},
	{Name: "h264-no-sets-in-sdp", Title: "H264, no sets in the SDP", Codec: "H264", About: "The SDP has no `sprop-parameter-sets`; they come before each keyframe.", fault: cameraFault{NoSDPSets: true}},
	{Name: "h264-sets-in-sdp-only", Title: "H264, sets in the SDP only", Codec: "H264", About: "The parameter sets are in the SDP, and never among the packets.", fault: cameraFault{NoBandSets: true}},
	{Name: "h265", Title: "H265", Codec: "H265", About: "Main profile, no B-frames.", video: []string{"-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:bframes=0:keyint=15:min-keyint=15:scenecut=0"}},
	{Name: "vp8-opus", Title: "VP8 and Opus", Codec: "VP8", About: "As webcams behind a gateway send.", video: vpx("libvpx"), audio: opus},
	{Name: "vp9", Title: "VP9", Codec: "VP9", About: "Profile 0.", video: vpx("libvpx-vp9")},
	{Name: "av1", Title: "AV1", Codec: "AV1", About: "Main profile.", video: []string{"-c:v", "libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-lag-in-frames", "0"}},
	{Name: "g711-a", Title: "G.711 A-law", Codec: "H264", About: "Sound as PCMA beside H264 baseline.", audio: aLaw},
	{Name: "g711-u", Title: "G.711 µ-law", Codec: "H264", About: "Sound as PCMU beside H264 baseline.", audio: uLaw},
	{Name: "opus", Title: "Opus", Codec: "H264", About: "Stereo Opus beside H264 baseline.", audio: opus},
	{Name: "aac", Title: "AAC", Codec: "H264", About: "AAC beside H264 baseline: WebRTC has none.", audio: aac, want: silent},
	{
		Name: "loss", Title: "15 % packet loss", Codec: "H264", About: "RTP over UDP of which one packet in seven never arrives, at random, and is not sent again. Of a large picture, which is many packets, next to nothing would be whole: it is 160x90.",
		video: append(x264("baseline", 0), "-b:v", "60k", "-s", "160x90"), fault: cameraFault{UDP: true, Loss: 0.15}, want: gaps,
	},
	{Name: "clock-leaps", Title: "clock that leaps", Codec: "H264", About: "RTP timestamps leap an hour forth and back, in turns, every 5 s; it is watched across a leap.", fault: cameraFault{Clock: clockLeaps}},
	{Name: "clock-slow", Title: "clock at half speed", Codec: "H264", About: "RTP timestamps grow by half of the time that passes.", fault: cameraFault{Clock: clockSlow}},
	{Name: "clock-unset", Title: "clock never set", Codec: "H264", About: "RTCP sender reports with a time of day that began with 1900.", fault: cameraFault{NoNTP: true}, audio: aLaw},
	{
		Name: "large-packets", Title: "packets over the MTU", Codec: "H264", About: "RTP packets of 8,000 bytes, interleaved in TCP.",
		video: append(x264("high", 0), "-b:v", "1500k", "-s", "640x360"), fault: cameraFault{MTU: 8000},
	},
}

// h264Baseline is the video of a camera of which something else is of interest.
var h264Baseline = x264("baseline", 0)

// compatRate is the frames a second of all cameras but that with 4K. Each has a
// keyframe a second.
const compatRate = 15

// makeCompatClips makes what the cameras play, two at a time, and returns the
// folder: a file a camera, by name.
func makeCompatClips(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	errs := make([]error, len(compatCameras))
	var work sync.WaitGroup
	turn := make(chan struct{}, 2)
	for i, c := range compatCameras {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			errs[i] = c.makeClip(ctx, filepath.Join(dir, c.Name+".mkv"))
		})
	}
	work.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("clip of %s: %v", compatCameras[i].Name, err)
		}
	}
	return dir
}

// makeClip makes a camera's clip: 6 s with a whole number of GOPs, so that it
// can be looped. The codec has its parameter sets apart from its pictures.
func (c compatCamera) makeClip(ctx context.Context, file string) error {
	size, rate := "320x180", compatRate
	if c.large {
		size, rate = "3840x2160", 5
	}
	args := []string{"-nostdin", "-v", "error", "-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=%d:duration=6", size, rate)}
	if c.audio != nil {
		args = append(args, "-f", "lavfi", "-i", "sine=frequency=1000:sample_rate=48000:duration=6")
	}
	video := c.video
	if video == nil {
		video = h264Baseline
	}
	// yuv420p: the source would give 4:4:4.
	args = append(args, "-pix_fmt", "yuv420p", "-b:v", "250k", "-g", strconv.Itoa(rate), "-keyint_min", strconv.Itoa(rate), "-flags", "+global_header")
	args = slices.Concat(args, video, c.audio)
	if c.large {
		args = append(args, "-preset", "ultrafast")
	}
	cmd := exec.CommandContext(ctx, "ffmpeg", append(args, file)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ffmpeg: %w\n%s", err, out)
	}
	return nil
}

// check makes sure that a camera is what the matrix calls it: otherwise a test "of
// B-frames" might be one without.
func (c compatCamera) check(t *testing.T, clip, url string) {
	t.Helper()
	if c.probe != "" {
		out, err := exec.CommandContext(t.Context(), "ffprobe", "-v", "error", "-select_streams", "v",
			"-show_entries", "stream=profile,has_b_frames", "-of", "csv=p=0", clip).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != c.probe {
			t.Errorf("%s: the clip is %s, %v; want %s", c.Name, got, err, c.probe)
		}
	}
	sdp := describe(t, url)
	if !strings.Contains(sdp, "a=rtpmap:96 "+c.Codec+"/90000") {
		t.Errorf("%s: the SDP has no %s:\n%s", c.Name, c.Codec, sdp)
	}
	if got, want := strings.Contains(sdp, "sprop-parameter-sets="), c.Codec == "H264" && !c.fault.NoSDPSets; got != want {
		t.Errorf("%s: parameter sets in the SDP: %v, want %v:\n%s", c.Name, got, want, sdp)
	}
}

// describe returns a camera's SDP.
func describe(t *testing.T, url string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", strings.Split(url, "/")[2], 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(picturePatience)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "DESCRIBE %s RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n", url); err != nil {
		t.Fatal(err)
	}
	r := textproto.NewReader(bufio.NewReader(conn))
	status, err := r.ReadLine()
	if err != nil || status != "RTSP/1.0 200 OK" {
		t.Fatalf("DESCRIBE %s: %s, %v", url, status, err)
	}
	header, err := r.ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	size, err := strconv.Atoi(header.Get("Content-Length"))
	if err != nil {
		t.Fatal(err)
	}
	sdp, err := io.ReadAll(io.LimitReader(r.R, int64(size)))
	if err != nil {
		t.Fatal(err)
	}
	return string(sdp)
}

// startCompatCameras serves the cameras until the end of the test, and returns
// them by name. Those of which the SDP or the order of pictures is special are
// looked at first.
func startCompatCameras(t *testing.T) map[string]*rtspCamera {
	t.Helper()
	clips := makeCompatClips(t)
	port := freePort(t)
	cameras := make(map[string]*rtspCamera, len(compatCameras))
	list := make([]map[string]any, 0, len(compatCameras))
	for _, c := range compatCameras {
		transport := "tcp"
		if c.fault.UDP {
			transport = "udp"
		}
		cameras[c.Name] = &rtspCamera{url: fmt.Sprintf("rtsp://127.0.0.1:%d/%s", port, c.Name), transport: transport, auth: "none"}
		conf := map[string]any{
			"name": c.Name, "clip": filepath.Join(clips, c.Name+".mkv"), "transport": transport, "loss": c.fault.Loss,
			"ntp": !c.fault.NoNTP, "sets_in_sdp": !c.fault.NoSDPSets, "sets_in_band": !c.fault.NoBandSets,
		}
		if c.fault.MTU > 0 {
			conf["mtu"] = c.fault.MTU
		}
		if c.fault.Clock != "" {
			conf["clock"] = c.fault.Clock
		}
		list = append(list, conf)
	}
	file := filepath.Join(clips, "cameras.json")
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "cameras", exec.Command(python, "testdata/gstclips.py", "--port", strconv.Itoa(port), file))
	p.awaitLine(t, "ready", startPatience)
	for _, c := range compatCameras {
		if c.probe != "" || c.fault.NoSDPSets || c.fault.NoBandSets || c.Codec != "H264" {
			c.check(t, filepath.Join(clips, c.Name+".mkv"), cameras[c.Name].url)
		}
	}
	return cameras
}
