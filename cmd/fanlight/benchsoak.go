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

	"fanlight/bench/soak"
	"fanlight/internal/service"
)

type benchSoakFlags struct {
	cfg     soak.Config
	dir     string
	output  string
	verbose bool
}

func newBenchSoak(a *app) *cobra.Command {
	f := benchSoakFlags{}
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Measure whether anything grows with time",
		Long: `Run a fleet on this machine, with simulated cameras that have a main and a sub
profile, and viewers that come and go, change the size of their pictures, hide and
show them, at random, while cameras are lost and come back. Print memory,
goroutines, descriptors, latency and what viewers saw: at the beginning and at the
end, each time with all viewers watching and all cameras well, and now and then
between.

Lost frames and freezes (more than 0.5 s without a frame) are counted while the
camera is well and the picture visible. What happens follows from --seed, but for
when.

Exit code 1 if something has grown beyond the bounds that are printed, a viewer
has no picture at the end, or a camera that was well gave none within 15 s.`,
		Example: "  fanlight bench soak\n  fanlight bench soak --duration 5m --apart -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.cfg.Cameras, "cameras", 6, "simulated `cameras`")
	fl.IntVar(&f.cfg.Viewers, "viewers", 24, "`viewers` at a time at most")
	fl.DurationVar(&f.cfg.Duration, "duration", 30*time.Minute, "how `long`, without the beginning and the end")
	fl.DurationVar(&f.cfg.Warmup, "warmup", 0, "how `long` of the same before the first measurement (default: a tenth of --duration, 2m at most)")
	fl.DurationVar(&f.cfg.Interval, "interval", 0, "how `often` to measure (default: a thirtieth of --duration)")
	fl.Uint64Var(&f.cfg.Seed, "seed", 1, "`number` that what happens follows from")
	fl.BoolVar(&f.cfg.Apart, "apart", false, "run control plane, media node and gateway as processes of their own; the figures are their sums")
	fl.StringVar(&f.dir, "dir", "", "`directory` for the processes' logs and data, which are left (default: a temporary one, left only after a failure)")
	fl.BoolVar(&f.verbose, "verbose", false, "print what is done")
	fl.StringVarP(&f.output, "output", "o", "table", "print `table|json`")
	return cmd
}

func (f *benchSoakFlags) check() error {
	switch {
	case f.output != "table" && f.output != "json":
		return usagef("--output %s: must be table or json", f.output)
	case f.cfg.Cameras < 1 || f.cfg.Cameras > 200 || f.cfg.Viewers < 1 || f.cfg.Viewers > 200:
		return usagef("--cameras %d --viewers %d: must be 1 to 200 each", f.cfg.Cameras, f.cfg.Viewers)
	case f.cfg.Duration < 10*time.Second || f.cfg.Duration > 7*24*time.Hour:
		return usagef("--duration %v: must be 10s to 168h", f.cfg.Duration)
	case f.cfg.Warmup < 0 || f.cfg.Warmup > 24*time.Hour:
		return usagef("--warmup %v: must be 24h at most", f.cfg.Warmup)
	case f.cfg.Interval != 0 && f.cfg.Interval < time.Second:
		return usagef("--interval %v: must be 1s at least", f.cfg.Interval)
	}
	return nil
}

func (f *benchSoakFlags) run(ctx context.Context, a *app) (err error) {
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
	} else if err := os.MkdirAll(f.cfg.Dir, 0o750); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if f.verbose {
		began := time.Now()
		f.cfg.Progress = func(line string) { a.note("%6.1f s  %s", time.Since(began).Seconds(), line) }
	}
	var rows soakRows
	if f.output == "table" {
		f.cfg.Done = func(s soak.Sample) { rows.print(a, s) }
	}
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	res, err := soak.Run(ctx, f.cfg)
	if err = errors.Join(err, rows.err); err != nil {
		return err
	}
	if err := f.print(a, &res); err != nil {
		return err
	}
	if !res.Flat {
		return errors.New("it is not flat")
	}
	return nil
}

// soakColumns are the columns of a sample: a row is printed as soon as it is
// there, so that each has its width.
var soakColumns = []struct {
	name  string
	width int
}{
	{"AT", 7},
	{"RSS MiB", 7},
	{"HEAP MiB", 8},
	{"GOROUTINES", 10},
	{"FILES", 5},
	{"VIEWERS", 7},
	{"P50 ms", 6},
	{"P95 ms", 6},
	{"FRAMES", 7},
	{"LOST", 5},
	{"FREEZES", 7},
	{"JOINS", 5},
	{"FAILED", 6},
	{"WAITS", 5},
	{"VIEWPORTS", 9},
	{"LOSSES", 6},
	{"SWITCHES", 8},
}

// soakRows prints samples as they come.
type soakRows struct {
	begun bool
	err   error // the first
}

func (r *soakRows) print(a *app, s soak.Sample) {
	if !r.begun {
		r.begun = true
		names := make([]string, len(soakColumns))
		for i, c := range soakColumns {
			names[i] = c.name
		}
		r.line(a, names)
	}
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	cells := []string{s.At, num(s.RSS), num(s.Heap)}
	for _, v := range []int{s.Goroutines, s.Files, s.Viewers} {
		cells = append(cells, strconv.Itoa(v))
	}
	cells = append(cells, num(s.LatencyP50), num(s.LatencyP95))
	for _, v := range []int{s.Frames, s.Lost, s.Freezes, s.Joins, s.FailedJoins, s.Waits, s.Boxes, s.Losses, s.Switches} {
		cells = append(cells, strconv.Itoa(v))
	}
	r.line(a, cells)
}

func (r *soakRows) line(a *app, cells []string) {
	for i, cell := range cells {
		end := "  "
		if i == len(cells)-1 {
			end = "\n"
		}
		if _, err := fmt.Fprintf(a.stdout, "%-*s%s", soakColumns[i].width, cell, end); err != nil && r.err == nil {
			r.err = err
		}
	}
}

func (f *benchSoakFlags) print(a *app, res *soak.Result) error {
	if f.output == "json" {
		data, err := json.Marshal(res)
		if err != nil {
			return err
		}
		return printIndented(a.stdout, data)
	}
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	var rows [][]string
	for _, b := range res.Bounds {
		kept := "kept"
		if !b.Kept {
			kept = "BROKEN"
		}
		rows = append(rows, []string{b.What, num(b.Begin), num(b.End), num(b.Most), kept})
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	if err := printTable(a.stdout, []string{"BOUND", "BEGIN", "END", "AT MOST", ""}, rows); err != nil {
		return err
	}
	verdict := "flat"
	if !res.Flat {
		verdict = "NOT flat"
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s: %d cameras, %d viewers, %v, seed %d\n", verdict, res.Cameras, res.Viewers,
		time.Duration(res.Seconds*float64(time.Second)).Round(time.Second), res.Seed)
	return err
}
