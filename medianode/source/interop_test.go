package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// Cameras that others wrote. Each test is skipped, with the reason, where its
// program is missing.

const (
	interopUser     = "operator"
	interopPassword = "p@ss w/rd?#%41"
)

func TestGStreamer(t *testing.T) {
	const python = "/usr/bin/python3" // the system's, which has gi
	if err := exec.Command(python, "-c", `import gi; gi.require_version("GstRtspServer", "1.0"); from gi.repository import GstRtspServer`).Run(); err != nil {
		t.Skipf("no gst-rtsp-server for %s: %v", python, err)
	}
	for _, c := range []struct {
		name            string
		transport, auth string
		ask, want       fleet.Transport
		user, password  string
		reason          fleet.Reason
	}{
		{"tcp digest", "tcp", "digest", fleet.TransportTCP, fleet.TransportTCP, interopUser, interopPassword, ""},
		{"udp digest", "udp", "digest", fleet.TransportUDP, fleet.TransportUDP, interopUser, interopPassword, ""},
		{"auto basic", "both", "basic", fleet.TransportAuto, fleet.TransportUDP, interopUser, interopPassword, ""},
		{"auto, tcp only", "tcp", "none", fleet.TransportAuto, fleet.TransportTCP, "", "", ""},
		{"udp asked, tcp only", "tcp", "none", fleet.TransportUDP, 0, "", "", fleet.ReasonTransportUnsupported},
		{"wrong password", "both", "digest", fleet.TransportAuto, 0, interopUser, "wrong", fleet.ReasonAuthenticationFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := freePort(t)
			startCamera(t, port, exec.Command(python, "../../e2e/testdata/gstcam.py",
				"--port", port, "--transport", c.transport, "--auth", c.auth, "--username", interopUser, "--password", interopPassword))
			r := pull(t, Config{
				Profile:     fleet.Profile{URL: "rtsp://127.0.0.1:" + port + "/cam", Transport: c.ask},
				Credentials: fleet.Credentials{Username: c.user, Password: c.password},
				Timeouts:    Timeouts{Request: 20 * time.Second}, // the first DESCRIBE starts its encoder
			})
			if c.reason != "" {
				r.waitFailed(t, 0, c.reason)
				return
			}
			checkCamera(t, r, c.want, "PCMA")
		})
	}
}

// Every codec that gst-rtsp-server has a payloader for gets through to the stream.
func TestGStreamerCodecs(t *testing.T) {
	const python = "/usr/bin/python3"
	for _, c := range []struct {
		video, audio  string
		elements      string
		tracks        []fleet.TrackStatus
		audioUnwanted bool
	}{
		{"h265", "opus", "x265enc rtph265pay opusenc rtpopuspay", []fleet.TrackStatus{{Codec: "H265", Width: 640, Height: 360}, {Codec: "OPUS"}}, false},
		{"vp8", "g722", "vp8enc rtpvp8pay avenc_g722 rtpg722pay", []fleet.TrackStatus{{Codec: "VP8", Width: 640, Height: 360}, {Codec: "G722"}}, false},
		{"vp9", "pcma", "vp9enc rtpvp9pay", []fleet.TrackStatus{{Codec: "VP9", Width: 640, Height: 360}, {Codec: "PCMA"}}, false},
		{"h264", "aac", "x264enc avenc_aac rtpmp4gpay", []fleet.TrackStatus{{Codec: "H264", Width: 640, Height: 360}, {Codec: "MPEG4-GENERIC"}}, true},
	} {
		t.Run(c.video+" "+c.audio, func(t *testing.T) {
			check := `import sys, gi; gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0"); from gi.repository import Gst, GstRtspServer
Gst.init(None); sys.exit([e for e in sys.argv[1].split() if not Gst.ElementFactory.find(e)] or 0)`
			if out, err := exec.Command(python, "-c", check, c.elements).CombinedOutput(); err != nil {
				t.Skipf("gst-rtsp-server or elements missing for %s: %v\n%s", python, err, out)
			}
			port := freePort(t)
			startCamera(t, port, exec.Command(python, "../../e2e/testdata/gstcam.py", "--port", port, "--transport", "both", "--video", c.video, "--audio", c.audio))
			r := pull(t, Config{
				Profile:  fleet.Profile{URL: "rtsp://127.0.0.1:" + port + "/cam"},
				Timeouts: Timeouts{Request: 20 * time.Second},
			})
			_, n := r.waitLive(t, 0)
			r.waitPicture(t, 2)
			status, _ := r.waitStatus(t, n-1, "the picture's size", func(s fleet.CameraStatus) bool {
				return s.State == fleet.CameraLive && s.Profiles[0].Tracks[0].Width > 0
			})
			tracks := status.Profiles[0].Tracks
			if c.audioUnwanted {
				if len(tracks) != 2 || !strings.HasPrefix(tracks[1].UnsupportedReason, "no sound: ") {
					t.Errorf("tracks %+v, want a reason why there is no sound", tracks)
				}
				tracks[1].UnsupportedReason = ""
			}
			if diff := cmp.Diff(c.tracks, tracks); diff != "" {
				t.Errorf("tracks (-want +got):\n%s", diff)
			}
			stats := r.stream.Stats()
			if stats.Frames < 25 || stats.Keyframes < 2 || stats.Width != 640 || stats.Height != 360 || stats.Discards != (stream.Discards{}) || stats.Undecodable != 0 {
				t.Errorf("%d frames, %d keyframes, %d x %d, discards %+v, %d undecodable", stats.Frames, stats.Keyframes, stats.Width, stats.Height, stats.Discards, stats.Undecodable)
			}
			wantAudio := 1
			if c.audioUnwanted {
				wantAudio = 0
			}
			if got := len(r.stream.Tracks()) - 1; got != wantAudio {
				t.Errorf("%d audio tracks, want %d", got, wantAudio)
			}
		})
	}
}

func TestVLC(t *testing.T) {
	for _, program := range []string{"cvlc", "ffmpeg", "setpriv"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s: %v", program, err)
		}
	}
	dir, err := os.MkdirTemp("", "vlc") //nolint:usetesting // VLC refuses to run as root; as nobody it may not read in t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	clip := filepath.Join(dir, "clip.mkv")
	out, err := exec.Command("ffmpeg", "-nostdin", "-loglevel", "error", "-r", "25", "-i", "../../internal/simcam/clip/clip.h264",
		"-f", "lavfi", "-i", "sine=frequency=1000:sample_rate=8000:duration=10", "-c:v", "copy", "-c:a", "pcm_alaw", clip).CombinedOutput()
	if err != nil {
		t.Fatalf("ffmpeg: %v\n%s", err, out)
	}
	for _, c := range []struct {
		name      string
		ask       fleet.Transport
		password  string
		reason    fleet.Reason
		transport fleet.Transport
	}{
		{"auto", fleet.TransportAuto, interopPassword, "", fleet.TransportUDP},
		{"udp", fleet.TransportUDP, interopPassword, "", fleet.TransportUDP},
		{"tcp, which it refuses", fleet.TransportTCP, interopPassword, fleet.ReasonTransportUnsupported, 0},
		{"wrong password", fleet.TransportAuto, "wrong", fleet.ReasonAuthenticationFailed, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := freePort(t)
			home := filepath.Join(dir, "home"+port)
			if err := os.Mkdir(home, 0o755); err != nil {
				t.Fatal(err)
			}
			vlc := []string{
				"env", "HOME=" + home, "cvlc", "-q", "--loop", "--sout-keep", "--sout-rtsp-user", interopUser, "--sout-rtsp-pwd", interopPassword,
				clip, "--sout", "#rtp{sdp=rtsp://127.0.0.1:" + port + "/cam}",
			}
			if os.Getuid() == 0 {
				vlc = append([]string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"}, vlc...)
			}
			startCamera(t, port, exec.Command(vlc[0], vlc[1:]...))
			r := pull(t, Config{
				Profile:     fleet.Profile{URL: "rtsp://127.0.0.1:" + port + "/cam", Transport: c.ask},
				Credentials: fleet.Credentials{Username: interopUser, Password: c.password},
				Timeouts:    Timeouts{Request: 20 * time.Second},
			})
			if c.reason != "" {
				// It listens before it has opened its clip, and answers 500 until then.
				r.waitStatus(t, 0, "failed with "+string(c.reason), func(s fleet.CameraStatus) bool {
					return s.State == fleet.CameraFailed && s.Reason == c.reason
				})
				return
			}
			checkCamera(t, r, c.transport, "PCMA")
		})
	}
}

// checkCamera checks that pictures come, and how.
func checkCamera(t *testing.T, r *rig, transport fleet.Transport, audio string) {
	t.Helper()
	status, n := r.waitLive(t, 0)
	if got := status.Profiles[0].Transport; got != transport {
		t.Errorf("transport %v, want %v", got, transport)
	}
	r.waitPicture(t, 2)
	status, _ = r.waitStatus(t, n-1, "the picture's size", func(s fleet.CameraStatus) bool {
		return s.State == fleet.CameraLive && s.Profiles[0].Tracks[0].Width > 0
	})
	tracks := status.Profiles[0].Tracks
	if len(tracks) != 2 || tracks[0] != (fleet.TrackStatus{Codec: "H264", Width: 640, Height: 360}) || tracks[1].Codec != audio {
		t.Errorf("tracks %+v, want H264 640x360 and %s", tracks, audio)
	}
	if stats := r.stream.Stats(); stats.FramesPerSecond < 15 || stats.FramesPerSecond > 35 {
		t.Errorf("%v frames a second, want about 25", stats.FramesPerSecond)
	}
	if c := r.source.Counters(); c.Plays != 1 {
		t.Errorf("%d plays, want 1", c.Plays)
	}
}

// startCamera starts a program and waits until it listens on the port; it ends
// with the test.
func startCamera(t *testing.T, port string, cmd *exec.Cmd) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if said.Len() < 1<<14 {
				fmt.Fprintln(&said, lines.Text())
			}
		}
		_, _ = io.Copy(io.Discard, stderr) // after a line that is too long
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		<-drained
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), said.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not listen: %v", filepath.Base(cmd.Path), err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err := errors.Join(err, lis.Close()); err != nil {
		t.Fatal(err)
	}
	return port
}
