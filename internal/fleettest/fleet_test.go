package fleettest

import (
	"context"
	"sync"
	"testing"
	"time"

	"fanlight/internal/viewertest"
)

// start runs a fleet until the end of the test.
func start(t *testing.T, cfg Config) (context.Context, *Fleet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	cfg.Binary, cfg.Dir = binary, t.TempDir()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range f.Processes() {
			if t.Failed() {
				t.Logf("the end of what %s printed:\n%s", p.Name, p.Tail(30))
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, f
}

// follow runs a viewer until the end of the test.
func follow(t *testing.T, f *Fleet, camera string) *viewertest.Follower {
	t.Helper()
	v, err := f.Follow(camera)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := v.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return v
}

// A viewer follows its camera when the node is killed, and when the gateway
// is.
func TestFollow(t *testing.T) {
	ctx, f := start(t, Config{Nodes: 2, Gateways: 2, Cameras: 1})
	if err := f.CreateCameras(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Gather(ctx, f.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	v := follow(t, f, Camera(0))
	if err := v.AwaitFrame(ctx, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := f.Nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := v.AwaitFrame(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := v.Summary(killed, time.Now())
	if s.Swaps != 1 || s.Lost || s.Reconnects != 0 || s.Longest.End().Before(killed) {
		t.Errorf("after the node's death: %+v", s)
	}
	for _, e := range v.Events(killed, time.Now()) {
		t.Logf("%v %s %s %s", e.Time.Sub(killed).Round(time.Millisecond), e.Kind, e.Session, e.Detail)
	}
	if err := f.Nodes[0].Restart(ctx); err != nil {
		t.Fatal(err)
	}

	// Whichever gateway it has.
	for _, g := range f.Gateways {
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := g.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.AwaitFrame(ctx, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for !v.Settled() {
		time.Sleep(10 * time.Millisecond)
		if ctx.Err() != nil {
			t.Fatal("the viewer does not settle")
		}
	}
	if s := v.Summary(began, time.Now()); s.Reconnects == 0 || s.Swaps < 2 || s.Lost || s.Frames < 25 {
		t.Errorf("after the gateways' deaths: %+v", s)
	}
}

func TestProcess(t *testing.T) {
	ctx, f := start(t, Config{})
	p := f.Nodes[0]
	pid := p.PID()
	if err := p.Start(); err == nil {
		t.Error("started twice")
	}
	stop, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := p.Terminate(stop); err != nil {
		t.Error(err)
	}
	if p.Running() || p.Crashed() != nil {
		t.Errorf("running %v, crashed %v", p.Running(), p.Crashed())
	}
	if err := p.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if p.PID() == pid {
		t.Error("the same process as before")
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if err := p.Kill(); err == nil {
		t.Error("killed twice")
	}
	if err := p.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}
