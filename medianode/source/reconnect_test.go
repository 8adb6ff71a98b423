package source

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/stream"
)

// probing is a Retry for tests of fallback URLs.
var probing = Retry{
	Min: 40 * time.Millisecond, Max: 200 * time.Millisecond, Hold: 400 * time.Millisecond,
	Probe: 100 * time.Millisecond, ProbeMax: 400 * time.Millisecond, Confirm: 100 * time.Millisecond, Settled: time.Second,
}

// viewer counts the pictures of a stream, and what is wrong with them.
type viewer struct {
	keyframes, bursts, backwards atomic.Int64
	gap                          atomic.Int64 // the longest time without a burst, in nanoseconds
}

// watch begins a viewer, which ends with the test.
func (r *rig) watch(t *testing.T) *viewer {
	t.Helper()
	v := &viewer{}
	sub := r.stream.Subscribe(stream.SubscribeOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer sub.Close()
		var last time.Time
		var index uint64
		var timestamp uint32
		for {
			b, err := sub.Next(ctx)
			if err != nil {
				return
			}
			if b.Kind != stream.Video {
				continue
			}
			now := time.Now()
			if v.bursts.Add(1) > 1 {
				v.gap.Store(max(v.gap.Load(), int64(now.Sub(last))))
				if b.Packets[0].Index <= index || int32(b.Packets[0].Timestamp-timestamp) < 0 {
					v.backwards.Add(1)
				}
			}
			p := b.Packets[len(b.Packets)-1]
			last, index, timestamp = now, p.Index, p.Timestamp
			if b.Keyframe {
				v.keyframes.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return v
}

func liveOn(index int) func(fleet.CameraStatus) bool {
	return func(s fleet.CameraStatus) bool {
		return s.State == fleet.CameraLive && s.Profiles[0].URLIndex == index && s.Profiles[0].State == fleet.CameraLive
	}
}

// While a fallback URL is in use the first one is probed, and taken into use again
// when it is well: in the same stream, without a gap but for the keyframe.
func TestReturnToFirstURL(t *testing.T) {
	for _, transport := range []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP} {
		t.Run(transport.String(), func(t *testing.T) {
			t.Parallel()
			first, _ := runSim(t, simcam.Config{})
			second, _ := runSim(t, simcam.Config{})
			first.SetFault("cam", simcam.NotFound)
			r := pull(t, Config{Retry: probing, Profile: fleet.Profile{
				URL: first.URL("cam"), FallbackURLs: []string{"rtsp://127.0.0.1:1/closed", second.URL("cam")}, Transport: transport,
			}})
			_, n := r.waitStatus(t, 0, "live on the second fallback URL", liveOn(2))
			v := r.watch(t)
			eventually(t, "pictures", func() bool { return v.keyframes.Load() > 0 })
			if plays := second.Plays("cam"); plays != 1 {
				t.Errorf("%d PLAY requests at the fallback URL", plays)
			}
			first.SetFault("cam", simcam.None)
			_, n = r.waitStatus(t, n, "live on the first URL", liveOn(0))
			eventually(t, "the session at the fallback URL ends", func() bool { return second.Sessions("cam") == 0 })
			before := v.bursts.Load()
			eventually(t, "more pictures", func() bool { return v.bursts.Load() > before+20 })
			if plays := first.Plays("cam"); plays != 1 {
				t.Errorf("%d PLAY requests at the first URL: probes make none", plays)
			}
			if v.backwards.Load() != 0 {
				t.Errorf("sequence numbers or timestamps went back %d times", v.backwards.Load())
			}
			// A keyframe comes each second; simcam answers requests for one at once.
			if gap := time.Duration(v.gap.Load()); gap > 1500*time.Millisecond {
				t.Errorf("no picture for %v", gap)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, s := range r.statuses[n-1:] {
				if s.State != fleet.CameraLive {
					t.Errorf("after the return: %v %s", s.State, s.Message)
				}
			}
		})
	}
}

// A camera that accepts one session is let go of before the earlier URL is used.
func TestReturnWithOneSession(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{Cameras: []string{"main", "spare"}})
	sim.SetFault("main", simcam.NotFound)
	retry := probing
	retry.Min = time.Second
	r := pull(t, Config{Retry: retry, MaxSessions: 1, Profile: fleet.Profile{
		URL: sim.URL("main"), FallbackURLs: []string{sim.URL("spare")}, Transport: fleet.TransportTCP,
	}})
	_, n := r.waitStatus(t, 0, "live on the fallback URL", liveOn(1))
	over := make(chan struct{})
	ended := make(chan bool)
	go func() {
		both := false
		for {
			select {
			case <-over:
				ended <- both
				return
			case <-time.After(time.Millisecond):
				both = both || sim.Sessions("main") > 0 && sim.Sessions("spare") > 0
			}
		}
	}()
	sim.SetFault("main", simcam.None)
	r.waitStatus(t, n, "live on the first URL", liveOn(0))
	close(over)
	if <-ended {
		t.Error("both URLs had a session at once")
	}
	if sim.Plays("main") != 1 || sim.Plays("spare") != 1 {
		t.Errorf("plays %d of main, %d of spare; want 1, 1", sim.Plays("main"), sim.Plays("spare"))
	}
	r.waitPicture(t, 1)
}

// A URL that answers once and not again is not returned to, and one that fails
// soon after a return is left alone for longer each time.
func TestNoFlapping(t *testing.T) {
	first, _ := runSim(t, simcam.Config{})
	second, _ := runSim(t, simcam.Config{})
	first.SetFault("cam", simcam.NotFound)
	retry := probing
	retry.ProbeMax, retry.Settled = 1500*time.Millisecond, time.Hour
	r := pull(t, Config{Retry: retry, Profile: fleet.Profile{URL: first.URL("cam"), FallbackURLs: []string{second.URL("cam")}, Transport: fleet.TransportTCP}})
	_, n := r.waitStatus(t, 0, "live on the fallback URL", liveOn(1))
	first.SetFault("cam", simcam.None)
	_, n = r.waitStatus(t, n, "live on the first URL", liveOn(0))
	first.SetFault("cam", simcam.Drop) // it is well again at once
	_, n = r.waitFailed(t, n, fleet.ReasonConnectionClosed)
	_, n = r.waitLive(t, n)
	r.mu.Lock()
	if got := r.statuses[n-1].Profiles[0].URLIndex; got != 1 {
		t.Errorf("after a failure soon after the return, URL %d is used, want 1", got)
	}
	r.mu.Unlock()
	failedAt := time.Now()
	_, n = r.waitStatus(t, n, "live on the first URL again", liveOn(0))
	if d := time.Since(failedAt); d < retry.ProbeMax*3/4 {
		t.Errorf("the second return came after %v, want %v at least", d, retry.ProbeMax*3/4)
	}
	first.SetFault("cam", simcam.Drop)
	_, n = r.waitStatus(t, n, "live on the fallback URL", liveOn(1))
	failedAt = time.Now()
	r.waitStatus(t, n, "live on the first URL for the third time", liveOn(0))
	if d := time.Since(failedAt); d < 2*retry.ProbeMax*3/4 {
		t.Errorf("the third return came after %v, want %v at least", d, 2*retry.ProbeMax*3/4)
	}
}

func TestProbesConfirm(t *testing.T) {
	s := New(Config{Profile: fleet.Profile{URL: "rtsp://192.0.2.1/a", FallbackURLs: []string{"rtsp://192.0.2.2/b", "rtsp://192.0.2.3/c"}}})
	p := s.newProber(2)
	defer p.stop()
	_, p.cancel = context.WithCancel(t.Context())
	for i, step := range []struct{ found, want int }{{0, -1}, {-1, -1}, {0, -1}, {1, -1}, {1, 1}, {1, -1}} {
		if got := p.found(probed{index: step.found}); got != step.want {
			t.Errorf("step %d: URL %d answered, back to %d, want %d", i, step.found, got, step.want)
		}
	}
	p.now()
	if got := p.found(probed{index: 0}); got != 0 {
		t.Errorf("after a retry one answer leads back to %d, want 0", got)
	}
}

func TestReturnsArePutOff(t *testing.T) {
	retry := Retry{}.withDefaults()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var r returns
	r.ended(0, now, retry)
	if r.held(0, now) {
		t.Error("put off without a return")
	}
	for i, most := range []time.Duration{5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute, time.Hour, time.Hour} {
		r.begun(0, now)
		r.ended(1, now, retry) // another URL's end is none of it
		now = now.Add(59 * time.Second)
		r.ended(0, now, retry)
		if !r.held(0, now.Add(most*3/4-1)) || r.held(0, now.Add(most)) || r.held(1, now) {
			t.Errorf("failure %d: put off until %v after, want %v to %v", i+1, r.until.Sub(now), most*3/4, most)
		}
		now = r.until
	}
	r.begun(0, now)
	now = now.Add(time.Minute)
	r.ended(0, now, retry)
	if r.held(0, now) {
		t.Error("put off although the return turned out well")
	}
}

// Retry ends a wait however long it is, and begins with the first URL.
func TestRetry(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	sim.SetFault("cam", simcam.NotFound)
	r := pull(t, Config{Retry: Retry{Hold: time.Hour}, Profile: fleet.Profile{URL: sim.URL("cam")}})
	status, n := r.waitFailed(t, 0, fleet.ReasonStreamNotFound)
	if p := status.Profiles[0]; p.State != fleet.CameraFailed || p.Reason != status.Reason || p.Message != status.Message || !p.RetryTime.Equal(status.RetryTime) {
		t.Errorf("the profile is %+v, the camera %+v", p, status)
	}
	if wait := time.Until(status.RetryTime); wait < time.Minute {
		t.Fatalf("the wait is %v only", wait)
	}
	r.source.Retry()
	_, n = r.waitFailed(t, n, fleet.ReasonStreamNotFound)
	if r.source.backoff.holds != 1 { // safe: Run waits
		t.Errorf("%d failures in a row after a retry, want 1", r.source.backoff.holds)
	}
	sim.SetFault("cam", simcam.None)
	r.source.Retry()
	r.waitLive(t, n)
	r.source.Retry() // of no effect
	r.waitPicture(t, 2)
	if plays := sim.Plays("cam"); plays != 1 {
		t.Errorf("%d PLAY requests, want 1", plays)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := r.statuses[len(r.statuses)-1]; last.State != fleet.CameraLive || len(r.source.retry) != 0 {
		t.Errorf("a retry while live: %v, %d waiting", last.State, len(r.source.retry))
	}
}

// After three refusals nothing is tried until Retry.
func TestRefusalsEnd(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	sim.SetFault("cam", simcam.Unauthorized)
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}, Credentials: fleet.Credentials{Username: "u", Password: "wrong"}})
	n := 0
	for range authTries - 1 {
		_, n = r.waitFailed(t, n, fleet.ReasonAuthenticationFailed)
	}
	status, n := r.waitStopped(t, n)
	if !status.Profiles[0].RetryTime.IsZero() {
		t.Errorf("the profile is tried at %v", status.Profiles[0].RetryTime)
	}
	time.Sleep(3 * fast.Max)
	if c := r.source.Counters().Connects; c != authTries {
		t.Errorf("%d connections, want %d", c, authTries)
	}
	r.source.Retry()
	_, n = r.waitFailed(t, n, fleet.ReasonAuthenticationFailed) // two more are left
	sim.SetFault("cam", simcam.None)
	r.waitLive(t, n)
}

// A host that has refused the credentials is left alone; a fallback URL on another
// host is not.
func TestRefusalsAreOfAHost(t *testing.T) {
	refusing, _ := runSim(t, simcam.Config{Addr: "127.0.0.2:0"})
	refusing.SetFault("cam", simcam.Unauthorized)
	other, _ := runSim(t, simcam.Config{})
	other.SetFault("cam", simcam.NotFound)
	r := pull(t, Config{
		Retry: probing, Profile: fleet.Profile{URL: refusing.URL("cam"), FallbackURLs: []string{other.URL("cam")}, Transport: fleet.TransportTCP},
		Credentials: fleet.Credentials{Username: "u", Password: "wrong"},
	})
	n := 0
	var status fleet.CameraStatus
	for range authTries + 2 {
		status, n = r.waitFailed(t, n, fleet.ReasonAuthenticationFailed)
	}
	if !strings.Contains(status.Message, "fanlight camera retry") {
		t.Errorf("message %q", status.Message)
	}
	other.SetFault("cam", simcam.None)
	_, n = r.waitStatus(t, n, "live on the fallback URL", liveOn(1))
	at := r.source.Counters().Connects
	time.Sleep(6 * probing.Probe)
	if now := r.source.Counters().Connects; now != at {
		t.Errorf("%d probes of a host that refuses", now-at)
	}
	refusing.SetFault("cam", simcam.None)
	r.source.Retry()
	r.waitStatus(t, n, "live on the first URL", liveOn(0))
}

// Probes count as tries of the credentials.
func TestProbesAreRefused(t *testing.T) {
	refusing, _ := runSim(t, simcam.Config{Addr: "127.0.0.2:0"})
	refusing.SetFault("cam", simcam.NotFound)
	other, _ := runSim(t, simcam.Config{})
	r := pull(t, Config{
		Retry: probing, Profile: fleet.Profile{URL: refusing.URL("cam"), FallbackURLs: []string{other.URL("cam")}, Transport: fleet.TransportTCP},
		Credentials: fleet.Credentials{Username: "u", Password: "wrong"},
	})
	r.waitStatus(t, 0, "live on the fallback URL", liveOn(1))
	refusing.SetFault("cam", simcam.Unauthorized)
	eventually(t, "the probes end", func() bool {
		at := r.source.Counters().Connects
		time.Sleep(2 * probing.ProbeMax)
		return r.source.Counters().Connects == at
	})
	if got := strings.Count(r.log.String(), "reason=authentication_failed"); got != authTries {
		t.Errorf("%d probes were refused, want %d", got, authTries)
	}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// The waits of a source whose camera is not there, in time that is not real.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// A network that is not allowed fails without a connection.
		s := New(Config{Stream: stream.New(stream.Config{}), Profile: fleet.Profile{URL: "rtsp://192.0.2.1/"}, Networks: loopback})
		var waits []time.Duration
		s.cfg.OnStatus = func(status fleet.CameraStatus) {
			if status.State == fleet.CameraFailed {
				waits = append(waits, time.Until(status.RetryTime))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		for i, most := range []time.Duration{7500 * time.Millisecond, 15 * time.Second, 30 * time.Second, time.Minute, time.Minute} {
			if i >= len(waits) || waits[i] < most/2 || waits[i] > most {
				t.Fatalf("waits %v; number %d should be %v to %v", waits, i+1, most/2, most)
			}
		}
	})
}

// Sound that goes on is no picture.
func TestVideoStallsAndSoundGoesOn(t *testing.T) {
	for _, transport := range []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP} {
		t.Run(fmt.Sprint(transport), func(t *testing.T) {
			t.Parallel()
			sim, _ := runSim(t, simcam.Config{Audio: true})
			r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: transport}, Timeouts: Timeouts{Media: 700 * time.Millisecond}})
			_, n := r.waitLive(t, 0)
			sim.SetFault("cam", simcam.FreezeVideo)
			_, n = r.waitFailed(t, n, fleet.ReasonNoMedia)
			sim.SetFault("cam", simcam.None)
			r.waitLive(t, n)
			r.waitPicture(t, 1)
		})
	}
}
