//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/simcam"
)

// python is Debian's own: it has the bindings of gst-rtsp-server.
const python = "/usr/bin/python3"

// The cameras' user. The password is one that must reach no log.
const (
	username = "viewer"
	password = "pr1sm-Tulip-9"
)

// rtspCamera is a camera that a test can take away and bring back.
type rtspCamera struct {
	url       string
	transport string // what it speaks: "tcp", "udp"
	auth      string // what it asks for: "none", "basic", "digest"
	start     func(t *testing.T)
	stop      func(t *testing.T)
}

// flags are those of "fanlight camera add".
func (c *rtspCamera) flags() []string {
	flags := []string{"--url", c.url}
	if c.auth != "none" {
		flags = append(flags, "--username", username, "--password", password)
	}
	return flags
}

// startSimcam runs simulated cameras in the test's process until its end.
func startSimcam(t *testing.T, cfg simcam.Config) *simcam.Server {
	t.Helper()
	srv, err := simcam.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("simcam: %v", err)
		}
	})
	return srv
}

// simCamera is one of a simcam's cameras.
func simCamera(srv *simcam.Server, name string) *rtspCamera {
	set := func(f simcam.Fault) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			if !srv.SetFault(name, f) {
				t.Fatalf("simcam has no camera %s", name)
			}
		}
	}
	return &rtspCamera{url: srv.URL(name), transport: "any", auth: "none", start: set(simcam.None), stop: set(simcam.Stop)}
}

// gstCamera starts a camera made of gst-rtsp-server that speaks one transport.
func gstCamera(t *testing.T, transport, auth string) *rtspCamera {
	t.Helper()
	port := freePort(t)
	c := &rtspCamera{url: fmt.Sprintf("rtsp://127.0.0.1:%d/cam", port), transport: transport, auth: auth}
	var p *process
	c.start = func(t *testing.T) {
		t.Helper()
		p = start(t, "gst-"+transport, exec.Command(python, "testdata/gstcam.py",
			"--port", strconv.Itoa(port), "--transport", transport, "--auth", auth, "--username", username, "--password", password))
		p.awaitLine(t, "ready", 30*time.Second)
	}
	c.stop = func(t *testing.T) {
		t.Helper()
		p.stop(t)
	}
	c.start(t)
	return c
}

// vlcCamera starts VLC's RTSP server: UDP alone, Basic alone.
func vlcCamera(t *testing.T) *rtspCamera {
	t.Helper()
	clip := vlcClip(t)
	c := &rtspCamera{url: fmt.Sprintf("rtsp://127.0.0.1:%d/cam", freePort(t)), transport: "udp", auth: "basic"}
	var p *process
	c.start = func(t *testing.T) {
		t.Helper()
		p = start(t, "vlc", vlcCommand(t, clip, c.url))
		awaitListening(t, p, strings.TrimSuffix(strings.TrimPrefix(c.url, "rtsp://"), "/cam"))
	}
	c.stop = func(t *testing.T) {
		t.Helper()
		p.stop(t)
	}
	c.start(t)
	return c
}

// vlcCommand runs VLC as nobody if this is root, whom it refuses.
func vlcCommand(t *testing.T, clip, url string) *exec.Cmd {
	t.Helper()
	home, err := os.MkdirTemp(scratch, "vlc-") //nolint:usetesting // nobody could not enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"vlc", "-I", "dummy", "--no-dbus", "--loop", clip,
		"--sout", "#rtp{sdp=" + url + "}", "--sout-keep", "--sout-all",
		"--sout-rtsp-user", username, "--sout-rtsp-pwd", password,
	}
	if os.Getuid() == 0 {
		if err := os.Chmod(home, 0o777); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home)
	return cmd
}

// awaitListening waits until a process listens.
func awaitListening(t *testing.T, p *process, addr string) {
	t.Helper()
	eventually(t, 30*time.Second, p.name+" listens on "+addr, func() (bool, string) {
		select {
		case <-p.done:
			t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.out.tail(20))
		default:
		}
		return listens(addr)
	})
}

// clips makes what VLC plays, once.
var clips struct {
	once sync.Once
	file string
	err  error
}

// vlcClip returns a minute of H264 and PCMA with a keyframe a second.
func vlcClip(t *testing.T) string {
	t.Helper()
	clips.once.Do(func() { clips.file, clips.err = makeClip() })
	if clips.err != nil {
		t.Fatal(clips.err)
	}
	return clips.file
}

func makeClip() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	file := filepath.Join(scratch, "clip.mkv")
	// yuv420p: the source would give 4:4:4, which baseline does not have.
	cmd := exec.CommandContext(ctx, "ffmpeg", "-nostdin", "-v", "error",
		"-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=60",
		"-f", "lavfi", "-i", "sine=frequency=1000:sample_rate=8000:duration=60",
		"-c:v", "libx264", "-profile:v", "baseline", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-b:v", "800k",
		"-g", "25", "-keyint_min", "25", "-sc_threshold", "0", "-bf", "0", "-c:a", "pcm_alaw", "-ac", "1", file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make clip: %w\n%s", err, out)
	}
	return file, nil
}
