// Package route knows where cameras are served, for the cameras that are being
// watched through one gateway.
//
// A [Table] keeps one RouteService.WatchRoutes stream to the control plane and
// names on it the cameras for which somebody holds a [Watch]; never all of
// them. Each camera's last known route stays while the control plane is away,
// and for some time after its last watch was closed, so that viewers come and
// go without it: a route is wrong only when a node says so, and nodes do
// (STALE_ROUTE). For the same reason it stays while the camera is on its way
// from one node to another (UNASSIGNED, MOVING).
//
// The package knows nothing of viewers or sessions and connects to no node.
package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// State is what there is to say of a camera.
type State int

// The states. The zero value is none of them.
const (
	Assigned   State = iota + 1 // a node has it
	Unassigned                  // it exists, and no node has it; there is a reason
	NotFound                    // no such camera
	Disabled                    // the operator disabled it
)

// Route is where a camera is served. Routes are compared with ==.
type Route struct {
	State      State
	Node       fleet.NodeID // empty unless Assigned
	Address    string       // host:port of the node's SessionService; empty unless Assigned
	Generation int64        // of the assignment
	Reason     fleet.Reason // why it is not Assigned
}

// Config is a table's configuration.
type Config struct {
	Client controlv1.RouteServiceClient
	// Linger is how long a route is kept after its last watch was closed. 0: 5
	// minutes.
	Linger time.Duration
	// MaxIdle is how many routes without a watch are kept. 0: 10,000.
	MaxIdle int
	// RetryMin and RetryMax bound the waits between attempts to reach the
	// control plane. 0: as in [rpc.Backoff].
	RetryMin, RetryMax time.Duration
	Log                *slog.Logger // nil: no log
}

// Table is the routes of the cameras being watched.
type Table struct {
	// Static after New.
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // one slot: there is something to tell the control plane

	mu      sync.Mutex // guards the rest
	entries map[fleet.CameraID]*entry
	idle    int                     // entries without a watch
	dirty   map[fleet.CameraID]bool // added or removed since the control plane was told
	reached bool                    // the control plane has answered once
	trouble error                   // why there is no stream now; nil: there is one
}

// entry is one camera. Guarded by the table's mu.
type entry struct {
	watches int
	since   time.Time // when watches became 0
	route   Route     // zero: not known yet
	changed chan struct{}
}

// New makes a table; nothing is watched before Run.
func New(cfg Config) *Table {
	if cfg.Linger <= 0 {
		cfg.Linger = 5 * time.Minute
	}
	if cfg.MaxIdle <= 0 {
		cfg.MaxIdle = 10_000
	}
	t := &Table{
		cfg: cfg, log: cfg.Log,
		wake:    make(chan struct{}, 1),
		entries: make(map[fleet.CameraID]*entry),
		dirty:   make(map[fleet.CameraID]bool),
		trouble: fmt.Errorf("the control plane has not been reached yet: %w", fleet.Unavailable),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t
}

// Ready returns nil once the control plane has been reached, also while it is
// away after that; before, why it has not.
func (t *Table) Ready() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reached {
		return nil
	}
	return t.trouble
}

// Trouble returns why the control plane is away; nil if it is not.
func (t *Table) Trouble() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trouble
}

// Len returns how many cameras the table holds, watched or lingering.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}

// Watch keeps a camera's route up to date until Close.
type Watch struct {
	table  *Table
	camera fleet.CameraID
	entry  *entry
	once   sync.Once
}

// Watch begins to watch a camera. The caller closes it.
func (t *Table) Watch(camera fleet.CameraID) *Watch {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[camera]
	switch {
	case e == nil:
		e = &entry{changed: make(chan struct{})}
		t.entries[camera] = e
		t.mark(camera)
	case e.watches == 0:
		t.idle--
	}
	e.watches++
	return &Watch{table: t, camera: camera, entry: e}
}

// Route returns the camera's route, whether it is known at all, and a channel
// that is closed when it changes.
func (w *Watch) Route() (r Route, known bool, changed <-chan struct{}) {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	return w.entry.route, w.entry.route != Route{}, w.entry.changed
}

// Close ends the watch. It may be called more than once.
func (w *Watch) Close() {
	w.once.Do(func() {
		t := w.table
		t.mu.Lock()
		defer t.mu.Unlock()
		w.entry.watches--
		if w.entry.watches > 0 {
			return
		}
		// A route that is no route is not worth keeping: whoever asks next for
		// a camera that does not exist gets the news of that moment.
		if w.entry.route.State != Assigned {
			t.drop(w.camera)
			return
		}
		w.entry.since = time.Now()
		t.idle++
		if t.idle > t.cfg.MaxIdle {
			t.dropOldest()
		}
	})
}

// mark notes that a camera was added or removed. mu is held.
func (t *Table) mark(camera fleet.CameraID) {
	t.dirty[camera] = true
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// drop removes a camera without watches. mu is held.
func (t *Table) drop(camera fleet.CameraID) {
	delete(t.entries, camera)
	t.mark(camera)
}

// dropOldest removes the camera that has been without a watch for longest. mu
// is held.
func (t *Table) dropOldest() {
	var oldest fleet.CameraID
	var since time.Time
	for id, e := range t.entries {
		if e.watches == 0 && (oldest == "" || e.since.Before(since)) {
			oldest, since = id, e.since
		}
	}
	if oldest != "" {
		t.idle--
		t.drop(oldest)
	}
}

// sweep removes the cameras whose time without a watch is over.
func (t *Table) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, e := range t.entries {
		if e.watches == 0 && now.Sub(e.since) >= t.cfg.Linger {
			t.idle--
			t.drop(id)
		}
	}
}

// set takes routes from the control plane. Those of cameras that are watched
// no longer are ignored.
func (t *Table) set(routes []*controlv1.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range routes {
		id, err := fleet.ParseCameraName(m.GetCamera())
		if err != nil {
			t.log.Warn("route not understood", "error", err)
			continue
		}
		r, err := FromProto(m)
		if err != nil {
			t.log.Warn("route not understood", "camera", id, "error", err)
			continue
		}
		e := t.entries[id]
		if e == nil || e.route == r || e.route.State == Assigned && r.onItsWay() {
			continue
		}
		e.route = r
		close(e.changed)
		e.changed = make(chan struct{})
	}
}

// onItsWay tells whether the camera has no node because it goes from one to
// another. Where it was is then still the best place to look for it: the
// control plane may know no better because it has just come back itself.
func (r Route) onItsWay() bool {
	return r.State == Unassigned && r.Reason == moving
}

// moving is why a camera on its way from one node to another has none:
// REASON_MOVING.
const moving fleet.Reason = "moving"

// FromProto reads a route.
func FromProto(m *controlv1.Route) (Route, error) {
	r := Route{Generation: m.GetGeneration(), Reason: Reason(m.GetReason())}
	switch m.GetState() {
	case controlv1.Route_STATE_ASSIGNED:
		node, err := fleet.ParseNodeName(m.GetNode())
		if err != nil {
			return Route{}, err
		}
		if m.GetSessionAddress() == "" {
			return Route{}, errors.New("the route has no session address")
		}
		r.State, r.Node, r.Address = Assigned, node, m.GetSessionAddress()
	case controlv1.Route_STATE_UNASSIGNED:
		r.State = Unassigned
	case controlv1.Route_STATE_NOT_FOUND:
		r.State = NotFound
	case controlv1.Route_STATE_DISABLED:
		r.State = Disabled
	default:
		return Route{}, fmt.Errorf("the route has the unknown state %v", m.GetState())
	}
	return r, nil
}

// Reason returns a reason as browsers see it: in lower case, without its
// prefix.
func Reason(r controlv1.Reason) fleet.Reason {
	if r == controlv1.Reason_REASON_UNSPECIFIED {
		return fleet.ReasonNone
	}
	return fleet.Reason(strings.ToLower(strings.TrimPrefix(r.String(), "REASON_")))
}

// Run keeps the table up to date until ctx ends, and then returns nil. It goes
// on for ever when the control plane cannot be reached.
func (t *Table) Run(ctx context.Context) error {
	backoff := rpc.Backoff{Min: t.cfg.RetryMin, Max: t.cfg.RetryMax}
	for ctx.Err() == nil {
		began := time.Now()
		if err := t.follow(ctx); ctx.Err() == nil {
			t.lost(err)
		}
		if time.Since(began) >= lasting {
			backoff.Reset()
		}
		_ = backoff.Sleep(ctx) // ends with ctx, which the loop looks at
	}
	return nil
}

// lost notes that there is no stream.
func (t *Table) lost(err error) {
	t.mu.Lock()
	had := t.trouble == nil
	t.trouble = fmt.Errorf("the control plane cannot be reached: %w", err)
	t.mu.Unlock()
	if had {
		t.log.Warn("control plane lost", "error", err)
	}
}
