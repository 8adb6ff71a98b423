package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// maxRoutes is how many cameras a gateway watches on one stream.
	maxRoutes = 200_000
	// routesPerResponse keeps a response small.
	routesPerResponse = 1000
	maxPatterns       = 1000
)

// routeService is the gateways' service.
type routeService struct {
	controlv1.UnimplementedRouteServiceServer
	server *Server
}

// WatchRoutes sends the routes of the cameras that the gateway names.
func (s *routeService) WatchRoutes(stream controlv1.RouteService_WatchRoutesServer) error {
	ctx, srv := stream.Context(), s.server
	if err := srv.cache.waitReady(ctx); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	sub := newSubscriber()
	watched := make(map[fleet.CameraID]bool)
	defer func() {
		for id := range watched {
			srv.cache.unsubscribeRoute(sub, id)
		}
	}()
	// The receiver ends when the stream does, which is when this function has
	// returned at the latest.
	requests, recvErr := receive(ctx, stream.Recv)
	for {
		select {
		case req := <-requests:
			if err := s.change(sub, watched, req, stream); err != nil {
				return fmt.Errorf("watch routes: %w", err)
			}
		case err := <-recvErr:
			return ended(err)
		case <-sub.wake:
			cameras, _, _ := srv.cache.take(sub)
			if err := s.send(cameras, stream); err != nil {
				return fmt.Errorf("watch routes: %w", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-srv.stop:
			return errStopping
		}
	}
}

// receive passes on what a stream receives until it ends, and then why.
func receive[M any](ctx context.Context, recv func() (M, error)) (<-chan M, <-chan error) {
	messages, ends := make(chan M), make(chan error, 1)
	go func() {
		for {
			m, err := recv()
			if err != nil {
				ends <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return messages, ends
}

// ended returns what a call returns whose caller has ended the stream.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	if c := status.Code(err); c == codes.Canceled {
		return context.Canceled
	}
	return fmt.Errorf("receive: %w", err)
}

// change changes the set of cameras that a stream watches.
func (s *routeService) change(sub *subscriber, watched map[fleet.CameraID]bool, req *controlv1.WatchRoutesRequest, stream controlv1.RouteService_WatchRoutesServer) error {
	for _, name := range req.GetRemove() {
		if id, err := fleet.ParseCameraName(name); err == nil && watched[id] {
			delete(watched, id)
			s.server.cache.unsubscribeRoute(sub, id)
		}
	}
	var never []*controlv1.Route
	for _, name := range req.GetAdd() {
		id, err := fleet.ParseCameraName(name)
		if err != nil { // no camera can have that name
			never = append(never, noRoute(name))
			continue
		}
		if !watched[id] && len(watched) >= maxRoutes {
			return invalid("add", "makes more than %d cameras watched on one stream; remove some", maxRoutes)
		}
		watched[id] = true
		s.server.cache.subscribeRoute(sub, id)
	}
	if len(never) == 0 {
		return nil
	}
	return stream.Send(&controlv1.WatchRoutesResponse{Routes: never})
}

// send sends the routes of cameras.
func (s *routeService) send(cameras map[fleet.CameraID]struct{}, stream controlv1.RouteService_WatchRoutesServer) error {
	resp := &controlv1.WatchRoutesResponse{}
	for id := range cameras {
		r := noRoute(id.Name())
		if v, ok := s.server.cache.camera(id); ok {
			r = v.viewableRoute()
		}
		if resp.Routes = append(resp.Routes, r); len(resp.GetRoutes()) < routesPerResponse {
			continue
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		resp = &controlv1.WatchRoutesResponse{}
	}
	if len(resp.GetRoutes()) == 0 {
		return nil
	}
	return stream.Send(resp)
}

// BrowseCameras lists the cameras that a viewer may see.
func (s *routeService) BrowseCameras(ctx context.Context, req *controlv1.BrowseCamerasRequest) (*controlv1.BrowseCamerasResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, fmt.Errorf("browse cameras: %w", err)
	}
	if n := len(req.GetPatterns()); n > maxPatterns {
		return nil, fmt.Errorf("browse cameras: %w", invalid("patterns", "has %d; at most %d are allowed", n, maxPatterns))
	}
	query := queryBytes("browse", &controlv1.BrowseCamerasRequest{Patterns: req.GetPatterns()})
	after, err := afterToken(req.GetPageToken(), query)
	if err != nil {
		return nil, fmt.Errorf("browse cameras: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("browse cameras: %w", err)
	}
	resp := &controlv1.BrowseCamerasResponse{}
	p := page{size: size, left: size}
	for id, v := range s.server.cache.camerasAfter(fleet.CameraID(after)) {
		if !matchesAny(req.GetPatterns(), string(id)) {
			continue
		}
		c := v.viewable()
		if !p.add(string(id), c) {
			resp.NextPageToken = pageToken(query, p.last)
			break
		}
		resp.Cameras = append(resp.Cameras, c)
	}
	return resp, nil
}

func matchesAny(patterns []string, id string) bool {
	for _, p := range patterns {
		if matchPattern(p, id) {
			return true
		}
	}
	return false
}

// viewable returns what a viewer may know of the camera. What nodes and
// placement say of it is for operators: it names hosts, addresses and labels.
func (v cameraView) viewable() *controlv1.ViewableCamera {
	full := v.status()
	st := &controlv1.CameraStatus{
		State: full.GetState(), Reason: full.GetReason(), Message: sentence(full.GetReason()),
		RetryTime: full.GetRetryTime(), Generation: full.GetGeneration(), StateTime: full.GetStateTime(), Viewers: full.GetViewers(),
	}
	return &controlv1.ViewableCamera{
		Name:        v.camera.ID.Name(),
		DisplayName: v.camera.Desired.GetDisplayName(),
		Labels:      v.camera.Desired.GetLabels(),
		Status:      st,
		Route:       v.viewableRoute(),
	}
}

// viewableRoute returns where the camera is served, with what a viewer may
// know of why it is not.
func (v cameraView) viewableRoute() *controlv1.Route {
	r := v.route()
	r.Message = sentence(r.GetReason())
	return r
}

// sentence is what viewers are told of a reason.
func sentence(r controlv1.Reason) string {
	return fleet.Reason(strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))).Sentence()
}
