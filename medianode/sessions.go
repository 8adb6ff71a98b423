package medianode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
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
	engine, c, at, err := s.node.join(stream.Context(), id, open.GetGeneration())
	if err != nil {
		s.node.metrics.opened(err)
		return err // its text is for the viewer
	}
	v := &viewing{
		node: s.node, camera: c, place: at, id: fleet.SessionID(open.GetSession()), stream: stream,
		viewer: clip(open.GetViewer()), remote: clip(open.GetRemoteAddress()), begun: time.Now(), done: make(chan struct{}),
		out: make(chan *mediav1.OpenSessionResponse, unsent), overflow: make(chan struct{}),
	}
	return v.run(stream.Context(), engine, open)
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

// join counts a session in, at its camera and as one that Run waits for, if there
// is room for it: the caller calls leave when it has ended. A gateway may have heard of an assignment
// before the node has: it is waited for.
func (n *Node) join(ctx context.Context, id fleet.CameraID, generation int64) (*session.Engine, *camera, place, error) {
	timeout := time.After(routeLead)
	for {
		n.mu.Lock()
		engine, c, applied := n.engine, n.cameras[id], n.applied
		var at place
		err := n.admit(c, id, generation)
		if err == nil {
			at, err = n.place(c)
		}
		if err == nil {
			c.join() // under n.mu, so that a camera let go later ends the session
			n.running.Add(1)
		}
		n.mu.Unlock()
		if err == nil {
			return engine, c, at, nil
		}
		if errors.Is(err, fleet.NodeStopping) || errors.Is(err, fleet.NodeFull) || generation == 0 || n.knows(id, generation) {
			return nil, nil, place{}, err
		}
		select {
		case <-applied:
		case <-timeout:
			return nil, nil, place{}, err
		case <-ctx.Done():
			return nil, nil, place{}, stopped(ctx)
		}
	}
}

// leave counts a session out.
func (n *Node) leave(c *camera) {
	c.leave()
	n.running.Done()
}

// knows tells whether the node has seen that generation of a camera, or a later
// one.
func (n *Node) knows(id fleet.CameraID, generation int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[id] >= generation
}

// admit says why the node takes no session of a camera, of which c is what it
// has. The caller holds n.mu.
func (n *Node) admit(c *camera, id fleet.CameraID, generation int64) error {
	switch {
	case n.stopping:
		return fleet.NodeStopping
	case c == nil && generation != 0 && generation <= n.seen[id]:
		return fmt.Errorf("camera %q was let go by this node: %w", id, fleet.StaleRoute)
	case c == nil:
		return fmt.Errorf("camera %q is not on this node: %w", id, fleet.CameraNotFound)
	}
	has, part := c.move()
	switch {
	case generation != 0 && generation != has:
		return fmt.Errorf("camera %q has generation %d here, not %d: %w", id, has, generation, fleet.StaleRoute)
	case part == partHandOver:
		return fmt.Errorf("camera %q is being handed over to another node: %w", id, fleet.StaleRoute)
	}
	return nil
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
		stats := c.stats()
		status, _ := c.status()
		figures := &mediav1.CameraStats{
			Camera: c.id.Name(), BitrateBps: stats.BitrateBPS, PacketsPerSecond: stats.PacketsPerSecond, FramesPerSecond: stats.FramesPerSecond,
			Viewers: int32(status.Viewers), Packets: stats.Packets, Bytes: stats.Bytes, PacketsLost: stats.PacketsLost,
			State: toSessionState(status), Width: int32(stats.Width), Height: int32(stats.Height), PacketsDropped: stats.Drops.Overflow + stats.Drops.NoRoom,
			Verdict: status.Verdict.Cause.String(), VerdictMessage: status.Verdict.Message,
		}
		for _, p := range status.Profiles {
			figures.Loss, figures.JitterMs = max(figures.GetLoss(), p.Loss), max(figures.GetJitterMs(), milliseconds(p.Jitter))
		}
		if req.GetSessions() {
			for _, v := range c.watching() {
				figures.Sessions = append(figures.Sessions, v.figures())
			}
		}
		out.Cameras = append(out.Cameras, figures)
	}
	return out, nil
}

// milliseconds returns a time as figures have it.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

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

// toViewport returns how a picture is shown; nil: not known.
func toViewport(v *mediav1.Viewport) *session.Viewport {
	if v == nil {
		return nil
	}
	return &session.Viewport{Width: int(v.GetWidth()), Height: int(v.GetHeight()), Visible: v.GetVisible()}
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
