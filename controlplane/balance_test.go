package controlplane

import (
	"testing"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// A node that joins puts balance off until it has been there for a while; one
// that comes and goes does not put it off for ever.
func TestBalanceIsPutOff(t *testing.T) {
	cfg := Config{RebalanceMoves: 8, RebalanceAfter: 10 * time.Second}
	join := func(b *balance, id fleet.NodeID, now time.Time) {
		b.node(nodeView{id: id, node: &store.Node{ID: id, Registered: &controlv1.Node{}}}, now)
	}
	start := time.Now()
	b := newBalance(cfg)
	join(&b, "a", start)
	join(&b, "b", start.Add(8*time.Second))
	if n := b.allow(start.Add(17*time.Second), 0); n != 0 {
		t.Errorf("%d moves 9 s after a node has joined", n)
	}
	if n := b.allow(start.Add(18*time.Second), 0); n != 8 {
		t.Errorf("%d moves 10 s after the last node has joined, want 8", n)
	}
	b.moved(start.Add(18*time.Second), false)

	allowed := time.Duration(0)
	for at := 20 * time.Second; at < 5*time.Minute; at += 5 * time.Second {
		now := start.Add(at)
		join(&b, "flaps", now)
		if b.allow(now.Add(time.Second), 0) > 0 {
			allowed = at
			break
		}
		b.node(nodeView{id: "flaps"}, now.Add(4*time.Second))
	}
	if allowed < 50*time.Second || allowed > 2*time.Minute {
		t.Errorf("with a node that comes and goes, balance is looked at after %v", allowed)
	}
}
