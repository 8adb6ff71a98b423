package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/route"
)

const (
	// requestsKept is how many messages for a session wait for it.
	requestsKept = 64
	// candidatesKept is how many of the viewer's candidates are kept until
	// there is an answer, to be told again to another node.
	candidatesKept = 128
	// moveLinger is how long a session without a node waits for the browser to
	// leave it after it was told to move.
	moveLinger = 30 * time.Second
	// probeLeast is the least wait before a node that was lost is tried again.
	probeLeast = 250 * time.Millisecond
	// orphanTime is how long a node goes on at most with a session whose stream
	// broke.
	orphanTime = 15 * time.Second
	// sameRoute is how long a session whose node has let the camera go waits for
	// another route, before it tries the old one.
	sameRoute = 5 * time.Second
	// longestTurn is how long a session waits at most for its turn to move. Its
	// node hands the camera over and keeps it for 30 s: when more viewers move
	// than can in that time, pacing them would cost them the picture.
	longestTurn = 20 * time.Second
	// patient is how long an attempt has taken that the node has waited in: the
	// wait before the next is short.
	patient = time.Second
)

// Why a session ends that nobody needs to be told of. They are what its context
// is cancelled with.
var (
	// errLeft: the viewer has left it. The node ends it too.
	errLeft = errors.New("left")
	// errLost: the websocket broke, or the gateway stops. The node goes on with
	// it for some seconds, in which the viewer can begin another one elsewhere,
	// unless the viewer has as many such sessions as it may have others.
	errLost = errors.New("lost")
)

// sessionConfig is what a session is made of.
type sessionConfig struct {
	id      string // the browser's
	camera  fleet.CameraID
	open    *mediav1.Open // without session, camera and generation; its viewport is the session's to change
	creds   *credentials
	remote  string
	via     string         // for the audit line
	mayMove bool           // the browser can be told to move
	send    func(outbound) // does not block
}

// session is one viewer's session, from watch to ended. It lives as long as
// its viewer wants it, over any number of streams to nodes: what it does
// follows from the camera's route, whether a stream is open, and whether the
// browser has been given an answer.
//
//	no answer yet      the stream is opened anew, with the same offer and
//	                   candidates, wherever the route leads, until there is one
//	answered           the peer connection belongs to one node; when the route
//	                   leads to another, in its turn, or the stream is lost, the
//	                   browser is told to move
//	told to move       the old stream, if there still is one, goes on until the
//	                   browser leaves or the node ends it
type session struct {
	// Static.
	sessionConfig
	gateway  *Gateway
	nodeID   fleet.SessionID // the node's name for it
	viewing  *viewing
	release  func()      // gives the place among the viewer's sessions back; may be called again
	orphan   func() bool // takes one among its orphans; false: there is none
	onEnd    func()      // called before the browser is told that the session has ended
	log      *slog.Logger
	requests chan *mediav1.OpenSessionRequest // from the browser; never closed
	hasMoved atomic.Bool                      // the browser has been told to move

	// Owned by run.
	leg
	closing    sync.WaitGroup                // streams before leg's that are being closed
	candidates []*mediav1.OpenSessionRequest // until the first answer
	answered   bool
	moved      bool
	turn       *rate.Reservation // to be told to move; nil: none is waited for
	lost       error             // why the last stream ended; nil: there was none
	next       time.Time         // of the next thing to do without being asked; zero: nothing
	backoff    rpc.Backoff
	told       outbound // the last state
}

// leg is the part of a session's way that one node goes with it.
type leg struct {
	used   route.Route                              // that stream, or the one that was lost, was opened with
	seen   route.Route                              // the last one found to lead to the stream's node
	began  time.Time                                // when stream was opened
	stream *nodeStream                              // nil: there is none
	node   mediav1.SessionService_OpenSessionClient // nil until the stream is open
}

// run is the session's life, until ctx is cancelled with errLeft or errLost. It
// returns why it ended: one of them, or what the viewer has been told.
func (s *session) run(ctx context.Context) error {
	s.backoff = rpc.Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	watch := s.gateway.routes.Watch(s.camera)
	defer watch.Close()
	var err error // nil after a panic
	defer func() {
		if errors.Is(err, errLost) && s.answered && s.stream != nil && s.orphan() {
			s.breakStream()
		}
		s.closeStream()
		s.closing.Wait()
	}()
	defer s.release()
	defer s.giveTurnBack()
	err = s.loop(ctx, watch)
	s.onEnd()
	if errors.Is(err, errLeft) || errors.Is(err, errLost) {
		return err
	}
	reason := fleet.Reason(wireReason(err))
	// A session that the browser was told to move from is no failure.
	if !s.moved {
		s.send(errorMessage(s.id, err))
	}
	s.tell(stateMessage(stateEnded, reason, sentence(err), time.Time{}))
	return err
}

func (s *session) loop(ctx context.Context, watch *route.Watch) error {
	for {
		viewer, renewed := s.creds.get()
		switch {
		case viewer.Expired(time.Now()):
			return fmt.Errorf("the token has expired, send a new one in time: %w", fleet.TokenExpired)
		case !viewer.MayWatch(s.camera):
			return fmt.Errorf("the new token does not allow camera %q: %w", s.camera, fleet.CameraForbidden)
		}
		r, known, changed := watch.Route()
		if err := s.reconcile(ctx, r, known); err != nil {
			return err
		}
		if err := s.wait(ctx, viewer.Expires, renewed, changed); err != nil {
			return err
		}
	}
}

// wait returns when there may be something to do; an error ends the session.
func (s *session) wait(ctx context.Context, expires time.Time, renewed, changed <-chan struct{}) error {
	wake := s.next
	if !expires.IsZero() && (wake.IsZero() || expires.Before(wake)) {
		wake = expires
	}
	var timer <-chan time.Time
	if !wake.IsZero() {
		t := time.NewTimer(time.Until(wake))
		defer t.Stop()
		timer = t.C
	}
	var events <-chan nodeEvent
	if s.stream != nil {
		events = s.stream.events
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer:
	case <-renewed:
	case <-changed:
	case req := <-s.requests:
		s.request(req)
	case e, ok := <-events:
		if !ok {
			e.err = io.EOF
		}
		return s.event(e)
	}
	return nil
}

// reconcile does what the route asks for.
func (s *session) reconcile(ctx context.Context, r route.Route, known bool) error {
	now := time.Now()
	due := !s.next.After(now)
	switch {
	case !known:
		return s.routeUnknown(now)
	case r.State == route.NotFound && s.used != route.Route{}:
		return fmt.Errorf("camera %q was deleted: %w", s.camera, fleet.CameraDeleted)
	case r.State == route.NotFound:
		return fmt.Errorf("there is no camera %q, check the name: %w", s.camera, fleet.CameraNotFound)
	case r.State == route.Disabled:
		return fmt.Errorf("camera %q is disabled: %w", s.camera, fleet.CameraDisabled)
	case s.moved && s.stream != nil:
		s.next = time.Time{}
	case s.moved && due:
		return fmt.Errorf("the session was moved and not left: %w", fleet.CameraMoved)
	case s.moved:
	case r.State == route.Unassigned:
		s.routeUnassigned(r)
	case s.stream == nil && !s.answered:
		if due || r != s.used {
			s.openStream(ctx, r)
		}
	case s.stream == nil:
		s.lostNode(r, due)
	case r != s.used && !s.answered:
		s.closeStream()
		s.openStream(ctx, r)
	case !s.answered && due:
		return s.event(nodeEvent{err: fmt.Errorf("the node does not answer: %w", fleet.NodeUnreachable)})
	case !s.answered:
	case r.Node == s.used.Node && r.Address == s.used.Address:
		// Another generation is the node's business as long as it serves the session.
		s.seen = r
		s.giveTurnBack()
	default:
		s.movePaced(now)
	}
	return nil
}

// routeUnknown waits for the control plane's first word of the camera.
func (s *session) routeUnknown(now time.Time) error {
	s.tell(stateMessage(stateConnecting, "", "", time.Time{}))
	s.next = s.viewing.began.Add(s.gateway.limits.RouteTimeout)
	if now.Before(s.next) {
		return nil
	}
	return &spoken{reason: fleet.Unavailable, text: "the control plane cannot be asked where the camera is; try again later"}
}

// routeUnassigned waits for a node. A node that has lost the assignment and
// still serves the session is left to do so.
func (s *session) routeUnassigned(r route.Route) {
	if s.stream != nil && s.answered {
		s.giveTurnBack()
		return
	}
	s.closeStream()
	s.next = time.Time{}
	if !s.answered {
		s.lost = nil
	}
	s.tell(stateMessage(stateCameraOffline, r.Reason, reasonSentence(r.Reason), time.Time{}))
}

// lostNode tells the browser to move as soon as that can succeed: when the
// route leads elsewhere, or the node answers again.
func (s *session) lostNode(r route.Route, due bool) {
	known := s.seen
	letGo := reasonOf(s.lost) == fleet.CameraMoved
	if letGo {
		known = s.used // the node lives: a newer generation on it is another route
	}
	switch {
	case r != known, due && (letGo || s.gateway.nodes.answers(r.Address)):
		s.move(fleet.Reason(wireReason(s.lost)), sentence(s.lost))
	case due:
		s.next = time.Now().Add(probeLeast + s.backoff.Next())
	}
	if !s.moved {
		s.tell(stateMessage(stateMoving, fleet.Reason(wireReason(s.lost)), sentence(s.lost), time.Time{}))
	}
}

// movePaced tells the browser to move when it is its turn among the gateway's
// sessions, for nothing presses while the old node serves.
func (s *session) movePaced(now time.Time) {
	if !s.mayMove {
		return // WHEP has no word for it: the node ends the session in its time
	}
	if s.turn == nil {
		s.turn = s.gateway.moves.ReserveN(now, 1)
		delay := s.turn.DelayFrom(now)
		if delay > longestTurn {
			delay = rand.N(longestTurn) // faster then, but not all at once
		}
		s.next = now.Add(delay)
	}
	if !s.next.After(now) {
		s.move("moving", "the camera has moved to another node")
	}
}

// giveTurnBack is for a session that needs its turn to move no longer.
func (s *session) giveTurnBack() {
	if s.turn == nil {
		return
	}
	s.turn.Cancel()
	s.turn = nil
	s.next = time.Time{}
}

// move tells the browser to make a new peer connection and a new session, and
// to leave this one when the other shows a picture.
func (s *session) move(reason fleet.Reason, message string) {
	s.moved, s.turn = true, nil
	s.hasMoved.Store(true)
	s.next = time.Now().Add(moveLinger)
	s.release()
	s.tell(stateMessage(stateMoving, reason, message, time.Time{}))
	s.gateway.metrics.moves.Inc()
	s.send(outbound{Type: typeMove, Session: s.id})
}

// openStream begins a stream to the node that has the camera.
func (s *session) openStream(ctx context.Context, r route.Route) {
	if s.lost == nil {
		s.tell(stateMessage(stateConnecting, "", "", time.Time{}))
	}
	s.used, s.seen = r, r
	s.began = time.Now()
	// Not ended by ctx, which would orphan the session at the node.
	s.stream = s.gateway.nodes.open(context.WithoutCancel(ctx), r.Address)
	s.next = s.began.Add(s.gateway.limits.AnswerTimeout)
}

// closeStream ends the stream, and with it the session at the node. It does not
// wait for the node.
func (s *session) closeStream() {
	if s.stream == nil {
		return
	}
	stream, node := s.stream, s.node
	s.stream, s.node = nil, nil
	s.closing.Go(func() { stream.leave(node) })
}

// breakStream ends the stream as a gateway's death does: the session becomes an
// orphan, with which the node goes on for some seconds.
func (s *session) breakStream() {
	if s.stream != nil {
		s.stream.close()
	}
	s.stream, s.node = nil, nil
}

// request passes a message of the browser on, or keeps it until it can be.
func (s *session) request(req *mediav1.OpenSessionRequest) {
	switch m := req.GetMessage().(type) {
	case *mediav1.OpenSessionRequest_Viewport:
		s.open.Viewport = m.Viewport
		s.toNode(req)
	case *mediav1.OpenSessionRequest_Candidate:
		if !s.answered {
			if len(s.candidates) == candidatesKept {
				s.send(errorMessage(s.id, fmt.Errorf("more than %d candidates before the answer: %w", candidatesKept, fleet.RateLimited)))
				return
			}
			s.candidates = append(s.candidates, req)
		}
		s.toNode(req)
	case *mediav1.OpenSessionRequest_Restart:
		if !s.answered || s.node == nil {
			s.send(errorMessage(s.id, fmt.Errorf("restart needs a session that was answered and has a node, wait for answer or move: %w", fleet.OutOfOrder)))
			return
		}
		s.toNode(req)
	}
}

// toNode sends a message to the node, if there is one. What goes wrong is said
// by the stream's last event.
func (s *session) toNode(req *mediav1.OpenSessionRequest) {
	if s.node != nil {
		_ = s.node.Send(req)
	}
}

// event takes what the node says. An error ends the session.
func (s *session) event(e nodeEvent) error {
	switch {
	case e.err != nil:
		return s.streamEnded(e.err)
	case e.opened != nil:
		s.node = e.opened
		s.introduce()
		return nil
	}
	switch m := e.resp.GetMessage().(type) {
	case *mediav1.OpenSessionResponse_Answer:
		s.answer(m.Answer)
	case *mediav1.OpenSessionResponse_Candidate:
		c := candidateMessage(m.Candidate)
		c.Session = s.id
		s.send(c)
	case *mediav1.OpenSessionResponse_State:
		if !s.moved {
			s.tell(cameraState(m.State))
		}
	case *mediav1.OpenSessionResponse_Rejected:
		s.send(errorMessage(s.id, &spoken{reason: fleet.Error(m.Rejected.GetReason()), text: m.Rejected.GetMessage()}))
	}
	return nil
}

// introduce tells a node that has just been reached of the session.
func (s *session) introduce() {
	open := &mediav1.Open{
		Session: string(s.nodeID), Camera: s.camera.Name(), Generation: s.used.Generation,
		Offer: s.open.GetOffer(), Viewer: s.open.GetViewer(), RemoteAddress: s.open.GetRemoteAddress(),
		Trickle: s.open.GetTrickle(), Viewport: s.open.GetViewport(), Codecs: s.open.GetCodecs(),
	}
	s.toNode(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Open{Open: open}})
	for _, c := range s.candidates {
		s.toNode(c)
	}
}

func (s *session) answer(a *mediav1.Answer) {
	if !s.answered {
		s.answered, s.candidates = true, nil
		s.viewing.node = s.used.Node
		s.gateway.metrics.answered(s)
		s.backoff.Reset()
		if !s.moved {
			s.next = time.Time{}
		}
	}
	s.lost = nil
	s.send(outbound{Type: typeAnswer, Session: s.id, SDP: a.GetSdp()})
}

// streamEnded decides what the end of a stream means. An error ends the
// session.
func (s *session) streamEnded(err error) error {
	s.closeStream()
	s.giveTurnBack()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the node ended the session: %w", fleet.NodeUnreachable)
	}
	if s.moved {
		return fmt.Errorf("the session has moved: %w", fleet.CameraMoved)
	}
	switch reasonOf(err) {
	case fleet.Unavailable, fleet.NodeUnreachable:
		s.log.Debug("node lost", "node", s.used.Node, "error", err)
		err = fmt.Errorf("the camera's node cannot be reached: %w", fleet.NodeUnreachable)
	case fleet.CameraMoved, fleet.StaleRoute, fleet.NodeStopping, fleet.CameraUnassigned, fleet.CameraNotFound:
	default:
		return err
	}
	if s.answered && !s.mayMove {
		return err
	}
	s.lost = err
	now := time.Now()
	if now.Sub(s.began) >= patient {
		s.backoff.Reset()
	}
	s.next = now.Add(s.backoff.Next())
	if s.answered {
		s.next = s.next.Add(probeLeast)
		if reasonOf(err) == fleet.CameraMoved {
			s.next = now.Add(sameRoute)
		}
		return nil
	}
	s.tell(stateMessage(stateConnecting, fleet.Reason(wireReason(err)), sentence(err), time.Time{}))
	return nil
}

// tell sends a state if it is another than the one before.
func (s *session) tell(m outbound) {
	m.Session = s.id
	if m.State == s.told.State && m.Reason == s.told.Reason && m.Message == s.told.Message && m.RetryAt == s.told.RetryAt &&
		m.Profile == s.told.Profile && m.Verdict == s.told.Verdict && m.VerdictMessage == s.told.VerdictMessage {
		return
	}
	s.told = m
	s.send(m)
}

// cameraState is what a node says of the camera, for the browser.
func cameraState(m *mediav1.SessionState) outbound {
	state := stateConnecting
	switch m.GetState() {
	case mediav1.SessionState_STATE_LIVE:
		state = stateLive
	case mediav1.SessionState_STATE_CAMERA_OFFLINE:
		state = stateCameraOffline
	case mediav1.SessionState_STATE_UNSPECIFIED, mediav1.SessionState_STATE_CONNECTING:
	}
	var retry time.Time
	if m.GetRetryTime() != nil {
		retry = m.GetRetryTime().AsTime()
	}
	reason := fleet.Reason(m.GetReason())
	out := stateMessage(state, reason, reasonSentence(reason), retry)
	out.Profile, out.Verdict, out.VerdictMessage = clip(m.GetProfile(), maxNamed), clip(m.GetVerdict(), maxNamed), clip(m.GetVerdictMessage(), maxVerdict)
	return out
}
