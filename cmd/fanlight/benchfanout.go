package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"fanlight/bench/fanout"
	"fanlight/internal/service"
)

// The most that is measured: every viewer has two sockets.
const (
	maxFanoutViewers = 8000
	maxFanoutCameras = 2000
)

type benchFanoutFlags struct {
	cfg     fanout.Config
	dir     string
	output  string
	verbose bool
}

func newBenchFanout(a *app) *cobra.Command {
	f := benchFanoutFlags{}
	cmd := &cobra.Command{
		Use:   "fanout",
		Short: "Measure what a viewer costs, and how soon it has a picture",
		Long: `Run a server and simulated cameras on this machine, join more and more viewers
over WHEP, and measure for each number of viewers: the server's CPU time for each
packet that arrives, the least that the same packets can cost (the floor:
encryption and sendmmsg, in turns with the server), their ratio, packets lost,
latency from the camera to the whole picture at the viewer, and the memory that a
viewer takes. docs/performance.md says how.

With --whep and --pid another server is measured in the same way. Linux only.

Exit code 1 if a viewer was lost.`,
		Example: "  fanlight bench fanout\n  fanlight bench fanout --viewers 5 --cameras 200 -o json\n" +
			"  fanlight bench fanout --whep http://127.0.0.1:8889/cam/whep --pid $(pidof mediamtx)",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.run(cmd.Context(), a)
		},
	}
	fl := cmd.Flags()
	fl.IntSliceVar(&f.cfg.Viewers, "viewers", []int{1, 10, 100, 300, 1000}, "`viewers` of each camera, a row each")
	fl.IntVar(&f.cfg.Cameras, "cameras", 1, "simulated `cameras`")
	fl.IntVar(&f.cfg.Bitrate, "bitrate", 2_000_000, "`bits` a second of each camera")
	fl.IntVar(&f.cfg.PacketSize, "packet-size", 0, "`bytes` of payload that the cameras' packets have at most (0: 1460, which the node must cut)")
	fl.DurationVar(&f.cfg.Duration, "duration", 10*time.Second, "how `long` the server is measured, each row")
	fl.BoolVar(&f.cfg.Apart, "apart", false, "measure a media node alone, with its control plane and its gateway as processes beside it")
	fl.BoolVar(&f.cfg.Cut, "cut", false, "have the kernel cut messages with segments in the sender's time, server's and floor's, as without UDP_GRO")
	fl.IntVar(&f.cfg.GOMAXPROCS, "gomaxprocs", 0, "`cores` that the server may use (0: all)")
	fl.Float64Var(&f.cfg.Loss, "loss", 0, "`share` of packets that lossy viewers throw away, and ask for again")
	fl.Float64Var(&f.cfg.Lossy, "lossy", 0, "`share` of viewers that are lossy")
	fl.StringVar(&f.cfg.WHEP, "whep", "", "measure the server that has this WHEP `URL`, and start none")
	fl.IntVar(&f.cfg.PID, "pid", 0, "its process `id`")
	fl.StringVar(&f.cfg.CPUProfile, "cpuprofile", "", "`file` for the server's CPU profile of the last row")
	fl.StringVar(&f.dir, "dir", "", "`directory` for the processes' logs and data, which are left (default: a temporary one, left only after a failure)")
	fl.BoolVar(&f.verbose, "verbose", false, "print what is done, and every turn")
	fl.StringVarP(&f.output, "output", "o", "table", "print `table|json`")
	return cmd
}

// newBenchFanoutFloor is the process that "bench fanout" compares with.
func newBenchFanoutFloor(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "fanout-floor",
		Short:  "Be the floor of \"bench fanout\", which starts this",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return fanout.Floor(a.stdin, a.stdout) },
	}
}

func (f *benchFanoutFlags) check() error {
	last := 0
	for _, n := range f.cfg.Viewers {
		if n <= last {
			return usagef("--viewers %v: must be ascending, from 1", f.cfg.Viewers)
		}
		last = n
	}
	switch {
	case f.output != "table" && f.output != "json":
		return usagef("--output %s: must be table or json", f.output)
	case f.cfg.Cameras < 1 || f.cfg.Cameras > maxFanoutCameras || last > maxFanoutViewers/f.cfg.Cameras:
		return usagef("--cameras %d --viewers %d: must be 1 to %d cameras, and %d viewers at most together", f.cfg.Cameras, last, maxFanoutCameras, maxFanoutViewers)
	case f.cfg.Bitrate < 1 || f.cfg.Bitrate > 100_000_000:
		return usagef("--bitrate %d: must be 1 to 100000000", f.cfg.Bitrate)
	case f.cfg.PacketSize != 0 && (f.cfg.PacketSize < 100 || f.cfg.PacketSize > 1460):
		return usagef("--packet-size %d: must be 100 to 1460, or 0", f.cfg.PacketSize)
	case f.cfg.Duration < time.Second || f.cfg.Duration > time.Hour:
		return usagef("--duration %v: must be 1s to 1h", f.cfg.Duration)
	case f.cfg.GOMAXPROCS < 0:
		return usagef("--gomaxprocs %d: must not be negative", f.cfg.GOMAXPROCS)
	case !(f.cfg.Loss >= 0 && f.cfg.Loss <= 0.5 && f.cfg.Lossy >= 0 && f.cfg.Lossy <= 1): // also of NaN
		return usagef("--loss must be 0 to 0.5, --lossy 0 to 1")
	case (f.cfg.Loss > 0) != (f.cfg.Lossy > 0):
		return usagef("give --loss and --lossy together")
	case f.cfg.PID < 0:
		return usagef("--pid %d: must be a process id", f.cfg.PID)
	case (f.cfg.WHEP != "") != (f.cfg.PID != 0):
		return usagef("give --whep and --pid together")
	case f.cfg.WHEP != "" && (f.cfg.Cameras != 1 || f.cfg.GOMAXPROCS != 0 || f.cfg.CPUProfile != "" || f.cfg.Apart || f.cfg.PacketSize != 0):
		return usagef("--cameras, --packet-size, --apart, --gomaxprocs and --cpuprofile are of a server that this command starts, not of --whep")
	}
	if u, err := url.Parse(f.cfg.WHEP); err != nil || f.cfg.WHEP != "" && u.Host == "" {
		return usagef("--whep: must be a URL, as http://127.0.0.1:8889/cam/whep")
	}
	return nil
}

func (f *benchFanoutFlags) run(ctx context.Context, a *app) (err error) {
	if runtime.GOOS != "linux" {
		return fanout.ErrUnsupported
	}
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
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	rows, err := fanout.Run(ctx, f.cfg)
	// What was measured before a failure is worth seeing.
	if len(rows) > 0 || err == nil {
		err = errors.Join(err, f.print(a, rows))
	}
	for i := range rows {
		if n := rows[i].Silent; n > 0 {
			err = errors.Join(err, fmt.Errorf("of %d viewers, %d got nothing any more", rows[i].Viewers, n))
		}
	}
	return err
}

func (f *benchFanoutFlags) print(a *app, rows []fanout.Row) error {
	if f.output == "json" {
		data, err := json.Marshal(rows)
		if err != nil {
			return err
		}
		return printIndented(a.stdout, data)
	}
	num := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	var table [][]string
	for i := range rows {
		r := &rows[i]
		table = append(table, []string{
			strconv.Itoa(r.Viewers), num(r.CPUPerPacket), num(r.FloorPerPacket), num(r.Ratio),
			strconv.FormatUint(r.Lost, 10), strconv.FormatUint(r.Dropped, 10), num(r.LatencyP50), num(r.LatencyP99),
			num(r.MemoryPerViewer), num(r.GoroutinesPerViewer), num(r.JoinsPerSecond), num(r.ServerCores),
		})
	}
	return printTable(a.stdout, []string{
		"VIEWERS", "CPU US/PACKET", "FLOOR", "RATIO", "LOST", "DROPPED", "P50 MS", "P99 MS", "KIB/VIEWER", "GOROUTINES", "JOINS/S", "CORES",
	}, table)
}
