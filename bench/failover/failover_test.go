package failover

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fanlight/internal/viewertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)) // 100 … 1
	}
	tests := []struct {
		values []time.Duration
		q      float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{[]time.Duration{7}, 0.5, 7},
		{[]time.Duration{7}, 1, 7},
		{[]time.Duration{3, 1, 2}, 0.5, 2},
		{[]time.Duration{4, 3, 1, 2}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.95, 95},
		{hundred, 1, 100},
		{hundred, 0, 1},
	}
	for _, tt := range tests {
		if got := quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("quantile %v of %d values: %d, want %d", tt.q, len(tt.values), got, tt.want)
		}
	}
}

func TestResult(t *testing.T) {
	seen := func(gap time.Duration, lost bool) viewertest.Summary {
		return viewertest.Summary{Longest: viewertest.Gap{Length: gap}, Lost: lost, Swaps: 1, Skipped: 2}
	}
	b := &bench{
		cfg: Config{Mode: Kill, Cameras: 1, Rounds: 2, Nodes: 3}, load: newLoad(), viewers: make([]*viewertest.Follower, 2),
		frames: 40 * time.Millisecond,
		samples: []sample{
			{round: 1, what: "kill node-1", sum: seen(900*time.Millisecond, false), story: "a", phases: map[string]time.Duration{phaseShown: time.Second}},
			{round: 1, what: "kill node-1", sum: seen(1200*time.Millisecond, false), story: "b", stall: 30 * time.Millisecond},
			{round: 2, what: "kill node-2", sum: seen(5*time.Second, true), story: "c"},
			{round: 2, what: "kill node-2", sum: seen(100*time.Millisecond, false)},
		},
	}
	got := b.result()
	want := Result{
		Viewers: 2, GapP50: 900, GapP95: 5000, GapMax: 5000, LostViewers: 1,
		Mode: Kill, Rounds: 2, Cameras: 1, Nodes: 3, FrameInterval: 40, FramesSkipped: 8, Swaps: 4, GeneratorStall: 30,
		Phases: []Phase{{phaseShown, 1000, 1000, 1000}},
		Steps: []Step{
			{Round: 1, What: "kill node-1", GapP50: 900, GapMax: 1200, Slow: "b"},
			{Round: 2, What: "kill node-2", GapP50: 100, GapMax: 5000, Lost: 1, Slow: "c"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A process that is kept from running is noticed, and when.
func TestLoad(t *testing.T) {
	l := newLoad()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx) })
	began := time.Now()
	time.Sleep(30 * time.Millisecond)
	before := time.Now()
	l.mu.Lock() // run waits for it
	time.Sleep(100 * time.Millisecond)
	l.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	after := time.Now()
	for time.Since(began) < 1200*time.Millisecond { // two looks at the counters
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if got := l.stall(before, after); got < 80*time.Millisecond {
		t.Errorf("a stall of %v, want 100 ms", got)
	}
	if got := l.stall(began.Add(-time.Second), began); got != 0 {
		t.Errorf("a stall of %v before", got)
	}
	cores, _ := l.cpu([]span{{began, time.Now()}})
	if cores <= 0 {
		t.Errorf("%v cores used", cores)
	}
	if cores, machine := l.cpu(nil); cores != 0 || machine != 0 {
		t.Errorf("%v cores, %v busy in no time", cores, machine)
	}
}

func TestConfig(t *testing.T) {
	var cfg Config
	if err := cfg.defaults(); err != nil {
		t.Fatal(err)
	}
	if cfg.Mode != Kill || cfg.Cameras != 20 || cfg.Viewers != 40 || cfg.Nodes != 3 || cfg.ControlPlanes != 3 || cfg.Outage != 30*time.Second {
		t.Errorf("defaults %+v", cfg)
	}
	for _, bad := range []Config{{Nodes: 1}, {Viewers: -1}} {
		if _, err := Run(t.Context(), bad); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
	if _, err := Run(t.Context(), Config{Binary: "/nonexistent/fanlight", Dir: t.TempDir()}); err == nil {
		t.Error("without a binary: no error")
	}
}
