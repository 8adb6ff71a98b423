package soak

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build builds the program that is measured, with the race detector.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "fanlight")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-race", "-o", binary, "fanlight/cmd/fanlight")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return binary
}

// A short soak, of everything in one process and of three: it measures all that
// it promises, nobody's picture is lost, and no process races. Whether it is
// flat a few seconds cannot tell.
func TestSoak(t *testing.T) {
	binary := build(t)
	for _, apart := range []bool{false, true} {
		t.Run(fmt.Sprintf("apart %v", apart), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			told := 0
			res, err := Run(ctx, Config{
				Binary: binary, Dir: t.TempDir(), Cameras: 2, Viewers: 4, Duration: 10 * time.Second, Interval: 5 * time.Second, Seed: 7, Apart: apart, hurry: 6,
				Progress: func(line string) { t.Log(line) }, Done: func(s Sample) { told++; t.Logf("%+v", s) },
			})
			if err != nil {
				t.Fatal(err)
			}
			check(t, &res, told)
		})
	}
}

func check(t *testing.T, res *Result, told int) {
	t.Helper()
	t.Logf("%+v", res.Bounds)
	if len(res.Samples) != told || told < 3 || res.Begin().At != "begin" || res.End().At != "end" {
		t.Fatalf("%d samples, told of %d: %+v", len(res.Samples), told, res.Samples)
	}
	joins, boxes, losses := 0, 0, 0
	for _, s := range res.Samples {
		joins, boxes, losses = joins+s.Joins, boxes+s.Boxes, losses+s.Losses
		if s.RSS <= 0 || s.Heap <= 0 || s.Heap > s.RSS || s.Goroutines < 10 || s.Files < 5 {
			t.Errorf("sample %+v", s)
		}
	}
	if joins < 6 || boxes == 0 || losses == 0 {
		t.Errorf("%d joins, %d changes of a box, %d losses of cameras: nothing happened", joins, boxes, losses)
	}
	for _, s := range []Sample{res.Begin(), res.End()} {
		if s.Viewers != 4 || s.LatencyP50 <= 0 || s.LatencyP95 < s.LatencyP50 || s.Frames == 0 {
			t.Errorf("at the %s: %+v", s.At, s)
		}
	}
}

// What grows is found, each figure by itself, and so is what failed.
func TestFlat(t *testing.T) {
	good := Sample{RSS: 100, Heap: 30, Goroutines: 500, Files: 60, Viewers: 4, LatencyP50: 3, LatencyP95: 9}
	worse := func(change func(*Sample)) []Sample {
		bad := good
		change(&bad)
		return []Sample{good, good, bad}
	}
	for what, c := range map[string]struct {
		samples []Sample
		broken  []string
	}{
		"nothing":  {[]Sample{good, good}, nil},
		"a little": {worse(func(s *Sample) { s.RSS, s.Heap, s.Goroutines, s.Files, s.LatencyP50 = 110, 31, 510, 63, 9 }), nil},
		"heap":     {worse(func(s *Sample) { s.Heap = 43 }), []string{"heap, MiB"}},
		"RSS":      {worse(func(s *Sample) { s.RSS = 158 }), []string{"RSS, MiB"}},
		"routines": {worse(func(s *Sample) { s.Goroutines = 546 }), []string{"goroutines"}},
		"files":    {worse(func(s *Sample) { s.Files = 74 }), []string{"descriptors"}},
		"latency":  {worse(func(s *Sample) { s.LatencyP50, s.LatencyP95 = 15, 69 }), []string{"latency p50, ms", "latency p95, ms"}},
		"a viewer": {worse(func(s *Sample) { s.Viewers = 3 }), []string{"viewers without a picture"}},
		"a join":   {append([]Sample{{FailedJoins: 1, Viewers: 4}}, worse(func(*Sample) {})[1:]...), nil},
	} {
		bounds, flat := Flat(c.samples, 4)
		var broken []string
		for _, b := range bounds {
			if !b.Kept {
				broken = append(broken, b.What)
			}
		}
		if what == "a join" {
			if flat || broken[len(broken)-1] != "joins that failed" {
				t.Errorf("a join that failed: %v", broken)
			}
			continue
		}
		if diff := cmp.Diff(c.broken, broken); diff != "" || flat != (len(c.broken) == 0) {
			t.Errorf("%s: flat %v (-want +got):\n%s", what, flat, diff)
		}
	}
	if _, flat := Flat([]Sample{good}, 4); flat {
		t.Error("a single sample is flat")
	}
}

func TestReadMetrics(t *testing.T) {
	got := readMetrics([]byte("# HELP a b\na 1.5\nb{x=\"y } 3\",z=\"\"} 2\nb{x=\"z\"} 40 1700000000\nc NaNa\n\n"))
	want := map[string]float64{"a": 1.5, "b": 42}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfig(t *testing.T) {
	for what, bad := range map[string]Config{
		"no binary":   {Dir: t.TempDir()},
		"negative":    {Binary: "x", Dir: "y", Viewers: -1},
		"too short":   {Binary: "x", Dir: "y", Duration: time.Second},
		"no program":  {Binary: "/nonexistent/fanlight", Dir: t.TempDir(), Cameras: 1, Viewers: 1},
		"no interval": {Binary: "x", Dir: "y", Interval: time.Millisecond},
	} {
		if _, err := Run(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
