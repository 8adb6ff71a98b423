// Package soak measures whether anything of a fleet grows with time.
//
// It runs a fleet of processes on this machine ([fanlight/internal/fleettest])
// with simulated cameras, each with a main and a sub profile, and viewers that
// follow them as the page's player does. For as long as asked the viewers come
// and go at random, change the size of their pictures, hide and show them, and
// cameras are lost and come back. What the fleet's processes have is measured
// before and after that under the same conditions, with all viewers watching and
// all cameras well, and now and then between. See [Flat] for what may differ.
//
// What happens is random and follows from a seed, but for when: that is the
// machine's too. Cameras and viewers are in the measuring process, which is not
// measured.
package soak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Config is what is done. Binary and Dir are needed.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run
	Dir    string       // of the processes' logs and data
	Env    []string     // added to the environment of what is measured: "KEY=value"

	Cameras  int           // 0: 6
	Viewers  int           // that watch at most; 0: 24
	Duration time.Duration // without the beginning and the end; 10 s at least; 0: 30 min
	Warmup   time.Duration // of the same, before the first measurement; 0: a tenth of Duration, 2 min at most
	Interval time.Duration // between measurements; 0: a thirtieth of Duration, 10 s at least
	Seed     uint64
	Apart    bool // control plane, node and gateway are processes of their own; else they are one

	hurry int // in tests: how many times more happens; 0: 1

	// Progress is told what is being done, a line each; nil: nobody is.
	Progress func(line string)
	// Done is told of each sample as soon as it is there; nil: nobody is.
	Done func(Sample)
}

// The least that makes sense.
const (
	minDuration = 10 * time.Second
	minInterval = 5 * time.Second
	maxWarmup   = 2 * time.Minute
)

func (c *Config) defaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Done == nil {
		c.Done = func(Sample) {}
	}
	if c.Cameras == 0 {
		c.Cameras = 6
	}
	if c.Viewers == 0 {
		c.Viewers = 24
	}
	if c.Duration == 0 {
		c.Duration = 30 * time.Minute
	}
	c.hurry = max(c.hurry, 1)
	if c.Warmup == 0 {
		c.Warmup = min(c.Duration/10, maxWarmup)
	}
	if c.Interval == 0 {
		c.Interval = max(c.Duration/30, minInterval)
	}
	switch {
	case c.Binary == "" || c.Dir == "":
		return errors.New("a binary and a directory are needed")
	case c.Cameras < 0 || c.Viewers < 0 || c.Warmup < 0:
		return errors.New("a number is negative")
	case c.Duration < minDuration || c.Interval < time.Second:
		return fmt.Errorf("%v with a measurement each %v: must be %v and 1s at least", c.Duration, c.Interval, minDuration)
	}
	return nil
}

// Result is what was measured.
type Result struct {
	Cameras int      `json:"cameras"`
	Viewers int      `json:"viewers"`
	Seconds float64  `json:"seconds"`
	Seed    uint64   `json:"seed"`
	Apart   bool     `json:"apart"`
	Samples []Sample `json:"samples"` // the first is of the beginning, the last of the end
	Bounds  []Bound  `json:"bounds"`
	Flat    bool     `json:"flat"` // all bounds were kept
}

// Begin returns the sample of the beginning.
func (r *Result) Begin() Sample { return r.Samples[0] }

// End returns the sample of the end.
func (r *Result) End() Sample { return r.Samples[len(r.Samples)-1] }

// How long things may take before the measurement is given up, and how long it
// watches.
const (
	startLimit = 2 * time.Minute
	stopLimit  = 20 * time.Second
	calmLimit  = 2 * time.Minute  // until all viewers have a picture that goes on
	calmAtMost = 20 * time.Second // in which all viewers watch, before and while it is measured
	calmShare  = 10               // of Duration, for short ones
	lookAgain  = 50 * time.Millisecond
)

// Run measures. It returns when everything has ended; the error says what could
// not be done, or which process ended by itself. What has grown is no error but
// a figure.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	if err := cfg.defaults(); err != nil {
		return Result{}, fmt.Errorf("soak: %w", err)
	}
	s, err := newServer(&cfg)
	if err != nil {
		return Result{}, fmt.Errorf("soak: %w", err)
	}
	b := &bench{cfg: &cfg, server: s, gate: newGate(), calm: max(min(cfg.Duration/calmShare, calmAtMost), 2*time.Second)}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		b.work.Wait()
		if serr := s.stop(); serr != nil {
			err = errors.Join(err, fmt.Errorf("soak: %w", serr))
		}
	}()
	if err := b.run(ctx); err != nil {
		return Result{}, fmt.Errorf("soak: %w", err)
	}
	return b.result(), nil
}

// bench is one measurement. Its methods are called one after another.
type bench struct {
	// Static after Run has made it.
	cfg    *Config
	server *server
	gate   *gate
	calm   time.Duration // how long all watch before it is measured, and while it is

	work    sync.WaitGroup // viewers and what loses cameras, until Run's ctx ends
	slots   []*slot
	cameras *cameras

	samples  []Sample
	losses   int // of cameras, until the last sample
	switches int // likewise
	took     time.Duration
}

func (b *bench) say(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

func (b *bench) run(ctx context.Context) error {
	if err := b.server.start(ctx); err != nil {
		return err
	}
	b.cameras = newCameras(b.server, rand.New(rand.NewPCG(b.cfg.Seed, 1<<32)))
	b.work.Go(func() { b.cameras.run(ctx, b.gate) })
	for i := range b.cfg.Viewers {
		s := newSlot(b, i)
		b.slots = append(b.slots, s)
		b.work.Go(func() { s.run(ctx) })
	}
	b.say("%d cameras, %d viewers; warming up for %v", b.cfg.Cameras, b.cfg.Viewers, b.cfg.Warmup)
	if err := sleep(ctx, b.cfg.Warmup); err != nil {
		return err
	}
	if err := b.measureCalm(ctx, "begin"); err != nil {
		return err
	}
	b.say("for %v viewers come and go, and cameras are lost", b.cfg.Duration)
	began := time.Now()
	for time.Since(began) < b.cfg.Duration {
		if err := sleep(ctx, min(b.cfg.Interval, b.cfg.Duration-time.Since(began))); err != nil {
			return err
		}
		now := time.Now()
		if b.cfg.Duration-now.Sub(began) < b.cfg.Interval/2 {
			break // the end is measured anyway
		}
		if err := b.measure(ctx, now.Sub(began).Round(time.Second).String()); err != nil {
			return err
		}
	}
	b.took = time.Since(began)
	return b.measureCalm(ctx, "end")
}

// measureCalm measures while all viewers watch and no camera is lost.
func (b *bench) measureCalm(ctx context.Context, at string) error {
	b.gate.set(true)
	defer b.gate.set(false)
	limit, cancel := context.WithTimeout(ctx, calmLimit)
	defer cancel()
	for {
		if err := sleep(limit, b.calm); err != nil {
			break // those without a picture are counted
		}
		if now := time.Now(); b.silent(now.Add(-b.calm/2), now) == 0 && b.cameras.well(now) {
			break
		}
	}
	for _, s := range b.slots {
		s.dropLatencies()
	}
	if err := sleep(ctx, b.calm); err != nil {
		return err
	}
	return b.measure(ctx, at)
}

// silent counts the viewers whose picture did not move in a span of time.
func (b *bench) silent(from, to time.Time) (n int) {
	for _, s := range b.slots {
		if len(s.frames(from, to)) == 0 {
			n++
		}
	}
	return n
}

// sleep waits, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gate tells everybody whether it is calm: whether everything stands as it is.
type gate struct {
	mu      sync.Mutex // guards the rest
	calm    bool
	changed chan struct{} // closed and replaced when calm changes
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) set(calm bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calm = calm
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) look() (calm bool, changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calm, g.changed
}

// pause waits for a time, for the gate, or for the end of ctx.
func (g *gate) pause(ctx context.Context, d time.Duration) {
	_, changed := g.look()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
	}
}

// hold waits until it is no longer calm.
func (g *gate) hold(ctx context.Context) {
	for ctx.Err() == nil {
		calm, changed := g.look()
		if !calm {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}
