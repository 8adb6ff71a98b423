package route

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// probeTimeout is how long the control plane may take for its first answer.
	probeTimeout = 5 * time.Second
	// namesPerMessage keeps messages small when a gateway names all its cameras.
	namesPerMessage = 500
	sweepEvery      = 15 * time.Second
	// lasting is how long a stream has lived that makes the next wait short.
	lasting = 5 * time.Second
)

// follow runs one stream until it fails; the error is never nil.
func (t *Table) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A stream on which nothing is watched says nothing, so an empty question
	// tells whether the control plane is there and knows this gateway.
	probe, done := context.WithTimeout(ctx, probeTimeout)
	_, err := t.cfg.Client.BrowseCameras(probe, &controlv1.BrowseCamerasRequest{PageSize: 1})
	done()
	if err != nil {
		return err
	}
	stream, err := t.cfg.Client.WatchRoutes(ctx)
	if err != nil {
		return err
	}
	t.connected()

	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		failed <- t.receive(stream)
	}()
	err = t.send(ctx, stream, failed)
	cancel()
	for range failed { // until receive has returned
		continue
	}
	if err == nil || err == io.EOF { //nolint:errorlint // gRPC returns io.EOF itself
		err = fmt.Errorf("the control plane ended the stream of routes: %w", fleet.Unavailable)
	}
	return err
}

// connected notes that there is a stream, on which every camera is to be named.
func (t *Table) connected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trouble != nil {
		t.log.Info("control plane reached", "cameras", len(t.entries))
	}
	t.reached, t.trouble = true, nil
	clear(t.dirty)
	for id := range t.entries {
		t.mark(id)
	}
}

// receive takes routes until the stream fails.
func (t *Table) receive(stream controlv1.RouteService_WatchRoutesClient) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		t.set(resp.GetRoutes())
	}
}

// send tells the control plane which cameras are watched, until the stream
// fails.
func (t *Table) send(ctx context.Context, stream controlv1.RouteService_WatchRoutesClient, failed <-chan error) error {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	// What this stream has been told. A camera that was removed and added again
	// since is another entry, whose route is to be asked for anew.
	told := make(map[fleet.CameraID]*entry)
	for {
		for _, req := range t.pending(told) {
			if err := stream.Send(req); err != nil {
				// The reason is what Recv returns.
				return <-failed
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-t.wake:
		case now := <-sweep.C:
			t.sweep(now)
		}
	}
}

// pending returns what the control plane is to be told next, removals before
// additions, and notes it in told.
func (t *Table) pending(told map[fleet.CameraID]*entry) []*controlv1.WatchRoutesRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	var add, remove []string
	for id := range t.dirty {
		want, has := t.entries[id], told[id]
		if want == has {
			continue
		}
		if has != nil {
			delete(told, id)
			remove = append(remove, id.Name())
		}
		if want != nil {
			told[id] = want
			add = append(add, id.Name())
		}
	}
	clear(t.dirty)
	var reqs []*controlv1.WatchRoutesRequest
	for names := range slices.Chunk(remove, namesPerMessage) {
		reqs = append(reqs, &controlv1.WatchRoutesRequest{Remove: names})
	}
	for names := range slices.Chunk(add, namesPerMessage) {
		reqs = append(reqs, &controlv1.WatchRoutesRequest{Add: names})
	}
	return reqs
}
