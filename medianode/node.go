// Package medianode is the media node: it pulls the cameras that the control
// plane assigns to it and brings each of them to any number of viewers.
//
// A Node has a control stream to the control plane (agent.go). What it should
// run comes as a complete desired set, which it reconciles its cameras to
// (reconcile.go); what it sees of them goes back as states, at once, and as
// figures, coarsely. A camera (camera.go) has a feed for each of its profiles
// (feed.go): a stream.Stream and, while it is to be pulled, a source.Source that
// writes into it. Gateways open sessions over gRPC (sessions.go), each a
// session.Session that reads from the stream of the profile which it needs, and
// holds that profile while it does. The first profile is pulled always, or, of a
// camera on demand, as the others are: while a session holds it, and for the idle
// timeout longer. A camera that accepts few RTSP sessions (max_sessions) has no
// more feeds than that.
//
// What changes of a camera restarts no more than it must: with another URL or
// password the source is another, and the stream and its sessions stay. The
// stream of a profile that is no more is closed, and who watches it comes again. A
// camera that is lost and comes back is the same stream too, and so is one whose
// assignment gets a new generation or that begins to move. Sessions end when
// their viewer leaves, when the camera is let go, and when the node stops.
//
// A camera moves to another node in two steps. A node that is to take it over
// pulls it whatever its pull policy, and reports it. When the routes lead there
// the node before hands it over: it refuses new sessions (STALE_ROUTE), goes on
// with those it has, and lets the camera go when the last has left, or after
// 30 s, with CAMERA_MOVED for those that remain. Whatever the node lets go it
// reports as released when the source has ended, for another node may wait.
//
// The session of a gateway that half-closes its stream ends at once. A stream
// that breaks in any other way orphans its session (viewing.go): it goes on for
// 15 s, or until the viewer closes its peer connection, so that the viewer can
// open another through another gateway without losing the picture. Until then it
// counts as a viewer of its camera, but not towards the node's limit.
//
// A node refuses sessions (NODE_FULL) before those that it has suffer: when it
// has as many as it may, when its processors are busier than they may be, and when
// it would send more than it may (load.go). What it uses it measures each second.
// What has been admitted since counts with what it is going to cost, so that
// many viewers who come at once are not all let in. No session is ever ended for
// load.
//
// Every two seconds the node judges what is to blame for pictures that are not
// good (verdict.go, judge.go): the camera's side, the node itself, the viewer's
// network, or the codec. Each camera and each session has a verdict.
//
// A node that is to stop can leave first (leave.go): its cameras move away, step
// by step, while it serves.
//
// While no control plane can be reached the node goes on with what it has and
// takes sessions for it. The exception are cameras that accept a single RTSP
// session (max_sessions 1): when the control plane has not been heard for the
// lease's time they are not pulled, for another node may be about to. What time
// a lost connection counts as silence for is said at the type lease.
//
// The node stores nothing, places nothing, and authenticates no viewers: that is
// the gateway's part, and gateways are who may call it.
package medianode

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/medianode/session"
	"fanlight/medianode/source"
	"fanlight/medianode/stream"
	"fanlight/medianode/udp"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// Services says who may call the node's services.
var Services = map[string]rpc.Role{mediav1.SessionService_ServiceDesc.ServiceName: rpc.RoleGateway}

// Config is how a Node is made. Node, ControlPlane and SessionAddress must be
// given.
type Config struct {
	Log *slog.Logger // nil: nothing is logged

	Node           fleet.NodeID
	ControlPlane   *grpc.ClientConn // to any replica; the caller's to close, after Run
	SessionAddress string           // host:port where gateways reach SessionService
	Version        string           // of fanlight
	Labels         map[string]string
	Capacity       Capacity

	Media     netip.AddrPort // UDP and TCP, for all viewers; zero: 127.0.0.1 and a free port; port 0: a free one
	Advertise []netip.Addr   // where browsers reach Media; none: where it listens

	CameraNetworks []netip.Prefix   // where cameras may be; none: anywhere
	SourceTimeouts source.Timeouts  // zero: the defaults
	SourceRetry    source.Retry     // zero: the defaults
	CameraHosts    source.HostLimit // how often one host is connected to; zero: the defaults
	Sessions       session.Timeouts // zero: the defaults

	// What is kept of what each profile sent since its last keyframe, so that a viewer
	// who comes has a picture at once.
	KeyframeCacheBytes int           // 0: 8 MiB; below 0: nothing is kept
	KeyframeCacheTime  time.Duration // 0: 15 s

	OrphanTimeout   time.Duration // how long a session outlives its gateway's stream; 0: 15 s
	HandOverTimeout time.Duration // how long viewers may take to follow a camera that has moved; 0: 30 s

	usage        func() usage  // nil: the process's; tests have others
	measureEvery time.Duration // 0: 1 s
	judgeEvery   time.Duration // 0: 2 s
}

// The defaults of Config.
const (
	DefaultOrphanTimeout   = 15 * time.Second
	DefaultHandOverTimeout = 30 * time.Second

	// DefaultKeyframeCacheBytes and DefaultKeyframeCacheTime are those of a stream.
	DefaultKeyframeCacheBytes = stream.DefaultCacheBytes
	DefaultKeyframeCacheTime  = stream.DefaultCacheTime

	// DefaultCPU is Capacity.CPU if that is 0: what is left is for what comes in
	// bursts, keyframes above all. The process's own time counts alone; where others
	// need the same processors, the limit should be lower, or the process should
	// have a quota (of its cgroup, on Linux): then that is what it may use.
	DefaultCPU = 0.85
)

// Capacity is what a node may be given. 0 in a field: no limit, but in Viewers.
type Capacity struct {
	Cameras    int
	IngressBPS int64 // bits per second from cameras
	EgressBPS  int64 // bits per second to viewers; the node refuses sessions beyond it itself
	Viewers    int   // sessions; the node refuses more itself; 0: 1,000
	// CPU is how busy the node's process may keep its processors, as a share of
	// all that it may use (GOMAXPROCS): it refuses sessions beyond it. 0: 0.85; 1 or
	// more: no limit.
	CPU float64
}

// Node is one media node. Its methods may be called from any goroutine.
type Node struct {
	// Static after New.
	cfg     Config
	log     *slog.Logger
	bootID  string
	changes *changes // the cameras with something to report
	metrics *nodeMetrics
	meter   *meter
	hosts   *source.Hosts // shared by the cameras' sources
	leaving chan struct{} // closed by Leave

	accounts source.Accounts // shared by the cameras' sources

	mu       sync.Mutex // guards the rest; taken before a camera's
	engine   *session.Engine
	media    netip.AddrPort // while engine runs
	reached  bool           // the control plane, ever
	away     time.Time      // since when there has been no control stream; zero: there is one
	stopping bool           // or not running yet: takes neither cameras nor sessions
	cameras  map[fleet.CameraID]*camera
	ending   map[fleet.CameraID]*camera // removed, their sources not stopped yet
	released releases
	seen     map[fleet.CameraID]int64 // the highest generation, also of cameras long gone
	cluster  string                   // the etcd cluster that they are of; empty: unknown
	applied  chan struct{}            // closed, and replaced, when a desired set has been applied
	suspend  bool                     // the lease has run out
	running  sync.WaitGroup           // the cameras and the sessions; none begins while stopping
}

// New returns a node that does nothing until Run.
func New(cfg Config) (*Node, error) {
	if _, err := fleet.ParseNodeID(string(cfg.Node)); err != nil {
		return nil, fmt.Errorf("make a media node: %w", err)
	}
	if cfg.ControlPlane == nil || cfg.SessionAddress == "" {
		return nil, errors.New("make a media node: control plane and session address must be given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if !cfg.Media.IsValid() {
		cfg.Media = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	if cfg.Capacity.Viewers <= 0 {
		cfg.Capacity.Viewers = session.DefaultMaxSessions
	}
	if cfg.Capacity.CPU <= 0 {
		cfg.Capacity.CPU = DefaultCPU
	}
	if cfg.OrphanTimeout <= 0 {
		cfg.OrphanTimeout = DefaultOrphanTimeout
	}
	if cfg.HandOverTimeout <= 0 {
		cfg.HandOverTimeout = DefaultHandOverTimeout
	}
	n := &Node{
		cfg: cfg, log: cfg.Log.With("node", string(cfg.Node)), bootID: rand.Text(), changes: newChanges(), meter: newMeter(cfg.Capacity),
		leaving: make(chan struct{}), stopping: true, away: time.Now(), hosts: source.NewHosts(cfg.CameraHosts),
		cameras: make(map[fleet.CameraID]*camera), ending: make(map[fleet.CameraID]*camera),
		seen: make(map[fleet.CameraID]int64), applied: make(chan struct{}),
	}
	if n.cfg.usage == nil {
		n.cfg.usage = n.usage
	}
	if n.cfg.measureEvery <= 0 {
		n.cfg.measureEvery = measureEvery
	}
	if n.cfg.judgeEvery <= 0 {
		n.cfg.judgeEvery = judgeEvery
	}
	n.metrics = newNodeMetrics(n)
	return n, nil
}

// Register adds SessionService to a gRPC server.
func (n *Node) Register(r grpc.ServiceRegistrar) {
	mediav1.RegisterSessionServiceServer(r, &sessionService{node: n})
}

// Run runs the node until ctx ends; then all sessions end with NODE_STOPPING,
// and it returns nil when everything has stopped. The error is that the media
// address cannot be listened on. It can be called once.
func (n *Node) Run(ctx context.Context) error {
	engine, media, err := n.listen(ctx)
	if err != nil {
		return fmt.Errorf("run media node %q: %w", n.cfg.Node, err)
	}
	n.mu.Lock()
	n.engine, n.media, n.stopping = engine, media, false
	n.mu.Unlock()
	n.log.Info("media node started", "media", media.String(), "session_address", n.cfg.SessionAddress, "sending", engine.Sending(), "version", n.cfg.Version)

	n.meter.measure(n.cfg.usage())
	var measuring sync.WaitGroup
	measuring.Go(func() { n.measure(ctx) })
	measuring.Go(func() { n.judge(ctx) })
	a := &agent{node: n, client: controlv1.NewAgentServiceClient(n.cfg.ControlPlane), lease: lease{changed: make(chan struct{}, 1)}}
	a.run(ctx)

	n.mu.Lock()
	n.stopping = true
	for id, c := range n.cameras {
		delete(n.cameras, id)
		n.letGo(c, fleet.NodeStopping)
	}
	n.mu.Unlock()
	n.running.Wait()
	measuring.Wait()
	if err := engine.Close(); err != nil {
		n.log.Warn("media sockets not closed", "error", err)
	}
	n.log.Info("media node stopped")
	return nil
}

// listenAttempts is how often a free port is looked for that UDP and TCP both
// have.
const listenAttempts = 20

// listen opens the media sockets, UDP and TCP on the same port.
func (n *Node) listen(ctx context.Context) (*session.Engine, netip.AddrPort, error) {
	var conn *udp.Conn
	var tcp net.Listener
	var err error
	for range listenAttempts {
		if conn, err = udp.Listen(n.cfg.Media, udp.Config{}); err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("listen for media: %w", err)
		}
		var lc net.ListenConfig
		if tcp, err = lc.Listen(ctx, tcpNetwork(conn.AddrPort().Addr()), conn.AddrPort().String()); err == nil {
			break
		}
		if cerr := conn.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		if n.cfg.Media.Port() != 0 {
			break
		}
	}
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("listen for media over TCP: %w", err)
	}
	media := conn.AddrPort()
	engine, err := session.New(session.Config{
		Log: n.log, UDP: conn, TCP: tcp, Advertise: n.cfg.Advertise,
		MaxSessions: n.cfg.Capacity.Viewers, Timeouts: n.cfg.Sessions,
	})
	return engine, media, err
}

// tcpNetwork returns the network of TCP that an address is of: with "tcp",
// 0.0.0.0 would be all IPv6 addresses too. [::] is all addresses.
func tcpNetwork(addr netip.Addr) string {
	if addr.Unmap().Is4() {
		return "tcp4"
	}
	return "tcp"
}

// Ready returns nil while the node runs and has reached the control plane once;
// what it has been told it can serve without. A node that leaves is not ready,
// as a load balancer or Kubernetes expects of a process that is about to stop,
// but it serves: the sessions that it has, and new ones of the cameras that it
// still has, for gateways reach it by its own address.
func (n *Node) Ready() error {
	left := n.left()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case left:
		return fmt.Errorf("media node %q is leaving: %w", n.cfg.Node, fleet.Unavailable)
	case n.stopping:
		return fmt.Errorf("media node %q is not running: %w", n.cfg.Node, fleet.Unavailable)
	case !n.reached:
		return fmt.Errorf("media node %q has not reached the control plane: %w", n.cfg.Node, fleet.Unavailable)
	}
	return nil
}

// MediaAddress returns where viewers' media is listened for, with the port that
// was chosen; the zero value before Run has opened it.
func (n *Node) MediaAddress() netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.media
}

// mediaAddresses returns host:port of every candidate.
func (n *Node) mediaAddresses() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, a := range n.engine.Addresses() {
		out = append(out, netip.AddrPortFrom(a, n.media.Port()).String())
	}
	return out
}

// list returns the cameras, by name.
func (n *Node) list() []*camera {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Collect(maps.Values(n.cameras))
	slices.SortFunc(out, func(a, b *camera) int { return strings.Compare(string(a.id), string(b.id)) })
	return out
}
