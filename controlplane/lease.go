package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/rpc"
)

// probeEvery is how often a node whose stream broke is asked whether its
// process still listens.
const probeEvery = 50 * time.Millisecond

// reachTimeout is how long a replica tries to reach a node that has connected,
// and reachEvery how often.
const (
	reachTimeout = 3 * time.Second
	reachEvery   = 500 * time.Millisecond
)

// hold keeps the node under a lease until ctx ends: another when its own is lost. A
// replica that can't soon ends the stream: without a lease the node must not
// believe itself connected, and another replica may have what this one lacks.
func (a *agent) hold(ctx context.Context) {
	for {
		a.mu.Lock()
		lease := a.lease
		a.mu.Unlock()
		select {
		case <-lease.lost:
		case <-ctx.Done():
			return
		}
		if errors.Is(lease.err, errStopping) {
			return // with this replica: the node finds another, and the lease lives until then
		}
		a.server.metrics.leaseLosses.Inc()
		a.log.Warn("node's lease lost; registering it anew", "error", lease.err)
		switch err := a.registerAgain(ctx, lease); {
		case err == nil:
		case errors.Is(err, store.ErrSuperseded):
			a.end(errReplaced)
			return
		default:
			a.end(fmt.Errorf("the node's lease is lost and can't be had anew: %w", err))
			return
		}
	}
}

// registerAgain is register within a time that the single-session cameras of
// the node can bear, see afterLease.
func (a *agent) registerAgain(ctx context.Context, lost *lease) error {
	ctx, cancel := context.WithTimeout(ctx, registerAgainTimeout)
	defer cancel()
	backoff := rpc.Backoff{Min: 50 * time.Millisecond, Max: 500 * time.Millisecond}
	for {
		err := a.register(ctx, lost)
		if err == nil || errors.Is(err, store.ErrSuperseded) || backoff.Sleep(ctx) != nil {
			return err
		}
	}
}

// release takes the node's registration back if the node does not come back
// within the grace, or at once if its process has ended. One that is no longer
// this stream's stays. When this replica stops, the node will find another: the
// registration is left alone, and goes with the lease. cause is why the stream
// ended.
func (a *agent) release(cause error) {
	srv := a.server
	ctx, cancel := context.WithTimeout(context.Background(), srv.cfg.NodeGrace)
	defer cancel()
	gone := make(chan struct{})
	var probe sync.WaitGroup
	defer probe.Wait()
	defer cancel()
	switch {
	case a.leaving() && cause == nil:
		close(gone) // it said that it would go, and ended the stream
	case !errors.Is(cause, errReplaced):
		probe.Go(func() {
			if a.hasEnded(ctx) {
				close(gone)
			}
		})
	}
	select {
	case <-gone:
		a.log.Info("node's process has ended")
	case <-ctx.Done():
	case <-srv.stop:
		return
	}
	backoff := rpc.Backoff{Min: 50 * time.Millisecond, Max: time.Second}
	for again := false; ; again = true {
		err := a.unregister()
		if err == nil {
			return
		}
		if !again {
			a.log.Warn("node's end not stored; trying again", "error", err)
		}
		select {
		case <-time.After(backoff.Next()):
		case <-srv.stop:
			return
		}
	}
}

// unregister ends the node's registration, if it is still this stream's, or if
// that could not register the node, of an earlier stream here. If the node's key
// may be older than the leader's election, it is written once more before: the
// leader then knows that the node was alive, and does not wait for it to come
// back.
func (a *agent) unregister() error {
	if !a.server.isLatest(a) {
		return nil // it is for the later one to do
	}
	a.mu.Lock()
	lease, node, written := a.lease, a.node, a.revision
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), a.server.cfg.LeaseTTL)
	defer cancel()
	if written == 0 {
		return a.server.leases.unregister(ctx, a.id)
	}
	if written <= a.server.announced.Load() {
		if _, err := lease.Update(ctx, a.id, node); err != nil && !errors.Is(err, store.ErrSuperseded) {
			return err
		}
	}
	return lease.Unregister(ctx, a.id)
}

// reach finds out whether this replica reaches the node where gateways do.
func (a *agent) reach(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	for ctx.Err() == nil {
		if a.dial(ctx) == nil {
			a.reached.Store(true)
			return
		}
		pause(ctx, reachEvery) // it may be about to listen
	}
}

// dial connects to the address where gateways reach the node, and says nothing.
func (a *agent) dial(ctx context.Context) error {
	a.mu.Lock()
	address := a.node.GetSessionAddress()
	a.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err //nolint:wrapcheck // looked at, not shown
	}
	_ = conn.Close() // nothing was said on it
	return nil
}

// hasEnded tells whether the node's process has ended: nobody listens any more
// at the address where gateways reach it, on a machine that says so and has not
// always: a firewall may refuse this replica what it allows gateways. It asks
// again until ctx ends, for a process that is just ending, and returns false
// if it does not know.
func (a *agent) hasEnded(ctx context.Context) bool {
	if !a.reached.Load() {
		return false
	}
	for {
		switch err := a.dial(ctx); {
		case err == nil:
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		default:
			return false
		}
		pause(ctx, probeEvery)
		if ctx.Err() != nil {
			return false
		}
	}
}

// leaving tells whether the node has said that it is about to stop.
func (a *agent) leaving() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node.GetLeaving()
}

// announce has every node that is connected here registered once more, since
// a leader was elected or was cut off: it takes for alive who is registered
// after that, and moves their cameras at once when they go.
func (s *Server) announce(revision int64) {
	s.announced.Store(revision)
	s.mu.Lock()
	agents := slices.Collect(maps.Values(s.agents))
	s.mu.Unlock()
	for _, a := range agents {
		a.reports.touch()
	}
}
