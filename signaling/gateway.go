// Package signaling is the gateway between browsers and media nodes: it brings
// a viewer's offer to the node that has the camera, and what the node says
// back. It holds no media and no durable state; any gateway serves any viewer.
//
// # What browsers reach
//
//	GET    /v1/ws                          the websocket, subprotocol fanlight.v1
//	POST   /v1/cameras/{camera}/whep       a session by WHEP
//	PATCH  /v1/cameras/{camera}/whep/{id}  its candidates and ICE restarts
//	DELETE /v1/cameras/{camera}/whep/{id}  its end
//	GET    /v1/cameras                     what the viewer may watch, paged
//	GET    /stats                          live figures of the same, paged
//	GET    /healthz, /readyz               for whoever runs the gateway
//	GET    /, /player.js, …                the pages and the player
//
// docs/signaling.md describes each message and docs/errors.md each reason.
//
// # A viewer's way
//
// A websocket (conn) or a WHEP request makes a session; the session watches
// the camera's route (package route), opens an OpenSession stream on the node
// where it leads, and relays. Whatever goes wrong with one message is told and
// ends nothing; whatever goes wrong with one session leaves the connection's
// others alone. When a camera moves, the browser is told to make a second
// session, and leaves the first when the second shows a picture. A session that
// was left ends at its node too; one whose websocket broke, or whose gateway
// stops, goes on there for some seconds, until the browser has another.
//
// # What it refuses
//
// Tokens in a URL; pages of other origins that are not allowed; anything above
// the [Limits]. It runs no TLS of its own, logs neither tokens nor SDP, and
// keeps no metrics per session. Limits per viewer hold for one gateway, not
// for all together.
//
// Locks: gateway.mu, conn.mu, nodes.mu and those of tally, outbox and
// credentials are never held together.
package signaling

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/route"
	"fanlight/signaling/viewer"
	"fanlight/signaling/web"
)

// Config is a gateway's configuration. ControlPlane and DialNode are needed.
type Config struct {
	Log *slog.Logger // nil: no log
	// ControlPlane leads to any replica. The caller closes it, after Run.
	ControlPlane grpc.ClientConnInterface
	// DialNode returns a connection to a node's SessionService without waiting
	// for it. The gateway closes it.
	DialNode func(addr string) (*grpc.ClientConn, error)
	// Auth verifies viewers' tokens; Run runs it. nil: everyone may view.
	Auth *viewer.Verifier
	// ICE is what browsers are told of STUN and TURN.
	ICE    ICE
	Limits Limits
	// AllowedOrigins are the origins ("https://example.com") of the pages that
	// may use the gateway, next to its own; "*": all.
	AllowedOrigins []string
	// TrustedProxies are the networks of reverse proxies, whose
	// X-Forwarded-For tells the viewer's address. Empty: none.
	TrustedProxies []netip.Prefix
	// Routes tunes the table of routes; its Client and Log are the gateway's.
	Routes route.Config
	// Assets are the pages' files. nil: those of package web.
	Assets fs.FS
}

// Limits bound what viewers may use. 0 in a field: the default.
type Limits struct {
	MessageBytes          int           // of a websocket message; 256 KiB
	MessageRate           int           // messages a second of a connection, 4 KiB each; 200
	MessageBurst          int           // messages at once; 2,000
	SessionsPerConnection int           // 256; those that were told to move don't count
	SessionsPerViewer     int           // of a viewer, or of an address where tokens name nobody; 256
	ConnectionsPerAddress int           // 256
	ConnectionsPerViewer  int           // 64
	QueuedMessages        int           // to a browser that does not read; 1,024
	QueuedBytes           int           // to the same; 4 MiB
	RouteTimeout          time.Duration // for the control plane's first word of a camera; 5 s
	AnswerTimeout         time.Duration // for a node's answer; 10 s
	WriteTimeout          time.Duration // for a message to a browser; 10 s
	PingEvery             time.Duration // 20 s; a browser that is silent for twice as long is gone
	HeartbeatEvery        time.Duration // 4 s; see heartbeat in docs/signaling.md
	// MoveRate is how many sessions a second are told to move while their old
	// node still serves them; 50. Those whose node is lost don't wait.
	MoveRate int
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		v *int
		n int
	}{
		{&l.MessageBytes, 256 << 10},
		{&l.MessageRate, 200},
		{&l.MessageBurst, 2000},
		{&l.SessionsPerConnection, 256},
		{&l.SessionsPerViewer, 256},
		{&l.ConnectionsPerAddress, 256},
		{&l.ConnectionsPerViewer, 64},
		{&l.QueuedMessages, 1024},
		{&l.QueuedBytes, 4 << 20},
		{&l.MoveRate, 50},
	} {
		if *d.v <= 0 {
			*d.v = d.n
		}
	}
	for _, d := range []struct {
		v *time.Duration
		n time.Duration
	}{
		{&l.RouteTimeout, 5 * time.Second},
		{&l.AnswerTimeout, 10 * time.Second},
		{&l.WriteTimeout, 10 * time.Second},
		{&l.PingEvery, 20 * time.Second},
		{&l.HeartbeatEvery, 4 * time.Second},
	} {
		if *d.v <= 0 {
			*d.v = d.n
		}
	}
	// The largest message must fit into the bucket.
	l.MessageBurst = max(l.MessageBurst, 1+l.MessageBytes/bytesPerToken)
	return l
}

// Gateway is one signaling process.
type Gateway struct {
	// Static after New.
	log      *slog.Logger
	control  controlv1.RouteServiceClient
	ice      ICE
	limits   Limits
	tag      string // of this process, in the ids of its WHEP sessions
	routes   *route.Table
	nodes    *nodes
	stats    *figures
	assets   *assets
	moves    *rate.Limiter // of sessions that their node still serves
	handler  http.Handler
	metrics  *gatewayMetrics
	stopping chan struct{} // closed when Run's context has ended

	admission
	websockets atomic.Int64 // that are open

	work sync.WaitGroup // what begin has let in

	mu      sync.Mutex // guards the rest
	running bool
	wheps   map[string]*whep
}

// New makes a gateway. It does nothing before Run.
func New(cfg Config) (*Gateway, error) {
	if cfg.ControlPlane == nil || cfg.DialNode == nil {
		return nil, errors.New("gateway: ControlPlane and DialNode are needed")
	}
	if err := cfg.ICE.check(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	allowed, err := newOrigins(cfg.AllowedOrigins)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Assets == nil {
		cfg.Assets = web.Assets()
	}
	files, err := newAssets(cfg.Assets)
	if err != nil {
		return nil, fmt.Errorf("gateway: assets: %w", err)
	}
	g := &Gateway{
		log:     cfg.Log,
		control: controlv1.NewRouteServiceClient(cfg.ControlPlane),
		ice:     cfg.ICE,
		limits:  cfg.Limits.withDefaults(),
		tag:     rand.Text()[:8],
		nodes:   &nodes{dial: cfg.DialNode, conns: make(map[string]*nodeConn)},
		assets:  files,
		admission: admission{
			auth: cfg.Auth, origins: allowed, proxies: cfg.TrustedProxies,
			connections: tally{counts: make(map[string]int)},
			sessions:    tally{counts: make(map[string]int)},
			orphans:     tally{counts: make(map[string]int)},
		},
		stopping: make(chan struct{}),
		wheps:    make(map[string]*whep),
	}
	g.moves = rate.NewLimiter(rate.Limit(g.limits.MoveRate), max(1, g.limits.MoveRate/10))
	cfg.Routes.Client, cfg.Routes.Log = g.control, cfg.Log
	g.routes = route.New(cfg.Routes)
	g.stats = newFigures(g.control, g.nodes)
	g.metrics = newGatewayMetrics(g)
	g.handler = g.metrics.count(g.newHandler())
	return g, nil
}

// Handler serves browsers, while Run runs; before and after, it answers 503 to
// what needs it.
func (g *Gateway) Handler() http.Handler { return g.handler }

// Ready returns nil once the control plane has been reached, also while it is
// away after that: viewers of cameras that are known can still be served. A
// gateway that stops is not ready, before it closes the first websocket.
func (g *Gateway) Ready() error {
	select {
	case <-g.stopping:
		return fmt.Errorf("use another gateway: %w", fleet.GatewayStopping)
	default:
		return g.routes.Ready()
	}
}

// Run runs the gateway until ctx ends; it is called once. It then closes every
// websocket (1012, gateway_stopping), spread over a second at most, and returns
// nil when all is closed. It breaks its streams to the nodes: they go on with
// the sessions for some seconds, in which the viewers come back through other
// gateways.
func (g *Gateway) Run(ctx context.Context) error {
	var owned sync.WaitGroup
	owned.Go(func() { _ = g.routes.Run(ctx) })
	if g.auth != nil {
		owned.Go(func() { _ = g.auth.Run(ctx) })
	}
	g.mu.Lock()
	g.running = true
	g.mu.Unlock()

	sweep := time.NewTicker(nodeIdle / 2)
	defer sweep.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-sweep.C:
			g.nodes.sweep(now, false)
			g.stats.sweep(now)
		}
	}
	g.mu.Lock()
	g.running = false
	g.mu.Unlock()
	close(g.stopping)
	g.work.Wait()
	owned.Wait()
	g.nodes.sweep(time.Now(), true)
	return nil
}

// begin lets a piece of work in that Run will wait for. The caller calls
// g.work.Done if there is no error.
func (g *Gateway) begin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.running {
		return fmt.Errorf("try again, or at another gateway: %w", fleet.GatewayStopping)
	}
	g.work.Add(1)
	return nil
}

// newSession checks that the viewer may have the session. runSession runs it.
func (g *Gateway) newSession(cfg sessionConfig) (_ *session, err error) {
	defer func() {
		if err != nil {
			g.metrics.refused(cfg.via, err)
		}
	}()
	v, _ := cfg.creds.get()
	line := &viewing{camera: cfg.camera, viewer: v.Subject, remote: cfg.remote, via: cfg.via, began: time.Now()}
	if v.Expired(time.Now()) {
		err := fmt.Errorf("the token has expired, send a new one: %w", fleet.TokenExpired)
		line.refused(g.log, err)
		return nil, err
	}
	if !v.MayWatch(cfg.camera) {
		err := fmt.Errorf("the token does not allow camera %q: %w", cfg.camera, fleet.CameraForbidden)
		line.refused(g.log, err)
		return nil, err
	}
	most := g.limits.SessionsPerViewer
	if v.MaxSessions > 0 {
		most = min(most, v.MaxSessions)
	}
	key := who(v, cfg.remote)
	release, ok := g.sessions.add(key, most)
	if !ok {
		return nil, fmt.Errorf("%d sessions of one viewer are the limit, leave one: %w", most, fleet.TooManySessions)
	}
	cfg.open.Viewer = v.Subject
	return &session{
		sessionConfig: cfg,
		gateway:       g, nodeID: fleet.SessionID(rand.Text()), viewing: line, release: release, onEnd: func() {},
		orphan:   func() bool { return g.orphan(key, most) },
		log:      g.log.With("camera", cfg.camera),
		requests: make(chan *mediav1.OpenSessionRequest, requestsKept),
	}, nil
}

// runSession runs a session to its end, writes the audit line, and returns why
// it ended. A panic ends the session alone.
func (g *Gateway) runSession(ctx context.Context, s *session) error {
	ended := g.metrics.began(s)
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				g.log.Error("session panicked", "camera", s.camera, "panic", p, "stack", string(debug.Stack()))
				err = fmt.Errorf("session: %w", fleet.Internal)
				s.onEnd()
				s.send(errorMessage(s.id, err))
				ended := stateMessage(stateEnded, fleet.Reason(wireReason(err)), sentence(err), time.Time{})
				ended.Session = s.id
				s.send(ended)
			}
		}()
		return s.run(ctx)
	}()
	ended(err)
	s.viewing.audit(g.log, err)
	return err
}
