package fanout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

const settle = time.Second // after the joins and before the first turn

// bench is one measurement. Its methods are called one after another.
type bench struct {
	cfg     Config
	server  server
	own     *own // nil: a server of others
	id      *identity
	readers []*reader
	clients []*http.Client

	viewers []*viewer
	sinks   [][]string // addresses, of each camera
	before  usage      // at the end of the row before
}

// usage is what a server occupies.
type usage struct{ memory, goroutines float64 } // KiB

func run(ctx context.Context, cfg Config) (rows []Row, err error) {
	b := &bench{cfg: cfg, sinks: make([][]string, cfg.Cameras)}
	if b.id, err = newIdentity(); err != nil {
		return nil, err
	}
	if cfg.WHEP != "" {
		b.server = guest{url: cfg.WHEP, process: cfg.PID}
	} else {
		if b.own, err = newOwn(&b.cfg, cfg.Cameras*cfg.Viewers[len(cfg.Viewers)-1]); err != nil {
			return nil, err
		}
		b.server = b.own
		defer func() { err = errors.Join(err, b.own.stop()) }()
		b.say("starting the server and %d cameras", cfg.Cameras)
		if err := b.own.start(ctx); err != nil {
			return nil, err
		}
	}
	reading, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	failed := make(chan error, runtime.GOMAXPROCS(0)) // has a value when a reader has ended before its time
	defer func() {
		b.leave()
		cancel()
		work.Wait()
	}()
	for range min(2, runtime.GOMAXPROCS(0)) {
		r, err := newReader(!cfg.Cut)
		if err != nil {
			return nil, err
		}
		b.readers = append(b.readers, r)
		work.Go(func() {
			if err := r.run(reading); err != nil {
				failed <- err
			}
		})
	}
	if b.before, err = b.usage(ctx); err != nil {
		return nil, err
	}
	for i, n := range cfg.Viewers {
		row, err := b.row(ctx, n, i == len(cfg.Viewers)-1)
		select {
		case e := <-failed:
			err = errors.Join(err, e)
		default:
		}
		if err != nil {
			return rows, fmt.Errorf("%d viewers: %w", n*cfg.Cameras, err)
		}
		rows = append(rows, row)
		cfg.Done(row)
	}
	return rows, nil
}

func (b *bench) say(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

// row measures with n viewers of each camera.
func (b *bench) row(ctx context.Context, n int, last bool) (Row, error) {
	row := Row{Viewers: n * b.cfg.Cameras, Cameras: b.cfg.Cameras}
	come := row.Viewers - len(b.viewers)
	b.say("%d viewers come", come)
	began := time.Now()
	var err error
	if row.Rejoined, err = b.join(ctx, come); err != nil {
		return row, err
	}
	row.JoinsPerSecond = round(float64(come)/time.Since(began).Seconds(), 1)
	if err := errors.Join(b.spotCheck(), b.addSinks(come)); err != nil {
		return row, err
	}
	if err := sleep(ctx, settle); err != nil {
		return row, err
	}
	shape, err := b.record(ctx)
	if err != nil {
		return row, err
	}
	floor, err := startFloor(ctx, b.cfg.Binary, &floorSetup{Period: shape.period(), Frames: shape.frames, Cameras: b.sinks})
	if err != nil {
		return row, err
	}
	b.say("%d packets a picture, one each %v", packets(shape.frames)/len(shape.frames), shape.period().Round(time.Millisecond))
	err = b.turns(ctx, &row, floor, last)
	if err := errors.Join(err, floor.close()); err != nil {
		return row, err
	}
	now, err := b.usage(ctx)
	if err != nil {
		return row, err
	}
	row.MemoryPerViewer = round((now.memory-b.before.memory)/float64(come), 1)
	row.GoroutinesPerViewer = round((now.goroutines-b.before.goroutines)/float64(come), 2)
	b.before = now
	return row, nil
}

func packets(frames [][]int) (n int) {
	for _, f := range frames {
		n += len(f)
	}
	return n
}

// usage returns what the server occupies now.
func (b *bench) usage(ctx context.Context) (u usage, err error) {
	if u.memory, err = residentMemory(b.server.pid()); err == nil && b.own != nil {
		u.goroutines, err = b.own.goroutines(ctx)
	}
	return u, err
}

// residentMemory returns a process' resident memory in KiB (proc_pid_statm(5)).
func residentMemory(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	fields := bytes.Fields(data)
	if len(fields) < 2 {
		return 0, fmt.Errorf("memory of process %d: %q", pid, data)
	}
	pages, err := strconv.ParseFloat(string(fields[1]), 64)
	return pages * float64(os.Getpagesize()) / 1024, err
}
