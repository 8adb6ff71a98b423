package failover

import (
	"fmt"
	"slices"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/viewertest"
)

// Result is what was measured. Times are in milliseconds. The first five are
// the point of it.
type Result struct {
	Viewers     int     `json:"viewers"`
	GapP50      float64 `json:"gap_p50_ms"` // of each viewer's longest gap in each round
	GapP95      float64 `json:"gap_p95_ms"`
	GapMax      float64 `json:"gap_max_ms"`
	LostViewers int     `json:"lost_viewers"` // that had no picture at the end of a round, added up over the rounds

	Mode          Mode `json:"mode"`
	Rounds        int  `json:"rounds"`
	Cameras       int  `json:"cameras"`
	Nodes         int  `json:"nodes"`
	ControlPlanes int  `json:"control_planes"`
	Gateways      int  `json:"gateways"`

	FrameInterval float64 `json:"frame_interval_ms"` // the usual gap
	QuietGapMax   float64 `json:"quiet_gap_max_ms"`  // the longest gap before anything was done
	FramesSkipped int     `json:"frames_skipped"`    // missing within sessions, by RTP timestamps
	Losses        int     `json:"losses"`            // times that packets did not come, not even again
	Swaps         int     `json:"swaps"`             // from one session to another
	Reconnects    int     `json:"reconnects"`        // of websockets

	// How loaded this process was, with the cameras and the viewers in it, while
	// something was being done: its longest time without running though it wanted
	// to; the cores it used; how busy the machine was with everything, 0 to 1.
	GeneratorStall float64 `json:"generator_stall_ms"`
	GeneratorCores float64 `json:"generator_cores"`
	MachineBusy    float64 `json:"machine_busy"`

	Outage *OutageResult `json:"outage,omitempty"`
	Phases []Phase       `json:"phases,omitempty"`
	Steps  []Step        `json:"steps"`
}

// OutageResult is what came of the control planes' absence.
type OutageResult struct {
	Length       float64 `json:"length_ms"`
	Repulled     int     `json:"repulled_cameras"`   // asked to play again
	Reassigned   int     `json:"reassigned_cameras"` // another node or generation
	NewViewers   int     `json:"new_viewers"`        // that came meanwhile, of a camera that their gateway knew
	NewLost      int     `json:"new_viewers_lost"`   // of these, those without a picture
	NewViewerMax float64 `json:"new_viewer_max_ms"`  // from the beginning to the first frame
}

// Phase is how long after the cause something came, over all viewers and
// rounds.
type Phase struct {
	Name string  `json:"phase"`
	P50  float64 `json:"p50_ms"`
	P95  float64 `json:"p95_ms"`
	Max  float64 `json:"max_ms"`
}

// Step is one thing that was done.
type Step struct {
	Round  int     `json:"round"`
	What   string  `json:"what"` // "kill node-2"
	GapP50 float64 `json:"gap_p50_ms"`
	GapMax float64 `json:"gap_max_ms"`
	Lost   int     `json:"lost_viewers"`
	Stall  float64 `json:"generator_stall_ms"`
	Slow   string  `json:"slowest"` // what happened to the viewer with the longest gap
}

// sample is one viewer in one step.
type sample struct {
	round  int
	what   string
	stall  time.Duration
	sum    viewertest.Summary
	phases map[string]time.Duration
	story  string
}

// take notes what each viewer saw in a step.
func (b *bench) take(round int, what string, s span, c *clock) {
	b.measured = append(b.measured, s)
	stall := b.load.stall(s.from, s.to)
	var longest time.Duration
	lost := 0
	for i, v := range b.viewers {
		m := sample{round: round + 1, what: what, stall: stall, sum: v.Summary(s.from, s.to)}
		m.phases = c.phases(v, fleettest.Camera(i%b.cfg.Cameras), s.to)
		if m.sum.Longest.Length > longest {
			longest = m.sum.Longest.Length
			m.story = story(v, m.sum.Longest, s.from)
		}
		if m.sum.Lost {
			lost++
		}
		b.samples = append(b.samples, m)
	}
	b.say("round %d: %s: longest gap %v, %d lost, this process stalled for %v", round+1, what, longest.Round(time.Millisecond), lost, stall.Round(time.Millisecond))
}

// story says what happened around a gap, with times since the step began.
func story(v *viewertest.Follower, g viewertest.Gap, from time.Time) string {
	at := func(t time.Time) string { return fmt.Sprintf("%+d ms", t.Sub(from).Milliseconds()) }
	s := fmt.Sprintf("gap %s to %s:", at(g.Start), at(g.End()))
	for _, e := range v.Events(g.Start.Add(-100*time.Millisecond), g.End().Add(100*time.Millisecond)) {
		s += fmt.Sprintf(" %s %s %s %s;", at(e.Time), e.Kind, e.Session, e.Detail)
	}
	return s
}

// result sums up.
func (b *bench) result() Result {
	r := Result{
		Viewers: len(b.viewers), Mode: b.cfg.Mode, Rounds: b.cfg.Rounds, Cameras: b.cfg.Cameras, Nodes: b.cfg.Nodes,
		ControlPlanes: b.cfg.ControlPlanes, Gateways: b.cfg.Gateways,
		FrameInterval: ms(b.frames), QuietGapMax: ms(b.calm),
	}
	var gaps []time.Duration
	phases := map[string][]time.Duration{}
	for _, m := range b.samples {
		gaps = append(gaps, m.sum.Longest.Length)
		if m.sum.Lost {
			r.LostViewers++
		}
		r.FramesSkipped += m.sum.Skipped
		r.Losses += m.sum.Losses
		r.Swaps += m.sum.Swaps
		r.Reconnects += m.sum.Reconnects
		r.GeneratorStall = max(r.GeneratorStall, ms(m.stall))
		for name, d := range m.phases {
			phases[name] = append(phases[name], d)
		}
	}
	r.GapP50, r.GapP95, r.GapMax = ms(quantile(gaps, 0.5)), ms(quantile(gaps, 0.95)), ms(quantile(gaps, 1))
	for _, name := range phaseOrder {
		if list := phases[name]; len(list) > 0 {
			r.Phases = append(r.Phases, Phase{name, ms(quantile(list, 0.5)), ms(quantile(list, 0.95)), ms(quantile(list, 1))})
		}
	}
	r.GeneratorCores, r.MachineBusy = b.load.cpu(b.measured)
	r.Steps = steps(b.samples)
	if b.cfg.Mode == Outage {
		o := b.outage
		r.Outage = &OutageResult{ms(b.cfg.Outage), o.repulled, o.reassigned, o.newcomers, o.strangers, ms(o.slowest)}
	}
	return r
}

// steps groups samples, which are in order.
func steps(samples []sample) []Step {
	var list []Step
	var gaps []time.Duration
	for i, m := range samples {
		if n := len(list); n == 0 || list[n-1].Round != m.round || list[n-1].What != m.what {
			list = append(list, Step{Round: m.round, What: m.what, Stall: ms(m.stall)})
			gaps = nil
		}
		s := &list[len(list)-1]
		gaps = append(gaps, samples[i].sum.Longest.Length)
		s.GapP50, s.GapMax = ms(quantile(gaps, 0.5)), ms(quantile(gaps, 1))
		if m.sum.Lost {
			s.Lost++
		}
		if m.story != "" {
			s.Slow = m.story // the last one told is of the longest gap
		}
	}
	return list
}

// quantile returns the value that a share q of the values does not exceed; 0 of
// none.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(q*float64(len(s))+0.999999) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// ms is a duration in milliseconds, to a tenth.
func ms(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond)) / float64(time.Millisecond)
}
