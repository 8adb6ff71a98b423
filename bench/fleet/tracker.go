package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// lookEvery is how often waiting looks. What is waited for has its time written
// down when it happens.
const lookEvery = 5 * time.Millisecond

// tracker knows which node has been told last to have each camera.
type tracker struct {
	mu     sync.Mutex // guards the rest
	places []place    // by the camera's number
	placed int        // cameras that have a place
	moves  int        // arrivals of cameras that had a place before
	last   time.Time  // when the last camera arrived
	lost   map[int]struct{}
}

// place is where a camera is.
type place struct {
	node       *node // nil: nowhere yet
	generation int64
}

func newTracker(cameras int) *tracker {
	return &tracker{places: make([]place, cameras), lost: make(map[int]struct{})}
}

// arrived says that a node was told to have cameras, each under a generation.
func (t *tracker) arrived(n *node, cameras map[int]int64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for cam, generation := range cameras {
		p := &t.places[cam]
		if generation <= p.generation {
			continue
		}
		if p.node == nil {
			t.placed++
		} else if p.node != n {
			t.moves++
		}
		*p = place{n, generation}
		t.last = now
		delete(t.lost, cam)
	}
}

// lose says that a node is about to die, and returns how many cameras it has.
func (t *tracker) lose(n *node) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.lost)
	for cam := range t.places {
		if t.places[cam].node == n {
			t.lost[cam] = struct{}{}
		}
	}
	return len(t.lost)
}

// state is what waiting looks at.
type state struct {
	placed, moves, lost int
	last                time.Time
}

func (t *tracker) state() state {
	t.mu.Lock()
	defer t.mu.Unlock()
	return state{t.placed, t.moves, len(t.lost), t.last}
}

// at returns where a camera is.
func (t *tracker) at(cam int) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.places[cam].node
}

// count returns how many cameras each node has.
func (t *tracker) count() map[*node]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[*node]int)
	for _, p := range t.places {
		out[p.node]++
	}
	return out
}

// until waits for a state, and returns it.
func (t *tracker) until(ctx context.Context, what string, done func(state) bool) (state, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s := t.state()
		if done(s) {
			return s, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s, fmt.Errorf("wait for %s: %w (%d cameras placed, %d still lost, %d moves)", what, ctx.Err(), s.placed, s.lost, s.moves)
		}
	}
}
