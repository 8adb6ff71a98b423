package controlplane

import (
	"context"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// AfterLease is how much longer than a lease single-session cameras wait.
const AfterLease = afterLease

// LeaveBehind registers a node of which the server then knows nothing, as when it
// is told that this timed out.
func (s *Server) LeaveBehind(ctx context.Context, id fleet.NodeID, n *controlv1.Node) error {
	s.leases.enter(id)
	defer s.leases.leave(id)
	lease, err := s.leases.take(ctx, id)
	if err != nil {
		return err
	}
	_, err = lease.Register(ctx, id, n)
	return err
}

// RevokeLease takes a connected node's lease away, as if it had run out.
func (s *Server) RevokeLease(ctx context.Context, id fleet.NodeID) error {
	s.mu.Lock()
	a := s.agents[id]
	s.mu.Unlock()
	a.mu.Lock()
	lease := a.lease
	a.mu.Unlock()
	return lease.Revoke(ctx)
}

// SharedLease returns nodes here whose registrations go with one lease, as many
// as there are of any.
func (s *Server) SharedLease() []fleet.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var most []fleet.NodeID
	byLease := make(map[int64][]fleet.NodeID)
	for id, a := range s.agents {
		a.mu.Lock()
		lease := a.lease.ID()
		a.mu.Unlock()
		byLease[lease] = append(byLease[lease], id)
		if len(byLease[lease]) > len(most) {
			most = byLease[lease]
		}
	}
	return most
}
