package source

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/onvif"
	"fanlight/medianode/onvif/onviftest"
	"fanlight/medianode/stream"
)

// deafCamera pulls a camera with a keyframe interval of 10 s, and waits until the
// interval is known.
func deafCamera(t *testing.T, sim *simcam.Server, cfg Config) *rig {
	t.Helper()
	cfg.Profile = fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}
	r := pull(t, cfg)
	r.waitLive(t, 0)
	sim.Keyframe("cam") // the clip begins anywhere; from here on it is 10 s
	eventually(t, "two keyframes", func() bool { return r.stream.Stats().KeyframeInterval == 10*time.Second })
	return r
}

// keyframeWithin requests a keyframe for a number of viewers, and returns how long
// it took to come.
func (r *rig) keyframeWithin(t *testing.T, viewers int) time.Duration {
	t.Helper()
	var subs []*stream.Subscription
	for range viewers {
		subs = append(subs, r.stream.Subscribe(stream.SubscribeOptions{}))
	}
	defer func() {
		for _, sub := range subs {
			sub.Close()
		}
	}()
	before, begin := r.stream.Stats().Keyframes, time.Now()
	for _, sub := range subs {
		sub.RequestKeyframe()
	}
	eventually(t, "a keyframe", func() bool { return r.stream.Stats().Keyframes > before })
	return r.stream.Stats().LastKeyframe.Sub(begin)
}

func (r *rig) waitWay(t *testing.T, way fleet.KeyframeRequest) {
	t.Helper()
	eventually(t, "way "+wayName(way), func() bool { return r.source.keys.way() == way })
}

// A camera that ignores RTCP feedback, with a keyframe each 10 s, gives one within
// a second: over ONVIF, which is learnt, reported, kept over reconnects, and
// asked no more often for 50 viewers than for one.
func TestKeyframeOverONVIF(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second, IgnorePLI: true, Username: "admin", Password: "s3cret"})
	cam := onviftest.Run(t, onviftest.Config{
		Username: "admin", Password: "s3cret", Clock: -time.Hour,
		Profiles: []onviftest.Profile{{Token: "other", URL: "rtsp://192.0.2.1/other"}, {Token: "this", URL: "rtsp://192.0.2.1/cam"}},
		OnKeyframe: func(token string) {
			if token != "this" {
				t.Errorf("asked for profile %s", token)
			}
			sim.Keyframe("cam")
		},
	})
	r := deafCamera(t, sim, Config{ONVIFURL: cam.URL(), Credentials: fleet.Credentials{Username: "admin", Password: "s3cret"}})
	if took := r.keyframeWithin(t, 1); took > time.Second {
		t.Errorf("a keyframe came after %v, want 1 s at most", took)
	}
	r.waitWay(t, fleet.KeyframeRequestONVIF)
	_, n := r.waitStatus(t, 0, "learnt", func(s fleet.CameraStatus) bool {
		return s.State == fleet.CameraLive && s.Profiles[0].KeyframeRequest == fleet.KeyframeRequestONVIF
	})
	if c := r.source.Counters().Keyframes; c.RTCP == 0 || c.ONVIF != 1 || c.Failed != 0 {
		t.Errorf("counters %+v", c)
	}

	// Straight over ONVIF from now on, for all viewers at once.
	time.Sleep(onvifSpacing)
	rtcp, calls, begin := sim.KeyframeRequests("cam"), cam.Calls("SetSynchronizationPoint"), time.Now()
	if took := r.keyframeWithin(t, 50); took > pliPatience {
		t.Errorf("a keyframe came after %v, want %v at most, for nothing else is tried first", took, pliPatience)
	}
	for range 3 {
		r.keyframeWithin(t, 50)
	}
	allowed := 1 + int(time.Since(begin)/onvifSpacing)
	if n := cam.Calls("SetSynchronizationPoint") - calls; n < 1 || n > allowed {
		t.Errorf("%d requests for 200 wishes within %v, want 1 to %d", n, time.Since(begin), allowed)
	}
	if n := sim.KeyframeRequests("cam") - rtcp; n != 0 {
		t.Errorf("%d picture loss indications to a camera that is known to ignore them", n)
	}

	sim.SetFault("cam", simcam.Drop)
	r.waitFailed(t, n, fleet.ReasonConnectionClosed)
	r.waitStatus(t, n, "live again, and it is still known", func(s fleet.CameraStatus) bool {
		return s.State == fleet.CameraLive && s.Profiles[0].KeyframeRequest == fleet.KeyframeRequestONVIF
	})
	r.stop()
	if log := r.log.String(); strings.Contains(log, "s3cret") {
		t.Error("the password is in the log")
	}
}

// A camera that heeds RTCP feedback is not asked over ONVIF.
func TestKeyframeOverRTCP(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second})
	cam := onviftest.Run(t, onviftest.Config{Profiles: []onviftest.Profile{{Token: "this"}}})
	r := deafCamera(t, sim, Config{ONVIFURL: cam.URL()})
	if took := r.keyframeWithin(t, 10); took > pliPatience {
		t.Errorf("a keyframe came after %v", took)
	}
	r.waitWay(t, fleet.KeyframeRequestRTCP)
	if n := cam.Calls(""); n != 0 {
		t.Errorf("%d requests over ONVIF, want none", n)
	}
}

// A camera that is gone is not asked for anything.
func TestKeyframeAfterTheEnd(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}, Retry: Retry{Min: time.Hour, Max: time.Hour}})
	_, n := r.waitLive(t, 0)
	sim.SetFault("cam", simcam.Drop)
	r.waitStatus(t, n, "failed", func(s fleet.CameraStatus) bool { return s.State == fleet.CameraFailed })
	k := r.source.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.owner != nil || k.pli != nil {
		t.Error("the connection that has ended is still the one that is asked")
	}
}

// A camera that heeds nothing is found to do so, and left in peace.
func TestKeyframeNone(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second, IgnorePLI: true})
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}, ONVIFURL: server.URL})
	r.waitLive(t, 0)
	sim.Keyframe("cam")
	r.waitPicture(t, 1)
	sub := r.stream.Subscribe(stream.SubscribeOptions{})
	defer sub.Close()
	eventually(t, "the camera is known to heed nothing", func() bool {
		sub.RequestKeyframe()
		return r.source.keys.way() == fleet.KeyframeRequestNone
	})
	r.waitStatus(t, 0, "said so", func(s fleet.CameraStatus) bool { return s.Profiles[0].KeyframeRequest == fleet.KeyframeRequestNone })
	asked := sim.KeyframeRequests("cam")
	for range 4 {
		time.Sleep(300 * time.Millisecond)
		sub.RequestKeyframe()
	}
	if n := sim.KeyframeRequests("cam") - asked; n != 0 {
		t.Errorf("%d requests within a second of knowing that they are of no use", n)
	}
}

// ONVIF is kept to the camera networks, and the end of a source does not wait for
// a camera that does not answer.
func TestKeyframeNetworks(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second, IgnorePLI: true})
	release := make(chan struct{})
	asked := make(chan struct{}, 16)
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	defer slow.Close()
	defer close(release)
	elsewhere, err := net.Listen("tcp", "[::1]:0") // not in the networks
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer elsewhere.Close()
	wg.Go(func() {
		if conn, err := elsewhere.Accept(); err == nil {
			t.Error("a camera outside the networks was dialled")
			_ = conn.Close()
		}
	})
	networks := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for name, url := range map[string]string{"forbidden": "http://" + elsewhere.Addr().String(), "slow": slow.URL} {
		t.Run(name, func(t *testing.T) {
			r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}, ONVIFURL: url, Networks: networks})
			r.waitLive(t, 0)
			r.waitPicture(t, 1)
			sub := r.stream.Subscribe(stream.SubscribeOptions{})
			defer sub.Close()
			sub.RequestKeyframe()
			if name == "slow" {
				<-asked
				begin := time.Now()
				r.stop()
				if d := time.Since(begin); d > 2*time.Second {
					t.Errorf("Run took %v to end", d)
				}
				return
			}
			eventually(t, "a failure", func() bool { return r.source.Counters().Keyframes.Failed > 0 })
		})
	}
}

// Credentials that are refused over ONVIF are not tried again, by no source of the
// node's: the third of three wrong passwords locks many an account.
func TestKeyframeRefused(t *testing.T) {
	t.Parallel()
	sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second, IgnorePLI: true})
	cam := onviftest.Run(t, onviftest.Config{Username: "admin", Password: "right", Profiles: []onviftest.Profile{{Token: "this"}}})
	var memory KeyframeMemory
	var accounts Accounts
	for range 2 {
		r := pull(t, Config{
			Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}, ONVIFURL: cam.URL(),
			Credentials: fleet.Credentials{Username: "admin", Password: "wrong"}, Keyframes: &memory, Accounts: &accounts,
		})
		r.waitLive(t, 0)
		sim.Keyframe("cam")
		r.waitPicture(t, 1)
		sub := r.stream.Subscribe(stream.SubscribeOptions{})
		asked := sim.KeyframeRequests("cam")
		eventually(t, "requests by RTCP", func() bool {
			sub.RequestKeyframe()
			return sim.KeyframeRequests("cam") > asked+1
		})
		eventually(t, "the refusal", func() bool { return !r.source.keys.possible(time.Now()) })
		sub.Close()
		r.stop()
	}
	if n := cam.Calls("GetProfiles"); n != 1 {
		t.Errorf("%d requests with a wrong password, want 1", n)
	}
	if c := memory.Counters(); c.Failed != 1 || c.RTCP < 2 {
		t.Errorf("counters %+v", c)
	}
}

// Over https the certificate must be valid, or the pinned one.
func TestKeyframeTLS(t *testing.T) {
	t.Parallel()
	cam := onviftest.Run(t, onviftest.Config{Profiles: []onviftest.Profile{{Token: "this"}}})
	server := httptest.NewUnstartedServer(cam.Handler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // of handshakes that are to fail
	server.StartTLS()
	defer server.Close()
	sum := sha256.Sum256(server.Certificate().Raw)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for _, tt := range []struct {
		name        string
		fingerprint string
		roots       *x509.CertPool
		works       bool
	}{
		{"valid", "", roots, true},
		{"not known", "", nil, false},
		{"pinned", hex.EncodeToString(sum[:]), nil, true},
		{"another pinned", strings.Repeat("0", 64), roots, false},
	} {
		s := New(Config{
			Profile: fleet.Profile{URL: "rtsp://127.0.0.1/", TLSFingerprint: tt.fingerprint}, RootCAs: tt.roots,
			ONVIFURL: server.URL, Stream: stream.New(stream.Config{}),
		})
		client, err := s.keys.newClient()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Find(t.Context(), onvif.Picture{}); (err == nil) != tt.works || err != nil && !errors.Is(err, onvif.ErrUnavailable) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		client.Close()
	}
}

func TestDeviceURL(t *testing.T) {
	for _, tt := range []struct{ onvif, profile, want string }{
		{"", "rtsp://cam:8554/main", "http://cam/onvif/device_service"},
		{"", "rtsps://[fd00::2]:322/main", "http://[fd00::2]/onvif/device_service"},
		{"", "nonsense", ""},
		{fleet.ONVIFNone, "rtsp://cam/main", ""},
		{"https://other:8443/onvif", "rtsp://cam/main", "https://other:8443/onvif"},
	} {
		if got := deviceURL(Config{ONVIFURL: tt.onvif, Profile: fleet.Profile{URL: tt.profile}}); got != tt.want {
			t.Errorf("device service of %q, %q: %q, want %q", tt.onvif, tt.profile, got, tt.want)
		}
	}
}

// figures are a stream's, of a camera whose n-th keyframe came at a second.
func figures(n int64, at float64, interval time.Duration) stream.Stats {
	return stream.Stats{Keyframes: n, LastKeyframe: second(at), KeyframeInterval: interval}
}

func second(s float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(s * float64(time.Second)))
}

// What a keyframe teaches that came after a request.
func TestHabitLearns(t *testing.T) {
	for _, tt := range []struct {
		name     string
		interval time.Duration // the camera's own; 0: not known
		came     float64       // seconds after the keyframe before
		more     int64         // keyframes that came besides
		want     fleet.KeyframeRequest
	}{
		{"clearly before its time", 10 * time.Second, 3, 0, fleet.KeyframeRequestRTCP},
		{"just before its time", 10 * time.Second, 9, 0, fleet.KeyframeRequestUnknown},
		{"a quarter before its time", 10 * time.Second, 7.5, 0, fleet.KeyframeRequestRTCP},
		{"interval of 1 s", time.Second, 0.1, 0, fleet.KeyframeRequestUnknown},
		{"interval of 2 s", 2 * time.Second, 0.9, 0, fleet.KeyframeRequestRTCP},
		{"interval not known", 0, 3, 0, fleet.KeyframeRequestUnknown},
		{"two came", 10 * time.Second, 3, 1, fleet.KeyframeRequestUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h habit
			before := figures(2, 0, tt.interval)
			h.observe(before)
			h.came(fleet.KeyframeRequestRTCP, before, figures(3+tt.more, tt.came, 0))
			if h.way != tt.want {
				t.Errorf("learnt %s, want %s", wayName(h.way), wayName(tt.want))
			}
		})
	}
}

// Intervals that a request has cut short are not the camera's.
func TestHabitInterval(t *testing.T) {
	var h habit
	h.observe(figures(2, 10, 10*time.Second))
	h.forced = 3 // asked for
	h.observe(figures(3, 12, 2*time.Second))
	if got := h.interval; got != [2]time.Duration{10 * time.Second} {
		t.Errorf("intervals %v after a keyframe that was asked for", got)
	}
	h.observe(figures(4, 22, 10*time.Second))
	h.observe(figures(4, 22, 10*time.Second))
	h.observe(figures(5, 26, 4*time.Second))
	if got, want := h.due(figures(5, 26, 0)), second(30); !got.Equal(want) {
		t.Errorf("next keyframe at %v, want %v: by the shorter of the two latest", got, want)
	}
}

// A way that has stopped working is noticed, and so is that none is left.
func TestHabitUnlearns(t *testing.T) {
	now := second(0)
	h := habit{way: fleet.KeyframeRequestONVIF}
	for range enoughMisses {
		h.missed(fleet.KeyframeRequestONVIF, true, now)
	}
	if h.way != fleet.KeyframeRequestUnknown || h.worthONVIF(now, stream.Stats{}) || !h.worthONVIF(now.Add(onvifForget), stream.Stats{}) {
		t.Errorf("after %d requests over ONVIF without effect: %+v", enoughMisses, h)
	}
	for range enoughMisses {
		h.missed(fleet.KeyframeRequestRTCP, true, now)
	}
	if h.way != fleet.KeyframeRequestNone || !h.resting(now) || h.resting(now.Add(restTime)) {
		t.Errorf("after as many by RTCP: %+v", h)
	}
	h = habit{}
	for range 2 * enoughMisses {
		h.missed(fleet.KeyframeRequestRTCP, true, now)
	}
	if h.way != fleet.KeyframeRequestUnknown {
		t.Errorf("%s, and ONVIF has not been tried", wayName(h.way))
	}
}

// What is asked again, and when.
func TestMemoryOfDevices(t *testing.T) {
	var m KeyframeMemory
	key := deviceKey{url: "http://cam/", credentials: fleet.Credentials{Username: "a", Password: "b"}}
	now := second(0)
	wrap := func(err error) error { return fmt.Errorf("find: %w", err) }

	m.note(key, now, wrap(onvif.ErrUnsupported))
	if m.possible(key, now.Add(23*time.Hour)) || m.possibleAtAll(key, now) || !m.possible(key, now.Add(24*time.Hour)) {
		t.Error("a camera without ONVIF is asked within a day, or never again")
	}
	m.note(key, now, nil)
	wait := time.Duration(0)
	for range 10 {
		m.note(key, now, wrap(onvif.ErrUnavailable))
		next := m.device(key).until.Sub(now)
		if next < wait*3/4 || next > onvifBackoffLimit || m.possible(key, now) || !m.possibleAtAll(key, now) {
			t.Errorf("after %v a camera that is not reached is asked in %v", wait, next)
		}
		wait = next
	}
	if wait < onvifBackoffLimit*3/4 {
		t.Errorf("the longest wait is %v", wait)
	}
	m.note(key, now, nil)
	for _, err := range []error{onvif.ErrRefused, errUntried} {
		if m.note(key, now, wrap(err)); !m.possible(key, now) {
			t.Errorf("after %v: it is the account's affair", err)
		}
	}
	if m.possible(deviceKey{}, now) {
		t.Error("no address, and it is asked")
	}
}
