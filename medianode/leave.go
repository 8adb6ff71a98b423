package medianode

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"fanlight/internal/fleet"
)

const (
	// leaveStall is how long a node that leaves waits for something to move: a
	// control plane begins at once, if there are nodes that can take cameras.
	leaveStall = 5 * time.Second
	// leaveStore is how long the control plane gets to store that a camera was
	// released: with the stream ends what it has not stored, and it then has to
	// wait before it gives a camera that accepts one session to another node.
	leaveStore = 250 * time.Millisecond
	// leaveCheck is how often it looks, and leaveLog how often it says so.
	leaveCheck = 50 * time.Millisecond
	leaveLog   = 2 * time.Second
)

// Leave tells the control plane that the process is about to stop, so that other
// nodes take the cameras over, and waits until that is done. Run goes on: the
// node serves what it still has. The caller then ends Run, whatever Leave
// returned.
//
// It returns nil when the node has no camera left, or does not run. The error is
// fleet.Unavailable when nothing has moved for 5 s and nothing is on its way,
// because no other node can take what is left, or no control plane can be
// reached or understands; or the cause of ctx's end, which ends the waiting and
// not the leaving: there is no way back but a new process.
func (n *Node) Leave(ctx context.Context) error {
	n.mu.Lock()
	if !n.left() {
		close(n.leaving)
	}
	n.mu.Unlock()
	tick := time.NewTicker(leaveCheck)
	defer tick.Stop()
	last, logged := moves{cameras: -1}, moves{}
	var moved, said time.Time
	for {
		now, d := time.Now(), n.departure()
		switch {
		case d.moves != last || d.underWay():
			moved, last = now, d.moves
		case !d.connected && d.away.Before(moved):
			moved = d.away // it has been waited for already
		}
		switch {
		case d.done(now):
			n.log.Info("node has left")
			return nil
		case now.Sub(moved) >= leaveStall:
			return fmt.Errorf("leave with %d cameras and %d viewers: %s: %w", d.moves.cameras, d.viewers, d.stall(), fleet.Unavailable)
		case d.moves != logged && now.Sub(said) >= leaveLog:
			n.log.LogAttrs(ctx, slog.LevelInfo, "node leaving", d.attrs()...)
			logged, said = d.moves, now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("leave with %d cameras and %d viewers: %w", d.moves.cameras, d.viewers, context.Cause(ctx))
		}
	}
}

// left tells whether Leave has been called.
func (n *Node) left() bool {
	select {
	case <-n.leaving:
		return true
	default:
		return false
	}
}

// departure is how far a node that leaves has come.
type departure struct {
	moves     moves
	viewers   int
	unsaid    int       // releases
	said      time.Time // when a release was said last
	connected bool      // to the control plane
	away      time.Time // since when not
	stopped   bool
}

// moves is what has to change for something to have moved.
type moves struct {
	cameras     int // that the node has
	ending      int // that it has let go, and whose sources have not ended
	awaiting    int // of cameras: on their way to other nodes
	handingOver int // of cameras: at other nodes already
}

func (n *Node) departure() departure {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := departure{connected: n.away.IsZero(), away: n.away, stopped: n.stopping, unsaid: n.released.unsaid(), said: n.released.said}
	d.moves.cameras, d.moves.ending = len(n.cameras), len(n.ending)
	for _, c := range n.cameras {
		c.mu.Lock()
		d.viewers += c.sessions
		switch c.desired.part {
		case partHandOver:
			d.moves.handingOver++
		case partAwaitHandOver:
			d.moves.awaiting++
		default:
		}
		c.mu.Unlock()
	}
	return d
}

// done tells whether there is nothing left to wait for.
func (d departure) done(now time.Time) bool {
	known := d.unsaid == 0 && now.Sub(d.said) >= leaveStore
	return d.stopped || d.moves.cameras == 0 && d.moves.ending == 0 && (known || !d.connected)
}

// underWay tells whether something moves that comes to an end by itself: what
// is handed over, and what other nodes take over under the control plane's eyes.
func (d departure) underWay() bool {
	return d.moves.handingOver > 0 || d.moves.ending > 0 || d.connected && d.moves.awaiting > 0
}

// stall says why nothing moves.
func (d departure) stall() string {
	if !d.connected {
		return "no control plane can be reached"
	}
	return "no other node takes them"
}

func (d departure) attrs() []slog.Attr {
	return []slog.Attr{
		slog.Int("cameras", d.moves.cameras), slog.Int("moving", d.moves.awaiting), slog.Int("handing_over", d.moves.handingOver),
		slog.Int("viewers", d.viewers), slog.Bool("connected", d.connected),
	}
}
