package controlplane

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
)

// leaseCount is how many leases a replica holds. A node that registers again
// takes the next one: what an earlier stream of it still writes is then refused.
const leaseCount = 8

// leases are the replica's: its nodes share them, some hundred each. A lease for
// each node would have to be renewed by itself, every second, at the one member
// of etcd that leads; that of a thousand nodes is most of what a fleet at rest
// does, and the first thing to come late when there is more.
//
// They live as long as the replica does, so a node's end is the end of its key,
// not of a lease; and a key that is left behind, as when a registration is stored
// of which the replica was told that it timed out, would never end: see sweep.
type leases struct {
	// Static after newLeases.
	store   *store.Store
	ttl     time.Duration
	stop    <-chan struct{} // closed when run is about to end
	fresh   chan *lease     // from take to run
	parting chan func()     // from part to run
	slots   [leaseCount]leaseSlot

	mu    sync.Mutex // guards the rest
	users map[fleet.NodeID]*leaseUser
	first int // the slot where the next new node begins
}

// leaseUser is a node that has streams here, or had until a moment ago.
type leaseUser struct {
	streams int
	next    int // its next slot
}

// leaseSlot is the place of one lease.
type leaseSlot struct {
	mu    sync.Mutex // held while a lease is granted; guards the rest
	lease *lease     // nil: none yet
}

// lease is one that the replica holds.
type lease struct {
	*store.Lease
	lost chan struct{} // closed when it has run out, or is not renewed any more
	err  error         // why; written before lost is closed
}

func newLeases(st *store.Store, ttl time.Duration, stop <-chan struct{}) *leases {
	return &leases{store: st, ttl: ttl, stop: stop, fresh: make(chan *lease), parting: make(chan func()), users: make(map[fleet.NodeID]*leaseUser)}
}

// run renews the leases that take has granted, and takes back what part says,
// until ctx ends.
func (l *leases) run(ctx context.Context) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		select {
		case h := <-l.fresh:
			wait.Go(func() {
				h.err = h.Renew(ctx)
				if h.err == nil {
					h.err = errStopping
				}
				close(h.lost)
			})
		case release := <-l.parting:
			wait.Go(release)
		case <-ctx.Done():
			return
		}
	}
}

// unregister removes a node that may be under any of the leases.
func (l *leases) unregister(ctx context.Context, id fleet.NodeID) error {
	for i := range l.slots {
		s := &l.slots[i]
		s.mu.Lock()
		h := s.lease
		s.mu.Unlock()
		if h == nil {
			continue
		}
		if err := h.Unregister(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// part ends what a stream of a node has here that has ended, for a cause. It
// does not wait for that.
func (l *leases) part(a *agent, cause error) {
	forget := func() {
		a.server.forgetAgent(a)
		l.leave(a.id)
	}
	select {
	case l.parting <- func() {
		a.release(cause)
		forget()
	}:
	case <-l.stop:
		forget()
	}
}

// enter says that a stream of a node begins, and leave that it has ended.
func (l *leases) enter(id fleet.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.users[id]
	if u == nil {
		u = &leaseUser{next: l.first}
		l.users[id] = u
		l.first = (l.first + 1) % leaseCount
	}
	u.streams++
}

func (l *leases) leave(id fleet.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.users[id]; u.streams > 1 {
		u.streams--
	} else {
		delete(l.users, id)
	}
}

// take returns a lease for a node that has entered, another than the node had
// last.
func (l *leases) take(ctx context.Context, id fleet.NodeID) (*lease, error) {
	l.mu.Lock()
	u := l.users[id]
	s := &l.slots[u.next]
	u.next = (u.next + 1) % leaseCount
	l.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil && !isDone(s.lease.lost) {
		return s.lease, nil
	}
	granted, err := l.store.Grant(ctx, l.ttl)
	if err != nil {
		return nil, err
	}
	h := &lease{Lease: granted, lost: make(chan struct{})}
	select {
	case l.fresh <- h:
	case <-ctx.Done():
		return nil, fmt.Errorf("lease for node %q: %w", id, context.Cause(ctx)) // what was granted runs out
	}
	s.lease = h
	return h, nil
}

// ids returns the ids of those that are held.
func (l *leases) ids() map[int64]bool {
	held := make(map[int64]bool, leaseCount)
	for i := range l.slots {
		s := &l.slots[i]
		s.mu.Lock()
		if s.lease != nil {
			held[s.lease.ID()] = true
		}
		s.mu.Unlock()
	}
	return held
}

// sweep takes back, every now and then until ctx ends, the registrations that are
// under this replica's leases and of no stream here.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(s.cfg.LeaseTTL)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, n := range s.orphans() {
			forgotten, err := s.store.Forget(ctx, n)
			switch {
			case err != nil && ctx.Err() == nil:
				s.log.Warn("registration without a stream not taken back; trying again", "node", n.ID, "error", err)
			case forgotten:
				s.log.Warn("registration without a stream taken back", "node", n.ID)
			}
		}
	}
}

// orphans returns the nodes that are registered by this replica and have no
// stream here. Those of one that stops are not: they will find another.
func (s *Server) orphans() []*store.Node {
	held := s.leases.ids()
	var nodes []*store.Node
	s.cache.mu.RLock()
	for _, n := range s.cache.nodes {
		if held[n.Lease] {
			nodes = append(nodes, n)
		}
	}
	s.cache.mu.RUnlock()
	s.mu.Lock()
	nodes = slices.DeleteFunc(nodes, func(n *store.Node) bool { return s.agents[n.ID] != nil })
	s.mu.Unlock()
	if isDone(s.stop) { // since when agents are forgotten at once
		return nil
	}
	return nodes
}
