package medianode

import (
	"time"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// releaseMemory is how long it is repeated on each new control stream that an
// assignment was released: a replica that was told may have died before it
// could store it.
const releaseMemory = 10 * time.Minute

// releases are the assignments that the node has let go of, to be reported. The
// zero value is empty. Guarded by Node.mu.
type releases struct {
	cameras map[fleet.CameraID]release
	said    time.Time // when anything was said last
}

// release is a camera that was let go of.
type release struct {
	generation int64
	unsaid     bool      // on this control stream
	first      time.Time // when it was said first; zero: never
}

// add notes a release; one that is there is said again.
func (r *releases) add(id fleet.CameraID, generation int64) {
	if r.cameras == nil {
		r.cameras = make(map[fleet.CameraID]release)
	}
	old := r.cameras[id]
	if old.generation != generation {
		old = release{generation: generation}
	}
	old.unsaid = true
	r.cameras[id] = old
}

// remove forgets a release, for the node has the assignment again.
func (r *releases) remove(id fleet.CameraID, generation int64) {
	if r.cameras[id].generation == generation {
		delete(r.cameras, id)
	}
}

// again makes all that are not too old unsaid, for a new control stream.
func (r *releases) again(now time.Time) {
	for id, old := range r.cameras {
		if !old.first.IsZero() && now.Sub(old.first) > releaseMemory {
			delete(r.cameras, id)
			continue
		}
		old.unsaid = true
		r.cameras[id] = old
	}
}

// unsaid returns how many are to be said.
func (r *releases) unsaid() int {
	n := 0
	for _, rel := range r.cameras {
		if rel.unsaid {
			n++
		}
	}
	return n
}

// take returns those to be said, which then are, and forgets those that were
// said long ago.
func (r *releases) take(now time.Time) []*controlv1.RunningAssignment {
	var out []*controlv1.RunningAssignment
	for id, rel := range r.cameras {
		switch {
		case rel.unsaid:
			out = append(out, &controlv1.RunningAssignment{Camera: id.Name(), Generation: rel.generation})
			rel.unsaid = false
			r.said = now
			if rel.first.IsZero() {
				rel.first = now
			}
			r.cameras[id] = rel
		case now.Sub(rel.first) > releaseMemory:
			delete(r.cameras, id)
		}
	}
	return out
}
