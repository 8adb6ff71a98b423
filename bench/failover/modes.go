package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/viewertest"
)

// gather brings all cameras and viewers to one node.
func (b *bench) gather(ctx context.Context, node *fleettest.Process) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	if err := b.fleet.Gather(ctx, node); err != nil {
		return err
	}
	on := func(v *viewertest.Follower) bool { return v.Settled() && v.Remote() == node.Media }
	if n := b.await(ctx, stepLimit, on); n > 0 {
		return fmt.Errorf("%d viewers have not come to %s within %v", n, node.Name, stepLimit)
	}
	pause(ctx, quiet)
	return ctx.Err()
}

// elsewhere waits until all viewers have a picture from another node, or time
// is up.
func (b *bench) elsewhere(ctx context.Context, node *fleettest.Process) {
	missing := b.await(ctx, roundLimit, func(v *viewertest.Follower) bool { return v.Settled() && v.Remote() != node.Media && v.Remote() != "" })
	if missing > 0 {
		b.say("%d viewers have no picture from elsewhere after %v", missing, roundLimit)
	}
}

// kill kills the node that has everything.
func (b *bench) kill(ctx context.Context, round int) error {
	node := b.fleet.Nodes[round%len(b.fleet.Nodes)]
	if err := b.gather(ctx, node); err != nil {
		return err
	}
	clock := b.startClock(ctx, node)
	from := time.Now()
	clock.began = from
	if err := node.Kill(); err != nil {
		return errors.Join(err, clock.stop())
	}
	b.elsewhere(ctx, node)
	pause(ctx, quiet/2)
	err := clock.stop()
	b.take(round, "kill "+node.Name, span{from, time.Now()}, clock)
	if err != nil {
		return err
	}
	restart, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	return node.Restart(restart)
}

// drain drains the node that has everything.
func (b *bench) drain(ctx context.Context, round int) error {
	node := b.fleet.Nodes[round%len(b.fleet.Nodes)]
	if err := b.gather(ctx, node); err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	clock := b.startClock(ctx, node)
	from := time.Now()
	clock.began = from
	if err := b.fleet.Drain(step, node); err != nil {
		return errors.Join(err, clock.stop())
	}
	b.elsewhere(ctx, node)
	pause(ctx, quiet/2)
	err := clock.stop()
	b.take(round, "drain "+node.Name, span{from, time.Now()}, clock)
	if err != nil {
		return err
	}
	return b.fleet.Undrain(step, node)
}

// roll stops and starts every process, one after another, as an upgrade does.
func (b *bench) roll(ctx context.Context, round int) error {
	for _, p := range b.fleet.Processes() {
		step, cancel := context.WithTimeout(ctx, stepLimit+time.Minute)
		from := time.Now()
		err := p.Terminate(step)
		stopped := time.Since(from)
		if err == nil {
			err = p.Restart(step)
		}
		if err == nil {
			err = b.fleet.AwaitLive(step, nil)
		}
		if missing := b.await(step, roundLimit, (*viewertest.Follower).Settled); missing > 0 {
			b.say("%d viewers have no picture %v after the restart of %s", missing, roundLimit, p.Name)
		}
		pause(step, quiet)
		cancel()
		b.take(round, fmt.Sprintf("restart %s (%v)", p.Name, stopped.Round(time.Millisecond)), span{from, time.Now()}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// outage is what may not change while there is no control plane.
type outage struct {
	repulled   int           // cameras asked to play again
	reassigned int           // cameras with another node or generation afterwards
	newcomers  int           // viewers that came during it
	strangers  int           // of these, those who got no picture before its end
	slowest    time.Duration // from a newcomer's start to its first frame
}

// darken kills all control planes for a while. A viewer at each gateway watches
// a camera before, so that the gateway knows its route, and another comes to
// each meanwhile.
func (b *bench) darken(ctx context.Context, round int) error {
	if round == 0 {
		if err := b.acquaint(ctx); err != nil {
			return err
		}
	}
	step, cancel := context.WithTimeout(ctx, b.cfg.Outage+stepLimit)
	defer cancel()
	before, err := b.fleet.Assignments(step)
	if err != nil {
		return err
	}
	plays := b.fleet.Plays()
	from := time.Now()
	if err := each(b.fleet.Planes, (*fleettest.Process).Kill); err != nil {
		return err
	}
	pause(step, b.cfg.Outage/3)
	if err := b.newcomers(step, from.Add(b.cfg.Outage)); err != nil {
		return err
	}
	pause(step, time.Until(from.Add(b.cfg.Outage)))
	b.say("the control planes start again after %v", time.Since(from).Round(time.Second))
	err = each(b.fleet.Planes, func(p *fleettest.Process) error { return p.Restart(step) })
	if err == nil {
		err = b.fleet.AwaitLive(step, nil)
	}
	if err != nil {
		return err
	}
	pause(step, settled)
	b.take(round, "outage", span{from, time.Now()}, nil)
	after, err := b.fleet.Assignments(step)
	if err != nil {
		return err
	}
	now := b.fleet.Plays()
	for _, id := range slices.Sorted(maps.Keys(before)) {
		if after[id] != before[id] {
			b.outage.reassigned++
			b.say("camera %s: %+v became %+v", id, before[id], after[id])
		}
		if now[id] != plays[id] {
			b.outage.repulled++
		}
	}
	return nil
}

// acquaint has a viewer at each gateway watch the first camera.
func (b *bench) acquaint(ctx context.Context) error {
	step, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	for _, g := range b.fleet.Gateways {
		v, err := b.fleet.FollowAt(g.Addr, fleettest.Camera(0))
		if err != nil {
			return err
		}
		b.watch(ctx, v)
		if err := v.AwaitFrame(step, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// newcomers has a viewer come to each gateway and wait for a frame.
func (b *bench) newcomers(ctx context.Context, until time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, g := range b.fleet.Gateways {
		v, err := b.fleet.FollowAt(g.Addr, fleettest.Camera(0))
		if err != nil {
			return err
		}
		run, leave := context.WithCancel(ctx)
		wg.Go(func() { _ = v.Run(run) })
		began := time.Now()
		err = v.AwaitFrame(ctx, time.Time{})
		leave()
		b.outage.newcomers++
		if err != nil {
			b.outage.strangers++
			b.say("a new viewer at %s has no picture during the outage", g.Name)
			continue
		}
		b.outage.slowest = max(b.outage.slowest, time.Since(began))
	}
	return nil
}

// each does something to all processes at once.
func each(list []*fleettest.Process, do func(*fleettest.Process) error) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, p := range list {
		wg.Go(func() { errs[i] = do(p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
