package signaling

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"fanlight/internal/fleet"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const (
	// nodeIdle is how long a connection to a node stays without use.
	nodeIdle = time.Minute
	// eventsKept is how many messages of a node wait for their session.
	eventsKept = 64
	// leaveWait is how long a node may take to end a session that was left.
	leaveWait = time.Second
	// hurryEvery is how often a node that could not be reached is tried before
	// its time at most, because sessions ask for it.
	hurryEvery = 100 * time.Millisecond
)

// nodes are the connections to media nodes: one to each address in use.
type nodes struct {
	dial func(addr string) (*grpc.ClientConn, error) // static

	mu    sync.Mutex // guards the rest
	conns map[string]*nodeConn
}

// nodeConn is one of them. All but conn are guarded by nodes.mu.
type nodeConn struct {
	conn      *grpc.ClientConn // static
	uses      int
	idleSince time.Time
	hurried   time.Time // when it was last connected before its time
}

// get returns the connection to a node, and what to call when it is no longer
// needed.
func (n *nodes) get(addr string) (*grpc.ClientConn, func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.conns[addr]
	if c == nil {
		conn, err := n.dial(addr)
		if err != nil {
			return nil, nil, fmt.Errorf("dial node %s: %w (%w)", addr, fleet.NodeUnreachable, err)
		}
		c = &nodeConn{conn: conn}
		n.conns[addr] = c
	}
	// A node that was away may be back: its time is not up to gRPC's backoff, of
	// up to a second, but to those who ask.
	if now := time.Now(); c.conn.GetState() == connectivity.TransientFailure && now.Sub(c.hurried) >= hurryEvery {
		c.hurried = now
		c.conn.ResetConnectBackoff()
	}
	c.uses++
	var once sync.Once
	return c.conn, func() { once.Do(func() { n.put(c) }) }, nil
}

func (n *nodes) put(c *nodeConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c.uses--
	c.idleSince = time.Now()
}

// answers tells whether the node at an address is connected, and makes an
// attempt if it is not.
func (n *nodes) answers(addr string) bool {
	conn, done, err := n.get(addr)
	if err != nil {
		return false
	}
	defer done()
	conn.Connect()
	return conn.GetState() == connectivity.Ready
}

// sweep closes the connections that have had no use for a while; all without
// use if all is true.
func (n *nodes) sweep(now time.Time, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for addr, c := range n.conns {
		if c.uses == 0 && (all || now.Sub(c.idleSince) >= nodeIdle) {
			delete(n.conns, addr)
			_ = c.conn.Close()
		}
	}
}

// nodeStream is one OpenSession stream. Its owner calls leave or close.
type nodeStream struct {
	// events are what the node says. The last one has an error; the channel is
	// then closed.
	events <-chan nodeEvent
	stop   context.CancelFunc
}

// nodeEvent is one thing that a node stream says: that it is open, a response,
// or that it has ended.
type nodeEvent struct {
	opened mediav1.SessionService_OpenSessionClient
	resp   *mediav1.OpenSessionResponse
	err    error
}

// open begins a stream to a node without waiting for it.
func (n *nodes) open(ctx context.Context, addr string) *nodeStream {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan nodeEvent, eventsKept)
	go func() {
		defer close(events)
		err := n.receive(ctx, addr, func(e nodeEvent) bool {
			select {
			case events <- e:
				return true
			case <-ctx.Done():
				return false
			}
		})
		select {
		case events <- nodeEvent{err: err}:
		case <-ctx.Done():
		}
	}()
	return &nodeStream{events: events, stop: cancel}
}

// receive opens the stream and passes on what comes until it ends; the error
// is never nil.
func (n *nodes) receive(ctx context.Context, addr string, emit func(nodeEvent) bool) error {
	conn, done, err := n.get(addr)
	if err != nil {
		return err
	}
	defer done()
	stream, err := mediav1.NewSessionServiceClient(conn).OpenSession(ctx)
	if err != nil {
		return err
	}
	if !emit(nodeEvent{opened: stream}) {
		return ctx.Err()
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if !emit(nodeEvent{resp: resp}) {
			return ctx.Err()
		}
	}
}

// leave half-closes the stream, upon which the node ends its session, and
// returns when it has, after leaveWait at the latest. node is nil if it has
// been told of no session.
func (s *nodeStream) leave(node mediav1.SessionService_OpenSessionClient) {
	if node != nil && node.CloseSend() == nil {
		t := time.AfterFunc(leaveWait, s.stop)
		defer t.Stop()
		for range s.events {
			continue
		}
	}
	s.close()
}

// close breaks the stream, which makes its session an orphan at the node, and
// waits until it has ended.
func (s *nodeStream) close() {
	s.stop()
	for range s.events {
		continue
	}
}
