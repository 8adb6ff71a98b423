// Package service has what every Fanlight process needs around its component:
// a [Group] that runs the parts, a logger, signals, an HTTP server that stops
// in time, and configuration from flags, environment and a file.
//
// It knows no component, and it decides nothing for one.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"
)

// StopTimeout is how long a process may take to stop after the first signal.
const StopTimeout = 5 * time.Second

// Group runs the parts of a process together. The zero value is empty.
type Group struct {
	parts []part
}

type part struct {
	name string
	run  func(context.Context) error
}

// Add adds a part that ends when its ctx does. Not after Run.
func (g *Group) Add(name string, run func(ctx context.Context) error) {
	g.parts = append(g.parts, part{name, run})
}

// Run runs the parts until ctx ends or one of them fails, then stops the
// others, and returns when all have ended. The error is that of the part that
// failed first, with its name, and those that failed after it; nil if none
// did. A part that returns nil early leaves the others running.
func (g *Group) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, p := range g.parts {
		wg.Go(func() {
			err := p.run(ctx)
			if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return
			}
			mu.Lock()
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			mu.Unlock()
			cancel()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// NewLogger returns a logger that writes to w. format is "text" or "json",
// level "debug", "info", "warn" or "error".
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil || strings.ContainsAny(level, "+-") {
		return nil, fmt.Errorf("log level %q is not debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("log format %q is not text or json", format)
	}
}

// SignalContext returns a context that ends at the first SIGTERM or SIGINT. A
// second one, or StopTimeout after the first, ends the process at once with
// code 1; what was still running then is written to the standard error output.
// The caller calls release when everything has stopped.
func SignalContext(parent context.Context, log *slog.Logger) (ctx context.Context, release func()) {
	return signalContext(parent, log, nil, exit)
}

// DrainContext is SignalContext for a process that has something to bring to an
// end before it stops: at the first signal drain is called, and the context ends
// when it has returned. A second signal ends the context at once, and drain's,
// which then must return soon; what ends a process that is stopping is a third
// one, or StopTimeout. Drain's context ends with release too.
func DrainContext(parent context.Context, log *slog.Logger, drain func(context.Context)) (ctx context.Context, release func()) {
	return signalContext(parent, log, drain, exit)
}

func exit(stack bool) {
	if stack {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	}
	os.Exit(1)
}

func signalContext(parent context.Context, log *slog.Logger, drain func(context.Context), exit func(stack bool)) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	released, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			if drain != nil {
				log.Info("draining", "signal", s.String())
				drainUntil(parent, log, drain, signals, released, cancel)
			}
			log.Info("stopping", "signal", s.String())
		case <-released:
			return
		}
		cancel()
		t := time.NewTimer(StopTimeout)
		defer t.Stop()
		select {
		case s := <-signals:
			log.Warn("stopping at once", "signal", s.String())
			exit(false)
		case <-t.C:
			log.Error("not stopped in time", "after", StopTimeout)
			exit(true)
		case <-released:
		}
	}()
	var once sync.Once
	return ctx, func() {
		once.Do(func() {
			signal.Stop(signals)
			close(released)
			<-done
			cancel()
		})
	}
}

// drainUntil calls drain and waits for it. A signal calls stop and ends it.
func drainUntil(parent context.Context, log *slog.Logger, drain func(context.Context), signals <-chan os.Signal, released <-chan struct{}, stop func()) {
	ctx, end := context.WithCancel(parent)
	defer end()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		drain(ctx)
	}()
	select {
	case <-drained:
		return
	case s := <-signals:
		log.Warn("draining no more", "signal", s.String())
		stop()
	case <-released:
	}
	end()
	<-drained
}

// Listen listens on a TCP address that came from a flag. See [ListenError].
func Listen(ctx context.Context, flag, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, ListenError(flag, addr, err)
	}
	return l, nil
}

// ListenError explains why an address that came from a flag cannot be listened
// on: it names the flag and says what to do.
func ListenError(flag, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("--%s %s: the port is in use by another process; stop that one or give another port with --%s", flag, addr, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("--%s %s: this machine does not have that address: %w", flag, addr, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("--%s %s: not allowed; ports below 1024 need the privilege to bind them: %w", flag, addr, err)
	default:
		return fmt.Errorf("--%s %s: %w", flag, addr, err)
	}
}
