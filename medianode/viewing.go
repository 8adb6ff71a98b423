package medianode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/medianode/session"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// Why a session was ended that did not end by itself.
var (
	errLeft   = errors.New("left")                               // the gateway has half-closed its stream
	errOrphan = fmt.Errorf("gateway gone: %w", context.Canceled) // its stream broke, and the session's time as an orphan is over
)

// viewing is one viewer's session with what a gateway says of it.
//
// The OpenSession call carries the messages and ends with the gateway's stream.
// The session has a goroutine of its own, keep, that the node's Run waits for:
// when the stream breaks the session is orphaned and goes on without the call.
type viewing struct {
	// Static after OpenSession.
	node   *Node
	camera *camera
	place  place
	id     fleet.SessionID
	viewer string // who watches, as the gateway says
	remote string // where from
	begun  time.Time
	stream sessionStream // while the call runs

	session *session.Session // set before the camera knows of the viewing

	out      chan *mediav1.OpenSessionResponse // to the gateway; never closed
	once     sync.Once                         // closes overflow
	overflow chan struct{}                     // closed when out was full

	cancel context.CancelCauseFunc // ends the session; set before keep runs
	done   chan struct{}           // closed when the session has ended
	err    error                   // why; set before done is closed

	trial viewerTrial // owned by Node.judge

	mu       sync.Mutex // guards the next ones
	orphaned bool
	ended    bool
	counted  func() // the orphan no more

	telling sync.Mutex            // guards the rest; taken before mu and before the camera's
	status  session.Status        // as the session told it
	own     fleet.Verdict         // on the viewer's network
	shown   fleet.Verdict         // what the viewer was told
	told    *mediav1.SessionState // likewise; nil: nothing yet
}

// run opens the session, and carries messages until it or the stream has ended.
func (v *viewing) run(ctx context.Context, engine *session.Engine, open *mediav1.Open) error {
	profiles := v.camera.profiles()
	s, answer, err := engine.Open(session.OpenConfig{
		ID: v.id, Camera: v.camera.id, Profiles: profiles, Board: v.camera.board,
		Hold: func(i int) (release func()) { return v.camera.hold(profiles[i].ID) }, Viewport: toViewport(open.GetViewport()),
		Offer: open.GetOffer(), Trickle: open.GetTrickle(), Codecs: open.GetCodecs(),
		OnCandidate: func(c session.Candidate) {
			v.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Candidate{Candidate: fromCandidate(c)}})
		},
		OnStatus: v.saw,
	})
	v.node.metrics.opened(err)
	if err != nil {
		v.node.vacate(v.camera, v.place)
		v.end(session.Stats{}, err)
		return err
	}
	v.send(answerMessage(answer)) // the first: the others come from s.Run
	keeping, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	v.cancel, v.session = cancel, s
	v.camera.watched(v)
	go v.keep(keeping, s) // counted by join

	broken, reason := false, error(fleet.Internal) // of a panic
	defer func() {
		if !broken {
			cancel(reason)
			<-v.done
		}
	}()
	calling, hangUp := context.WithCancel(ctx)
	defer hangUp() // ends transmit before the session ends, as there is nobody to tell
	broken, reason = v.serve(ctx, s, v.transmit(calling))
	broken = broken && v.orphan(s)
	switch {
	case broken:
		return reason
	case errors.Is(reason, errLeft):
		cancel(reason)
		<-v.done
		if v.err != nil && !errors.Is(v.err, errLeft) {
			return v.err
		}
		return nil
	}
	return reason
}

// keep runs the session to its end.
func (v *viewing) keep(ctx context.Context, s *session.Session) {
	err := guard(func() error { return s.Run(ctx) })
	s.Close()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = fleet.NodeStopping // the engine has closed it
	}
	if errors.Is(err, errLeft) {
		v.node.metrics.ended(nil)
	} else {
		v.node.metrics.ended(err)
	}
	v.end(s.Stats(), err)
}

// end accounts for the session's end.
func (v *viewing) end(stats session.Stats, err error) {
	v.mu.Lock()
	v.ended = true
	if v.counted != nil {
		v.counted()
	}
	v.mu.Unlock()
	v.err = err
	v.camera.unwatched(v)
	v.audit(stats)
	close(v.done)
	v.node.leave(v.camera)
}

// orphan lets the session go on without its gateway, for a while. False: it has
// ended, or there are too many that do.
func (v *viewing) orphan(s *session.Session) bool {
	if !s.Orphan() {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return false
	}
	uncount, unawait := v.node.metrics.orphan(), v.camera.orphan()
	v.orphaned, v.counted = true, func() { uncount(); unawait() }
	v.camera.log.Debug("session orphaned", "session", string(v.id))
	time.AfterFunc(v.node.cfg.OrphanTimeout, func() { v.cancel(errOrphan) }) // after the session's end it does nothing
	return true
}

func (v *viewing) isOrphan() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.orphaned
}

// serve carries messages between gateway and session. It returns why it does not
// any more; broken: the stream broke, and the session could go on.
// unsendable says that nothing can be sent to the gateway.
func (v *viewing) serve(ctx context.Context, s *session.Session, unsendable <-chan error) (broken bool, reason error) {
	requests, left := receive(ctx, v.stream)
	for {
		select {
		case m := <-requests:
			if err := v.take(s, m); err != nil { //nolint:contextcheck // an ICE restart bounds itself
				return false, err
			}
		case err := <-left:
			return v.lost(ctx, err)
		case err := <-unsendable:
			return v.lost(ctx, err)
		case <-v.overflow:
			return true, fmt.Errorf("session %q: the gateway does not read: %w", v.id, fleet.Unavailable)
		case <-v.done:
			return false, v.err
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), fleet.Unavailable) {
				return false, fleet.NodeStopping
			}
			return v.lost(ctx, <-left) // the call is over, and Recv returns
		}
	}
}

// lost says what the end of a stream means. A gateway that has ended the session
// half-closes: that is io.EOF. A stream that is canceled, reset or cut has lost
// its gateway. The node's own server ends the context of a stream before the
// stream, with fleet.Unavailable as the cause.
func (v *viewing) lost(ctx context.Context, err error) (broken bool, reason error) {
	switch {
	case errors.Is(err, io.EOF):
		return false, errLeft
	case errors.Is(context.Cause(ctx), fleet.Unavailable):
		return false, fleet.NodeStopping
	}
	return true, fmt.Errorf("session %q: the gateway is gone: %w", v.id, rpc.FromStatus(err))
}

// stopped says why a call ends that has not failed. Its context has ended with
// the gateway or with the node's gRPC server; if it has not, it is the node that
// stops. Server and node stop together, and the server says so first.
func stopped(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, fleet.Unavailable) {
		return cause
	}
	return fleet.NodeStopping
}

// transmit sends what is queued in a goroutine of its own, for a gateway that does
// not read blocks it. It ends with ctx or, blocked, with the call: Send returns
// when the handler has.
func (v *viewing) transmit(ctx context.Context) (failed <-chan error) {
	errs := make(chan error, 1)
	go func() {
		for {
			select {
			case m := <-v.out:
				if err := v.stream.Send(m); err != nil {
					errs <- err
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return errs
}

// receive reads a stream's messages in a goroutine, which ends with the call:
// Recv returns when the handler has. left gets why the last was the last.
func receive(ctx context.Context, stream sessionStream) (<-chan *mediav1.OpenSessionRequest, <-chan error) {
	requests, left := make(chan *mediav1.OpenSessionRequest), make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				left <- err
				return
			}
			select {
			case requests <- m:
			case <-ctx.Done():
				left <- ctx.Err()
				return
			}
		}
	}()
	return requests, left
}

// send queues a message to the gateway, if there is one; it is lost if too many
// wait.
func (v *viewing) send(m *mediav1.OpenSessionResponse) {
	if v.isOrphan() {
		return
	}
	select {
	case v.out <- m:
	default:
		v.once.Do(func() { close(v.overflow) })
	}
}

// take takes a message of the gateway. An error ends the session.
func (v *viewing) take(s *session.Session, m *mediav1.OpenSessionRequest) error {
	var err error
	switch m := m.GetMessage().(type) {
	case *mediav1.OpenSessionRequest_Candidate:
		err = guard(func() error { return s.AddCandidate(toCandidate(m.Candidate)) })
	case *mediav1.OpenSessionRequest_Restart:
		if len(m.Restart.GetOffer()) > maxOffer {
			err = fmt.Errorf("it has %d bytes, at most %d are allowed: %w", len(m.Restart.GetOffer()), maxOffer, fleet.BadOffer)
			break
		}
		var answer string
		if answer, err = s.Restart(m.Restart.GetOffer()); err == nil {
			v.send(answerMessage(answer))
		}
	case *mediav1.OpenSessionRequest_Viewport:
		if viewport := toViewport(m.Viewport); viewport != nil {
			s.SetViewport(*viewport)
		}
	case *mediav1.OpenSessionRequest_Open:
		err = fmt.Errorf("the session is open: %w", fleet.OutOfOrder)
	}
	var reason fleet.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &reason) && (reason == fleet.BadCandidate || reason == fleet.BadOffer || reason == fleet.OutOfOrder):
		v.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Rejected{
			Rejected: &mediav1.Rejected{Reason: string(reason), Message: err.Error()},
		}})
		return nil
	default:
		return fmt.Errorf("session %q: %w", v.id, err)
	}
}

// audit logs who watched which camera, from where and for how long.
func (v *viewing) audit(stats session.Stats) {
	reason := v.err.Error()
	var e fleet.Error
	switch {
	case errors.As(v.err, &e):
		reason = string(e)
	case errors.Is(v.err, context.Canceled):
		reason = "gateway gone"
	}
	attrs := []slog.Attr{
		slog.String("session", string(v.id)), slog.String("viewer", v.viewer), slog.String("remote_address", v.remote),
		slog.Duration("duration", time.Since(v.begun).Round(time.Millisecond)), slog.String("reason", reason),
		slog.Uint64("packets", stats.Packets), slog.Uint64("bytes", stats.Bytes),
	}
	if v.isOrphan() {
		attrs = append(attrs, slog.Bool("orphaned", true))
	}
	v.camera.log.LogAttrs(context.Background(), slog.LevelInfo, "session ended", attrs...)
}

// clip keeps what a gateway says short.
func clip(s string) string { return s[:min(len(s), maxAudited)] }

// guard calls f and makes a panic its error, so that one session does not take
// the node with it.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: panic: %v\n%s", fleet.Internal, r, debug.Stack())
		}
	}()
	return f()
}
