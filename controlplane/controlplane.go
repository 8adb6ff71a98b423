// Package controlplane keeps what operators want, decides which media node
// takes which camera, and tells nodes and gateways.
//
// # One replica
//
// A [Server] serves four gRPC services: CameraService and NodeService to
// operators, AgentService to nodes, RouteService to gateways. All state is in
// the store; the server holds a copy of it, fed by a watch, and everything that
// is read is read from that copy. What is written goes to the store first, and
// a call returns when the copy has it: whoever creates a camera finds it.
//
// Nothing polls. A change travels as an event: store → copy → those who asked
// to be told → their stream. Whoever is told of a change only learns which
// camera or node it concerns, and looks when it has time, so that a slow reader
// delays nobody and costs nothing but a mark per camera.
//
// # Several replicas
//
// Every replica serves everybody. One of them, elected, also decides: it plans
// (package placement), and stores its decisions under its leadership, so that
// one that has lost it without knowing can't. Nodes and gateways may connect to
// any replica, and to another when theirs is gone.
//
// # Nodes
//
// A node's stream is its liveness. While it is open, the node is registered
// under one of a few leases that the replica renews; when it breaks, the node has
// [Config.NodeGrace] to come back before its registration is taken back and its
// cameras go elsewhere, unless its machine now refuses connections to the address
// of its sessions, which it did not before: then the process has ended, and nobody waits. If the replica
// itself dies, its leases live for [Config.LeaseTTL]. Until a node's registration
// has ended nothing moves.
//
// That a lease has ended says little after an outage of the control plane or of
// its store, during which nobody renewed it. So a new leader, and one that could
// not reach the store, gives nodes [Config.SettleTime] to come back: until then
// those that were not seen alive since keep their cameras, though they are given
// no new ones. A leader announces itself, and every replica then registers its
// nodes anew: those are seen, and lose their cameras at once when they go. What
// has no node is placed at once on the nodes that are there.
//
// # Moves
//
// A camera that is LIVE moves make-before-break, be it from a node that an
// operator drains, from one that is about to stop, or for balance. Its assignment
// goes through phases, each stored before anyone acts by it:
//
//   - warming: both nodes pull, the old one serves and is what operators see. It
//     ends when the new node reports LIVE or the old one is gone. After 15 s
//     without either, the new node takes over if the old one has no picture
//     either; a move for balance is given up; that of a node that is being emptied
//     goes on, which is noted, and takes over at the deadline. No viewer loses a
//     picture to a node that has none.
//   - serving: the new node serves, and the old one keeps the viewers that it has
//     until they have left, and then says that it has let go, to its replica.
//
// If the new node dies while it warms up, the camera goes to another, or stays on
// the old one under the generation that it has there. What is not LIVE moves at
// once. At most 32 cameras are on their way from a node, not counting those that
// are late; the others follow as they arrive.
//
// A camera that accepts a single RTSP session is never pulled by two nodes. It
// moves through a phase in which nobody serves it, releasing, until the old node
// has let go; one whose node is gone is given to another only LeaseTTL and 6 s
// later: by then that node has stopped pulling, even if it is alive and was
// merely cut off. A replica that can't renew a node's lease ends the node's
// stream within a second.
//
// # Balance
//
// Some time after a node has joined, or load has changed, the leader moves
// cameras from loaded nodes to others, at most [Config.RebalanceMoves] at a time,
// until placement finds no move that is worth it. In a fleet in which nothing
// changes it does not look.
//
// # What it does not do
//
// It never touches media, and never dials a camera; of a node whose stream broke
// it only asks whether somebody listens. It does not move a camera to a third
// node because the second is slow. It does not authenticate: package rpc does,
// from [Services].
package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// readyWait is how long a call waits for what will come soon: the state at the
// start, or a change of its own.
const readyWait = 5 * time.Second

// settleTime is longer than any node needs to come back to a control plane that
// is there again: its agent waits for 2 s at most, its connection for 1 s, a
// try takes up to 3 s, and the control plane answers when it has read its state.
const settleTime = 10 * time.Second

// The defaults of balance.
const (
	rebalanceMoves = 8
	rebalanceAfter = 10 * time.Second
)

// Services says which role may call each of the services.
var Services = map[string]rpc.Role{
	controlv1.CameraService_ServiceDesc.ServiceName:  rpc.RoleOperator,
	controlv1.NodeService_ServiceDesc.ServiceName:    rpc.RoleOperator,
	controlv1.ClusterService_ServiceDesc.ServiceName: rpc.RoleOperator,
	controlv1.AgentService_ServiceDesc.ServiceName:   rpc.RoleNode,
	controlv1.RouteService_ServiceDesc.ServiceName:   rpc.RoleGateway,
}

// Config is what a Server needs.
type Config struct {
	Log   *slog.Logger // nil: no log
	Store *store.Store // must outlive the server
	// NodeGrace is how long a node whose stream broke has to come back before its
	// lease is revoked. 0: 500 ms.
	NodeGrace time.Duration
	// LeaseTTL is how long a node's lease, and a leader's, lives without being
	// renewed; in whole seconds. 0: 3 s.
	LeaseTTL time.Duration
	// SettleTime is how long nodes have to come back after an election or an
	// outage of the store; longer than they wait between two tries. 0: 10 s.
	SettleTime time.Duration
	// ReplicaName tells this replica from the others. After a restart under the
	// same name it can lead at once. Empty: the embedded etcd member's name, or
	// a random one.
	ReplicaName string
	// CameraNetworks are the networks that RTSP URLs may lead to. A URL with a
	// host name is for its node to check. Empty: all.
	CameraNetworks []netip.Prefix
	// RebalanceMoves is how many cameras may be on their way from loaded nodes to
	// others at a time, as when a node has joined. Negative: none ever moves for
	// balance. 0: 8.
	RebalanceMoves int
	// RebalanceAfter is how long a node must have been there before cameras move
	// to it for balance. 0: 10 s.
	RebalanceAfter time.Duration
	// CompactEvery is how often the leader drops the store's history but for the
	// last such period, which is how far back a watch can be resumed. 0: 5 min.
	CompactEvery time.Duration
}

// Server is one replica.
type Server struct {
	// Static after New.
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	cache   *cache
	leases  *leases
	metrics *planeMetrics
	stop    chan struct{} // closed when Run ends
	// reporting holds a token for each report that is being stored.
	reporting chan struct{}

	announced atomic.Int64 // the revision of the last announcement of a leader

	mu      sync.Mutex // guards the rest; taken before an agent's
	running bool
	agents  map[fleet.NodeID]*agent // the node's latest stream here
}

// New makes a server. Nothing happens before Run.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil {
		return nil, errors.New("control plane: a store is needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeGrace == 0 {
		cfg.NodeGrace = 500 * time.Millisecond
	}
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = 3 * time.Second
	}
	if cfg.SettleTime == 0 {
		cfg.SettleTime = settleTime
	}
	if cfg.RebalanceMoves == 0 {
		cfg.RebalanceMoves = rebalanceMoves
	}
	if cfg.RebalanceAfter == 0 {
		cfg.RebalanceAfter = rebalanceAfter
	}
	if cfg.CompactEvery == 0 {
		cfg.CompactEvery = 5 * time.Minute
	}
	if cfg.NodeGrace < 0 || cfg.LeaseTTL < 0 || cfg.SettleTime < 0 || cfg.RebalanceAfter < 0 || cfg.CompactEvery < 0 {
		return nil, errors.New("control plane: durations must not be negative")
	}
	if cfg.ReplicaName == "" {
		cfg.ReplicaName = cfg.Store.MemberName()
	}
	if cfg.ReplicaName == "" {
		cfg.ReplicaName = rand.Text()
	}
	s := &Server{
		cfg:       cfg,
		log:       cfg.Log,
		store:     cfg.Store,
		cache:     newCache(cfg.Log, cfg.Store),
		stop:      make(chan struct{}),
		reporting: make(chan struct{}, reportWriters),
		agents:    make(map[fleet.NodeID]*agent),
	}
	s.leases = newLeases(cfg.Store, cfg.LeaseTTL, s.stop)
	s.metrics = newPlaneMetrics(s)
	return s, nil
}

// Register adds the services to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	controlv1.RegisterCameraServiceServer(r, &cameraService{server: s})
	controlv1.RegisterNodeServiceServer(r, &nodeService{server: s})
	controlv1.RegisterClusterServiceServer(r, &clusterService{server: s})
	controlv1.RegisterAgentServiceServer(r, &agentService{server: s})
	controlv1.RegisterRouteServiceServer(r, &routeService{server: s})
}

// Run keeps the copy of the state, and leads when it is elected, until ctx
// ends; it then returns nil. It is called once. It returns an error if the
// embedded etcd fails. Calls before Run wait for it, up to 5 s; streams end
// when it does, with [fleet.Unavailable].
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.setRunning(true)
	defer s.setRunning(false)

	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	defer close(s.stop) // first, so that no node is taken for gone because we are
	wait.Go(func() { s.cache.run(ctx) })
	wait.Go(func() { s.store.Announcements(ctx, s.announce) })
	wait.Go(func() { s.leases.run(ctx) })
	wait.Go(func() { s.sweep(ctx) })
	wait.Go(func() { s.lead(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case <-s.store.Failed():
		return fmt.Errorf("control plane: %w", s.store.FailedErr())
	}
}

func (s *Server) setRunning(r bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = r
}

// Ready returns nil when the server can serve: it runs and has read its state.
func (s *Server) Ready() error {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	if !running {
		return fmt.Errorf("the control plane is not running: %w", fleet.Unavailable)
	}
	// A full disk and a missing quorum are no reason to send callers elsewhere:
	// what is there goes on, and others have the same.
	if h := s.store.Health(); h.Slow {
		return h.Err
	}
	select {
	case <-s.cache.ready:
		return nil
	default:
		return fmt.Errorf("the control plane has not read its state yet: %w", fleet.Unavailable)
	}
}

// errStopping ends streams when Run ends.
var errStopping = fmt.Errorf("this control plane is stopping; connect to another, or again: %w", fleet.Unavailable)
