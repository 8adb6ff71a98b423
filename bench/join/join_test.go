package join

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fanlight/internal/viewertest"
)

// base is when the times of these tests begin; simcam's stamps have microseconds.
var base = time.UnixMicro(1_767_225_600_000_000)

func at(n int) time.Time         { return base.Add(time.Duration(n) * time.Millisecond) }
func millis(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// pictures are of a camera of 25 pictures a second, from the first-th to before
// the last-th, each at the viewer after a latency in milliseconds.
func pictures(first, last int, latency func(i int) int) []viewertest.Picture {
	var list []viewertest.Picture
	for i := first; i < last; i++ {
		list = append(list, viewertest.Picture{Sent: at(40 * i), Arrival: at(40*i + latency(i)), Timestamp: uint32(3600 * i)})
	}
	return list
}

func always(ms int) func(int) int { return func(int) int { return ms } }

func TestUsual(t *testing.T) {
	for name, tt := range map[string]struct {
		pictures        []viewertest.Picture
		at              int
		latency, period time.Duration
		ok              bool
	}{
		"steady":                          {pictures(0, 100, always(7)), 3000, millis(7), millis(40), true},
		"only the last second counts":     {pictures(0, 100, func(i int) int { return 100 - i }), 2000, millis(64), millis(40), true},
		"not what comes afterwards":       {pictures(90, 200, always(7)), 3000, 0, 0, false},
		"a stall of the machine's is one": {pictures(0, 100, func(i int) int { return 5 + i%10/9*500 }), 3000, millis(5), millis(40), true},
		"nobody's stamps": {
			[]viewertest.Picture{{Arrival: at(1)}, {Arrival: at(41)}, {Arrival: at(81)}, {Arrival: at(121)}, {Arrival: at(161)}, {Arrival: at(201)}},
			500, 0, 0, false,
		},
		"nothing": {nil, 500, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			latency, period, ok := usual(tt.pictures, at(tt.at))
			if latency != tt.latency || period != tt.period || ok != tt.ok {
				t.Errorf("got %v, %v, %v, want %v, %v, %v", latency, period, ok, tt.latency, tt.period, tt.ok)
			}
		})
	}
}

func TestLive(t *testing.T) {
	// The keyframe is 400 ms old; all that followed comes with it, at 4000 ms.
	late := pictures(90, 100, func(i int) int { return 4000 - 40*i })
	list := append(late, pictures(100, 110, always(5))...)
	p, before, ok := live(list, millis(45))
	if want := at(40 * 99); !ok || before != 9 || !p.Sent.Equal(want) {
		t.Errorf("picture of %v after %d others, %v, want that of %v after 9", p.Sent.Sub(base), before, ok, want.Sub(base))
	}
	if _, before, ok := live(late[:5], millis(45)); ok || before != 5 {
		t.Errorf("old pictures are live (%v), or not counted: %d", ok, before)
	}
	if _, _, ok := live([]viewertest.Picture{{Arrival: at(1)}}, millis(45)); ok {
		t.Error("a picture without a stamp is live")
	}
}

func TestLater(t *testing.T) {
	reference := pictures(0, 400, always(5))
	for name, tt := range map[string]struct {
		pictures []viewertest.Picture
		want     time.Duration
		ok       bool
	}{
		"the same":         {pictures(250, 400, always(5)), 0, true},
		"behind":           {pictures(250, 400, always(85)), millis(80), true},
		"before":           {pictures(250, 400, always(2)), millis(-3), true},
		"what was earlier": {append(pictures(200, 300, always(500)), pictures(300, 400, always(6))...), millis(1), true},
		"too few":          {pictures(290, 305, always(5)), 0, false},
		"of another":       {pictures(1000, 1100, always(5)), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := later(tt.pictures, reference, at(12_520), at(14_000))
			if got != tt.want || ok != tt.ok {
				t.Errorf("got %v, %v, want %v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestShift(t *testing.T) {
	list, reference := pictures(50, 400, always(5)), pictures(0, 400, always(5))
	if got := shift(list, reference, at(10_000)); got != 0 {
		t.Errorf("of a steady stream: %v", got)
	}
	// The first picture came 300 ms later than its timestamp says, counted from
	// the others; the clock starts over between.
	for i := range list {
		list[i].Timestamp += 1<<32 - 3600*100
	}
	list[0].Timestamp -= 27_000
	if got := shift(list, reference, at(10_000)); got != millis(-300) {
		t.Errorf("got %v, want -300ms", got)
	}
	// The camera itself stood still for a second, and both saw that.
	for _, l := range [][]viewertest.Picture{list, reference} {
		for i := len(l) - 200; i < len(l); i++ {
			l[i].Arrival = l[i].Arrival.Add(time.Second)
		}
	}
	if got := shift(list, reference, at(11_000)); got != millis(-300) {
		t.Errorf("with a camera that stood still: %v, want -300ms", got)
	}
}

func TestSplit(t *testing.T) {
	var o outcome
	o.split(at(0), at(10), at(30), at(35), at(60))
	want := outcome{answer: millis(10), connect: millis(20), packet: millis(5), keyframe: millis(25), total: millis(60)}
	if diff := cmp.Diff(want, o, cmp.AllowUnexported(outcome{})); diff != "" {
		t.Error(diff)
	}
	// pion tells that it is connected after the first packet has come, or not yet.
	for _, connected := range []time.Time{at(50), {}} {
		o = outcome{}
		o.split(at(0), at(10), connected, at(35), at(60))
		want = outcome{answer: millis(10), connect: millis(25), keyframe: millis(25), total: millis(60)}
		if diff := cmp.Diff(want, o, cmp.AllowUnexported(outcome{})); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSum(t *testing.T) {
	var list []outcome
	for i := range 100 {
		list = append(list, outcome{
			total: millis(i + 1), answer: millis(2), connect: millis(3), keyframe: millis(i),
			stamped: true, live: millis(2 * (i + 1)), catchUp: i,
		})
	}
	list[99].live = 0
	list[0].compared, list[0].later, list[0].shift = true, millis(1), millis(4)
	list[1].compared, list[1].later, list[1].shift = true, millis(-7), millis(6)
	list[2].compared, list[2].later, list[2].shift = true, millis(2), millis(5)
	list = append(list, outcome{err: errors.New("no packet has come")})
	got := sum(4*time.Second, list)
	want := Row{
		Interval: 4, Joins: 101, Failed: 1, P50: 50, P95: 95, Max: 100,
		Answer: Spread{2, 2, 2}, Connect: Spread{3, 3, 3}, Keyframe: Spread{49, 94, 99}, Live: Spread{100, 190, 198},
		NotLive: 1, CatchUp: 49, CatchUpMax: 98, Compared: 3, LatencyDiff: 1, LatencyDiffMax: -7, TimestampsShift: 5,
		Failures: []string{"no packet has come"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Row{Interval: 1}, sum(time.Second, nil)); diff != "" {
		t.Errorf("of nothing: %s", diff)
	}
}

func TestStays(t *testing.T) {
	for _, tt := range []struct{ joins, watch int }{{100, 5}, {7, 3}, {5, 5}, {10, 0}} {
		b := &bench{cfg: Config{Joins: tt.joins, Watch: tt.watch}}
		n := 0
		for i := range tt.joins {
			if b.stays(i) {
				n++
			}
		}
		if n != tt.watch {
			t.Errorf("of %d joins %d stay, want %d", tt.joins, n, tt.watch)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nothing":              {},
		"half a second":        {Binary: "x", Dir: "x", Intervals: []time.Duration{500 * time.Millisecond}},
		"too long":             {Binary: "x", Dir: "x", Intervals: []time.Duration{11 * time.Second}},
		"negative":             {Binary: "x", Dir: "x", Parallel: -1},
		"two rows of a camera": {WHEP: "http://127.0.0.1:1/whep", Intervals: []time.Duration{time.Second, 2 * time.Second}},
	} {
		if _, err := Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), "measure joins: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRun measures for real: both ways to join, a server of one process and one
// of three.
func TestRun(t *testing.T) {
	for name, cfg := range map[string]Config{
		"whep":      {Intervals: []time.Duration{time.Second, 2 * time.Second}, Joins: 2, Parallel: 2, Watch: 1},
		"websocket": {Intervals: []time.Duration{2 * time.Second}, Joins: 4, Rounds: 2, Parallel: 2, Watch: -1, Websocket: true, Apart: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			cfg.Binary, cfg.Dir = program, t.TempDir()
			cfg.Progress = func(line string) { t.Log(line) }
			rows, err := Run(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != len(cfg.Intervals) {
				t.Fatalf("%d rows, want %d", len(rows), len(cfg.Intervals))
			}
			for i, r := range rows {
				t.Logf("%+v", r)
				if want := max(1, cfg.Rounds) * cfg.Joins; r.Joins != want || r.Failed != 0 {
					t.Errorf("%d joins and %d failures %q, want %d and none", r.Joins, r.Failed, r.Failures, want)
				}
				// Without anything that is kept there is a keyframe at the next interval.
				if worst := float64(cfg.Intervals[i].Milliseconds()) + 5000; r.P50 <= 0 || r.P95 < r.P50 || r.Max < r.P95 || r.Max > worst {
					t.Errorf("%v, %v, %v ms", r.P50, r.P95, r.Max)
				}
				if r.Answer.P50 <= 0 || r.Live.P50 < r.P50 || r.NotLive > 0 {
					t.Errorf("answer %v, live %v, not live %d", r.Answer, r.Live, r.NotLive)
				}
				if r.Compared != max(0, cfg.Watch) || r.LatencyDiffMax > 1000 || r.LatencyDiffMax < -1000 {
					t.Errorf("%d compared, at most %v ms later", r.Compared, r.LatencyDiffMax)
				}
			}
		})
	}
}

// A server without the camera is told of as it answers.
func TestRunRefused(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := Run(t.Context(), Config{WHEP: srv.URL + "/v1/cameras/none/whep", Intervals: []time.Duration{time.Second}, Joins: 1})
	if err == nil || !strings.Contains(err.Error(), "HTTP 404") {
		t.Errorf("error %v", err)
	}
}

// A viewer whose session brings nothing says how far it came.
func TestStands(t *testing.T) {
	v := &viewer{wake: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	check := func(ctx context.Context, want string) {
		t.Helper()
		if _, err := v.awaitPicture(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	check(ctx, "the peer connection is not up")
	v.state("connected")
	check(ctx, "no packet has come")
	v.begun(at(0))
	v.picture(viewertest.Picture{Key: true, Arrival: at(1)})                        // cannot be decoded
	v.picture(viewertest.Picture{ParameterSets: true, Arrival: at(2), Sent: at(1)}) // no keyframe
	check(ctx, "no whole keyframe")
	v.state("failed")
	check(t.Context(), "the peer connection is failed")
	v.picture(viewertest.Picture{Key: true, ParameterSets: true, Arrival: at(3)})
	if p, err := v.awaitPicture(t.Context()); err != nil || !p.Arrival.Equal(at(3)) {
		t.Errorf("picture %+v, error %v", p, err)
	}
	for i := range 2 * kept {
		v.picture(viewertest.Picture{Arrival: at(4 + i)})
	}
	if list := v.snapshot(); len(list) > kept || !list[len(list)-1].Arrival.Equal(at(3+2*kept)) {
		t.Errorf("%d pictures are kept, the last of %v", len(list), list[len(list)-1].Arrival.Sub(base))
	}
}
