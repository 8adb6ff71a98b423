package medianode

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const mbit = 1e6

// TestAdmission is the arithmetic of who is let in.
func TestAdmission(t *testing.T) {
	four := usage{cores: 4}
	for name, c := range map[string]struct {
		meter *meter
		bps   float64
		want  string // what is said; empty: admitted
	}{
		"idle":                       {&meter{maxCPU: 0.85, last: four}, 2 * mbit, ""},
		"no limits":                  {&meter{cpu: 1, egress: 900 * mbit, last: four}, 2 * mbit, ""},
		"before it was measured":     {&meter{maxCPU: 0.85}, 2 * mbit, ""},
		"overloaded":                 {&meter{maxCPU: 0.85, cpu: 0.91, overloaded: true, last: four}, 2 * mbit, "its processors are 91 % busy, its limit is 85 %"},
		"not much below yet":         {&meter{maxCPU: 0.85, cpu: 0.82, overloaded: true, last: four}, 2 * mbit, "its processors are 82 % busy after they had reached its limit, 85 %; below 80 % it goes on"},
		"as busy, from below":        {&meter{maxCPU: 0.85, cpu: 0.82, egress: 1000 * mbit, last: four}, 2 * mbit, ""},
		"room for one":               {&meter{maxCPU: 0.85, cpu: 0.848, egress: 1000 * mbit, last: four}, 2 * mbit, ""},
		"no room for one":            {&meter{maxCPU: 0.85, cpu: 0.849, egress: 1000 * mbit, last: four}, 2 * mbit, "its processors would be 86 % busy with one more, its limit is 85 %"},
		"no room for a large one":    {&meter{maxCPU: 0.85, cpu: 0.8, egress: 1000 * mbit, last: four}, 100 * mbit, "its processors would be 88 % busy with one more, its limit is 85 %"},
		"those admitted just now":    {&meter{maxCPU: 0.85, cpu: 0.8, egress: 1000 * mbit, fresh: 62 * mbit, last: four}, 2 * mbit, "its processors would be 86 % busy with one more, its limit is 85 %"},
		"those admitted before":      {&meter{maxCPU: 0.85, cpu: 0.8, egress: 1000 * mbit, reserved: 62 * mbit, last: four}, 2 * mbit, "its processors would be 86 % busy with one more, its limit is 85 %"},
		"cost not measurable":        {&meter{maxCPU: 0.85, cpu: 0.5, egress: mbit, last: four}, 690 * mbit, ""},
		"cost not measurable, much":  {&meter{maxCPU: 0.85, cpu: 0.5, egress: mbit, last: four}, 710 * mbit, "its processors would be 86 % busy with one more, its limit is 85 %"},
		"busy with something else":   {&meter{maxCPU: 0.85, cpu: 0.5, egress: 10 * mbit, last: four}, 170 * mbit, ""},
		"cameras alone cost little":  {&meter{maxCPU: 0.85, cpu: 0.1, ingress: 4000 * mbit, last: four}, 5900 * mbit, ""},
		"egress with room":           {&meter{maxEgress: 900 * mbit, egress: 890 * mbit, last: four}, 10 * mbit, ""},
		"egress without":             {&meter{maxEgress: 900 * mbit, egress: 890 * mbit, last: four}, 11 * mbit, "it would send 901.0 Mbit/s with one more, its limit is 900.0 Mbit/s"},
		"egress reserved":            {&meter{maxEgress: 900 * mbit, egress: 800 * mbit, reserved: 60 * mbit, fresh: 39 * mbit, last: four}, 2 * mbit, "it would send 901.0 Mbit/s with one more, its limit is 900.0 Mbit/s"},
		"egress beyond":              {&meter{maxEgress: 900 * mbit, egress: 940 * mbit, last: four}, 2 * mbit, "it sends 940.0 Mbit/s, its limit is 900.0 Mbit/s"},
		"egress of a small limit":    {&meter{maxEgress: mbit, last: four}, 4 * mbit, "it would send 4.0 Mbit/s with one more, its limit is 1.0 Mbit/s"},
		"more processors, more room": {&meter{maxCPU: 0.85, cpu: 0.849, egress: 1000 * mbit, last: usage{cores: 64}}, mbit, ""},
	} {
		before := c.meter.fresh
		err := c.meter.admit(c.bps)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want == "" && c.meter.fresh != before+c.bps:
			t.Errorf("%s: %v bps are reserved", name, c.meter.fresh)
		case c.want != "" && (!errors.Is(err, fleet.NodeFull) || err.Error() != "the node takes no more sessions: "+c.want):
			t.Errorf("%s: %v, want %s", name, err, c.want)
		case c.want != "" && c.meter.fresh != before:
			t.Errorf("%s: refused, and %v bps are reserved", name, c.meter.fresh)
		}
	}
}

// machine is what a meter measures: a test says how busy it is.
type machine struct {
	mu    sync.Mutex // guards the rest
	now   usage
	busy  float64 // share of its processors
	sends float64 // bits per second
}

func newMachine(cores float64) *machine {
	return &machine{now: usage{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), cores: cores}}
}

func (m *machine) set(busy, sends float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy, m.sends = busy, sends
}

// usage is a second later than the last time.
func (m *machine) usage() usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.at = m.now.at.Add(time.Second)
	m.now.cpu += time.Duration(m.busy * m.now.cores * float64(time.Second))
	m.now.udp += uint64(m.sends / 8)
	return m.now
}

// Processors that are busy for a moment refuse nobody, those that stay so do, and
// what has reached the limit must fall clearly below it.
func TestOverloaded(t *testing.T) {
	m, on := newMeter(Capacity{CPU: 0.85}), newMachine(4)
	m.measure(on.usage())
	is := func(what string, busy float64, seconds int, want bool) {
		t.Helper()
		on.set(busy, 0)
		changes := 0
		was := m.load().overloaded
		for range seconds {
			if m.measure(on.usage()) {
				changes++
			}
		}
		if l := m.load(); l.overloaded != want {
			t.Errorf("%s: overloaded is %v at %.3f", what, l.overloaded, l.cpu)
		}
		if (was != want) != (changes == 1) || changes > 1 {
			t.Errorf("%s: %d changes", what, changes)
		}
	}
	is("half busy", 0.5, 30, false)
	is("a second", 1, 1, false)
	is("half busy", 0.5, 30, false)
	is("below the limit", 0.84, 60, false)
	is("above it", 0.95, 10, true)
	is("not much below", 0.81, 60, true)
	is("clearly below", 0.78, 10, false)
	is("not much below, from there", 0.84, 60, false)
	if err := m.admit(mbit); err != nil {
		t.Error(err)
	}
}

// Reservations fade as the averages take in what they were made for: nobody
// counts twice, and nobody is forgotten.
func TestReservationsFade(t *testing.T) {
	m, on := newMeter(Capacity{CPU: 0.85, EgressBPS: 1000 * mbit}), newMachine(4)
	on.set(0.2, 200*mbit)
	for range 60 {
		m.measure(on.usage())
	}
	for range 100 {
		if err := m.admit(4 * mbit); err != nil {
			t.Fatal(err)
		}
	}
	sum := func() float64 { return m.egress + m.fresh + m.reserved }
	if math.Abs(sum()-600*mbit) > mbit {
		t.Errorf("with 400 Mbit/s reserved the node counts with %s", mbits(sum()))
	}
	m.measure(on.usage()) // they are still connecting
	on.set(0.6, 600*mbit)
	for i := range 30 {
		m.measure(on.usage())
		if math.Abs(sum()-600*mbit) > mbit {
			t.Errorf("after %d s the node counts with %s", i, mbits(sum()))
		}
	}
	if m.reserved > mbit || math.Abs(m.egress-600*mbit) > mbit {
		t.Errorf("in the end %s are reserved, %s measured", mbits(m.reserved), mbits(m.egress))
	}
	if got := m.cost() * 4; math.Abs(got-4*0.6*4/(600*mbit)) > 1e-10 {
		t.Errorf("a bit costs %v s", m.cost())
	}
}

// A thousand viewers who come within one interval are not all let in.
func TestBurstIsRefused(t *testing.T) {
	m, on := newMeter(Capacity{CPU: 0.85}), newMachine(2)
	on.set(0.25, 250*mbit) // 2 ns a bit
	for range 60 {
		m.measure(on.usage())
	}
	admitted := 0
	for range 1000 {
		if m.admit(2*mbit) == nil {
			admitted++
		}
	}
	if admitted < 295 || admitted > 305 { // 60 % of two processors, at 4 ms a second each
		t.Errorf("%d of 1000 were admitted", admitted)
	}
	for range admitted {
		m.giveBack(2 * mbit)
	}
	if m.fresh != 0 || m.reserved != 0 {
		t.Errorf("%v and %v bps are reserved for nobody", m.fresh, m.reserved)
	}
	if err := m.admit(2 * mbit); err != nil {
		t.Error(err)
	}
	m.measure(on.usage())
	m.giveBack(2 * mbit) // the measurement was between
	if m.fresh != 0 || m.reserved != 0 {
		t.Errorf("%v and %v bps are reserved for nobody", m.fresh, m.reserved)
	}
}

// A clock that stands still or goes back, and counters that do, change nothing.
func TestMeasureNonsense(t *testing.T) {
	m := newMeter(Capacity{CPU: 0.85})
	at := time.Now()
	for _, u := range []usage{
		{at: at, cpu: time.Hour, cores: 2, udp: 1000},
		{at: at, cpu: 2 * time.Hour, cores: 2, udp: 2000},
		{at: at.Add(-time.Second), cpu: 3 * time.Hour, cores: 2},
		{at: at.Add(time.Second), cpu: time.Hour, cores: 2},
	} {
		if m.measure(u) {
			t.Errorf("overloaded changed with %+v", u)
		}
	}
	if l := m.load(); l.cpu != 0 || l.egress != 0 {
		t.Errorf("load %+v", l)
	}
}

// The sampler measures each second, and ends with its context.
func TestMeasureEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		on := newMachine(2)
		var times atomic.Int32
		n := &Node{log: newLog(log), meter: newMeter(Capacity{CPU: 0.85})}
		n.cfg.measureEvery = measureEvery
		n.cfg.usage = func() usage {
			times.Add(1)
			return on.usage()
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.measure(ctx)
		}()
		step := func(busy float64, seconds int) {
			on.set(busy, 0)
			time.Sleep(time.Duration(seconds) * time.Second)
			synctest.Wait()
		}
		step(0.95, 20)
		if times := times.Load(); times != 20 || !n.meter.load().overloaded || math.Abs(n.meter.load().cpu-0.95) > 0.01 {
			t.Errorf("after %d measurements in 20 s: %+v", times, n.meter.load())
		}
		step(0.1, 20)
		if n.meter.load().overloaded {
			t.Errorf("overloaded: %+v", n.meter.load())
		}
		cancel()
		<-done
		if s := log.String(); strings.Count(s, "node overloaded") != 1 || strings.Count(s, "takes sessions again") != 1 || !strings.Contains(s, `"limit":"85 %"`) {
			t.Errorf("logged %s", s)
		}
	})
}

// TestOverloadedNode fills a node's processors: who watches goes on, who comes is
// refused, and is let in when they are clearly less busy.
func TestOverloadedNode(t *testing.T) {
	on := newMachine(4)
	on.set(0.3, 0)
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{
		Capacity: Capacity{CPU: 0.85}, usage: on.usage, measureEvery: 5 * time.Millisecond,
	})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	old := r.watch(t, lobby(), viewertest.Config{})
	old.waitFrames(t, 5)

	on.set(0.95, 0)
	r.exports(t, `fanlight_node_overloaded{node="node-1"} 1`, `fanlight_node_capacity_cpu_utilization{node="node-1"} 0.85`)
	r.control.wait(t, "the control plane to hear of it", func() bool {
		return len(r.control.loads) > 0 && r.control.loads[len(r.control.loads)-1].GetOverloaded()
	})
	if got := r.control.hellos[0].GetCapacity().GetCpuUtilization(); got != 0.85 {
		t.Errorf("the control plane was told of a limit of %v", got)
	}
	err := r.watch(t, lobby(), viewertest.Config{}).ended(t)
	if !errors.Is(err, fleet.NodeFull) || !strings.Contains(err.Error(), "% busy, its limit is 85 %") {
		t.Errorf("on processors that are 95 %% busy: %v", err)
	}
	r.exports(t, `fanlight_node_session_opens_total{node="node-1",result="node_full"} 1`)
	old.waitFrames(t, 10)

	on.set(0.82, 0)
	eventually(t, "82 %", func() bool { return r.node.meter.load().cpu < 0.825 })
	if err := r.watch(t, lobby(), viewertest.Config{}).ended(t); !errors.Is(err, fleet.NodeFull) {
		t.Errorf("on processors that are 82 %% busy: %v", err)
	}
	on.set(0.5, 0)
	r.exports(t, `fanlight_node_overloaded{node="node-1"} 0`)
	r.watch(t, lobby(), viewertest.Config{}).waitFrames(t, 5)
	old.waitFrames(t, 5)
}

// A viewer whose gateway is gone comes back through another also when the node
// is full, once.
func TestOverloadedNodeTakesOrphansBack(t *testing.T) {
	on := newMachine(4)
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{
		Capacity: Capacity{CPU: 0.85}, usage: on.usage, measureEvery: 5 * time.Millisecond,
	})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	old := r.watch(t, lobby(), viewertest.Config{})
	old.waitFrames(t, 5)
	on.set(1, 0)
	r.exports(t, `fanlight_node_overloaded{node="node-1"} 1`)
	old.vanish()
	r.exports(t, `fanlight_node_orphaned_sessions{node="node-1"} 1`)
	bad := &mediav1.Open{Camera: "cameras/lobby", Generation: 1, Offer: "v=1"}
	if err := r.watch(t, bad, viewertest.Config{}).ended(t); !errors.Is(err, fleet.BadOffer) { // takes nobody's place
		t.Errorf("a bad offer: %v", err)
	}
	back := r.watch(t, lobby(), viewertest.Config{})
	back.waitFrames(t, 5)
	if err := r.watch(t, lobby(), viewertest.Config{}).ended(t); !errors.Is(err, fleet.NodeFull) {
		t.Errorf("a second one: %v", err)
	}
	old.waitFrames(t, 5)
}

// What the node measures of itself: what it really sends, and that it needs
// processors for it. A limit of what it sends refuses who would exceed it.
func TestEgressIsMeasured(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{Capacity: Capacity{EgressBPS: 100_000_000}})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	eventually(t, "load", func() bool {
		l := r.node.meter.load()
		return l.egress > 50_000 && l.ingress > 50_000 && l.cpu > 0
	})
	l := r.node.meter.load()
	t.Logf("ingress %s, egress %s, processors %.1f %% busy", mbits(l.ingress), mbits(l.egress), 100*l.cpu)
	if l.cpu > 1 || l.egress > 10*l.ingress {
		t.Errorf("load %+v", l)
	}
	if err := r.node.meter.admit(100_000_000); !errors.Is(err, fleet.NodeFull) {
		t.Errorf("a session of 100 Mbit/s: %v", err)
	}
}

func BenchmarkAdmit(b *testing.B) {
	m := newMeter(Capacity{CPU: 0.85, EgressBPS: math.MaxInt64})
	m.measure(newMachine(4).usage())
	for b.Loop() {
		if err := m.admit(1); err != nil {
			b.Fatal(fmt.Errorf("admit: %w", err))
		}
	}
}
