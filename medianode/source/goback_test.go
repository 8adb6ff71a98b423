package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/stream"
)

// describes answers what a probe asks, and SETUP over TCP; the rest is play's.
func describes(play func(request) string) func(request) string {
	return func(q request) string {
		switch q.method {
		case "OPTIONS":
			return q.answer("200 OK", "")
		case "DESCRIBE":
			return q.sdp(sdpHead + "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t\r\n")
		case "SETUP":
			return q.answer("200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n")
		default:
			return play(q)
		}
	}
}

// A return that takes the stream and then fails gives it back: the pictures of the
// fallback URL go on, each time.
func TestFailedReturnGivesBack(t *testing.T) {
	// A packet of video that comes before the answer to PLAY.
	early := "$\x00\x00\x10\x80\x60\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x41\x9a\x00\x00"
	refuse := func(q request) string {
		if q.method != "PLAY" {
			return ""
		}
		return early + q.answer("500 Internal Server Error", "")
	}
	first := runScripted(t, describes(refuse))
	second, _ := runSim(t, simcam.Config{})
	retry := probing
	retry.ProbeMax = probing.Probe
	r := pull(t, Config{Retry: retry, Profile: fleet.Profile{
		URL: "rtsp://" + first.addr + "/cam", FallbackURLs: []string{second.URL("cam")}, Transport: fleet.TransportTCP,
	}})
	_, n := r.waitStatus(t, 0, "live on the fallback URL", liveOn(1))
	v := r.watch(t)
	eventually(t, "pictures", func() bool { return v.keyframes.Load() > 0 })
	for range 2 {
		plays := first.seen("PLAY ")
		eventually(t, "a return", func() bool { return first.seen("PLAY ") > plays })
		eventually(t, "its failure", func() bool { return strings.Count(r.log.String(), "camera not back") >= plays })
		bursts, keyframes := v.bursts.Load(), v.keyframes.Load()
		eventually(t, "pictures after a return that failed", func() bool {
			return v.bursts.Load() > bursts+20 && v.keyframes.Load() > keyframes
		})
	}
	if v.backwards.Load() != 0 {
		t.Errorf("sequence numbers or timestamps went back %d times", v.backwards.Load())
	}
	if second.Plays("cam") != 1 {
		t.Errorf("%d PLAY requests at the fallback URL, want 1", second.Plays("cam"))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.statuses[n:] {
		if s.State != fleet.CameraLive {
			t.Errorf("after a return that failed: %v %s", s.State, s.Message)
		}
	}
}

// The connection in use is watched while an earlier URL is on its way, which may
// take its time.
func TestWatchedWhileGoingBack(t *testing.T) {
	setup, release := make(chan struct{}, 8), make(chan struct{})
	answer := describes(func(request) string { return "" })
	found := make(chan struct{})
	first := runScripted(t, func(q request) string {
		select {
		case <-found:
		default:
			return q.answer("404 Not Found", "")
		}
		if q.method == "SETUP" {
			setup <- struct{}{}
			<-release
			return ""
		}
		return answer(q)
	})
	defer close(release)
	second, _ := runSim(t, simcam.Config{})
	r := pull(t, Config{
		Retry: probing, Timeouts: Timeouts{Request: 20 * time.Second, Media: 500 * time.Millisecond},
		Profile: fleet.Profile{URL: "rtsp://" + first.addr + "/cam", FallbackURLs: []string{second.URL("cam")}, Transport: fleet.TransportTCP},
	})
	_, n := r.waitStatus(t, 0, "live on the fallback URL", liveOn(1))
	close(found)
	select {
	case <-setup:
	case <-time.After(10 * time.Second):
		t.Fatal("no return within 10 s")
	}
	second.SetFault("cam", simcam.Freeze)
	begin := time.Now()
	r.waitFailed(t, n, fleet.ReasonNoMedia)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("that nothing comes was seen after %v", d)
	}
}

// opened returns a source that does not run, and a connection to a simulated
// camera that plays.
func opened(t *testing.T, fallback, url string) (*Source, *connection) {
	t.Helper()
	s := New(Config{
		Stream: stream.New(stream.Config{}), Timeouts: Timeouts{Request: 5 * time.Second},
		Profile: fleet.Profile{URL: url, FallbackURLs: []string{fallback}, Transport: fleet.TransportTCP},
	})
	u, f := s.parseURL(1)
	if f != nil {
		t.Fatal(f)
	}
	c, f := s.open(t.Context(), target{1, u, u, fleet.TransportTCP}, opening{})
	if f != nil {
		t.Fatal(f)
	}
	if f := c.awaitVideo(t.Context()); f != nil {
		t.Fatal(f)
	}
	return s, c
}

// When the connection in use fails, the earlier URL's takes its place if it has
// come about, and lives on; an attempt that has not is ended.
func TestInUseFailsWhileGoingBack(t *testing.T) {
	first, _ := runSim(t, simcam.Config{})
	second, _ := runSim(t, simcam.Config{})
	why := failed(fleet.ReasonNoMedia, "a test")
	for _, ready := range []bool{true, false} {
		t.Run(fmt.Sprintf("ready %v", ready), func(t *testing.T) {
			url := first.URL("cam")
			if !ready {
				release := make(chan struct{})
				t.Cleanup(func() { close(release) })
				url = "rtsp://" + runScripted(t, func(request) string { <-release; return "" }).addr + "/cam"
			}
			s, c := opened(t, second.URL("cam"), url)
			defer c.close()
			w := &watching{source: s, c: c, prober: s.newProber(1), live: time.Now()}
			defer w.prober.stop()
			if f := w.goBack(t.Context(), 0); f != nil || w.attempt == nil {
				t.Fatalf("no attempt: %v", f)
			}
			if !ready {
				f, next := w.fail(t.Context(), why)
				if f != why || next != nil || !f.wasLive || w.attempt != nil {
					t.Errorf("got %v and %v, want the failure of the connection in use", f, next)
				}
				if s.returns != (returns{}) {
					t.Errorf("the URL is judged by an attempt that was given up: %+v", s.returns)
				}
				return
			}
			eventually(t, "the new connection", func() bool { return len(w.attempt.results) == 1 })
			f, next := w.fail(t.Context(), why)
			if f != nil || next == nil {
				t.Fatalf("got %v, want the connection that has come about", f)
			}
			defer next.close()
			if s.returns.to != 0 || s.returns.at.IsZero() {
				t.Errorf("the return is not noted: %+v", s.returns)
			}
			packets := s.cfg.Stream.Stats().Packets
			eventually(t, "its packets", func() bool { return s.cfg.Stream.Stats().Packets > packets+20 })
			if next.replaces != nil {
				t.Error("the new connection keeps the old one from being forgotten")
			}
		})
	}
}

// The stream goes to the connection that was given it, and only once.
func TestGiveBack(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	s, c := opened(t, sim.URL("cam"), "rtsp://192.0.2.1/")
	defer c.close()
	next := &connection{source: s, tracks: c.tracks, replaces: c}
	next.giveBack() // it had nothing
	if c.again.Load() {
		t.Error("given back what had not been taken")
	}
	c.again.Store(true)
	taken := next.publish()
	if taken == nil || c.again.Load() {
		t.Error("the connection in use may take the stream from the new one")
	}
	if mine := c.writer.Load(); c.publish() != mine {
		t.Error("the connection in use has taken the stream from the new one")
	}
	taken.Close()
	next.giveBack()
	packets := s.cfg.Stream.Stats().Packets
	eventually(t, "the stream is the old connection's", func() bool { return !c.again.Load() && s.cfg.Stream.Stats().Packets > packets })
}

// What happens at once is judged the same each time.
func TestAwaitVideoAtOnce(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan struct{})
	close(closed)
	s := New(Config{Stream: stream.New(stream.Config{})})
	broken := failed(fleet.ReasonProtocolError, "broken")
	for range 50 {
		c := &connection{source: s, first: closed}
		if f := c.awaitVideo(over); f != nil {
			t.Fatalf("video and the end of the wait: %v", f)
		}
		c = &connection{source: s, first: closed, broken: make(chan *failure, 1)}
		c.broken <- broken
		if f := c.awaitVideo(t.Context()); f != broken {
			t.Fatalf("video, and the connection is broken: %v", f)
		}
		c = &connection{source: s, first: closed, ended: make(chan error, 1), gone: closed}
		c.target.url = mustURL(t, "rtsp://camera/")
		c.ended <- errors.New("ended")
		if f := c.awaitVideo(t.Context()); f == nil {
			t.Fatal("video, and the connection has ended: no failure")
		}
	}
}
