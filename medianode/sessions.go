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

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/medianode/session"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const (
	maxSessionID = 128      // bytes, see Open.session
	maxOffer     = 64 << 10 // bytes, see Open.offer
	maxAudited   = 256      // bytes of what a gateway says of a viewer
	// routeLead is how long a gateway may know of an assignment before the node
	// does.
	routeLead = 2 * time.Second
	// unsent is how many messages to a gateway may wait before its session ends.
	unsent = 256
)

// sessionService is the gateways' service.
type sessionService struct {
	mediav1.UnimplementedSessionServiceServer
	node *Node
}

type sessionStream = grpc.BidiStreamingServer[mediav1.OpenSessionRequest, mediav1.OpenSessionResponse]

// OpenSession runs one viewer's session.
func (s *sessionService) OpenSession(stream sessionStream) error {
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	open := first.GetOpen()
	if err := checkOpen(open); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	id, err := fleet.ParseCameraName(open.GetCamera())
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	engine, c, err := s.node.join(stream.Context(), id, open.GetGeneration())
	if err != nil {
		s.node.metrics.opened(err)
		return err // its text is for the viewer
	}
	defer c.leave()
	v := &viewing{
		camera: c, id: fleet.SessionID(open.GetSession()), stream: stream,
		out: make(chan *mediav1.OpenSessionResponse, unsent), overflow: make(chan struct{}),
	}
	begun := time.Now()
	err = v.run(stream.Context(), engine, open)
	v.audit(open, time.Since(begun), err)
	return err
}

func checkOpen(open *mediav1.Open) error {
	switch {
	case open == nil:
		return fmt.Errorf("the first message must be open: %w", fleet.OutOfOrder)
	case open.GetSession() == "" || len(open.GetSession()) > maxSessionID:
		return fmt.Errorf("the session's id must have 1 to %d characters: %w", maxSessionID, fleet.InvalidArgument)
	case len(open.GetOffer()) > maxOffer:
		return fmt.Errorf("it has %d bytes, at most %d are allowed: %w", len(open.GetOffer()), maxOffer, fleet.BadOffer)
	}
	return nil
}

// join counts a session in at its camera. A gateway may have heard of an
// assignment before the node has: it is waited for.
func (n *Node) join(ctx context.Context, id fleet.CameraID, generation int64) (*session.Engine, *camera, error) {
	timeout := time.After(routeLead)
	for {
		n.mu.Lock()
		engine, c, applied := n.engine, n.cameras[id], n.applied
		err := n.admit(c, id, generation)
		if err == nil {
			c.join() // under n.mu, so that a camera let go later ends the session
		}
		n.mu.Unlock()
		if err == nil {
			return engine, c, nil
		}
		if errors.Is(err, fleet.NodeStopping) || generation == 0 || n.knows(id, generation) {
			return nil, nil, err
		}
		select {
		case <-applied:
		case <-timeout:
			return nil, nil, err
		case <-ctx.Done():
			return nil, nil, stopped(ctx)
		}
	}
}

// knows tells whether the node has seen that generation of a camera, or a later
// one.
func (n *Node) knows(id fleet.CameraID, generation int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[id] >= generation
}

// admit says why the node has no such camera. The caller holds n.mu.
func (n *Node) admit(c *camera, id fleet.CameraID, generation int64) error {
	if n.stopping {
		return fleet.NodeStopping
	}
	if c == nil {
		return fmt.Errorf("camera %q is not on this node: %w", id, fleet.CameraNotFound)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if generation != 0 && generation != c.generation {
		return fmt.Errorf("camera %q has generation %d here, not %d: %w", id, c.generation, generation, fleet.StaleRoute)
	}
	return nil
}

// viewing is one OpenSession call.
type viewing struct {
	camera *camera
	id     fleet.SessionID
	stream sessionStream
	stats  session.Stats // set at the end

	out      chan *mediav1.OpenSessionResponse // to the gateway; never closed
	once     sync.Once                         // closes overflow
	overflow chan struct{}                     // closed when out was full
}

// run opens the session and serves it until either side ends it.
func (v *viewing) run(ctx context.Context, engine *session.Engine, open *mediav1.Open) error {
	s, answer, err := engine.Open(ctx, session.OpenConfig{
		ID: v.id, Camera: v.camera.id, Stream: v.camera.stream, Offer: open.GetOffer(), Trickle: open.GetTrickle(), Codecs: open.GetCodecs(),
		OnCandidate: func(c session.Candidate) {
			v.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Candidate{Candidate: fromCandidate(c)}})
		},
		OnStatus: func(status fleet.CameraStatus) {
			v.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_State{State: toSessionState(status)}})
		},
	})
	v.camera.node.metrics.opened(err)
	if err != nil {
		return err
	}
	defer s.Close()
	v.send(answerMessage(answer)) // the first: the others come from s.Run

	runCtx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- guard(func() error { return s.Run(runCtx) }) }()
	over, err := v.serve(ctx, s, ended, v.transmit(runCtx))
	cancel()
	if !over {
		if rerr := <-ended; rerr != nil && err == nil {
			err = rerr
		}
	}
	v.stats = s.Stats()
	v.camera.node.metrics.ended(err)
	return err
}

// serve carries messages between gateway and session. ended is the session's
// end, unsendable that nothing can be sent to the gateway. over says that the
// session has ended by itself.
func (v *viewing) serve(ctx context.Context, s *session.Session, ended, unsendable <-chan error) (over bool, err error) {
	requests, left := receive(ctx, v.stream)
	for {
		select {
		case m := <-requests:
			if err := v.take(s, m); err != nil { //nolint:contextcheck // an ICE restart bounds itself
				return false, err
			}
		case err := <-left:
			switch {
			case errors.Is(err, io.EOF):
				return false, nil // the gateway has ended it
			case ctx.Err() != nil:
				return false, stopped(ctx)
			}
			return false, rpc.FromStatus(err)
		case err := <-unsendable:
			if ctx.Err() != nil {
				return false, stopped(ctx)
			}
			return false, fmt.Errorf("session %q: send: %w", v.id, rpc.FromStatus(err))
		case <-v.overflow:
			return false, fmt.Errorf("session %q: the gateway does not read: %w", v.id, fleet.Unavailable)
		case err := <-ended:
			if err == nil { // its context has ended, or the engine has closed it
				err = stopped(ctx)
			}
			return true, err
		case <-ctx.Done():
			return false, stopped(ctx)
		}
	}
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
// Recv returns when the handler has.
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
				return
			}
		}
	}()
	return requests, left
}

// send queues a message to the gateway; the session ends if too many wait.
func (v *viewing) send(m *mediav1.OpenSessionResponse) {
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
	case *mediav1.OpenSessionRequest_Viewport: // there is one picture for all sizes
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
func (v *viewing) audit(open *mediav1.Open, took time.Duration, err error) {
	reason := "left"
	var e fleet.Error
	switch {
	case errors.As(err, &e):
		reason = string(e)
	case errors.Is(err, context.Canceled):
		reason = "gateway gone"
	case err != nil:
		reason = err.Error()
	}
	v.camera.log.Info("session ended",
		slog.String("session", string(v.id)), slog.String("viewer", clip(open.GetViewer())), slog.String("remote_address", clip(open.GetRemoteAddress())),
		slog.Duration("duration", took.Round(time.Millisecond)), slog.String("reason", reason),
		slog.Uint64("packets", v.stats.Packets), slog.Uint64("bytes", v.stats.Bytes))
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

func answerMessage(sdp string) *mediav1.OpenSessionResponse {
	return &mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Answer{Answer: &mediav1.Answer{Sdp: sdp}}}
}

// GetStats returns live figures of cameras on this node.
func (s *sessionService) GetStats(_ context.Context, req *mediav1.GetStatsRequest) (*mediav1.GetStatsResponse, error) {
	wanted := make(map[fleet.CameraID]bool, len(req.GetCameras()))
	for _, name := range req.GetCameras() {
		id, err := fleet.ParseCameraName(name)
		if err != nil {
			return nil, fmt.Errorf("get stats: %w", err)
		}
		wanted[id] = true
	}
	out := &mediav1.GetStatsResponse{}
	for _, c := range s.node.list() {
		if len(wanted) > 0 && !wanted[c.id] {
			continue
		}
		stats := c.stream.Stats()
		status, _ := c.status()
		out.Cameras = append(out.Cameras, &mediav1.CameraStats{
			Camera: c.id.Name(), BitrateBps: stats.BitrateBPS, PacketsPerSecond: stats.PacketsPerSecond, FramesPerSecond: stats.FramesPerSecond,
			Viewers: int32(status.Viewers), Packets: stats.Packets, Bytes: stats.Bytes, PacketsLost: stats.PacketsLost,
			State: toSessionState(status), Width: int32(stats.Width), Height: int32(stats.Height),
		})
	}
	return out, nil
}

// toSessionState returns what a viewer may know of a camera. One that is idle
// is about to be connected, for there is a viewer.
func toSessionState(status fleet.CameraStatus) *mediav1.SessionState {
	out := &mediav1.SessionState{State: mediav1.SessionState_STATE_CONNECTING}
	switch status.State {
	case fleet.CameraLive:
		out.State = mediav1.SessionState_STATE_LIVE
	case fleet.CameraFailed:
		out.State = mediav1.SessionState_STATE_CAMERA_OFFLINE
		out.Reason, out.Message = string(status.Reason), status.Reason.Sentence()
		if !status.RetryTime.IsZero() {
			out.RetryTime = timestamppb.New(status.RetryTime)
		}
	case fleet.CameraConnecting, fleet.CameraIdle:
	}
	return out
}

func toCandidate(c *mediav1.Candidate) session.Candidate {
	out := session.Candidate{Candidate: c.GetCandidate(), SDPMid: c.SdpMid, UsernameFragment: c.UsernameFragment}
	if c.SdpMlineIndex != nil {
		index := uint16(min(c.GetSdpMlineIndex(), 1<<16-1))
		out.SDPMLineIndex = &index
	}
	return out
}

func fromCandidate(c session.Candidate) *mediav1.Candidate {
	out := &mediav1.Candidate{Candidate: c.Candidate, SdpMid: c.SDPMid, UsernameFragment: c.UsernameFragment}
	if c.SDPMLineIndex != nil {
		index := uint32(*c.SDPMLineIndex)
		out.SdpMlineIndex = &index
	}
	return out
}
