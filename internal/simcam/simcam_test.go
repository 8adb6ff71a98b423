package simcam_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"go.uber.org/goleak"

	"fanlight/internal/simcam"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs cameras until the test ends.
func start(t *testing.T, cfg simcam.Config) *simcam.Server {
	t.Helper()
	sim, err := simcam.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sim.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return sim
}

// watcher plays a camera and keeps what it gets.
type watcher struct {
	client *gortsplib.Client
	desc   *description.Session
	video  *description.Media

	mu     sync.Mutex // guards the rest
	pkts   []*rtp.Packet
	sound  int
	stamps []time.Time
	lags   []time.Duration
}

func watch(t *testing.T, sim *simcam.Server, camera string, protocol gortsplib.Protocol) (*watcher, error) {
	t.Helper()
	u, err := base.ParseURL(sim.URL(camera))
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{client: &gortsplib.Client{Scheme: u.Scheme, Host: u.Host, Protocol: &protocol, OnPacketsLost: func(uint64) {}, OnDecodeError: func(error) {}}}
	if err := w.client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.Close)
	if w.desc, _, err = w.client.Describe(u); err != nil {
		return nil, err
	}
	if err := w.client.SetupAll(w.desc.BaseURL, w.desc.Medias); err != nil {
		return nil, err
	}
	for _, m := range w.desc.Medias {
		if m.Type != description.MediaTypeVideo {
			continue
		}
		w.video = m
		h264, ok := m.Formats[0].(*format.H264)
		if !ok {
			t.Fatalf("video is %T", m.Formats[0])
		}
		decoder, err := h264.CreateDecoder()
		if err != nil {
			t.Fatal(err)
		}
		w.client.OnPacketRTP(m, h264, func(p *rtp.Packet) {
			au, err := decoder.Decode(p)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.pkts = append(w.pkts, p)
			if err != nil {
				return
			}
			for _, nal := range au {
				if sent, ok := simcam.ParseTimestamp(nal); ok {
					w.stamps = append(w.stamps, sent)
					w.lags = append(w.lags, time.Since(sent))
				}
			}
		})
	}
	if len(w.desc.Medias) == 2 {
		w.client.OnPacketRTP(w.desc.Medias[1], w.desc.Medias[1].Formats[0], func(*rtp.Packet) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sound++
		})
	}
	_, err = w.client.Play(nil)
	return w, err
}

// waitFor waits until cond is true of the watcher.
func (w *watcher) waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return cond()
	})
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
	}
}

func TestMedia(t *testing.T) {
	for name, protocol := range map[string]gortsplib.Protocol{"tcp": gortsplib.ProtocolTCP, "udp": gortsplib.ProtocolUDP} {
		t.Run(name, func(t *testing.T) {
			sim := start(t, simcam.Config{Cameras: []string{"a", "b"}, Audio: true})
			w, err := watch(t, sim, "b", protocol)
			if err != nil {
				t.Fatal(err)
			}
			w.waitFor(t, "30 pictures and their sound", func() bool { return len(w.stamps) >= 30 && w.sound >= 30 })
			w.mu.Lock()
			defer w.mu.Unlock()
			largest := 0
			for i, p := range w.pkts {
				largest = max(largest, len(p.Payload))
				if i == 0 {
					continue
				}
				last := w.pkts[i-1]
				if p.SequenceNumber != last.SequenceNumber+1 {
					t.Errorf("sequence number %d after %d", p.SequenceNumber, last.SequenceNumber)
				}
				if step := p.Timestamp - last.Timestamp; step != 0 && step != 3600 || (step == 0) == last.Marker {
					t.Errorf("timestamp is %d on from the last packet, whose marker is %v", step, last.Marker)
				}
			}
			if largest <= 1200 || largest > 1460 {
				t.Errorf("largest payload %d bytes, want more than 1200 and at most 1460", largest)
			}
			for i, lag := range w.lags {
				if lag < 0 || lag > 10*time.Second {
					t.Errorf("picture %d was sent %v before it came", i, lag)
				}
			}
			if sim.Plays("b") != 1 || sim.Sessions("b") != 1 || sim.Plays("a") != 0 {
				t.Errorf("plays %d, sessions %d of b, plays %d of a; want 1, 1, 0", sim.Plays("b"), sim.Sessions("b"), sim.Plays("a"))
			}
		})
	}
}

// With a bitrate the camera sends that much, pictures have their marker and their
// stamp as before, and no packet is larger than it may be.
func TestBitrate(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}, Bitrate: 2_000_000, PacketSize: 1200})
	w, err := watch(t, sim, "a", gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	w.waitFor(t, "50 pictures", func() bool { return len(w.stamps) >= 50 })
	w.mu.Lock()
	defer w.mu.Unlock()
	markers, bytes := 0, 0
	for i, p := range w.pkts {
		if len(p.Payload) > 1200 {
			t.Errorf("packet %d has %d bytes of payload", i, len(p.Payload))
		}
		if bytes += len(p.Payload); p.Marker {
			markers++
		}
		if i > 0 && (p.Timestamp != w.pkts[i-1].Timestamp) != w.pkts[i-1].Marker {
			t.Errorf("packet %d: another picture, and the marker before is %v", i, w.pkts[i-1].Marker)
		}
	}
	if per := bytes / markers; per < 9_900 || per > 13_000 {
		t.Errorf("%d bytes a picture, want 10,000 and what packets and large keyframes add", per)
	}
}

func TestKeyframeRequest(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}, KeyframeInterval: 10 * time.Second})
	w, err := watch(t, sim, "a", gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	parameterSets := func() (n int) {
		for _, p := range w.pkts {
			if p.Payload[0]&0x1f == 24 && p.Payload[3]&0x1f == 7 { // STAP-A that begins with an SPS
				n++
			}
		}
		return n
	}
	w.waitFor(t, "pictures", func() bool { return len(w.stamps) >= 10 })
	var before int
	w.waitFor(t, "a count", func() bool { before = parameterSets(); return true })
	if err := w.client.WritePacketRTCP(w.video, &rtcp.PictureLossIndication{MediaSSRC: w.pkts[0].SSRC}); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	w.waitFor(t, "a keyframe", func() bool { return parameterSets() > before })
	if d := time.Since(asked); d > 5*time.Second {
		t.Errorf("keyframe came %v after it was asked for", d)
	}
	if n := sim.KeyframeRequests("a"); n != 1 {
		t.Errorf("%d keyframe requests counted, want 1", n)
	}
}

// A camera that ignores what it is asked for counts it, and sends a keyframe when
// it would have.
func TestIgnorePLI(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}, KeyframeInterval: 10 * time.Second, IgnorePLI: true})
	w, err := watch(t, sim, "a", gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	w.waitFor(t, "a picture", func() bool { return len(w.stamps) > 0 })
	if err := w.client.WritePacketRTCP(w.video, &rtcp.PictureLossIndication{MediaSSRC: w.pkts[0].SSRC}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is counted", func() bool { return sim.KeyframeRequests("a") == 1 })
	var asked, keyframes int
	count := func() int {
		n := 0
		for _, p := range w.pkts {
			if p.Payload[0]&0x1f == 24 && p.Payload[3]&0x1f == 7 { // STAP-A that begins with an SPS
				n++
			}
		}
		return n
	}
	w.waitFor(t, "a count", func() bool { asked, keyframes = len(w.stamps), count(); return true })
	w.waitFor(t, "ten more pictures", func() bool { return len(w.stamps) >= asked+10 })
	w.waitFor(t, "another count", func() bool {
		if n := count(); n != keyframes {
			t.Errorf("%d keyframes after it was asked for one", n-keyframes)
		}
		return true
	})
}

func TestRefusals(t *testing.T) {
	for fault, want := range map[simcam.Fault]base.StatusCode{
		simcam.Unauthorized: base.StatusUnauthorized,
		simcam.NotFound:     base.StatusNotFound,
		simcam.Busy:         base.StatusNotEnoughBandwidth,
	} {
		t.Run(fault.String(), func(t *testing.T) {
			sim := start(t, simcam.Config{Cameras: []string{"a", "b"}})
			sim.SetFault("a", fault)
			var status liberrors.ErrClientBadStatusCode
			if _, err := watch(t, sim, "a", gortsplib.ProtocolTCP); !errors.As(err, &status) || status.Code != want {
				t.Errorf("got %v, want status %d", err, want)
			}
			if _, err := watch(t, sim, "b", gortsplib.ProtocolTCP); err != nil {
				t.Errorf("the other camera: %v", err)
			}
			sim.SetFault("a", simcam.None)
			if _, err := watch(t, sim, "a", gortsplib.ProtocolTCP); err != nil {
				t.Errorf("after the fault was undone: %v", err)
			}
		})
	}
}

func TestStopAndDrop(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}})
	for _, fault := range []simcam.Fault{simcam.Drop, simcam.Stop} {
		w, err := watch(t, sim, "a", gortsplib.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		sim.SetFault("a", fault)
		if err := w.client.Wait(); err == nil {
			t.Errorf("%v: connection is open", fault)
		}
		eventually(t, "no session", func() bool { return sim.Sessions("a") == 0 })
	}
	if _, err := watch(t, sim, "a", gortsplib.ProtocolTCP); err == nil {
		t.Error("a stopped camera answered")
	}
	sim.SetFault("a", simcam.None)
	if _, err := watch(t, sim, "a", gortsplib.ProtocolTCP); err != nil {
		t.Errorf("after the fault was undone: %v", err)
	}
	if n := sim.Plays("a"); n != 3 {
		t.Errorf("%d plays, want 3", n)
	}
}

func TestFreezeAndJump(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}})
	w, err := watch(t, sim, "a", gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	w.waitFor(t, "pictures", func() bool { return len(w.stamps) > 3 })
	sim.SetFaultFor("a", simcam.Freeze, 600*time.Millisecond)
	w.waitFor(t, "a gap of half a second and what follows", func() bool {
		for i := 1; i < len(w.stamps); i++ {
			if w.stamps[i].Sub(w.stamps[i-1]) > 500*time.Millisecond {
				return true
			}
		}
		return false
	})
	sim.SetFault("a", simcam.SequenceJump)
	w.waitFor(t, "a jump", func() bool {
		for i := 1; i < len(w.pkts); i++ {
			if w.pkts[i].Timestamp-w.pkts[i-1].Timestamp > 1<<30 && w.pkts[i].SequenceNumber != w.pkts[i-1].SequenceNumber+1 {
				return true
			}
		}
		return false
	})
}

func TestControl(t *testing.T) {
	sim := start(t, simcam.Config{Cameras: []string{"a"}})
	web := httptest.NewServer(sim.Handler())
	defer web.Close()
	for _, c := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/cameras", 200, `"fault":"none"`},
		{"POST", "/cameras/a/fault?kind=freeze", 200, `"fault":"freeze"`},
		{"GET", "/cameras", 200, `"fault":"freeze"`},
		{"POST", "/cameras/a/fault?kind=freeze&for=1h", 200, `"fault":"freeze"`},
		{"POST", "/cameras/a/fault?kind=none", 200, `"fault":"none"`},
		{"POST", "/cameras/a/fault?kind=explode", 400, `no fault is named "explode"`},
		{"POST", "/cameras/a/fault?kind=freeze&for=soon", 400, "duration"},
		{"POST", "/cameras/zzz/fault?kind=freeze", 404, "no such camera"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, web.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != c.status || !strings.Contains(string(body), c.want) {
			t.Errorf("%s %s: %d %s; want %d and %q", c.method, c.path, res.StatusCode, body, c.status, c.want)
		}
		if c.status == 200 && !json.Valid(body) {
			t.Errorf("%s %s: not JSON", c.method, c.path)
		}
	}
	http.DefaultClient.CloseIdleConnections()

	req := httptest.NewRequestWithContext(t.Context(), "GET", "/cameras", nil)
	req.RemoteAddr = "192.0.2.1:1234"
	rec := httptest.NewRecorder()
	sim.Handler().ServeHTTP(rec, req)
	if rec.Code != http.StatusForbidden {
		t.Errorf("from another machine: %d, want 403", rec.Code)
	}
}

func TestConfigErrors(t *testing.T) {
	for name, cfg := range map[string]simcam.Config{
		"two of a name":     {Cameras: []string{"a", "a"}},
		"no name":           {Cameras: []string{""}},
		"path in a name":    {Cameras: []string{"a/b"}},
		"fraction":          {KeyframeInterval: 1500 * time.Millisecond},
		"too long interval": {KeyframeInterval: time.Minute},
		"negative bitrate":  {Bitrate: -1},
		"huge bitrate":      {Bitrate: 1 << 30},
		"tiny packets":      {PacketSize: 10},
		"large packets":     {PacketSize: 9000},
		"address":           {Addr: "127.0.0.1:notaport"},
	} {
		if _, err := simcam.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
