package medianode

import (
	"errors"
	"log/slog"
	"testing"

	"fanlight/internal/fleet"
)

// Generations are compared within one etcd cluster only.
func TestGenerationsOfAnotherCluster(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), seen: map[fleet.CameraID]int64{"lobby": 7}}
	for _, c := range []struct {
		cluster string
		stale   bool
	}{{"", true}, {"a", true}, {"a", true}, {"", true}, {"b", false}} {
		n.welcome(c.cluster)
		if _, seen := n.seen["lobby"]; seen != c.stale {
			t.Fatalf("welcomed by %q: remembers the generation: %v, want %v", c.cluster, seen, c.stale)
		}
		if !c.stale {
			continue
		}
		if err := n.want(t.Context(), desired{Camera: fleet.Camera{ID: "lobby"}, generation: 6}); !errors.Is(err, fleet.StaleGeneration) {
			t.Errorf("welcomed by %q: a lower generation: %v", c.cluster, err)
		}
	}
}
