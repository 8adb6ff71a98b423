// Package failover measures what viewers see when a part of a fleet ends, by
// accident or on purpose.
//
// It runs a whole fleet of real processes on this machine
// ([fanlight/internal/fleettest]) with simulated cameras and viewers that follow
// their camera as the page's player does ([fanlight/internal/viewertest]), and
// keeps the time of every frame that each viewer could have shown. A gap is the
// time between two frames that were shown one after the other.
//
//   - [Kill]: kill -9 of the node that has all cameras and all viewers, again and
//     again. A viewer's gap is from the last frame of the old node to the first
//     of the new one.
//   - [Drain]: the node is drained instead.
//   - [Rolling]: every process is stopped (SIGTERM) and started again, one after
//     another.
//   - [Outage]: all control planes are killed, and started again after a while.
//
// Cameras, viewers and the load balancer are in the measuring process. How busy
// the machine was, and for how long this process did not run when it wanted to,
// is part of the result: a gap is no longer than the two together explain.
package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/viewertest"
)

// Mode is what is done to the fleet.
type Mode string

// The modes.
const (
	Kill    Mode = "kill"
	Drain   Mode = "drain"
	Rolling Mode = "rolling"
	Outage  Mode = "outage"
)

// Config is what is measured. Binary and Dir are needed.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run
	Dir    string       // of the fleet's logs
	Data   string       // of the control planes' data; "": Dir
	Env    []string     // added to the environment of the fleet's processes: "KEY=value"

	Mode             Mode          // "": Kill
	Cameras          int           // 0: 20
	Viewers          int           // spread over the cameras; 0: 40
	Rounds           int           // 0: 1
	Nodes            int           // 2 at least; 0: 3
	ControlPlanes    int           // 0: 3
	Gateways         int           // 0: 2
	KeyframeInterval time.Duration // of the cameras, whole seconds; 0: 1 s
	Outage           time.Duration // how long there is no control plane; 0: 30 s

	// Progress is told what is being done, a line each; nil: nobody is.
	Progress func(line string)
}

// How long things may take before the measurement is given up, and how long it
// watches after them.
const (
	startLimit = 3 * time.Minute
	stepLimit  = 2 * time.Minute
	roundLimit = 20 * time.Second        // for viewers to have a picture again
	quiet      = 1500 * time.Millisecond // before and after what is done
	settled    = 12 * time.Second        // after an outage: nodes that had not come back would have lost their cameras by then
	lookAgain  = 20 * time.Millisecond
	joinEvery  = 20 * time.Millisecond // between viewers that come
)

func (c *Config) defaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Mode == "" {
		c.Mode = Kill
	}
	for _, d := range []struct {
		value     *int
		otherwise int
	}{{&c.Cameras, 20}, {&c.Viewers, 40}, {&c.Rounds, 1}, {&c.Nodes, 3}, {&c.ControlPlanes, 3}, {&c.Gateways, 2}} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < 0 {
			return errors.New("a number is negative")
		}
	}
	if c.Nodes < 2 {
		return fmt.Errorf("%d node: there must be another for its cameras", c.Nodes)
	}
	if c.Outage == 0 {
		c.Outage = 30 * time.Second
	}
	return nil
}

// args has control planes leave all cameras on the node that is to end, where
// there is one.
func (c *Config) args(kind fleettest.Kind, _ string) []string {
	if kind == fleettest.ControlPlane && (c.Mode == Kill || c.Mode == Drain) {
		return []string{"--rebalance-moves", "0"}
	}
	return nil
}

// Run measures. It returns when the fleet has ended; the error says which part
// of it is to blame, with the end of its log, or that a process ended by itself.
// A viewer that lost its picture is no error but a figure.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	if err := cfg.defaults(); err != nil {
		return Result{}, fmt.Errorf("measure failover: %w", err)
	}
	f, err := fleettest.New(fleettest.Config{
		Log: cfg.Log, Binary: cfg.Binary, Dir: cfg.Dir, Data: cfg.Data, Env: cfg.Env, ControlPlanes: cfg.ControlPlanes, Nodes: cfg.Nodes, Gateways: cfg.Gateways,
		Cameras: cfg.Cameras, KeyframeInterval: cfg.KeyframeInterval, Args: cfg.args,
	})
	if err != nil {
		return Result{}, fmt.Errorf("measure failover: %w", err)
	}
	b := &bench{cfg: cfg, fleet: f, load: newLoad()}
	ctx, cancel := context.WithCancel(ctx)
	b.audience.Go(func() { b.load.run(ctx) })
	defer func() {
		cancel()
		b.audience.Wait()
		if cerr := f.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("measure failover: %w", cerr))
		}
	}()
	if err := b.prepare(ctx); err != nil {
		return Result{}, fmt.Errorf("measure failover: %w", err)
	}
	if err := b.measure(ctx); err != nil {
		return Result{}, fmt.Errorf("measure failover: %w", err)
	}
	return b.result(), nil
}

// bench is one measurement. Its methods are called one after another.
type bench struct {
	cfg      Config
	fleet    *fleettest.Fleet
	load     *load
	viewers  []*viewertest.Follower
	audience sync.WaitGroup // the viewers and load, until Run's ctx ends

	frames   time.Duration // the interval between frames, in quiet
	calm     time.Duration // the longest gap in quiet
	samples  []sample
	outage   outage
	measured []span // when what is measured was under way
}

// span is from one time to another.
type span struct{ from, to time.Time }

func (b *bench) say(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

// prepare starts the fleet and the viewers, and watches them in quiet.
func (b *bench) prepare(ctx context.Context) error {
	start, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	b.say("starting %d control planes, %d nodes, %d gateways", b.cfg.ControlPlanes, b.cfg.Nodes, b.cfg.Gateways)
	if err := b.fleet.Start(start); err != nil {
		return err
	}
	if err := b.fleet.CreateCameras(start); err != nil {
		return err
	}
	b.say("%d cameras are live; %d viewers come", b.cfg.Cameras, b.cfg.Viewers)
	for i := range b.cfg.Viewers {
		v, err := b.fleet.Follow(fleettest.Camera(i % b.cfg.Cameras))
		if err != nil {
			return err
		}
		b.watch(ctx, v)
		pause(start, joinEvery)
	}
	for _, v := range b.viewers {
		if err := v.AwaitFrame(start, time.Time{}); err != nil {
			return err
		}
	}
	from := time.Now()
	pause(start, 2*quiet)
	to := time.Now()
	for _, v := range b.viewers {
		s := v.Summary(from, to)
		b.frames = max(b.frames, s.Usual)
		b.calm = max(b.calm, s.Longest.Length)
	}
	b.say("a frame every %v; in quiet the longest gap is %v, this process stalls for %v at most",
		b.frames.Round(time.Millisecond), b.calm.Round(time.Millisecond), b.load.stall(from, to).Round(time.Millisecond))
	return start.Err()
}

// watch has a viewer run until the end of the measurement.
func (b *bench) watch(ctx context.Context, v *viewertest.Follower) {
	b.viewers = append(b.viewers, v)
	b.audience.Go(func() { _ = v.Run(ctx) }) // its error is always nil
}

func (b *bench) measure(ctx context.Context) error {
	for round := range b.cfg.Rounds {
		var err error
		switch b.cfg.Mode {
		case Kill:
			err = b.kill(ctx, round)
		case Drain:
			err = b.drain(ctx, round)
		case Rolling:
			err = b.roll(ctx, round)
		case Outage:
			err = b.darken(ctx, round)
		default:
			err = fmt.Errorf("no mode is named %q", b.cfg.Mode)
		}
		if err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		if err := b.fleet.Crashed(); err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	return ctx.Err()
}

// await looks again and again until every viewer fits; those that do not after
// a while are counted.
func (b *bench) await(ctx context.Context, limit time.Duration, fits func(*viewertest.Follower) bool) (missing int) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		missing = 0
		for _, v := range b.viewers {
			if !fits(v) {
				missing++
			}
		}
		if missing == 0 || ctx.Err() != nil {
			return missing
		}
		pause(ctx, lookAgain)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
