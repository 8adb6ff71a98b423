//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"fanlight/internal/simcam"
)

// TestUp shows every kind of camera on one page of one process.
func TestUp(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	s := upAt(t, data)
	cameras := map[string]*rtspCamera{
		"simulated": simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}}), "cam"),
		"gst-tcp":   gstCamera(t, "tcp", "digest"),
		"gst-udp":   gstCamera(t, "udp", "digest"),
		"vlc":       vlcCamera(t),
	}
	for name, c := range cameras {
		s.add(t, name, c)
	}
	page := open(t, s.gateways[0]+"/")
	for name := range cameras {
		t.Log(name, page.awaitMoving(t, name))
		s.awaitCamera(t, name, "STATE_LIVE", "")
		eventually(t, picturePatience, "/stats of "+name, func() (bool, string) {
			st := s.stats(t, 0, name)
			return st.Viewers == 1 && st.BitrateBPS > 50_000 && st.PacketsPerSecond > 5 && st.FramesPerSecond > 10 && st.Width >= 320, fmt.Sprintf("%+v", st)
		})
	}
	page.screenshot(t, "wall.png")
	checkHealth(t, s)
	s.stop(t)
	checkSecret(t, s, data)
}

// checkHealth asks what load balancers ask.
func checkHealth(t *testing.T, s *system) {
	t.Helper()
	for _, path := range []string{"/healthz", "/readyz", "/stats", "/player.js", "/v1/cameras"} {
		if status, body := get(t, s.gateways[0]+path); status != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, status, body)
		}
	}
	if status, _ := get(t, s.gateways[0]+"/no-such-page"); status != http.StatusNotFound {
		t.Errorf("GET of a page that is not there: %d", status)
	}
}

// checkSecret looks for the cameras' password wherever Fanlight writes.
func checkSecret(t *testing.T, s *system, data string) {
	t.Helper()
	for _, p := range s.processes {
		if strings.Contains(p.out.String(), password) {
			t.Errorf("the password is in the log of %s", p.name)
		}
	}
	files := 0
	err := filepath.WalkDir(data, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		files++
		if bytes.Contains(content, []byte(password)) {
			t.Errorf("the password is in %s", file)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files read in the data directory: %v", files, err)
	}
}

// TestDemo is what "make run" shows.
func TestDemo(t *testing.T) {
	s := up(t, "--demo", "2")
	page := open(t, s.gateways[0]+"/")
	for _, name := range []string{"demo-0", "demo-1"} {
		sight := page.awaitMoving(t, name)
		for _, want := range []string{"bit/s", "pkt/s", "fps", fmt.Sprintf("%d×%d", sight.Width, sight.Height)} {
			eventually(t, picturePatience, "the tile of "+name+" shows "+want, func() (bool, string) {
				text := page.look(t, name).Text
				return strings.Contains(text, want), text
			})
		}
	}
	page.screenshot(t, "wall.png")
	page.do(t, "make it as narrow as a phone", chromedp.EmulateViewport(360, 740))
	if width := evaluate[int](t, page, "document.documentElement.scrollWidth"); width > 360 {
		t.Errorf("the page is %d px wide on a phone of 360 px", width)
	}
	page.awaitMoving(t, "demo-0")
	page.screenshot(t, "phone.png")
}

// TestAwayAndBack takes cameras away for 10 s while somebody watches.
func TestAwayAndBack(t *testing.T) {
	s := up(t)
	cameras := map[string]*rtspCamera{
		"simulated": simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}}), "cam"),
		"gst":       gstCamera(t, "tcp", "digest"),
	}
	before := make(map[string]sight)
	for name, c := range cameras {
		s.add(t, name, c)
	}
	page := open(t, s.gateways[0]+"/")
	for name := range cameras {
		before[name] = page.awaitMoving(t, name)
	}
	for _, c := range cameras {
		c.stop(t)
	}
	gone := time.Now()
	for name := range cameras {
		s.awaitCamera(t, name, "STATE_FAILED", "")
		page.awaitState(t, name, "camera_offline")
	}
	page.screenshot(t, "away.png")
	time.Sleep(time.Until(gone.Add(10 * time.Second)))
	for _, c := range cameras {
		c.start(t)
	}
	for name := range cameras {
		after := page.awaitMoving(t, name)
		if after.Connection != before[name].Connection || after.FramesDecoded <= before[name].FramesDecoded {
			t.Errorf("camera %s: was shown by %v, is shown by %v", name, before[name], after)
		}
		t.Log(name, after)
	}
	if now := page.look(t, "gst"); now.Connections != len(cameras) {
		t.Errorf("the page made %d peer connections for %d cameras", now.Connections, len(cameras))
	}
	page.screenshot(t, "back.png")
}

// TestCameraAdd adds cameras to a running system with an open page. The picture
// must be there within 2 s of the command's end. The best of three counts, for
// the machine may be busy with something else.
func TestCameraAdd(t *testing.T) {
	const promise = 2 * time.Second
	s := up(t)
	page := open(t, s.gateways[0]+"/")
	names := []string{"first", "second", "third"}
	srv := startSimcam(t, simcam.Config{Cameras: names})
	var took []time.Duration
	for _, name := range names {
		s.add(t, name, simCamera(srv, name))
		ended := time.Now()
		eventually(t, picturePatience, "a picture of "+name, func() (bool, string) {
			now := page.look(t, name)
			return now.FramesDecoded > 0 && !blank(now.Luma), now.String()
		})
		took = append(took, time.Since(ended).Round(time.Millisecond))
		page.awaitMoving(t, name)
	}
	t.Logf("from the command's end to the picture: %v", took)
	if slices.Min(took) > promise {
		t.Errorf("no picture within %v of the command's end: %v", promise, took)
	}
	s.cli(t, "camera", "delete", "first")
	eventually(t, picturePatience, "the deleted camera leaves the page", func() (bool, string) {
		now := page.look(t, "first")
		return !now.Present, now.String()
	})
	page.awaitMoving(t, "second")
}

// TestPowerCut kills the process, and starts it again on the same data.
func TestPowerCut(t *testing.T) {
	data, httpAddr := filepath.Join(t.TempDir(), "data"), freeAddr(t)
	srv := startSimcam(t, simcam.Config{Cameras: []string{"cam"}})
	s := upAt(t, data, "--http", httpAddr)
	s.add(t, "lobby", simCamera(srv, "cam"), "--label", "floor=1", "--display-name", "The lobby")
	page := open(t, s.gateways[0]+"/")
	page.awaitMoving(t, "lobby")
	s.processes[0].kill(t)
	page.awaitState(t, "lobby", "reconnecting")
	s = upAt(t, data, "--http", httpAddr)
	if got := s.cli(t, "camera", "get", "lobby", "-o", "json"); !strings.Contains(got, "The lobby") || !strings.Contains(got, "floor") {
		t.Errorf("the camera came back as %s", got)
	}
	page.awaitMoving(t, "lobby")
}

// TestEmbedded shows the player on somebody else's page, to who has a token.
func TestEmbedded(t *testing.T) {
	key := viewerKey(t, t.TempDir())
	var gateway string
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, `<!doctype html><title>Somebody else's page</title>
<script type="module" src="%s/player.js"></script>
<fanlight-player camera="demo-0" token="%s" muted style="width: 640px"></fanlight-player>`, gateway, html.EscapeString(r.URL.Query().Get("token")))
	}))
	defer site.Close()
	s := up(t, "--demo", "1", "--allowed-origin", site.URL, "--viewer-key-file", key)
	gateway = s.gateways[0]
	for _, tt := range []struct{ name, camera, refusal string }{
		{"no token", "", "unauthenticated"},
		{"a token for another camera", "demo-1", "camera_forbidden"},
		{"a token for the camera", "demo-*", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := site.URL
			if tt.camera != "" {
				url += "/?token=" + viewerToken(t, key, tt.camera)
			}
			page := open(t, url)
			if tt.refusal == "" {
				page.awaitMoving(t, "demo-0")
			} else {
				eventually(t, picturePatience, "the player says why not", func() (bool, string) {
					now := page.look(t, "demo-0")
					return now.Reason == tt.refusal && now.Message != "" && now.FramesDecoded == 0, now.String()
				})
			}
			page.screenshot(t, "embedded.png")
		})
	}
}
