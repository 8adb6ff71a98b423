package medianode

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/medianode/stream"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// A state is reported at once, figures soon after and then every ten seconds at
// most, and only if they have moved.
func TestObserve(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), changes: newChanges()}
	c := newCamera(n, desired{Camera: fleet.Camera{ID: "lobby"}, generation: 3})
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	check := func(what string, after time.Duration, changed, want bool) {
		t.Helper()
		now = now.Add(after)
		o := c.observe(now, changed)
		if (o != nil) != want {
			t.Errorf("%s: report %v", what, o)
		}
		if o != nil && (o.GetCamera() != "cameras/lobby" || o.GetGeneration() != 3) {
			t.Errorf("%s: report %v", what, o)
		}
	}
	lost := func(packets int64) {
		t.Helper()
		c.board.SetStatus(fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{{ID: "main"}}})
		for range packets {
			c.join()
		}
	}
	lost(0)
	check("live", 0, true, true)
	lost(1)
	check("too early", time.Second, false, false)
	check("live, with more said of it", 0, true, true)
	lost(1)
	check("first figures", time.Second, false, true)
	check("nothing moved", 20*time.Second, false, false)
	lost(1)
	check("moved", 0, false, true)
	lost(1)
	check("too early again", figuresInterval-time.Second, false, false)
	check("a change does not wait", 0, true, true)
	lost(1)
	check("and does not put figures off", time.Second+figuresCheck, false, true)
	lost(1)
	check("ten seconds from that", figuresInterval-time.Second, false, false)
	check("ten seconds later", time.Second+figuresCheck, false, true)
}

func TestFiguresMoved(t *testing.T) {
	base := figures{bitrate: 2e6, fps: 25, interval: 1, lost: 3, loss: 0.02, jitter: 0.02, viewers: 2, said: " main 0 0", width: 640, height: 360}
	for name, c := range map[string]struct {
		change func(*figures)
		want   bool
	}{
		"nothing":             {func(*figures) {}, false},
		"bitrate a little":    {func(f *figures) { f.bitrate = 2.1e6 }, false},
		"bitrate":             {func(f *figures) { f.bitrate = 1.7e6 }, true},
		"no bitrate":          {func(f *figures) { f.bitrate = 0 }, true},
		"frames a little":     {func(f *figures) { f.fps = 24 }, false},
		"frames":              {func(f *figures) { f.fps = 12 }, true},
		"keyframes":           {func(f *figures) { f.interval = 2 }, true},
		"loss":                {func(f *figures) { f.lost++ }, true},
		"recent loss a bit":   {func(f *figures) { f.loss = 0.024 }, false},
		"recent loss":         {func(f *figures) { f.loss = 0.03 }, true},
		"jitter a bit":        {func(f *figures) { f.jitter = 0.024 }, false},
		"jitter":              {func(f *figures) { f.jitter = 0.03 }, true},
		"verdict":             {func(f *figures) { f.said = "camera main 0 0" }, true},
		"viewers":             {func(f *figures) { f.viewers++ }, true},
		"size":                {func(f *figures) { f.height = 720 }, true},
		"the time it is sent": {func(f *figures) { f.next = time.Now() }, false},
	} {
		now := base
		c.change(&now)
		if got := now.moved(base); got != c.want {
			t.Errorf("%s: moved is %v", name, got)
		}
	}
}

func TestNodeLoad(t *testing.T) {
	old := nodeLoad{cameras: 2, viewers: 5, ingress: 4e6, egress: 10e6, cpu: 0.21}
	same := old
	same.egress, same.cpu = 10.5e6, 0.25
	if same.moved(old) {
		t.Error("a little more egress, on busier processors, is reported")
	}
	if (nodeLoad{egress: 3_000}).moved(nodeLoad{egress: 2_000}) {
		t.Error("what ICE sends is reported")
	}
	for i, now := range []nodeLoad{
		{cameras: 3, viewers: 5, ingress: 4e6, egress: 10e6, cpu: 0.21},
		{cameras: 2, viewers: 4, ingress: 4e6, egress: 10e6, cpu: 0.21},
		{cameras: 2, viewers: 5, ingress: 6e6, egress: 10e6, cpu: 0.21},
		{cameras: 2, viewers: 5, ingress: 4e6, egress: 20e6, cpu: 0.21},
		{cameras: 2, viewers: 5, ingress: 4e6, egress: 10e6, cpu: 0.27},
		{cameras: 2, viewers: 5, ingress: 4e6, egress: 10e6, cpu: 0.21, overloaded: true},
	} {
		if !now.moved(old) {
			t.Errorf("load %d is not reported", i)
		}
	}
	want := &controlv1.NodeLoad{Cameras: 2, Viewers: 5, IngressBps: 4_000_000, EgressBps: 10_000_000, CpuUtilization: 0.21}
	if diff := cmp.Diff(want, old.proto(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// That a node has become overloaded is said at once; all else, and that it is not
// any more, when it is time.
func TestNodeLoadIsDue(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	calm, busy := nodeLoad{cpu: 0.5, next: now.Add(time.Second)}, nodeLoad{cpu: 0.9, overloaded: true, next: now.Add(time.Second)}
	for name, c := range map[string]struct {
		now, old nodeLoad
		at       time.Time
		want     bool
	}{
		"overloaded":            {busy, calm, now, true},
		"still so":              {busy, busy, now.Add(time.Minute), false},
		"not any more, early":   {calm, busy, now, false},
		"not any more, in time": {calm, busy, now.Add(time.Second), true},
		"busier, early":         {nodeLoad{cpu: 0.6}, calm, now, false},
		"busier, in time":       {nodeLoad{cpu: 0.6}, calm, now.Add(time.Second), true},
	} {
		if got := c.now.due(c.old, c.at); got != c.want {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}

func TestToStatus(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := toStatus(fleet.CameraStatus{
		State: fleet.CameraFailed, Reason: fleet.ReasonAuthenticationFailed, Message: "m", RetryTime: since.Add(time.Second), Since: since, Viewers: 4,
		Verdict: fleet.Verdict{Cause: fleet.CauseViewerNetwork, Message: "v"},
		Profiles: []fleet.ProfileStatus{{
			ID: "main", Transport: fleet.TransportUDP, BitrateBPS: 5, FramesPerSecond: 6, KeyframeInterval: time.Second, PacketsLost: 7,
			State: fleet.CameraFailed, Reason: fleet.ReasonTimeout, Message: "p", RetryTime: since.Add(time.Second), URLIndex: 2,
			Loss: 0.123456, Jitter: 1234567, KeyframeRequest: fleet.KeyframeRequestONVIF, BFrames: fleet.BFramesDropped, Viewers: 3,
			Tracks: []fleet.TrackStatus{{Codec: "H264", Width: 640, Height: 360}, {Codec: "AAC", UnsupportedReason: "r"}},
		}},
	})
	want := &controlv1.CameraStatus{
		State: controlv1.CameraStatus_STATE_FAILED, Reason: controlv1.Reason_REASON_AUTHENTICATION_FAILED, Message: "m",
		RetryTime: timestamppb.New(since.Add(time.Second)), StateTime: timestamppb.New(since), Viewers: 4,
		Verdict: &controlv1.Verdict{Cause: controlv1.Verdict_CAUSE_VIEWER_NETWORK, Message: "v"},
		Profiles: []*controlv1.ProfileStatus{{
			Id: "main", Transport: controlv1.Profile_TRANSPORT_UDP, BitrateBps: 5, FramesPerSecond: 6, KeyframeInterval: durationpb.New(time.Second), PacketsLost: 7,
			State: controlv1.CameraStatus_STATE_FAILED, Reason: controlv1.Reason_REASON_TIMEOUT, Message: "p", RetryTime: timestamppb.New(since.Add(time.Second)), UrlIndex: 2,
			Loss: 0.1235, Jitter: durationpb.New(1230 * time.Microsecond), KeyframeRequest: controlv1.ProfileStatus_KEYFRAME_REQUEST_ONVIF,
			BFrames: controlv1.ProfileStatus_B_FRAMES_DROPPED, Viewers: 3,
			Tracks: []*controlv1.TrackStatus{{Codec: "H264", Width: 640, Height: 360}, {Codec: "AAC", UnsupportedReason: "r"}},
		}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// Every reason that a node can give is one of the control plane's, and has a
// sentence for viewers.
func TestReasons(t *testing.T) {
	for _, r := range []fleet.Reason{
		fleet.ReasonStarting, fleet.ReasonIdle, fleet.ReasonConnectionRefused, fleet.ReasonTimeout, fleet.ReasonHostNotFound, fleet.ReasonAuthenticationFailed,
		fleet.ReasonStreamNotFound, fleet.ReasonCameraBusy, fleet.ReasonTransportUnsupported, fleet.ReasonTLSFailed, fleet.ReasonProtocolError,
		fleet.ReasonNoVideo, fleet.ReasonCodecUnsupported, fleet.ReasonNoMedia, fleet.ReasonConnectionClosed, fleet.ReasonNetworkForbidden,
		fleet.ReasonBFrames,
	} {
		if toStatus(fleet.CameraStatus{Reason: r}).GetReason() == controlv1.Reason_REASON_UNSPECIFIED {
			t.Errorf("reason %s is not in the API", r)
		}
		if r.Sentence() == "" {
			t.Errorf("reason %s has no sentence", r)
		}
	}
}

func TestFromDesired(t *testing.T) {
	fingerprint := "AB:CD"
	got, err := fromDesired(&controlv1.DesiredCamera{Password: "p", Generation: 4, Part: partTakeOver, Retry: 9, Camera: &controlv1.Camera{
		Name: "cameras/lobby", Username: "u", PullPolicy: controlv1.Camera_PULL_POLICY_ON_DEMAND, MaxSessions: 1,
		OnvifUrl: "http://a/onvif/device_service",
		Profiles: []*controlv1.Profile{
			{Url: "rtsps://a/1", FallbackUrls: []string{"rtsps://b/1"}, Transport: controlv1.Profile_TRANSPORT_UDP, TlsFingerprint: fingerprint},
			{Id: "sub", Url: "rtsp://a/2"},
		},
	}})
	want := fleet.Camera{
		ID: "lobby", Credentials: fleet.Credentials{Username: "u", Password: "p"}, PullPolicy: fleet.PullOnDemand, IdleTimeout: defaultIdleTimeout, MaxSessions: 1,
		ONVIFURL: "http://a/onvif/device_service", Retry: 9,
		Profiles: []fleet.Profile{
			{ID: "main", URL: "rtsps://a/1", FallbackURLs: []string{"rtsps://b/1"}, Transport: fleet.TransportUDP, TLSFingerprint: "abcd"},
			{ID: "sub", URL: "rtsp://a/2"},
		},
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.generation != 4 || got.part != partTakeOver {
		t.Errorf("generation %d, part %v", got.generation, got.part)
	}
	if diff := cmp.Diff(want, got.Camera, cmp.Comparer(func(a, b fleet.Credentials) bool { return a == b })); diff != "" {
		t.Errorf("camera (-want +got):\n%s", diff)
	}
}

// The lease runs out its time after the control plane was last heard, once,
// unless there is another stream.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &lease{changed: make(chan struct{}, 1)}
		var expired atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.watch(ctx, func() { expired.Add(1) })
		}()
		step := func(after time.Duration, want int32) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := expired.Load(); got != want {
				t.Errorf("expired %d times, want %d", got, want)
			}
		}
		step(time.Hour, 0)
		l.renew(2 * time.Second)
		step(time.Hour, 0)
		l.lost(time.Now())
		step(1900*time.Millisecond, 0)
		l.renew(0) // of a replica that does not say
		step(time.Hour, 0)
		l.lost(time.Now())
		step(defaultLease-time.Millisecond, 0)
		step(2*time.Millisecond, 1)
		step(time.Hour, 1)
		l.lost(time.Now().Add(-time.Second))
		step(defaultLease-time.Second-time.Millisecond, 1)
		step(2*time.Millisecond, 2)
		l.renew(defaultLease)
		l.lost(time.Now().Add(-time.Hour)) // heard nothing, and noticed by silence
		step(0, 3)
		l.renew(rpc.Silence + time.Second)
		l.lost(time.Now().Add(-time.Hour))
		step(time.Second-time.Millisecond, 3)
		step(2*time.Millisecond, 4)
		cancel()
		<-done
	})
}

// A lease that is renewed at the moment it would run out has not run out after
// that.
func TestLeaseRenewedAtTheLastMoment(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l := &lease{changed: make(chan struct{}, 1)}
			var renewed atomic.Bool
			done := make(chan struct{})
			go func() {
				defer close(done)
				l.watch(ctx, func() {
					if renewed.Load() {
						t.Error("the lease has run out after it was renewed")
					}
					if l.mu.TryLock() {
						l.mu.Unlock()
						t.Error("the lease can be renewed while it runs out")
					}
				})
			}()
			l.renew(time.Second)
			synctest.Wait()
			l.lost(time.Now())
			synctest.Wait()
			time.Sleep(time.Second)
			l.renew(time.Second)
			renewed.Store(true)
			time.Sleep(time.Hour)
			cancel()
			<-done
		})
	}
}

// Figures of the stream go into the status of the profile that is pulled.
func TestCameraStatus(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), changes: newChanges()}
	c := newCamera(n, desired{Camera: fleet.Camera{ID: "lobby", Profiles: []fleet.Profile{{ID: "main"}}}, generation: 1})
	tracks := []fleet.TrackStatus{{Codec: "H264"}, {Codec: "PCMA"}}
	c.board.SetStatus(fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{{ID: "main", Tracks: tracks}}})
	// 640 × 360, baseline.
	sps := []byte{0x67, 0x42, 0xc0, 0x1e, 0xda, 0x02, 0x80, 0xbf, 0xe5, 0x40}
	w, err := c.feeds[0].stream.Publish([]stream.Track{{Kind: stream.Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{sps}}})
	if err != nil {
		t.Fatal(err)
	}
	c.join()
	got, _ := c.status()
	if got.Profiles[0].BFrames != fleet.BFramesUnknown {
		t.Errorf("of a camera that has sent nothing: B-frames %d", got.Profiles[0].BFrames)
	}
	w.WriteRTP(0, &rtp.Packet{Header: rtp.Header{Marker: true}, Payload: []byte{0x01, 0x9f}}) // a B slice that nothing refers to
	if later, _ := c.status(); later.Profiles[0].BFrames != fleet.BFramesDropped {
		t.Errorf("of a camera that has sent a B-frame: B-frames %d", later.Profiles[0].BFrames)
	}
	if stats := c.stats(); stats.Width == 0 || got.Viewers != 1 || got.Profiles[0].Tracks[0].Width != stats.Width || got.Profiles[0].Tracks[1].Width != 0 {
		t.Errorf("status %+v, stats %+v", got, stats)
	}
	if tracks[0].Width != 0 {
		t.Error("the source's own tracks were changed")
	}
}
