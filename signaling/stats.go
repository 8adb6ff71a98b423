package signaling

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/route"
	"fanlight/signaling/viewer"
)

const (
	// figuresFresh is how long figures are good: however many poll, a node is
	// asked once in that time.
	figuresFresh = time.Second
	// askTimeout is how long the control plane and each node may take.
	askTimeout = 2 * time.Second
	// figuresKept is how long a list is kept that nobody asks for; while the
	// control plane is away it is still told.
	figuresKept = 5 * time.Minute
	listsKept   = 256
	nodesAtOnce = 16
)

// cameraFigures are one camera's live figures.
type cameraFigures struct {
	Camera           string       `json:"camera"`
	Node             fleet.NodeID `json:"node"`
	State            string       `json:"state"`
	Reason           fleet.Reason `json:"reason"`
	BitrateBPS       int64        `json:"bitrate_bps"`
	PacketsPerSecond float64      `json:"packets_per_second"`
	FramesPerSecond  float64      `json:"frames_per_second"`
	Width            int32        `json:"width"`
	Height           int32        `json:"height"`
	Viewers          int32        `json:"viewers"`
	Packets          int64        `json:"packets"`
	Bytes            int64        `json:"bytes"`
	PacketsLost      int64        `json:"packets_lost"`
	Loss             float64      `json:"loss"`
	JitterMS         float64      `json:"jitter_ms"`
	PacketsDropped   int64        `json:"packets_dropped"`
	Verdict          string       `json:"verdict"`
	VerdictMessage   string       `json:"verdict_message"`
}

// figuresPage is a page of them.
type figuresPage struct {
	Cameras       []cameraFigures `json:"cameras"`
	NextPageToken string          `json:"next_page_token"`
}

// listKey tells lists apart. Two viewers share a list only if their tokens
// name the same cameras in the same order, whatever else they send.
type listKey struct {
	size     int32
	token    string // as it came
	patterns [sha256.Size]byte
}

func newListKey(v viewer.Viewer, p page) listKey {
	var buf []byte
	for _, pattern := range v.Cameras {
		buf = binary.AppendUvarint(buf, uint64(len(pattern)))
		buf = append(buf, pattern...)
	}
	return listKey{size: p.size, token: p.token, patterns: sha256.Sum256(buf)}
}

// figures collects live figures from the nodes, for all who ask.
type figures struct {
	// Static.
	control controlv1.RouteServiceClient
	nodes   *nodes

	mu     sync.Mutex // guards the maps
	lists  map[listKey]*shared[*controlv1.BrowseCamerasResponse]
	byNode map[string]*shared[map[string]*mediav1.CameraStats] // by the node's address; by camera name
}

func newFigures(control controlv1.RouteServiceClient, n *nodes) *figures {
	return &figures{
		control: control, nodes: n,
		lists:  make(map[listKey]*shared[*controlv1.BrowseCamerasResponse]),
		byNode: make(map[string]*shared[map[string]*mediav1.CameraStats]),
	}
}

// serveStats serves the figures, or the page that shows them to who prefers
// HTML.
func (g *Gateway) serveStats(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Accept")
	if prefersHTML(r.Header.Get("Accept")) {
		g.serveFile(w, r, "stats.html")
		return
	}
	g.tracked(func(w http.ResponseWriter, r *http.Request) {
		v, err := g.bearer(r)
		if err != nil {
			g.problem(w, r, err)
			return
		}
		p, err := readPage(r.URL.Query(), maxPage)
		if err != nil {
			g.problem(w, r, err)
			return
		}
		out, err := g.stats.page(r.Context(), v, p)
		if err != nil {
			g.problem(w, r, err)
			return
		}
		writeJSON(w, out)
	})(w, r)
}

// page returns the figures of what a viewer may watch.
func (f *figures) page(ctx context.Context, v viewer.Viewer, p page) (figuresPage, error) {
	key := newListKey(v, p)
	kept := f.list(key)
	list, err := kept.get(ctx, true, func(ctx context.Context) (*controlv1.BrowseCamerasResponse, error) {
		return browse(ctx, f.control, v, p)
	})
	if err != nil {
		if reasonOf(err) != fleet.Unavailable {
			f.drop(key, kept) // the caller's mistake is not worth a place
		}
		return figuresPage{}, err
	}
	found := f.collect(ctx, list.GetCameras())
	out := figuresPage{Cameras: []cameraFigures{}, NextPageToken: list.GetNextPageToken()}
	for _, m := range list.GetCameras() {
		id, err := fleet.ParseCameraName(m.GetName())
		if err != nil {
			continue
		}
		c := cameraFigures{
			Camera: string(id), State: cameraStateName(m.GetStatus().GetState()), Reason: route.Reason(m.GetStatus().GetReason()),
		}
		if node, err := fleet.ParseNodeName(m.GetRoute().GetNode()); err == nil {
			c.Node = node
		}
		if s := found[m.GetRoute().GetSessionAddress()][m.GetName()]; s != nil {
			c.fill(s)
		}
		out.Cameras = append(out.Cameras, c)
	}
	return out, nil
}

// fill takes over what the camera's node says, which is newer than what the
// control plane knows.
func (c *cameraFigures) fill(s *mediav1.CameraStats) {
	switch s.GetState().GetState() {
	case mediav1.SessionState_STATE_CONNECTING:
		c.State = "connecting"
	case mediav1.SessionState_STATE_LIVE:
		c.State = "live"
	case mediav1.SessionState_STATE_CAMERA_OFFLINE:
		c.State = "failed"
	case mediav1.SessionState_STATE_UNSPECIFIED: // the control plane's word stays
	}
	if s.GetState() != nil {
		c.Reason = fleet.Reason(s.GetState().GetReason())
	}
	c.BitrateBPS, c.PacketsPerSecond, c.FramesPerSecond = s.GetBitrateBps(), s.GetPacketsPerSecond(), s.GetFramesPerSecond()
	c.Width, c.Height, c.Viewers = s.GetWidth(), s.GetHeight(), s.GetViewers()
	c.Packets, c.Bytes, c.PacketsLost, c.PacketsDropped = s.GetPackets(), s.GetBytes(), s.GetPacketsLost(), s.GetPacketsDropped()
	c.Loss, c.JitterMS, c.Verdict, c.VerdictMessage = s.GetLoss(), s.GetJitterMs(), s.GetVerdict(), s.GetVerdictMessage()
}

// collect asks the nodes of the cameras, several at once. A node that does not
// answer has no figures.
func (f *figures) collect(ctx context.Context, cameras []*controlv1.ViewableCamera) map[string]map[string]*mediav1.CameraStats {
	found := make(map[string]map[string]*mediav1.CameraStats)
	var addrs []string
	for _, m := range cameras {
		if addr := m.GetRoute().GetSessionAddress(); addr != "" && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	var (
		mu    sync.Mutex // guards found
		wg    sync.WaitGroup
		slots = make(chan struct{}, nodesAtOnce)
	)
	for _, addr := range addrs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			stats, err := f.node(addr).get(ctx, false, func(ctx context.Context) (map[string]*mediav1.CameraStats, error) {
				return f.ask(ctx, addr)
			})
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				found[addr] = stats
			}
		})
	}
	wg.Wait()
	return found
}

// ask asks one node for the figures of all its cameras.
func (f *figures) ask(ctx context.Context, addr string) (map[string]*mediav1.CameraStats, error) {
	conn, done, err := f.nodes.get(addr)
	if err != nil {
		return nil, err
	}
	defer done()
	resp, err := mediav1.NewSessionServiceClient(conn).GetStats(ctx, &mediav1.GetStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("figures of node %s: %w", addr, err)
	}
	stats := make(map[string]*mediav1.CameraStats, len(resp.GetCameras()))
	for _, s := range resp.GetCameras() {
		bound(s)
		stats[s.GetCamera()] = s
	}
	return stats, nil
}

// bound makes 0 of figures that cannot be: JSON has no word for infinities and
// NaN, and nothing that is counted is negative.
func bound(s *mediav1.CameraStats) {
	s.BitrateBps, s.PacketsPerSecond, s.FramesPerSecond = max(s.GetBitrateBps(), 0), figure(s.GetPacketsPerSecond()), figure(s.GetFramesPerSecond())
	s.Width, s.Height, s.Viewers = max(s.GetWidth(), 0), max(s.GetHeight(), 0), max(s.GetViewers(), 0)
	s.Packets, s.Bytes, s.PacketsLost = max(s.GetPackets(), 0), max(s.GetBytes(), 0), max(s.GetPacketsLost(), 0)
	s.PacketsDropped, s.Loss, s.JitterMs = max(s.GetPacketsDropped(), 0), min(figure(s.GetLoss()), 1), figure(s.GetJitterMs())
	s.Verdict, s.VerdictMessage = clip(s.GetVerdict(), maxNamed), clip(s.GetVerdictMessage(), maxVerdict)
}

func figure(n float64) float64 {
	if n >= 0 && !math.IsInf(n, 1) { // false for NaN
		return n
	}
	return 0
}

// list returns the shared list of one kind of viewer: those who may watch the
// same.
func (f *figures) list(key listKey) *shared[*controlv1.BrowseCamerasResponse] {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.lists[key]
	if s == nil {
		if len(f.lists) >= listsKept {
			f.dropOldestList()
		}
		s = &shared[*controlv1.BrowseCamerasResponse]{}
		f.lists[key] = s
	}
	return s
}

// dropOldestList makes room for another. mu is held.
func (f *figures) dropOldestList() {
	var oldest listKey
	var at time.Time
	first := true
	for key, s := range f.lists {
		if used := s.lastUse(); first || used.Before(at) {
			oldest, at, first = key, used, false
		}
	}
	delete(f.lists, oldest)
}

// drop forgets a list, unless another has taken its place.
func (f *figures) drop(key listKey, s *shared[*controlv1.BrowseCamerasResponse]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lists[key] == s {
		delete(f.lists, key)
	}
}

func (f *figures) node(addr string) *shared[map[string]*mediav1.CameraStats] {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.byNode[addr]
	if s == nil {
		s = &shared[map[string]*mediav1.CameraStats]{}
		f.byNode[addr] = s
	}
	return s
}

// sweep forgets what nobody has asked for in a while.
func (f *figures) sweep(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, s := range f.lists {
		if now.Sub(s.lastUse()) > figuresKept {
			delete(f.lists, key)
		}
	}
	for key, s := range f.byNode {
		if now.Sub(s.lastUse()) > figuresKept {
			delete(f.byNode, key)
		}
	}
}

// shared is a value that is fetched at most once in figuresFresh, by the first
// who asks, for all who ask meanwhile.
type shared[T any] struct {
	mu      sync.Mutex // guards the rest
	used    time.Time
	fetched time.Time
	value   T
	known   bool // value has been fetched once
	err     error
	busy    chan struct{} // closed when the fetch under way ends; nil: none is
}

// get returns the value. Where stale is true, a value that cannot be fetched
// anew at the moment is still good; one that is refused is not.
func (s *shared[T]) get(ctx context.Context, stale bool, fetch func(context.Context) (T, error)) (T, error) {
	s.mu.Lock()
	s.used = time.Now()
	for time.Since(s.fetched) >= figuresFresh {
		if s.busy == nil {
			s.fetch(ctx, fetch)
			break
		}
		busy := s.busy
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.err != nil && (!stale || !s.known || reasonOf(s.err) != fleet.Unavailable) {
		var none T
		return none, s.err
	}
	return s.value, nil
}

// fetch fetches, also when the one who asked goes away. mu is held before and
// after, but not meanwhile.
func (s *shared[T]) fetch(ctx context.Context, fetch func(context.Context) (T, error)) {
	busy := make(chan struct{})
	s.busy = busy
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	v, err := fetch(ctx)
	cancel()
	s.mu.Lock()
	s.busy, s.err, s.fetched = nil, err, time.Now()
	if err == nil {
		s.value, s.known = v, true
	}
	close(busy)
}

func (s *shared[T]) lastUse() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// prefersHTML tells whether an Accept header (RFC 9110 §12.5.1) wants
// text/html rather than JSON.
func prefersHTML(accept string) bool {
	html, json := 0.0, 0.0
	for _, part := range strings.Split(accept, ",") {
		media, params, _ := strings.Cut(part, ";")
		q := 1.0
		for _, p := range strings.Split(params, ";") {
			if s, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
				if n, err := strconv.ParseFloat(s, 64); err == nil {
					q = n
				}
			}
		}
		switch strings.TrimSpace(media) {
		case "text/html", "application/xhtml+xml":
			html = max(html, q)
		case "application/json":
			json = max(json, q)
		}
	}
	return html > json
}
