package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroup(t *testing.T) {
	boom := errors.New("boom")
	waits := func(ctx context.Context) error { <-ctx.Done(); return nil }
	waitsWithError := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	t.Run("ends with its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var g Group
			g.Add("a", waits)
			g.Add("b", waitsWithError)
			g.Add("short", func(context.Context) error { return nil })
			start := time.Now()
			if err := g.Run(ctx); err != nil {
				t.Errorf("error is %v", err)
			}
			if d := time.Since(start); d != time.Minute {
				t.Errorf("ended after %v", d)
			}
		})
	})
	t.Run("the first error stops all, and all are waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var g Group
			late := false
			g.Add("a", waits)
			g.Add("bad", func(context.Context) error { time.Sleep(time.Second); return boom })
			g.Add("slow", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Minute); late = true; return nil })
			err := g.Run(t.Context())
			if !errors.Is(err, boom) || err.Error() != "bad: boom" || !late {
				t.Errorf("error is %v, waited: %v", err, late)
			}
		})
	})
	t.Run("an error while stopping is kept", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var g Group
		g.Add("flush", func(context.Context) error { return boom })
		if err := g.Run(ctx); !errors.Is(err, boom) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestNewLogger(t *testing.T) {
	var b bytes.Buffer
	log, err := NewLogger(&b, "json", "warn")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	log.Warn("seen", "n", 1)
	if s := b.String(); strings.Contains(s, "hidden") || !strings.Contains(s, `"msg":"seen","n":1`) {
		t.Errorf("log is %s", s)
	}
	b.Reset()
	if log, err = NewLogger(&b, "text", "debug"); err != nil {
		t.Fatal(err)
	}
	log.Debug("seen")
	if s := b.String(); !strings.Contains(s, "level=DEBUG msg=seen") {
		t.Errorf("log is %s", s)
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}, {"text", "info+1"}, {"", "info"}, {"text", ""}} {
		if _, err := NewLogger(&b, bad[0], bad[1]); err == nil {
			t.Errorf("format %q with level %q was accepted", bad[0], bad[1])
		}
	}
}

func TestSignals(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	exits := make(chan bool, 2)
	ctx, release := signalContext(t.Context(), log, nil, func(stack bool) { exits <- stack })
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the first signal did nothing")
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case stack := <-exits:
		if stack {
			t.Error("the second signal was taken for a timeout")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the second signal did nothing")
	}
	release()
	release()

	ctx, release = signalContext(t.Context(), log, nil, func(bool) { t.Error("exit") })
	release()
	if ctx.Err() == nil {
		t.Error("the context goes on after release")
	}
}

// A process that drains goes on at the first signal until that is done or a
// second one comes.
func TestDrain(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	terminate := func(t *testing.T) {
		t.Helper()
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	await := func(t *testing.T, what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatalf("waited in vain for %s", what)
		}
	}
	start := func(t *testing.T) (ctx context.Context, release func(), draining, drained, finish chan struct{}, exits chan bool) {
		draining, drained, finish, exits = make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan bool, 1)
		ctx, release = signalContext(t.Context(), log, func(ctx context.Context) {
			close(draining)
			select {
			case <-finish:
			case <-ctx.Done():
			}
			close(drained)
		}, func(stack bool) { exits <- stack })
		terminate(t)
		await(t, "the drain", draining)
		if ctx.Err() != nil {
			t.Error("the process stops before it has drained")
		}
		return ctx, release, draining, drained, finish, exits
	}
	t.Run("done", func(t *testing.T) {
		ctx, release, _, _, finish, exits := start(t)
		close(finish)
		await(t, "the stop", ctx.Done())
		terminate(t)
		if stack := <-exits; stack {
			t.Error("the second signal was taken for a timeout")
		}
		release()
	})
	t.Run("second signal", func(t *testing.T) {
		ctx, release, _, drained, _, exits := start(t)
		terminate(t)
		await(t, "the stop", ctx.Done())
		await(t, "the end of the drain", drained)
		terminate(t)
		if stack := <-exits; stack {
			t.Error("the third signal was taken for a timeout")
		}
		release()
	})
	t.Run("stopped meanwhile", func(t *testing.T) {
		ctx, release, _, drained, _, _ := start(t)
		release()
		await(t, "the end of the drain", drained)
		await(t, "the stop", ctx.Done())
	})
}

func TestListenErrors(t *testing.T) {
	lis, err := Listen(t.Context(), "http", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	for addr, want := range map[string]string{
		lis.Addr().String(): "--http " + lis.Addr().String() + ": the port is in use by another process; stop that one or give another port with --http",
		"192.0.2.1:0":       "--http 192.0.2.1:0: this machine does not have that address",
		"nonsense":          "--http nonsense: ",
	} {
		if _, err := Listen(t.Context(), "http", addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", addr, err, want)
		}
	}
}

// serveHTTP runs a server until stop is called.
func serveHTTP(t *testing.T, h http.Handler) (addr string, stop func() error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeHTTP(ctx, nil, lis, h, nil) }()
	return lis.Addr().String(), func() error { cancel(); return <-done }
}

func TestServeHTTPLetsRequestsFinish(t *testing.T) {
	started := make(chan struct{})
	finish := make(chan struct{})
	addr, stop := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-finish
		if err := r.Context().Err(); err != nil {
			t.Errorf("the request's context ended: %v", err)
		}
		_, _ = io.WriteString(w, "done")
	}))
	got := make(chan string, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + addr)
		if err != nil {
			got <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		got <- string(body)
	}()
	<-started
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("did not wait for the request: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(finish)
	if s := <-got; s != "done" {
		t.Errorf("got %q", s)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestServeHTTPCutsRequestsThatStay(t *testing.T) {
	started := make(chan struct{})
	addr, stop := serveHTTP(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestServeHTTPReturnsTheListenersError(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ServeHTTP(t.Context(), nil, lis, http.NotFoundHandler(), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error is %v", err)
	}
}
