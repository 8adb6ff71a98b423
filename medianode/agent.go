package medianode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// The waits between two attempts to open the control stream, with full
	// jitter, so that a fleet does not come back as one.
	minReconnect = 100 * time.Millisecond
	maxReconnect = 2 * time.Second
	// defaultLease is how long a lease is taken to live before Welcome has said.
	defaultLease = 3 * time.Second
	// coalesce is the least time between two reports of changed states. The first
	// goes at once: it may be what a move waits for.
	coalesce = 20 * time.Millisecond
	// figuresInterval is how often a camera's figures and the node's load are
	// sent, at most, and firstFigures how soon after its state changed.
	figuresInterval = 10 * time.Second
	firstFigures    = 2 * time.Second
	// figuresCheck is how often it is looked whether they have moved.
	figuresCheck = time.Second
	// maxReported is how many cameras a Report has at most.
	maxReported = 500
)

// changes is the set of cameras whose state is to be reported.
type changes struct {
	wake chan struct{} // holds a token while there may be some

	mu  sync.Mutex // guards the rest
	ids map[fleet.CameraID]struct{}
}

func newChanges() *changes {
	return &changes{wake: make(chan struct{}, 1), ids: make(map[fleet.CameraID]struct{})}
}

// add never blocks.
func (c *changes) add(id fleet.CameraID) {
	c.mu.Lock()
	c.ids[id] = struct{}{}
	c.mu.Unlock()
	c.poke()
}

// poke says that there is something else to report.
func (c *changes) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *changes) take() map[fleet.CameraID]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.ids
	c.ids = make(map[fleet.CameraID]struct{})
	return ids
}

// agent is the node's side of the control stream.
type agent struct {
	node   *Node
	client controlv1.AgentServiceClient
	lease  lease
}

// run keeps a control stream open until ctx ends.
func (a *agent) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.lease.watch(ctx, a.node.leaseExpired) })
	backoff := rpc.Backoff{Min: minReconnect, Max: maxReconnect}
	level := slog.LevelWarn // of the first failure; those that follow are no news
	for ctx.Err() == nil {
		welcomed, err := a.sync(ctx)
		if ctx.Err() != nil {
			return
		}
		if welcomed {
			backoff.Reset()
			level = slog.LevelWarn
		}
		a.node.log.Log(ctx, level, "control stream ended", "error", err)
		level = slog.LevelDebug
		if backoff.Sleep(ctx) != nil {
			return
		}
	}
}

// sync runs one control stream, until it fails or ctx ends.
func (a *agent) sync(ctx context.Context) (welcomed bool, err error) {
	streamCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stream, err := a.client.Sync(streamCtx)
	if err != nil {
		return false, fmt.Errorf("open control stream: %w", err)
	}
	c := &controlStream{agent: a, stream: stream}
	if err := c.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: a.node.hello()}}); err != nil {
		return false, err
	}
	messages, failed := make(chan *controlv1.SyncResponse), make(chan error, 1)
	wg.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-streamCtx.Done():
				return
			}
		}
	})
	err = c.run(ctx, messages, failed)
	a.node.metrics.control(false)
	if c.welcomed {
		a.node.lost()
		a.lease.lost(c.heard)
	}
	return c.welcomed, err
}

// controlStream is one control stream that is open. Owned by its run.
type controlStream struct {
	agent    *agent
	stream   grpc.BidiStreamingClient[controlv1.SyncRequest, controlv1.SyncResponse]
	welcomed bool
	heard    time.Time // when the control plane last said something
	applied  bool      // a set of this stream: now there is something to report
	load     nodeLoad  // as last reported
}

// run answers the control plane and reports to it until the stream fails or ctx
// ends.
func (c *controlStream) run(ctx context.Context, messages <-chan *controlv1.SyncResponse, failed <-chan error) error {
	n := c.agent.node
	ticker := time.NewTicker(figuresCheck) // each camera has its own jitter
	defer ticker.Stop()
	leaving := n.leaving
	var pause <-chan time.Time // after a report; nil: the next may go
	for {
		var changed <-chan struct{}
		if c.applied && pause == nil {
			changed = n.changes.wake
		}
		var err error
		select {
		case <-leaving:
			leaving = nil
			err = c.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Leave{Leave: &controlv1.Leave{}}})
		case m := <-messages:
			c.heard = time.Now()
			err = c.take(ctx, m)
		case <-changed:
			pause = time.After(coalesce)
			err = c.reportChanges(time.Now())
		case <-pause:
			pause = nil
		case now := <-ticker.C:
			if c.applied {
				err = c.reportFigures(now)
			}
		case err = <-failed:
			if rpc.Answered(err) {
				c.heard = time.Now()
			}
			err = fmt.Errorf("control stream: %w", err)
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take takes a message of the control plane.
func (c *controlStream) take(ctx context.Context, m *controlv1.SyncResponse) error {
	n := c.agent.node
	switch m := m.GetMessage().(type) {
	case *controlv1.SyncResponse_Welcome:
		c.welcomed = true
		n.metrics.control(true)
		c.agent.lease.renew(time.Duration(m.Welcome.GetLeaseTtlMs()) * time.Millisecond)
		n.welcome(m.Welcome.GetCluster())
		n.log.Info("control plane reached")
	case *controlv1.SyncResponse_DesiredSet:
		applied := n.apply(ctx, m.DesiredSet)
		if err := c.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Applied{Applied: applied}}); err != nil {
			return err
		}
		if !c.applied { // what was reported before, another replica may not know
			c.applied = true
			for _, camera := range n.list() {
				n.changes.add(camera.id)
			}
			n.mu.Lock()
			n.released.again(time.Now())
			n.mu.Unlock()
			n.changes.poke()
		}
	default:
		n.log.Debug("message of an unknown type ignored") // of a newer version
	}
	return nil
}

func (c *controlStream) send(m *controlv1.SyncRequest) error {
	err := c.stream.Send(m)
	if errors.Is(err, io.EOF) { // gRPC says why on Recv, which the reader may have taken
		return fmt.Errorf("control stream: send: %w", fleet.Unavailable)
	}
	if err != nil {
		return fmt.Errorf("control stream: send: %w", err)
	}
	return nil
}

// hello introduces the node, with what it runs.
func (n *Node) hello() *controlv1.Hello {
	h := &controlv1.Hello{
		Node: n.cfg.Node.Name(), BootId: n.bootID, SessionAddress: n.cfg.SessionAddress, MediaAddresses: n.mediaAddresses(),
		Labels: n.cfg.Labels, Version: n.cfg.Version,
		Capacity: &controlv1.NodeCapacity{
			Cameras: int32(n.cfg.Capacity.Cameras), Viewers: int32(n.cfg.Capacity.Viewers),
			IngressBps: n.cfg.Capacity.IngressBPS, EgressBps: n.cfg.Capacity.EgressBPS, CpuUtilization: n.meter.maxCPU,
		},
	}
	for _, c := range n.list() {
		_, generation := c.status()
		h.Running = append(h.Running, &controlv1.RunningAssignment{Camera: c.id.Name(), Generation: generation})
	}
	return h
}

// welcome notes that the control plane has been reached, and forgets the
// generations of another etcd cluster than its own: they would have those of this
// one refused. Empty: it does not say, and nothing is forgotten.
func (n *Node) welcome(cluster string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reached, n.away = true, time.Time{}
	if cluster == "" || cluster == n.cluster {
		return
	}
	if n.cluster != "" {
		n.log.Warn("the control plane has another store; assignments are numbered anew", "cluster", cluster, "before", n.cluster)
		clear(n.seen)
		clear(n.released.cameras)
	}
	n.cluster = cluster
}

// lost notes that there is no control stream any more.
func (n *Node) lost() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away = time.Now()
}

// lease tells when the node's lease may have run out: its time after the control
// plane was last heard. A replica renews the lease while the stream is open, and
// gives it up when it thinks that the stream is lost, which may be before the node
// does: a connection without a byte is taken for lost after rpc.Silence. So the
// lease's time begins with the last message, or rpc.Silence before the stream was
// found to be lost, whichever was later. With a lease of 3 s and 4 s of silence
// that is at once, unless the control plane has itself ended the stream.
type lease struct {
	changed chan struct{} // holds a token while watch has something to look at

	mu       sync.Mutex // guards the rest; taken before the node's
	ttl      time.Duration
	deadline time.Time // zero: there is a stream, or the lease has never been
}

func (l *lease) renew(ttl time.Duration) {
	if ttl <= 0 {
		ttl = defaultLease
	}
	l.set(ttl, time.Time{})
}

// lost says that there is no stream any more. heard is when the control plane
// last said something.
func (l *lease) lost(heard time.Time) {
	l.mu.Lock()
	ttl := l.ttl
	l.mu.Unlock()
	if least := time.Now().Add(-rpc.Silence); heard.Before(least) {
		heard = least
	}
	l.set(ttl, heard.Add(ttl))
}

func (l *lease) set(ttl time.Duration, deadline time.Time) {
	l.mu.Lock()
	l.ttl, l.deadline = ttl, deadline
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// watch calls expired each time the lease has run out, until ctx ends. The lease
// is not renewed while expired runs, so that it comes before what the control
// plane then says.
func (l *lease) watch(ctx context.Context, expired func()) {
	for {
		l.mu.Lock()
		deadline := l.deadline
		l.mu.Unlock()
		var out <-chan time.Time
		if !deadline.IsZero() {
			out = time.After(time.Until(deadline))
		}
		select {
		case <-out:
			l.expire(deadline, expired)
		case <-l.changed:
		case <-ctx.Done():
			return
		}
	}
}

// expire calls expired, unless the deadline that has passed no longer is one.
func (l *lease) expire(deadline time.Time, expired func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deadline.IsZero() || !l.deadline.Equal(deadline) {
		return
	}
	l.deadline = time.Time{}
	expired()
}
