package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/fleettest"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// batch is how many cameras are registered at a time, by so many clients.
	batch   = 1000
	clients = 4
	// liftEvery is how long between two nodes that reconnect for more room, so that
	// none finds its replica busy with the others for longer than the grace.
	liftEvery = 5 * time.Millisecond
)

// register creates all cameras.
func (b *bench) register(ctx context.Context) error {
	began := time.Now()
	var next atomic.Int64
	errs := make([]error, clients)
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() {
			for errs[i] == nil {
				from := int(next.Add(batch)) - batch
				if from >= b.cfg.Cameras {
					return
				}
				errs[i] = b.create(ctx, from, min(from+batch, b.cfg.Cameras))
			}
		})
	}
	wait.Wait()
	b.result.Register = seconds(time.Since(began))
	b.progress("registered in %.1f s", b.result.Register)
	return errors.Join(errs...)
}

// create registers some of the cameras, again as long as no replica answers.
func (b *bench) create(ctx context.Context, from, to int) error {
	req := &controlv1.BatchCreateCamerasRequest{}
	for i := from; i < to; i++ {
		req.Requests = append(req.Requests, &controlv1.CreateCameraRequest{
			RequestId: fmt.Sprintf("bench-%d", i),
			Camera: &controlv1.Camera{
				Name: cameraName(i), DisplayName: fmt.Sprintf("Camera %d", i),
				Profiles: []*controlv1.Profile{{Id: "main", Url: fmt.Sprintf("rtsp://10.%d.%d.%d/main", i>>16&255, i>>8&255, i&255)}},
				Labels:   map[string]string{"site": fmt.Sprintf("site-%d", i%100)}, ExpectedBitrateBps: bitrate,
			},
		})
	}
	backoff := rpc.Backoff{Min: 10 * time.Millisecond, Max: 200 * time.Millisecond}
	for {
		resp, err := b.fleet.CameraService().BatchCreateCameras(ctx, req)
		if errors.Is(err, fleet.Unavailable) && backoff.Sleep(ctx) == nil {
			continue
		}
		if err != nil {
			return err
		}
		for i, r := range resp.GetResults() {
			if f := r.GetFailure(); f != nil {
				return fmt.Errorf("camera %d: %s: %s", from+i, f.GetReason(), f.GetMessage())
			}
		}
		return nil
	}
}

// assign starts the nodes, with room for exactly their share, and waits until
// all cameras are at one.
func (b *bench) assign(ctx context.Context) error {
	b.profileCPU()
	began := time.Now()
	share := (b.cfg.Cameras + b.cfg.Nodes - 1) / b.cfg.Nodes
	for range b.cfg.Nodes {
		if err := b.nodes.add(context.WithoutCancel(ctx), share); err != nil {
			return err
		}
	}
	s, err := b.tracker.until(ctx, "all cameras to be assigned", func(s state) bool { return s.placed == b.cfg.Cameras })
	if err != nil {
		return b.explain(err)
	}
	b.result.AllAssigned = seconds(s.last.Sub(began))
	b.progress("all assigned in %.1f s", b.result.AllAssigned)
	return nil
}

// explain adds why a node is not connected.
func (b *bench) explain(err error) error {
	out, first := 0, error(nil)
	for _, n := range b.nodes.all {
		if welcomes, why := n.welcomed(); welcomes == 0 {
			if out++; first == nil {
				first = why
			}
		}
	}
	if out > 0 {
		return fmt.Errorf("%w; %d nodes were never welcomed, the first because of: %w", err, out, first)
	}
	return err
}

// lift has the nodes reconnect with twice their room, one after another.
func (b *bench) lift(ctx context.Context) error {
	began, before := time.Now(), b.tracker.state()
	room := 2 * ((b.cfg.Cameras + b.cfg.Nodes - 1) / b.cfg.Nodes)
	had := make([]int, len(b.nodes.all))
	for i, n := range b.nodes.all {
		had[i], _ = n.welcomed()
		n.lift(room)
		if err := sleep(ctx, liftEvery); err != nil {
			return err
		}
	}
	_, err := b.tracker.until(ctx, "all nodes to be welcomed again", func(state) bool {
		for i, n := range b.nodes.all {
			if now, _ := n.welcomed(); now == had[i] {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	b.result.MovesOnReconnect = b.tracker.state().moves - before.moves
	b.progress("all nodes reconnected in %.1f s, %d moves", time.Since(began).Seconds(), b.result.MovesOnReconnect)
	return b.settle(ctx)
}

// settle waits until nothing has moved for a while.
func (b *bench) settle(ctx context.Context) error {
	since, moves := time.Now(), b.tracker.state().moves
	_, err := b.tracker.until(ctx, "moves to end", func(s state) bool {
		if s.moves != moves {
			since, moves = time.Now(), s.moves
		}
		return time.Since(since) > quiet
	})
	return err
}

// join adds a node and waits until what that moves has moved.
func (b *bench) join(ctx context.Context) error {
	began, before := time.Now(), b.tracker.state()
	if err := b.nodes.add(context.WithoutCancel(ctx), 2*((b.cfg.Cameras+b.cfg.Nodes-1)/b.cfg.Nodes)); err != nil {
		return err
	}
	joined := b.nodes.all[len(b.nodes.all)-1]
	_, err := b.tracker.until(ctx, "the new node to be welcomed", func(state) bool { n, _ := joined.welcomed(); return n > 0 })
	if err == nil {
		err = b.settle(ctx)
	}
	after := b.tracker.state()
	b.result.MovesOnJoin = after.moves - before.moves
	if err != nil {
		return fmt.Errorf("%w, after %d moves", err, b.result.MovesOnJoin)
	}
	if b.result.MovesOnJoin > 0 {
		b.result.JoinSettled = seconds(after.last.Sub(began))
	}
	b.progress("%d moves in %.1f s because of a new node", b.result.MovesOnJoin, b.result.JoinSettled)
	return nil
}

// deaths kills nodes, one after another.
func (b *bench) deaths(ctx context.Context) error {
	var times []time.Duration
	for i := range b.cfg.Deaths {
		n := b.nodes.all[i*b.cfg.Nodes/b.cfg.Deaths]
		began, cameras := time.Now(), b.tracker.lose(n)
		if err := n.kill(); err != nil {
			return err
		}
		deathCtx, cancel := context.WithTimeout(ctx, deathLimit)
		s, err := b.tracker.until(deathCtx, "the cameras of "+string(n.id), func(s state) bool { return s.lost == 0 })
		cancel()
		if err != nil {
			return err
		}
		if cameras > 0 {
			times = append(times, s.last.Sub(began))
			b.progress("%s: %d cameras elsewhere after %d ms", n.id, cameras, times[len(times)-1].Milliseconds())
		}
		if err := sleep(ctx, deathEvery); err != nil {
			return err
		}
	}
	if len(times) == 0 {
		return errors.New("none of the nodes that were ended had a camera")
	}
	slices.Sort(times)
	b.result.NodeDeathP50, b.result.NodeDeathP99 = milliseconds(percentile(times, 50)), milliseconds(percentile(times, 99))
	return nil
}

// leaderDeath kills the replica that places, creates a camera, and waits for it
// to be at a node. A replica that is alone is started again at once.
func (b *bench) leaderDeath(ctx context.Context) error {
	leader, err := b.leader(ctx)
	if err != nil {
		return err
	}
	b.usage.sample()
	began := time.Now()
	if err := leader.Kill(); err != nil {
		return err
	}
	if len(b.fleet.Planes) == 1 {
		if err := leader.Restart(ctx); err != nil {
			return err
		}
	}
	if err := b.create(ctx, b.cfg.Cameras, b.cfg.Cameras+1); err != nil {
		return err
	}
	b.progress("%s was killed; a new camera is stored after %d ms", leader.Name, time.Since(began).Milliseconds())
	s, err := b.tracker.until(ctx, "a new camera to be assigned", func(s state) bool { return s.placed == b.cfg.Cameras+1 })
	if err != nil {
		return err
	}
	b.result.LeaderDeath = milliseconds(s.last.Sub(began))
	at := b.tracker.at(b.cfg.Cameras)
	b.progress("and at %s after %.0f ms", at.id, b.result.LeaderDeath)
	if err := b.settle(ctx); err != nil {
		return err
	}
	if moved := b.tracker.state().moves - s.moves; moved > 0 {
		b.result.MovesOnLeader = moved
		b.progress("%d cameras moved after the leader's death%s", moved, b.emptied())
	}
	return nil
}

// emptied says which of the nodes that live have no camera any more, and why
// their last stream ended.
func (b *bench) emptied() string {
	cameras := b.tracker.count()
	var out strings.Builder
	for _, n := range b.nodes.all {
		if isDone(n.done) || cameras[n] > 0 {
			continue
		}
		welcomes, err := n.welcomed()
		fmt.Fprintf(&out, "; %s has none, was welcomed %d times, last stream: %v", n.id, welcomes, err)
	}
	return out.String()
}

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// leader returns the replica that places cameras.
func (b *bench) leader(ctx context.Context) (*fleettest.Process, error) {
	client := controlv1.NewClusterServiceClient(b.fleet.Conn())
	for {
		resp, err := client.ListMembers(ctx, &controlv1.ListMembersRequest{})
		if err == nil {
			for _, m := range resp.GetMembers() {
				for _, p := range b.fleet.Planes {
					if m.GetPlaces() && ("members/"+p.Name == m.GetName() || len(b.fleet.Planes) == 1) {
						return p, nil
					}
				}
			}
			err = errors.New("no replica says so")
		}
		if waited := sleep(ctx, 100*time.Millisecond); waited != nil {
			return nil, fmt.Errorf("which replica leads: %w", err)
		}
	}
}

// collect completes the result.
func (b *bench) collect(ctx context.Context) error {
	b.usage.sample()
	b.usage.into(&b.result)
	b.result.Duration = seconds(time.Since(b.began))
	return errors.Join(b.usage.profiles(), b.profileMem(ctx))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
