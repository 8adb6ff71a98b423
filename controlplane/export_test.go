package controlplane

import (
	"context"

	"fanlight/internal/fleet"
)

// AfterLease is how much longer than a lease single-session cameras wait.
const AfterLease = afterLease

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
