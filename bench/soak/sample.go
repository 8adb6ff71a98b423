package soak

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sample is what there was at a time. Memory is in MiB, times in milliseconds;
// what is counted is so since the sample before.
type Sample struct {
	At string `json:"at"` // "begin", "end", or how long after the beginning

	RSS        float64 `json:"rss_mib"`  // of the fleet's processes together, and so the rest
	Heap       float64 `json:"heap_mib"` // in use, after a garbage collection
	Goroutines int     `json:"goroutines"`
	Files      int     `json:"files"` // open descriptors

	Viewers    int     `json:"viewers"`        // that have a picture
	LatencyP50 float64 `json:"latency_p50_ms"` // from the camera to the whole frame at the viewer
	LatencyP95 float64 `json:"latency_p95_ms"`

	// Of what viewers saw while their camera was well and their picture visible:
	// frames that came, frames missing by RTP timestamps, and times of more than
	// 0.5 s between two.
	Frames  int `json:"frames"`
	Lost    int `json:"frames_lost"`
	Freezes int `json:"freezes"`

	Joins       int `json:"joins"`        // first pictures
	FailedJoins int `json:"failed_joins"` // no picture within 15 s of a camera that was well
	Waits       int `json:"waits"`        // the same of a camera that was lost
	Boxes       int `json:"viewports"`    // changes of a picture's box, also to hidden and back
	Losses      int `json:"camera_losses"`
	Switches    int `json:"switches"` // from profile to profile, as the node counts them
}

// measure takes a sample.
func (b *bench) measure(ctx context.Context, at string) error {
	if err := b.server.crashed(); err != nil {
		return err
	}
	s := Sample{At: at}
	var sum counts
	now := time.Now()
	for _, slot := range b.slots {
		c, watching := slot.take(now)
		sum.add(&c)
		if watching {
			s.Viewers++
		}
	}
	s.Frames, s.Lost, s.Freezes = sum.frames, sum.lost, sum.freezes
	s.Joins, s.FailedJoins, s.Waits, s.Boxes = sum.joins, sum.failed, sum.waited, sum.boxes
	s.LatencyP50, s.LatencyP95 = millis(quantile(sum.latencies, 0.5)), millis(quantile(sum.latencies, 0.95))
	s.Losses = b.cameras.losses() - b.losses
	b.losses += s.Losses
	switches := 0
	for _, addr := range b.server.metrics {
		if err := s.addProcess(ctx, b.server, addr, &switches); err != nil {
			return fmt.Errorf("measure: %w", err)
		}
	}
	s.Switches, b.switches = switches-b.switches, switches
	b.samples = append(b.samples, s)
	b.cfg.Done(s)
	return nil
}

// addProcess adds what a process has. The heap comes first: it has the garbage
// collected.
func (s *Sample) addProcess(ctx context.Context, srv *server, addr string, switches *int) error {
	heap, err := srv.get(ctx, addr, "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return err
	}
	// "# HeapAlloc = 12345", a line of runtime.MemStats at the end of the profile.
	_, rest, ok := bytes.Cut(heap, []byte("\n# HeapAlloc = "))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	alloc, err := strconv.ParseFloat(string(line), 64)
	if !ok || err != nil {
		return fmt.Errorf("the heap profile of %s does not say how large the heap is", addr)
	}
	s.Heap = round(s.Heap+alloc/(1<<20), 2)
	text, err := srv.get(ctx, addr, "/metrics")
	if err != nil {
		return err
	}
	m := readMetrics(text)
	s.RSS = round(s.RSS+m["process_resident_memory_bytes"]/(1<<20), 1)
	s.Goroutines += int(m["go_goroutines"])
	s.Files += int(m["process_open_fds"])
	for name, v := range m {
		if strings.HasPrefix(name, "fanlight_") && strings.HasSuffix(name, "_switches_total") {
			*switches += int(v)
		}
	}
	return nil
}

// readMetrics sums the series of each metric in Prometheus' text format.
func readMetrics(text []byte) map[string]float64 {
	m := make(map[string]float64)
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		// A label's value may have blanks; nothing after it has.
		name, rest, labelled := strings.Cut(line, "{")
		if labelled {
			rest = rest[strings.LastIndexByte(rest, '}')+1:]
		} else {
			name, rest, _ = strings.Cut(line, " ")
		}
		if fields := strings.Fields(rest); len(fields) > 0 {
			if v, err := strconv.ParseFloat(fields[0], 64); err == nil {
				m[name] += v
			}
		}
	}
	return m
}

// Bound is one figure that must not have grown: it is at the end what it was at
// the beginning, or as much more as is allowed.
type Bound struct {
	What  string  `json:"what"`
	Begin float64 `json:"begin"`
	End   float64 `json:"end"`
	Most  float64 `json:"most"` // that End may be
	Kept  bool    `json:"kept"`
}

// How much more there may be at the end: a share, and something besides for what
// differs from one moment to the next. RSS is what Go has not given back to the
// system yet, so that it follows the largest heap there was.
const (
	heapShare, heapMore           = 0.15, 8  // MiB
	rssShare, rssMore             = 0.25, 32 // MiB
	goroutineShare, goroutineMore = 0.05, 20
	filesShare, filesMore         = 0.05, 10
	p50Share, p50More             = 0.5, 10 // ms, on a machine that does other things
	p95Share, p95More             = 1, 50   // ms
)

// Flat compares the first sample with the last, and looks at what must not have
// happened in any.
func Flat(samples []Sample, viewers int) (bounds []Bound, flat bool) {
	if len(samples) < 2 {
		return nil, false
	}
	a, z := samples[0], samples[len(samples)-1]
	grows := func(what string, begin, end, share, more float64) {
		most := round(begin*(1+share)+more, 1)
		bounds = append(bounds, Bound{what, begin, end, most, end <= most})
	}
	grows("heap, MiB", a.Heap, z.Heap, heapShare, heapMore)
	grows("RSS, MiB", a.RSS, z.RSS, rssShare, rssMore)
	grows("goroutines", float64(a.Goroutines), float64(z.Goroutines), goroutineShare, goroutineMore)
	grows("descriptors", float64(a.Files), float64(z.Files), filesShare, filesMore)
	grows("latency p50, ms", a.LatencyP50, z.LatencyP50, p50Share, p50More)
	grows("latency p95, ms", a.LatencyP95, z.LatencyP95, p95Share, p95More)
	failed := 0
	for _, s := range samples {
		failed += s.FailedJoins
	}
	none := func(what string, begin, end int) {
		bounds = append(bounds, Bound{what, float64(begin), float64(end), 0, end == 0})
	}
	none("viewers without a picture", viewers-a.Viewers, viewers-z.Viewers)
	none("joins that failed", a.FailedJoins, failed)
	return bounds, !slices.ContainsFunc(bounds, func(b Bound) bool { return !b.Kept })
}

func (b *bench) result() Result {
	r := Result{
		Cameras: b.cfg.Cameras, Viewers: b.cfg.Viewers, Seconds: round(b.took.Seconds(), 1), Seed: b.cfg.Seed, Apart: b.cfg.Apart,
		Samples: b.samples,
	}
	r.Bounds, r.Flat = Flat(b.samples, b.cfg.Viewers)
	return r
}

// quantile returns the value that so large a part of all is not above; 0: there
// are none.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	i := int(math.Ceil(q*float64(len(values)))) - 1
	return values[min(max(i, 0), len(values)-1)]
}

func millis(d time.Duration) float64 { return round(float64(d)/float64(time.Millisecond), 1) }

func round(v float64, digits int) float64 {
	f := math.Pow10(digits)
	return math.Round(v*f) / f
}
