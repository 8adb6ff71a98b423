package controlplane

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// maxEvents is how many events a response has at most.
const maxEvents = 500

// WatchCameras sends a snapshot, then every change.
func (s *cameraService) WatchCameras(req *controlv1.WatchCamerasRequest, stream controlv1.CameraService_WatchCamerasServer) error {
	f, err := newFilter(req.GetFilter())
	if err != nil {
		return fmt.Errorf("watch cameras: %w", err)
	}
	ctx, srv := stream.Context(), s.server
	if err := srv.cache.waitReady(ctx); err != nil {
		return fmt.Errorf("watch cameras: %w", err)
	}
	w := &cameraWatch{cache: srv.cache, filter: f, told: make(map[fleet.CameraID]bool)}
	w.out = eventBuffer[*controlv1.CameraEvent]{send: func(events []*controlv1.CameraEvent, complete bool, rev int64) error {
		return stream.Send(&controlv1.WatchCamerasResponse{
			Events: events, SnapshotComplete: complete, ResumeToken: resumeToken(srv.store.ClusterID(), rev),
		})
	}}
	sub := newSubscriber()
	rev := srv.cache.subscribe(sub, srv.cache.interest.ofCameras)
	defer srv.cache.unsubscribe(sub, srv.cache.interest.ofCameras)
	if req.GetResumeToken() == "" {
		err = w.snapshot(rev)
	} else {
		err = w.resume(ctx, srv, req.GetResumeToken(), rev)
	}
	if err != nil {
		return fmt.Errorf("watch cameras: %w", err)
	}
	return srv.follow(ctx, sub, func() error {
		cameras, _, rev := srv.cache.take(sub)
		for id := range cameras {
			if err := w.tell(id); err != nil {
				return err
			}
		}
		return w.out.flush(false, rev)
	})
}

// follow calls next whenever there is something new for a subscriber, until ctx
// ends or the server stops.
func (s *Server) follow(ctx context.Context, sub *subscriber, next func() error) error {
	for {
		select {
		case <-sub.wake:
			if err := next(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.stop:
			return errStopping
		}
	}
}

// cameraWatch is one WatchCameras call. Owned by it.
type cameraWatch struct {
	cache  *cache
	filter *filter
	out    eventBuffer[*controlv1.CameraEvent]
	// told has the cameras of which the watcher was told that they exist (true)
	// or not. Of those that are not in it, it may know from the watch that this
	// one resumes, if any.
	told    map[fleet.CameraID]bool
	resumed bool
}

// snapshot tells of all cameras; what changes meanwhile is told later again.
func (w *cameraWatch) snapshot(rev int64) error {
	w.out.revision = 0 // an incomplete snapshot can't be resumed
	for id := range w.cache.camerasAfter("") {
		if err := w.tell(id); err != nil {
			return err
		}
	}
	return w.out.flush(true, rev)
}

// resume tells of the cameras that have changed since a token was given out.
func (w *cameraWatch) resume(ctx context.Context, srv *Server, token string, rev int64) error {
	w.resumed = true
	since, err := srv.since(ctx, token, rev)
	if err != nil {
		return err
	}
	w.out.revision = since.from
	for id := range since.cameras {
		if err := w.tell(id); err != nil {
			return err
		}
	}
	return w.out.flush(false, max(rev, since.from))
}

// tell tells what a camera is now.
func (w *cameraWatch) tell(id fleet.CameraID) error {
	v, ok := w.cache.camera(id)
	if ok && w.filter.matches(v) {
		w.told[id] = true
		return w.out.add(&controlv1.CameraEvent{Type: controlv1.CameraEvent_TYPE_PUT, Camera: v.message()})
	}
	told, known := w.told[id]
	if told || !known && w.resumed {
		w.told[id] = false
		return w.out.add(&controlv1.CameraEvent{
			Type: controlv1.CameraEvent_TYPE_DELETED, Camera: &controlv1.Camera{Name: id.Name()},
		})
	}
	return nil
}

// eventBuffer collects events into responses. Owned by one call.
type eventBuffer[E proto.Message] struct {
	send     func(events []E, complete bool, revision int64) error
	revision int64 // of the responses that are not the last of their step
	events   []E
	bytes    int
}

func (b *eventBuffer[E]) add(e E) error {
	n := proto.Size(e)
	if len(b.events) > 0 && (len(b.events) == maxEvents || b.bytes+n > maxAnswer) {
		if err := b.sendAll(false, b.revision); err != nil {
			return err
		}
	}
	b.events, b.bytes = append(b.events, e), b.bytes+n
	return nil
}

// flush ends a step: the watcher then knows everything through revision.
func (b *eventBuffer[E]) flush(complete bool, revision int64) error {
	b.revision = revision
	if len(b.events) == 0 && !complete {
		return nil
	}
	return b.sendAll(complete, revision)
}

func (b *eventBuffer[E]) sendAll(complete bool, revision int64) error {
	err := b.send(b.events, complete, revision)
	b.events, b.bytes = nil, 0
	return err
}

// changed is what has changed since a revision.
type changed struct {
	from    int64
	cameras map[fleet.CameraID]struct{}
	nodes   map[fleet.NodeID]struct{}
}

// since returns what has changed between a resume token and a revision. The
// error wraps [fleet.InvalidResumeToken] or [fleet.ResumeTokenTooOld].
func (s *Server) since(ctx context.Context, token string, through int64) (*changed, error) {
	from, err := resumeRevision(token, s.store.ClusterID())
	if err != nil {
		return nil, err
	}
	if from > through {
		// Given out by a replica that is ahead of this one, or invented.
		now, err := s.store.Revision(ctx)
		if err != nil {
			return nil, err
		}
		if from > now {
			return nil, fmt.Errorf("resume_token: %w", fleet.InvalidResumeToken)
		}
		return &changed{from: from}, s.cache.wait(ctx, from)
	}
	events, err := s.store.Changes(ctx, from, through)
	if err != nil {
		return nil, err
	}
	return s.cache.changedBy(from, events), nil
}

// changedBy returns the cameras and nodes that events concern.
func (c *cache) changedBy(from int64, events []store.Event) *changed {
	ch := &changed{from: from, cameras: make(map[fleet.CameraID]struct{}), nodes: make(map[fleet.NodeID]struct{})}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, e := range events {
		switch {
		case e.Camera != nil:
			ch.cameras[e.Camera.ID] = struct{}{}
		case e.Observed != nil:
			ch.cameras[e.Observed.Camera] = struct{}{}
		case e.Drain != nil:
			ch.nodes[e.Drain.Node] = struct{}{}
		case e.Node != nil:
			ch.nodes[e.Node.ID] = struct{}{}
			for id := range c.byNode[e.Node.ID] {
				ch.cameras[id] = struct{}{}
			}
		case e.Assignment != nil:
			ch.cameras[e.Assignment.Camera] = struct{}{}
			for _, id := range append(nodesOf(e.Assignment), nodesOf(e.Before)...) {
				ch.nodes[id] = struct{}{}
			}
		}
	}
	return ch
}
