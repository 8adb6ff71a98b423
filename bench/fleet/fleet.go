// Package fleet measures the control plane at the size of a fleet.
//
// It runs the replicas as real processes on this machine
// ([fanlight/internal/fleettest]), which keep their state in the etcd that they
// embed, registers cameras through the operators' API, and plays the media nodes
// in this process: each is a gRPC connection of its own with a control stream,
// which applies the desired sets that it is sent, answers them, reports every
// camera LIVE and plays its part in moves. No camera is pulled, and nobody
// watches: media costs the control plane nothing.
//
// What is timed ends when a node has been *told*: a camera counts as assigned
// when the desired set with it has arrived at its node.
//
//	register   BatchCreateCameras of all cameras, until the last has returned
//	assigned   from the first node's connecting until each camera is at a node
//	join       one node more: the moves that it causes, until there are no more
//	death      a node's connection ends, as when its process is killed, until
//	           the last of its cameras is at another node; again and again
//	leader     kill -9 of the replica that places cameras, until a camera that is
//	           created from then on is at a node
//
// The nodes are given room for their share of the cameras at first, and for
// twice as many once all are assigned, for which they reconnect: so the fleet is
// in balance when a node joins, and has room when one dies.
//
// [Placement] measures the planning alone, for fleets that no single machine can
// simulate.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"fanlight/internal/fleettest"
)

// Config is what is measured. Binary and Dir are needed.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run
	Dir    string       // of the replicas' logs and data

	Cameras  int // 1 at least
	Nodes    int // 2 at least
	Replicas int // 0: 3
	Deaths   int // of nodes; 0: 20, but no more than a quarter of the nodes

	// CPUProfile and MemProfile are files for the replicas' profiles, each with
	// the replica's name added: of the time from the first node to the end, 30 s at
	// most, and of the heap at the end. Empty: none.
	CPUProfile, MemProfile string

	// Progress is told what is being done, a line each; nil: nobody is.
	Progress func(line string)
}

// How long things may take before the measurement is given up.
const (
	startLimit    = 3 * time.Minute
	registerLimit = 20 * time.Minute
	assignLimit   = 20 * time.Minute
	liftLimit     = 5 * time.Minute
	joinLimit     = 15 * time.Minute
	deathLimit    = 2 * time.Minute
	leaderLimit   = 3 * time.Minute
)

const (
	defaultReplicas = 3
	defaultDeaths   = 20
	// quiet is how long nothing must move for moves to have ended: longer than a
	// node must have been there before cameras move to it.
	quiet = 20 * time.Second
	// deathEvery is how long the fleet has between two deaths.
	deathEvery = 500 * time.Millisecond
)

func (c *Config) defaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Replicas == 0 {
		c.Replicas = defaultReplicas
	}
	if c.Deaths == 0 {
		c.Deaths = defaultDeaths
	}
	c.Deaths = min(c.Deaths, max(1, c.Nodes/4))
	if c.Binary == "" || c.Dir == "" {
		return errors.New("bench fleet: a binary and a directory are needed")
	}
	if c.Cameras < 1 || c.Nodes < 2 || c.Replicas < 1 || c.Deaths < 1 {
		return errors.New("bench fleet: at least one camera, two nodes and one replica are needed")
	}
	return nil
}

// bench is one measurement.
type bench struct {
	// Static after newBench.
	cfg     Config
	fleet   *fleettest.Fleet
	tracker *tracker
	usage   *usage
	metrics map[string]string // each replica's address for profiles

	// Owned by Run.
	nodes  *nodes
	began  time.Time
	result Result
}

// Run measures. What it started has ended when it returns, also after an error.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	if err := cfg.defaults(); err != nil {
		return Result{}, err
	}
	b, err := newBench(cfg)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		b.nodes.stop()
		cancel()
		b.usage.wait()
		if closed := b.fleet.Close(); err == nil {
			err = closed
		}
	}()
	b.usage.start(ctx)
	for _, step := range []struct {
		name  string
		limit time.Duration
		do    func(context.Context) error
	}{
		{"start the control plane", startLimit, b.start},
		{"register cameras", registerLimit, b.register},
		{"assign cameras", assignLimit, b.assign},
		{"give the nodes more room", liftLimit, b.lift},
		{"let a node join", joinLimit, b.join},
		{"end nodes", time.Duration(cfg.Deaths) * deathLimit, b.deaths},
		{"end the leader", leaderLimit, b.leaderDeath},
		{"collect", deathLimit, b.collect},
	} {
		b.progress("%s", step.name)
		if err := b.step(ctx, step.limit, step.do); err != nil {
			return b.result, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return b.result, nil
}

// step does one thing in a bounded time. A replica that ended by itself is the
// reason for anything that failed.
func (b *bench) step(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	stepCtx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	err := do(stepCtx)
	if crashed := b.fleet.Crashed(); crashed != nil {
		return errors.Join(crashed, err)
	}
	if err != nil && stepCtx.Err() != nil {
		return errors.Join(context.Cause(stepCtx), err)
	}
	return err
}

func newBench(cfg Config) (*bench, error) {
	b := &bench{cfg: cfg, tracker: newTracker(cfg.Cameras + 1), metrics: make(map[string]string), began: time.Now()}
	if cfg.CPUProfile != "" || cfg.MemProfile != "" {
		for i := range cfg.Replicas {
			addr, err := freeAddr()
			if err != nil {
				return nil, err
			}
			b.metrics[fmt.Sprintf("plane-%d", i+1)] = addr
		}
	}
	var err error
	b.fleet, err = fleettest.New(fleettest.Config{
		Log: cfg.Log, Binary: cfg.Binary, Dir: cfg.Dir, LogLevel: "warn",
		ControlPlanes: cfg.Replicas, Cameras: 1, // the nodes and gateways that it has are not started
		Args: func(_ fleettest.Kind, name string) []string { return []string{"--metrics", b.metrics[name]} },
	})
	if err != nil {
		return nil, fmt.Errorf("bench fleet: %w", err)
	}
	b.usage = newUsage(b.fleet.Planes)
	b.nodes = newNodes(b.fleet.Planes, b.tracker)
	b.result = Result{Cameras: cfg.Cameras, Nodes: cfg.Nodes, Replicas: cfg.Replicas, Deaths: cfg.Deaths}
	return b, nil
}

func (b *bench) progress(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

func (b *bench) start(ctx context.Context) error {
	for _, p := range b.fleet.Planes {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range b.fleet.Planes {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}
