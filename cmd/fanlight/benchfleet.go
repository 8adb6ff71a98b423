package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"fanlight/bench/fleet"
	"fanlight/internal/service"
)

type benchFleetFlags struct {
	cfg              fleet.Config
	placementCameras int
	placementNodes   int
	placementOnly    bool
	dir              string
	output           string
	verbose          bool
}

func newBenchFleet(a *app) *cobra.Command {
	f := benchFleetFlags{}
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Measure the control plane at the size of a fleet",
		Long: `Run control planes on this machine, register cameras with them, and simulate
media nodes over gRPC, each with a connection of its own: how long until all
cameras are registered, and assigned; how long until the cameras of a node that
dies are at others, and until the next camera is assigned when the leader dies;
what moves when a node joins; and what memory and CPU the control planes use.

Then plan, in this process alone, for --placement-cameras on --placement-nodes.`,
		Example: "  fanlight bench fleet --cameras 100000 --nodes 1000\n  fanlight bench fleet --placement-only -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.cfg.Cameras, "cameras", 100_000, "`cameras` to register")
	fl.IntVar(&f.cfg.Nodes, "nodes", 1000, "simulated `nodes`")
	fl.IntVar(&f.cfg.Replicas, "replicas", 3, "control `planes`, which keep the state among themselves")
	fl.IntVar(&f.cfg.Deaths, "deaths", 20, "`nodes` to end, one after another; a quarter of all at most")
	fl.IntVar(&f.placementCameras, "placement-cameras", 1_000_000, "`cameras` of the plan")
	fl.IntVar(&f.placementNodes, "placement-nodes", 10_000, "`nodes` of the plan; 0: no plan")
	fl.BoolVar(&f.placementOnly, "placement-only", false, "nothing but the plan")
	fl.StringVar(&f.cfg.CPUProfile, "cpuprofile", "", "`file` for the control planes' CPU profiles while cameras are assigned, 30 s; \".plane-1\" … is added")
	fl.StringVar(&f.cfg.MemProfile, "memprofile", "", "`file` for their heaps at the end, likewise")
	fl.StringVar(&f.dir, "dir", "", "`directory` for the processes' logs and data, which are left (default: a temporary one, left only after a failure)")
	fl.BoolVar(&f.verbose, "verbose", false, "print what is done")
	fl.StringVarP(&f.output, "output", "o", "table", "print `table|json`")
	return cmd
}

func (f *benchFleetFlags) check() error {
	switch {
	case f.output != "table" && f.output != "json":
		return usagef("--output %s: must be table or json", f.output)
	case f.cfg.Cameras < 1 || f.cfg.Cameras > 1_000_000 || f.cfg.Nodes < 2 || f.cfg.Nodes > 5000:
		return usagef("--cameras must be 1 to 1000000, --nodes 2 to 5000")
	case f.cfg.Replicas < 1 || f.cfg.Replicas > 7 || f.cfg.Deaths < 1:
		return usagef("--replicas must be 1 to 7, --deaths 1 at least")
	case f.placementCameras < 1 || f.placementCameras > 10_000_000 || f.placementNodes != 0 && f.placementNodes < 20 || f.placementNodes > 100_000:
		return usagef("--placement-cameras must be 1 to 10000000, --placement-nodes 20 to 100000, or 0")
	case f.placementOnly && f.placementNodes == 0:
		return usagef("--placement-only with --placement-nodes 0 leaves nothing to do")
	}
	return nil
}

// benchFleetResult is what "bench fleet -o json" prints.
type benchFleetResult struct {
	*fleet.Result
	Placement *fleet.PlacementResult `json:"placement,omitempty"`
}

func (f *benchFleetFlags) run(ctx context.Context, a *app) (err error) {
	log, err := service.NewLogger(a.stderr, "text", "warn")
	if err != nil {
		return err
	}
	if f.verbose {
		began := time.Now()
		f.cfg.Progress = func(line string) { a.note("%6.1f s  %s", time.Since(began).Seconds(), line) }
	}
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	var res benchFleetResult
	if !f.placementOnly {
		if res.Result, err = f.measure(ctx, a); err != nil {
			return err
		}
	}
	if f.placementNodes > 0 {
		p, err := fleet.Placement(ctx, f.placementCameras, f.placementNodes)
		if err != nil {
			return err
		}
		res.Placement = &p
	}
	if f.output == "json" {
		data, err := json.Marshal(res)
		if err != nil {
			return err
		}
		return printIndented(a.stdout, data)
	}
	return res.print(a)
}

func (f *benchFleetFlags) measure(ctx context.Context, a *app) (_ *fleet.Result, err error) {
	if f.cfg.Binary, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	f.cfg.Dir = f.dir
	if f.cfg.Dir == "" {
		if f.cfg.Dir, err = os.MkdirTemp("", "fanlight-bench-"); err != nil {
			return nil, fmt.Errorf("make a directory: %w", err)
		}
		defer func() {
			if err != nil {
				a.note("the logs are in %s", f.cfg.Dir)
			} else if err = os.RemoveAll(f.cfg.Dir); err != nil {
				err = fmt.Errorf("clean up: %w", err)
			}
		}()
	}
	res, err := fleet.Run(ctx, f.cfg)
	if err != nil {
		return nil, err
	}
	return &res, nil
}

func (r *benchFleetResult) print(a *app) error {
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	var fields [][2]string
	if m := r.Result; m != nil {
		fields = append(fields, [][2]string{
			{"fleet", fmt.Sprintf("%d cameras, %d nodes, %d control planes", m.Cameras, m.Nodes, m.Replicas)},
			{"registered", num(m.Register) + " s"},
			{"all assigned", num(m.AllAssigned) + " s after the first node"},
			{"a node dies", fmt.Sprintf("its last camera elsewhere after %s ms (p50), %s ms (p99), of %d", num(m.NodeDeathP50), num(m.NodeDeathP99), m.Deaths)},
			{"the leader dies", fmt.Sprintf("the next camera assigned after %s ms; %d others moved", num(m.LeaderDeath), m.MovesOnLeader)},
			{"a node joins", fmt.Sprintf("%d moves, the last after %s s", m.MovesOnJoin, num(m.JoinSettled))},
			{"all reconnect", fmt.Sprintf("%d moves", m.MovesOnReconnect)},
			{"memory", fmt.Sprintf("%s MiB together, %s MiB the largest", num(m.RSS), num(m.RSSMax))},
			{"cpu", fmt.Sprintf("%s s together, %s s the busiest, in %s s", num(m.CPU), num(m.CPUMax), num(m.Duration))},
			{"this machine", fmt.Sprintf("the simulation used %s s; busy to %.0f %%", num(m.NodesCPU), 100*m.MachineBusy)},
		}...)
	}
	if p := r.Placement; p != nil {
		fields = append(fields, [][2]string{
			{"planned", fmt.Sprintf("%d cameras on %d nodes in %s s", p.Cameras, p.Nodes, num(p.Plan))},
			{"a node lost", fmt.Sprintf("%d cameras planned in %s ms (p50), %s ms (p99)", p.LostCameras, num(p.NodeLossP50), num(p.NodeLossP99))},
			{"balance", fmt.Sprintf("%s ms to see that nothing is to move; %d moves when a node joins", num(p.Balanced), p.Moves)},
		}...)
	}
	return printFields(a.stdout, fields)
}
