package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fanlight/bench/join"
	"fanlight/internal/service"
)

const (
	maxJoins        = 10_000 // of a row
	maxJoinParallel = 64
	maxJoinWatch    = 100
)

type benchJoinFlags struct {
	cfg       join.Config
	watch     int
	ignorePLI bool
	tokenFile string
	dir       string
	output    string
	verbose   bool
}

func newBenchJoin(a *app) *cobra.Command {
	f := benchJoinFlags{}
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Measure how soon a new viewer has a picture",
		Long: `Run a server and simulated cameras on this machine, and have viewers join at
random moments between the cameras' keyframes: for each interval between
keyframes, the time from the offer (POST, or "watch" with --ws) to the first whole
keyframe at the viewer, and its parts; the time until the picture is the camera's
newest, and how many pictures came before that; and ten seconds after some of the
joins, how much later pictures come than to a viewer who joined at a keyframe.
docs/performance.md says how.

With --whep a running installation on this machine is measured.

Exit code 1 if a viewer had no picture.`,
		Example: "  fanlight bench join\n  fanlight bench join --ws --apart --joins 20 -o json\n" +
			"  fanlight bench join --whep http://127.0.0.1:8080/v1/cameras/lobby/whep --intervals 4s",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd.Flags().Changed); err != nil {
				return err
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.DurationSliceVar(&f.cfg.Intervals, "intervals", []time.Duration{time.Second, 4 * time.Second, 10 * time.Second},
		"between keyframes, whole `seconds` from 1s to 10s, a row each; with --whep the camera's")
	fl.IntVar(&f.cfg.Joins, "joins", 100, "`joins` of each row, each round")
	fl.IntVar(&f.cfg.Rounds, "rounds", 1, "`how` often all rows are measured; the joins of all rounds make one table")
	fl.IntVar(&f.cfg.Parallel, "parallel", 1, "`joins` under way at once")
	fl.IntVar(&f.watch, "watch", 5, "of each row's joins, each round, so `many` stay for the comparison after 10 s")
	fl.IntVar(&f.cfg.Bitrate, "bitrate", 2_000_000, "`bits` a second of each camera")
	fl.BoolVar(&f.ignorePLI, "ignore-pli", true, "the cameras send no keyframe when they are asked for one, as few real ones do")
	fl.BoolVar(&f.cfg.Websocket, "ws", false, "watch over the websocket, as the page does, not by WHEP")
	fl.BoolVar(&f.cfg.Apart, "apart", false, "control plane, media node and gateway as processes of their own")
	fl.StringVar(&f.cfg.WHEP, "whep", "", "measure the server that has this WHEP `URL`, and start none")
	fl.StringVar(&f.tokenFile, "token-file", "", "`file` with the viewer's token, with --whep")
	fl.StringVar(&f.dir, "dir", "", "`directory` for the processes' logs and data, which are left (default: a temporary one, left only after a failure)")
	fl.BoolVar(&f.verbose, "verbose", false, "print what is done, and the parts of the joins")
	fl.StringVarP(&f.output, "output", "o", "table", "print `table|json`")
	return cmd
}

func (f *benchJoinFlags) check(changed func(string) bool) error {
	for _, d := range f.cfg.Intervals {
		if d%time.Second != 0 || d < time.Second || d > 10*time.Second {
			return usagef("--intervals %v: must be whole seconds from 1s to 10s", d)
		}
	}
	switch {
	case f.output != "table" && f.output != "json":
		return usagef("--output %s: must be table or json", f.output)
	case len(f.cfg.Intervals) == 0:
		return usagef("--intervals: there is none")
	case f.cfg.Joins < 1 || f.cfg.Joins > maxJoins || f.cfg.Rounds < 1 || f.cfg.Rounds > maxJoins:
		return usagef("--joins %d --rounds %d: must be 1 to %d each", f.cfg.Joins, f.cfg.Rounds, maxJoins)
	case f.cfg.Parallel < 1 || f.cfg.Parallel > maxJoinParallel:
		return usagef("--parallel %d: must be 1 to %d", f.cfg.Parallel, maxJoinParallel)
	case f.watch < 0 || f.watch > maxJoinWatch:
		return usagef("--watch %d: must be 0 to %d", f.watch, maxJoinWatch)
	case f.cfg.Bitrate < 1 || f.cfg.Bitrate > 100_000_000:
		return usagef("--bitrate %d: must be 1 to 100000000", f.cfg.Bitrate)
	case f.tokenFile != "" && f.cfg.WHEP == "":
		return usagef("--token-file is for --whep")
	}
	if f.cfg.WHEP != "" {
		if err := f.checkGuest(changed); err != nil {
			return err
		}
	}
	f.cfg.AnswerPLI = !f.ignorePLI
	if f.cfg.Watch = f.watch; f.watch == 0 {
		f.cfg.Watch = -1
	}
	return nil
}

// checkGuest is of --whep.
func (f *benchJoinFlags) checkGuest(changed func(string) bool) error {
	u, err := url.Parse(f.cfg.WHEP)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return usagef("--whep: must be a URL, as http://127.0.0.1:8080/v1/cameras/lobby/whep")
	}
	if f.cfg.Websocket && !strings.Contains(u.Path, "/v1/cameras/") {
		return usagef("--ws is for a server of Fanlight, whose --whep URL ends in /v1/cameras/CAMERA/whep")
	}
	for _, name := range []string{"bitrate", "ignore-pli", "apart", "dir"} {
		if changed(name) {
			return usagef("--%s is of a server that this command starts, not of --whep", name)
		}
	}
	if !changed("intervals") {
		f.cfg.Intervals = f.cfg.Intervals[len(f.cfg.Intervals)-1:]
	} else if len(f.cfg.Intervals) != 1 {
		return usagef("--intervals %v: the camera of --whep has one", f.cfg.Intervals)
	}
	return nil
}

func (f *benchJoinFlags) run(ctx context.Context, a *app) (err error) {
	if f.cfg.Binary, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	log, err := service.NewLogger(a.stderr, "text", "warn")
	if err != nil {
		return err
	}
	if f.tokenFile != "" {
		token, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return usagef("--token-file: %w", err)
		}
		f.cfg.Token = strings.TrimSpace(string(token))
	}
	f.cfg.Dir = f.dir
	switch {
	case f.cfg.WHEP != "":
	case f.dir != "":
		if err := os.MkdirAll(f.dir, 0o750); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
	default:
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
	rows, err := join.Run(ctx, f.cfg)
	// What was measured before a failure is worth seeing.
	if len(rows) > 0 || err == nil {
		err = errors.Join(err, f.print(a, rows))
	}
	for i := range rows {
		if r := &rows[i]; r.Failed > 0 {
			err = errors.Join(err, fmt.Errorf("a keyframe every %v s: of %d joins, %d brought no picture; the first: %s", r.Interval, r.Joins, r.Failed, r.Failures[0]))
		}
	}
	return err
}

func (f *benchJoinFlags) print(a *app, rows []join.Row) error {
	if f.output == "json" {
		data, err := json.Marshal(rows)
		if err != nil {
			return err
		}
		return printIndented(a.stdout, data)
	}
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	var table, parts [][]string
	for i := range rows {
		r := &rows[i]
		interval := num(r.Interval)
		compared := "-"
		if r.Compared > 0 {
			compared = num(r.LatencyDiff)
		}
		table = append(table, []string{
			interval, strconv.Itoa(r.Joins), strconv.Itoa(r.Failed), num(r.P50), num(r.P95), num(r.Max),
			num(r.Answer.P50), num(r.Connect.P50), num(r.Packet.P50), num(r.Keyframe.P50),
			num(r.Live.P50), num(r.Live.P95), strconv.Itoa(r.NotLive), num(r.CatchUp), compared,
		})
		for _, p := range []struct {
			name string
			join.Spread
		}{
			{"answer", r.Answer}, {"connected", r.Connect}, {"first packet", r.Packet}, {"whole keyframe", r.Keyframe}, {"live, from the offer", r.Live},
		} {
			parts = append(parts, []string{interval, p.name, num(p.P50), num(p.P95), num(p.Max)})
		}
	}
	err := printTable(a.stdout, []string{
		"KEYFRAME EVERY S", "JOINS", "FAILED", "P50 MS", "P95 MS", "MAX MS",
		"ANSWER", "CONNECTED", "PACKET", "KEYFRAME", "LIVE P50", "LIVE P95", "NOT LIVE", "CATCH-UP FRAMES", "LATER AFTER 10 S",
	}, table)
	if err != nil || !f.verbose {
		return err
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return printTable(a.stdout, []string{"KEYFRAME EVERY S", "PART", "P50 MS", "P95 MS", "MAX MS"}, parts)
}
