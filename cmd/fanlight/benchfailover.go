package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"fanlight/bench/failover"
	"fanlight/internal/service"
)

// Rounds that are measured unless told otherwise: an upgrade and an outage take
// their time.
const defaultRounds = 20

type benchFailoverFlags struct {
	cfg            failover.Config
	drain, rolling bool
	outage         time.Duration
	dir            string
	output         string
	verbose        bool
}

func newBenchFailover(a *app) *cobra.Command {
	f := benchFailoverFlags{}
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Measure what viewers see when a node ends",
		Long: `Run a whole fleet of processes on this machine, with simulated cameras and
viewers that follow them as the player does, and end parts of it: kill -9 of the
node that has all cameras and viewers, again and again; or, with --drain, its
being drained; with --rolling a restart of every process, one after another; with
--outage the death of all control planes.

A gap is the time between two frames that a viewer could show one after the
other; each viewer's longest in each round counts. Cameras and viewers are in
this process: no gap can be measured that is shorter than the interval between
frames and this process' own stalls, which are printed too.

Exit code 1 if a viewer was lost.`,
		Example: "  fanlight bench failover --rounds 5\n  fanlight bench failover --outage 30s -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd.Flags().Changed("rounds"), cmd.Flags().Changed("outage")); err != nil {
				return err
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.cfg.Cameras, "cameras", 20, "simulated `cameras`")
	fl.IntVar(&f.cfg.Viewers, "viewers", 40, "`viewers`, spread over the cameras")
	fl.IntVar(&f.cfg.Rounds, "rounds", defaultRounds, "`how` often (default with --rolling and --outage: 1)")
	fl.IntVar(&f.cfg.Nodes, "nodes", 3, "media `nodes`")
	fl.IntVar(&f.cfg.ControlPlanes, "control-planes", 3, "control `planes`")
	fl.IntVar(&f.cfg.Gateways, "gateways", 2, "signaling `gateways`, behind one address")
	fl.DurationVar(&f.cfg.KeyframeInterval, "keyframe-interval", time.Second, "of the cameras, whole `seconds` from 1 to 10")
	fl.BoolVar(&f.drain, "drain", false, "drain the node instead of killing it")
	fl.BoolVar(&f.rolling, "rolling", false, "stop and start every process, one after another")
	fl.DurationVar(&f.outage, "outage", 0, "kill all control planes for so `long`")
	fl.StringVar(&f.dir, "dir", "", "`directory` for the processes' logs and data, which are left (default: a temporary one, left only after a failure)")
	fl.BoolVar(&f.verbose, "verbose", false, "print what is done, every round, and where the time goes")
	fl.StringVarP(&f.output, "output", "o", "table", "print `table|json`")
	return cmd
}

func (f *benchFailoverFlags) check(rounds, outage bool) error {
	modes := 0
	for _, m := range []struct {
		given bool
		mode  failover.Mode
	}{{f.drain, failover.Drain}, {f.rolling, failover.Rolling}, {outage, failover.Outage}} {
		if m.given {
			modes++
			f.cfg.Mode = m.mode
		}
	}
	switch {
	case modes > 1:
		return usagef("give one of --drain, --rolling and --outage")
	case outage && f.outage < time.Second:
		return usagef("--outage %v: must be 1s at least", f.outage)
	case f.output != "table" && f.output != "json":
		return usagef("--output %s: must be table or json", f.output)
	case f.cfg.Cameras < 1 || f.cfg.Cameras > 1000 || f.cfg.Viewers < 1 || f.cfg.Viewers > 1000:
		return usagef("--cameras %d --viewers %d: must be 1 to 1000 each", f.cfg.Cameras, f.cfg.Viewers)
	case f.cfg.Nodes < 2 || f.cfg.Nodes > 20:
		return usagef("--nodes %d: must be 2 to 20", f.cfg.Nodes)
	case f.cfg.ControlPlanes < 1 || f.cfg.ControlPlanes > 7 || f.cfg.Gateways < 1 || f.cfg.Gateways > 20 || f.cfg.Rounds < 1:
		return usagef("--control-planes must be 1 to 7, --gateways 1 to 20, --rounds 1 at least")
	case f.cfg.KeyframeInterval%time.Second != 0 || f.cfg.KeyframeInterval < time.Second || f.cfg.KeyframeInterval > 10*time.Second:
		return usagef("--keyframe-interval %v: must be whole seconds from 1s to 10s", f.cfg.KeyframeInterval)
	}
	if !rounds && (f.rolling || outage) {
		f.cfg.Rounds = 1
	}
	f.cfg.Outage = f.outage
	return nil
}

func (f *benchFailoverFlags) run(ctx context.Context, a *app) (err error) {
	if f.cfg.Binary, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	log, err := service.NewLogger(a.stderr, "text", "warn")
	if err != nil {
		return err
	}
	f.cfg.Dir = f.dir
	if f.cfg.Dir == "" {
		if f.cfg.Dir, err = os.MkdirTemp("", "fanlight-bench-"); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		defer func() {
			if err != nil {
				a.note("the logs are in %s", f.cfg.Dir)
			} else if err = os.RemoveAll(f.cfg.Dir); err != nil {
				err = fmt.Errorf("clean up: %w", err)
			}
		}()
	}
	if f.verbose {
		began := time.Now()
		f.cfg.Progress = func(line string) { a.note("%6.1f s  %s", time.Since(began).Seconds(), line) }
	}
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	res, err := failover.Run(ctx, f.cfg)
	if err != nil {
		return err
	}
	if err := f.print(a, &res); err != nil {
		return err
	}
	if res.LostViewers > 0 {
		return errors.New("viewers lost their picture")
	}
	return nil
}

func (f *benchFailoverFlags) print(a *app, res *failover.Result) error {
	if f.output == "json" {
		data, err := json.Marshal(res)
		if err != nil {
			return err
		}
		return printIndented(a.stdout, data)
	}
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	err := printTable(a.stdout, []string{"VIEWERS", "GAP P50 MS", "GAP P95 MS", "GAP MAX MS", "LOST VIEWERS"},
		[][]string{{strconv.Itoa(res.Viewers), num(res.GapP50), num(res.GapP95), num(res.GapMax), strconv.Itoa(res.LostViewers)}})
	if err != nil {
		return err
	}
	fields := [][2]string{
		{"", ""},
		{"measured", fmt.Sprintf("%s, %d rounds, %d cameras, %d nodes, %d control planes, %d gateways",
			res.Mode, res.Rounds, res.Cameras, res.Nodes, res.ControlPlanes, res.Gateways)},
		{"frame interval", num(res.FrameInterval) + " ms; longest gap in quiet " + num(res.QuietGapMax) + " ms"},
		{"this process", fmt.Sprintf("longest stall %s ms; %.2f cores; the machine was busy to %.0f %%", num(res.GeneratorStall), res.GeneratorCores, 100*res.MachineBusy)},
		{"viewers saw", fmt.Sprintf("%d swaps, %d reconnects, %d frames skipped, %d losses", res.Swaps, res.Reconnects, res.FramesSkipped, res.Losses)},
	}
	if o := res.Outage; o != nil {
		fields = append(fields, [2]string{"outage", fmt.Sprintf("%s ms; %d cameras pulled again, %d reassigned; %d new viewers, %d without a picture, slowest %s ms",
			num(o.Length), o.Repulled, o.Reassigned, o.NewViewers, o.NewLost, num(o.NewViewerMax))})
	}
	if err := printFields(a.stdout, fields); err != nil || !f.verbose {
		return err
	}
	return f.printDetails(a, res)
}

func (f *benchFailoverFlags) printDetails(a *app, res *failover.Result) error {
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	var rows [][]string
	for _, p := range res.Phases {
		rows = append(rows, []string{p.Name, num(p.P50), num(p.P95), num(p.Max)})
	}
	if len(rows) > 0 {
		if _, err := fmt.Fprintln(a.stdout); err != nil {
			return err
		}
		if err := printTable(a.stdout, []string{"SINCE THE CAUSE", "P50 MS", "P95 MS", "MAX MS"}, rows); err != nil {
			return err
		}
	}
	rows = nil
	for _, s := range res.Steps {
		rows = append(rows, []string{strconv.Itoa(s.Round), s.What, num(s.GapP50), num(s.GapMax), strconv.Itoa(s.Lost), num(s.Stall)})
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	if err := printTable(a.stdout, []string{"ROUND", "WHAT", "GAP P50 MS", "GAP MAX MS", "LOST", "STALL MS"}, rows); err != nil {
		return err
	}
	for _, s := range res.Steps {
		if _, err := fmt.Fprintf(a.stdout, "\nround %d, %s: the slowest viewer\n  %s\n", s.Round, s.What, printable(s.Slow)); err != nil {
			return err
		}
	}
	return nil
}
