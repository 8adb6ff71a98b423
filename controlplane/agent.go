package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// helloWait is how long a node may take to say who it is.
	helloWait = 10 * time.Second
	// setEvery is the least time between two desired sets of a stream, and
	// setEveryCamera is added for each camera in it: so that a thousand cameras
	// created in a row are not a thousand sets.
	setEvery       = 10 * time.Millisecond
	setEveryCamera = 100 * time.Microsecond
	// maxAddresses bounds Hello.media_addresses.
	maxAddresses = 32
	maxAddress   = 300 // bytes of an address, a boot id, a version
)

const (
	// registerAgainTimeout is how long a replica tries to give a connected node
	// a lease for one that was lost.
	registerAgainTimeout = time.Second
	// afterLease is how much later than its lease a node may stop pulling a
	// camera that accepts one session: it may notice after 4 s of silence that
	// its stream is gone, and the replica may have held it for a second more
	// than the lease lived.
	afterLease = 5*time.Second + registerAgainTimeout
)

// errReplaced ends a stream whose node has opened another.
var errReplaced = fmt.Errorf("another stream of this node has taken its place: %w", fleet.Unavailable)

// agentService is the nodes' service.
type agentService struct {
	controlv1.UnimplementedAgentServiceServer
	server *Server
}

// agent is one Sync call: one node's stream.
type agent struct {
	// Static after newAgent.
	server *Server
	log    *slog.Logger
	stream controlv1.AgentService_SyncServer
	id     fleet.NodeID
	end    context.CancelCauseFunc // ends the call
	ended  <-chan struct{}         // closed when the call ends, or its connection is lost

	reports *reports
	reached atomic.Bool // the node listened where gateways reach it: see hasEnded

	mu       sync.Mutex // guards the rest
	node     *controlv1.Node
	lease    *lease
	revision int64 // at which this stream has stored the node last
}

// Sync is a node's control stream.
func (s *agentService) Sync(stream controlv1.AgentService_SyncServer) error {
	srv := s.server
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	if err := srv.cache.waitReady(ctx); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	requests, recvErr := receive(ctx, stream.Recv)
	hello, err := srv.awaitHello(ctx, requests, recvErr)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	a, err := srv.newAgent(ctx, hello, stream, end)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := srv.replaceAgent(a); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	srv.leases.enter(a.id)
	err = a.serve(ctx, requests, recvErr)
	srv.leases.part(a, err) // which the node need not wait for
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// serve registers the node and serves it until the stream ends.
func (a *agent) serve(ctx context.Context, requests <-chan *controlv1.SyncRequest, recvErr <-chan error) error {
	if err := a.register(ctx, nil); err != nil {
		a.end(err)
		return err
	}
	a.log.Info("node connected", "boot_id", a.node.GetBootId(), "version", a.node.GetVersion())
	var wait sync.WaitGroup
	wait.Go(func() { a.hold(ctx) })
	wait.Go(func() { a.reports.write(ctx, a) })
	wait.Go(func() { a.reach(ctx) })
	err := a.run(ctx, requests, recvErr)
	a.end(err)
	wait.Wait()
	a.log.Info("node disconnected", "reason", err)
	return err
}

// awaitHello returns the first message, which must be Hello.
func (s *Server) awaitHello(ctx context.Context, requests <-chan *controlv1.SyncRequest, recvErr <-chan error) (*controlv1.Hello, error) {
	t := time.NewTimer(helloWait)
	defer t.Stop()
	select {
	case req := <-requests:
		if req.GetHello() == nil {
			return nil, fleet.HelloFirst
		}
		return req.GetHello(), nil
	case err := <-recvErr:
		if err := ended(err); err != nil {
			return nil, err
		}
		return nil, fleet.HelloFirst
	case <-t.C:
		return nil, fmt.Errorf("nothing came for %v: %w", helloWait, fleet.HelloFirst)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.stop:
		return nil, errStopping
	}
}

// newAgent checks a Hello.
func (s *Server) newAgent(ctx context.Context, h *controlv1.Hello, stream controlv1.AgentService_SyncServer, end context.CancelCauseFunc) (*agent, error) {
	id, err := fleet.ParseNodeName(h.GetNode())
	if err != nil {
		return nil, err
	}
	if who := rpc.IdentityFrom(ctx); !who.MaySpeakFor(rpc.RoleNode, string(id)) {
		return nil, fmt.Errorf("node %q, called by %s: %w", id, who, fleet.NodeIdentity)
	}
	if err := checkHello(h); err != nil {
		return nil, fmt.Errorf("node %q: %w", id, err)
	}
	capacity := h.GetCapacity()
	if capacity == nil {
		capacity = &controlv1.NodeCapacity{}
	}
	return &agent{
		server: s,
		log:    s.log.With("node", id),
		stream: stream,
		id:     id,
		end:    end,
		ended:  ctx.Done(),
		node: &controlv1.Node{
			Name:           id.Name(),
			SessionAddress: h.GetSessionAddress(),
			MediaAddresses: h.GetMediaAddresses(),
			Labels:         h.GetLabels(),
			Capacity:       capacity,
			Load:           &controlv1.NodeLoad{},
			Version:        h.GetVersion(),
			BootId:         h.GetBootId(),
			ConnectTime:    timestamppb.Now(),
			Leaving:        s.cache.isLeaving(id, h.GetBootId()),
		},
		reports: newReports(s.cache.releasedBy(id, h)),
	}, nil
}

func checkHello(h *controlv1.Hello) error {
	for field, s := range map[string]string{
		"boot_id": h.GetBootId(), "session_address": h.GetSessionAddress(), "version": h.GetVersion(),
	} {
		if len(s) > maxAddress || hasControl(s) {
			return invalid(field, "is longer than %d bytes or has control characters", maxAddress)
		}
	}
	if h.GetBootId() == "" {
		return invalid("boot_id", "must not be empty")
	}
	if h.GetSessionAddress() == "" {
		return invalid("session_address", "must not be empty; gateways dial it")
	}
	if !isHostPort(h.GetSessionAddress()) {
		return invalid("session_address", "must be host:port, a host name or IP address with a port from 1 to 65535; gateways dial it")
	}
	if len(h.GetMediaAddresses()) > maxAddresses {
		return invalid("media_addresses", "has %d; at most %d are allowed", len(h.GetMediaAddresses()), maxAddresses)
	}
	for _, s := range h.GetMediaAddresses() {
		if len(s) > maxAddress || hasControl(s) {
			return invalid("media_addresses", "has one longer than %d bytes or with control characters", maxAddress)
		}
	}
	c := h.GetCapacity()
	if c.GetCameras() < 0 || c.GetEgressBps() < 0 || c.GetIngressBps() < 0 || c.GetViewers() < 0 {
		return invalid("capacity", "is negative; use 0 for no limit")
	}
	return checkLabels("labels", h.GetLabels())
}

// replaceAgent makes a stream its node's, and ends the one before. It refuses
// that to another process of the same name while the stream before is open:
// they would replace each other for ever, and both pull the same cameras. A
// process that has died leaves no stream for long: its machine resets the
// connection at once, and one to a machine that is gone ends with the pings.
func (s *Server) replaceAgent(a *agent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.agents[a.id]
	if old != nil && !isDone(old.ended) && old.bootID() != a.bootID() {
		a.log.Warn("node refused: another process of its name is connected", "boot_id", a.bootID(), "connected", old.bootID())
		return fmt.Errorf("node %q: give each process its own --node: %w", a.id, fleet.NodeNameTaken)
	}
	s.agents[a.id] = a
	if old != nil {
		old.end(errReplaced)
	}
	return nil
}

func (a *agent) bootID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node.GetBootId()
}

// keeps tells whether a node is registered by a stream of this replica.
func (s *Server) keeps(n *store.Node) bool {
	s.mu.Lock()
	a := s.agents[n.ID]
	s.mu.Unlock()
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease != nil && a.lease.ID() == n.Lease
}

// isLatest tells whether a node has opened no stream here since.
func (s *Server) isLatest(a *agent) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agents[a.id] == a
}

func (s *Server) forgetAgent(a *agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agents[a.id] == a {
		delete(s.agents, a.id)
	}
}

// register stores the node under another lease and waits until the cache has it,
// and with it every assignment that the node may have been told of elsewhere.
// lost is the lease that it was under in this stream.
func (a *agent) register(ctx context.Context, lost *lease) error {
	lease, err := a.server.leases.take(ctx, a.id)
	if err != nil {
		return err
	}
	a.mu.Lock()
	node := a.node
	a.lease = lease
	a.mu.Unlock()
	var rev int64
	if lost == nil {
		rev, err = lease.Register(ctx, a.id, node)
	} else {
		rev, err = lease.Succeed(ctx, lost.Lease, a.id, node)
	}
	if err != nil {
		return err
	}
	a.wrote(rev)
	return a.server.cache.wait(ctx, rev)
}

// wrote notes when the node was stored last.
func (a *agent) wrote(revision int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision = max(a.revision, revision)
}

// replaced tells whether the node is registered by another stream: n is the
// node as the cache has it, nil if it is not connected.
func (a *agent) replaced(n *store.Node) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return n != nil && n.Lease != a.lease.ID() && n.Revision > a.revision
}

// run welcomes the node, and keeps it told of what it should run, until the
// stream ends.
func (a *agent) run(ctx context.Context, requests <-chan *controlv1.SyncRequest, recvErr <-chan error) error {
	srv := a.server
	sub := newSubscriber()
	srv.cache.subscribeAgent(sub, a.id)
	defer srv.cache.unsubscribeAgent(sub, a.id)
	a.mu.Lock()
	welcome := &controlv1.Welcome{
		LeaseTtlMs: a.lease.TTL.Milliseconds(),
		Cluster:    strconv.FormatUint(srv.store.ClusterID(), 16),
	}
	a.mu.Unlock()
	if err := a.stream.Send(&controlv1.SyncResponse{Message: &controlv1.SyncResponse_Welcome{Welcome: welcome}}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	d := &desired{agent: a}
	if err := d.send(); err != nil {
		return err
	}
	pause := time.NewTimer(d.pause())
	defer pause.Stop()
	var wake <-chan struct{} // nil while it is too early for another set
	for {
		select {
		case <-pause.C:
			wake = sub.wake
		case <-wake:
			srv.cache.take(sub)
			if err := d.send(); err != nil {
				return err
			}
			a.reports.poke() // some may have waited for a move
			wake = nil
			pause.Reset(d.pause())
		case req := <-requests:
			if err := a.take(req, d); err != nil {
				return err
			}
		case err := <-recvErr:
			return ended(err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-srv.stop:
			return errStopping
		}
	}
}

// take takes a message of the node.
func (a *agent) take(req *controlv1.SyncRequest, d *desired) error {
	switch m := req.GetMessage().(type) {
	case *controlv1.SyncRequest_Applied:
		for _, e := range m.Applied.GetErrors() {
			a.refused(e, m.Applied.GetGeneration(), d)
		}
	case *controlv1.SyncRequest_Report:
		a.reports.load(m.Report.GetLoad())
		for _, o := range m.Report.GetCameras() {
			a.reported(o)
		}
		for _, r := range m.Report.GetReleased() {
			a.released(r)
		}
	case *controlv1.SyncRequest_Leave:
		a.log.Info("node is about to stop")
		a.reports.leave()
	case *controlv1.SyncRequest_Hello:
		return fmt.Errorf("hello came twice: %w", fleet.OutOfOrder)
	default:
		a.log.Debug("message of an unknown type ignored") // of a newer version
	}
	return nil
}
