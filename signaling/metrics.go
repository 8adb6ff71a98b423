package signaling

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/metrics"
)

// Buckets, in seconds. A viewer sees both times as the wait for a picture.
var (
	answerBuckets     = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	firstFrameBuckets = []float64{.05, .1, .15, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 30}
)

// maxFirstFrame bounds what a browser says of its first frame; what is above is
// no measurement, as of a tab that was asleep.
const maxFirstFrame = 60 // seconds

// Ways of a viewer, as in sessionConfig.via.
const (
	viaWebsocket = "websocket"
	viaWHEP      = "whep"
)

// gatewayMetrics is what a gateway tells Prometheus: nothing of one session or
// viewer.
type gatewayMetrics struct {
	// Static after newGatewayMetrics.
	gateway *Gateway
	set     *metrics.Set

	watches, ends, moves  *metrics.Counter
	authRefusals          *metrics.Counter
	requests              *metrics.Counter
	answerTime, firstTime *metrics.Histogram

	sessions map[string]*atomic.Int64 // by via; the map is static
}

func newGatewayMetrics(g *Gateway) *gatewayMetrics {
	s := metrics.NewSet()
	m := &gatewayMetrics{
		gateway: g, set: s,
		watches:      s.Counter("fanlight_gateway_watches_total", "Wishes to watch a camera, by what came of them: answered, left (by the viewer, before there was an answer), lost (with the websocket), or the reason of docs/errors.md in lower case. via is websocket or whep.", "via", "result"),
		ends:         s.Counter("fanlight_gateway_session_ends_total", "Sessions that had been answered and have ended: left, lost, or the reason of docs/errors.md in lower case; camera_moved is the end of one whose viewer has another.", "via", "reason"),
		moves:        s.Counter("fanlight_gateway_moves_total", "Sessions whose browser was told to move to another node."),
		authRefusals: s.Counter("fanlight_gateway_auth_refusals_total", "Tokens that were refused, and cameras that a token does not allow, by the reason of docs/errors.md in lower case.", "reason"),
		requests:     s.Counter("fanlight_gateway_http_requests_total", "HTTP requests, by the path's pattern, method and status; a websocket is one when it is opened. path is \"none\" where the page's origin was refused.", "path", "method", "code"),
		answerTime:   s.Histogram("fanlight_gateway_answer_duration_seconds", "Time from a wish to watch to the node's answer, of those that were answered.", answerBuckets, "via"),
		firstTime:    s.Histogram("fanlight_gateway_first_frame_duration_seconds", "Time from a wish to watch to the first picture, as players say (websocket only).", firstFrameBuckets),
		sessions:     map[string]*atomic.Int64{viaWebsocket: {}, viaWHEP: {}},
	}
	for via := range m.sessions {
		m.watches.Zero(via, "answered")
		m.ends.Zero(via, "left")
	}
	for _, reason := range []fleet.Error{fleet.Unauthenticated, fleet.TokenExpired, fleet.CameraForbidden} {
		m.authRefusals.Zero(wireReason(reason))
	}
	m.sample()
	return m
}

// sample defines what is read at each scrape.
func (m *gatewayMetrics) sample() {
	g, s := m.gateway, m.set
	websockets := s.Sampled(metrics.KindGauge, "fanlight_gateway_websockets", "Websockets that are open.")
	sessions := s.Sampled(metrics.KindGauge, "fanlight_gateway_sessions", "Sessions under way, answered or not. via is websocket or whep.", "via")
	routes := s.Sampled(metrics.KindGauge, "fanlight_gateway_routes", "Cameras whose route the gateway keeps: those being watched, and those that were some minutes ago.")
	control := s.Sampled(metrics.KindGauge, "fanlight_gateway_control_connected", "1 while the gateway has its stream of routes from a control plane. Without, it goes on with the routes that it knows.")
	nodes := s.Sampled(metrics.KindGauge, "fanlight_gateway_node_connections", "Media nodes that the gateway has a connection to.")
	s.OnScrape(func(k metrics.Sink) {
		k.Put(websockets, float64(g.websockets.Load()))
		for via, n := range m.sessions {
			k.Put(sessions, float64(n.Load()), via)
		}
		k.Put(routes, float64(g.routes.Len()))
		k.Bool(control, g.routes.Trouble() == nil)
		k.Put(nodes, float64(g.nodes.count()))
	})
}

// Metrics returns the gateway's metrics, to be registered with those of its
// process.
func (g *Gateway) Metrics() *metrics.Set { return g.metrics.set }

// count returns how many nodes there is a connection to.
func (n *nodes) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// refused counts a session that was not begun.
func (m *gatewayMetrics) refused(via string, err error) { m.watches.Inc(via, outcome(err)) }

// began counts a session that runs until ended is called.
func (m *gatewayMetrics) began(s *session) (ended func(error)) {
	n := m.sessions[s.via]
	n.Add(1)
	return func(err error) {
		n.Add(-1)
		if s.answered {
			m.ends.Inc(s.via, outcome(err))
		} else {
			m.watches.Inc(s.via, outcome(err))
		}
	}
}

// answered counts a session's first answer.
func (m *gatewayMetrics) answered(s *session) {
	m.watches.Inc(s.via, "answered")
	m.answerTime.Observe(time.Since(s.viewing.began).Seconds(), s.via)
}

// firstFrame takes what a browser says, in milliseconds.
func (m *gatewayMetrics) firstFrame(ms float64) {
	if s := ms / 1000; s > 0 && s <= maxFirstFrame {
		m.firstTime.Observe(s)
	}
}

// told counts what a viewer is told, if it is that its token does not do.
func (m *gatewayMetrics) told(err error) {
	switch reasonOf(err) { //nolint:exhaustive // the others have nothing to do with tokens
	case fleet.Unauthenticated, fleet.TokenExpired, fleet.CameraForbidden:
		m.authRefusals.Inc(wireReason(err))
	}
}

// outcome is why something ended or was refused, of a small number of reasons:
// a node newer than this gateway may know others.
func outcome(err error) string {
	if errors.Is(err, errLeft) || errors.Is(err, errLost) {
		return endReason(err)
	}
	if !slices.Contains(fleet.Errors(), reasonOf(err)) {
		return "other"
	}
	return wireReason(err)
}

// httpMethods are the methods that requests are counted by; others are "other".
var httpMethods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodPut}

// count counts what a handler answers.
func (m *gatewayMetrics) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &countedWriter{ResponseWriter: w, count: func(code int) {
			path, method := r.Pattern, r.Method
			if path == "" {
				path = "none"
			}
			if !slices.Contains(httpMethods, method) {
				method = "other"
			}
			m.requests.Inc(path, method, strconv.Itoa(code))
		}}
		next.ServeHTTP(c, r)
		c.answered(http.StatusOK)
	})
}

// countedWriter counts the status of an answer when it is given, for a websocket
// stays.
type countedWriter struct {
	http.ResponseWriter
	count func(code int)
	done  bool
}

func (w *countedWriter) answered(code int) {
	if !w.done {
		w.done = true
		w.count(code)
	}
}

func (w *countedWriter) WriteHeader(code int) {
	w.answered(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *countedWriter) Write(b []byte) (int, error) {
	w.answered(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// Hijack is what a websocket is opened by.
func (w *countedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.answered(http.StatusSwitchingProtocols)
	}
	return c, rw, err
}

// Unwrap is for http.ResponseController.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
