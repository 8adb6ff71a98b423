package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	maxBatch = 1000
	// maxTries is how often an update without an etag is tried while others
	// change the same camera.
	maxTries = 10
)

// cameraService is the operators' service for cameras.
type cameraService struct {
	controlv1.UnimplementedCameraServiceServer
	server *Server
}

// CreateCamera registers a camera.
func (s *cameraService) CreateCamera(ctx context.Context, req *controlv1.CreateCameraRequest) (*controlv1.CreateCameraResponse, error) {
	results, err := s.create(ctx, []*controlv1.CreateCameraRequest{req})
	if err != nil {
		return nil, fmt.Errorf("create camera: %w", err)
	}
	if results[0].err != nil {
		return nil, fmt.Errorf("create camera: %w", results[0].err)
	}
	return &controlv1.CreateCameraResponse{Camera: results[0].camera}, nil
}

// BatchCreateCameras registers many cameras.
func (s *cameraService) BatchCreateCameras(ctx context.Context, req *controlv1.BatchCreateCamerasRequest) (*controlv1.BatchCreateCamerasResponse, error) {
	if n := len(req.GetRequests()); n == 0 || n > maxBatch {
		return nil, fmt.Errorf("create cameras: %w", invalid("requests", "has %d; use 1 to %d", n, maxBatch))
	}
	results, err := s.create(ctx, req.GetRequests())
	if err != nil {
		return nil, fmt.Errorf("create cameras: %w", err)
	}
	resp := &controlv1.BatchCreateCamerasResponse{Results: make([]*controlv1.BatchCreateCamerasResult, len(results))}
	for i, r := range results {
		out := &controlv1.BatchCreateCamerasResult{}
		if r.err == nil {
			out.Result = &controlv1.BatchCreateCamerasResult_Camera{Camera: r.camera}
		} else {
			out.Result = &controlv1.BatchCreateCamerasResult_Failure{Failure: failure(r.err)}
		}
		resp.Results[i] = out
	}
	return resp, nil
}

// failure says why one camera of a batch was not created, as rpc.Status would.
func failure(err error) *controlv1.CreateFailure {
	reason := fleet.Internal
	text := reason.Error()
	if errors.As(err, &reason) && reason != fleet.Internal {
		text = err.Error()
	}
	code := rpc.Code(reason)
	if errors.Is(err, context.Canceled) {
		code = codes.Canceled
	}
	return &controlv1.CreateFailure{Code: int32(code), Reason: string(reason), Message: text}
}

// created is what became of one request.
type created struct {
	camera *controlv1.Camera
	err    error
}

// create registers cameras. The error is of none of them.
func (s *cameraService) create(ctx context.Context, reqs []*controlv1.CreateCameraRequest) ([]created, error) {
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, err
	}
	results := make([]created, len(reqs))
	var cameras []*store.Camera
	var index []int // of cameras[i] in reqs
	now := timestamppb.Now()
	seen := make(map[fleet.CameraID]bool)
	for i, req := range reqs {
		c, err := s.newCamera(req, now)
		if err == nil && seen[c.ID] {
			err = fmt.Errorf("camera %q is in the batch twice: %w", c.ID, fleet.CameraExists)
		}
		if err != nil {
			results[i].err = err
			continue
		}
		seen[c.ID] = true
		cameras, index = append(cameras, c), append(index, i)
	}
	revs, err := s.server.store.CreateCameras(ctx, cameras)
	if err != nil && (len(revs) == 0 || slices.Max(revs) == 0) {
		return nil, err
	}
	if waitErr := s.server.cache.wait(ctx, slices.Max(append(revs, 0))); waitErr != nil {
		return nil, waitErr
	}
	for i, c := range cameras {
		r := &results[index[i]]
		switch {
		case revs[i] > 0:
			r.camera = s.view(c, revs[i])
		case err != nil:
			r.err = err // of this camera's transaction, or one before it
		default:
			r.camera, r.err = s.existing(ctx, c)
		}
	}
	return results, nil
}

// newCamera checks a request and returns the camera that it asks for.
func (s *cameraService) newCamera(req *controlv1.CreateCameraRequest, now *timestamppb.Timestamp) (*store.Camera, error) {
	id, desired, password, err := newDesired(req.GetCamera(), s.server.cfg.CameraNetworks)
	if err != nil {
		return nil, err
	}
	if err := checkRequestID(req.GetRequestId()); err != nil {
		return nil, err
	}
	desired.CreateTime, desired.UpdateTime = now, now
	return &store.Camera{
		ID:        id,
		Desired:   desired,
		Sealed:    s.server.store.Seal(id, password),
		RequestID: req.GetRequestId(),
	}, nil
}

// existing returns the camera that keeps c from being created, if an earlier
// try of the same request created it.
func (s *cameraService) existing(ctx context.Context, c *store.Camera) (*controlv1.Camera, error) {
	exists := fmt.Errorf("camera %q: %w", c.ID, fleet.CameraExists)
	if c.RequestID == "" {
		return nil, exists
	}
	old, err := s.server.store.Camera(ctx, c.ID)
	switch {
	case errors.Is(err, fleet.CameraNotFound): // deleted a moment ago
		return nil, exists
	case err != nil:
		return nil, err
	case old.RequestID != c.RequestID:
		return nil, exists
	}
	if err := s.server.cache.wait(ctx, old.Revision); err != nil {
		return nil, err
	}
	return s.view(old, old.Revision), nil
}

// view returns a camera that was written, with what is seen of it.
func (s *cameraService) view(c *store.Camera, revision int64) *controlv1.Camera {
	v, _ := s.server.cache.camera(c.ID)
	if v.camera == nil || v.camera.Revision != revision { // changed or deleted since
		written := *c
		written.Revision = revision
		v.camera = &written
	}
	return v.message()
}

// GetCamera returns one camera.
func (s *cameraService) GetCamera(ctx context.Context, req *controlv1.GetCameraRequest) (*controlv1.GetCameraResponse, error) {
	id, err := fleet.ParseCameraName(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("get camera: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("get camera: %w", err)
	}
	v, ok := s.server.cache.camera(id)
	if !ok {
		return nil, fmt.Errorf("camera %q: %w", id, fleet.CameraNotFound)
	}
	return &controlv1.GetCameraResponse{Camera: v.message()}, nil
}

// ListCameras returns a page of cameras.
func (s *cameraService) ListCameras(ctx context.Context, req *controlv1.ListCamerasRequest) (*controlv1.ListCamerasResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, fmt.Errorf("list cameras: %w", err)
	}
	f, err := newFilter(req.GetFilter())
	if err != nil {
		return nil, fmt.Errorf("list cameras: %w", err)
	}
	query := queryBytes("cameras", req.GetFilter())
	after, err := afterToken(req.GetPageToken(), query)
	if err != nil {
		return nil, fmt.Errorf("list cameras: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("list cameras: %w", err)
	}
	resp := &controlv1.ListCamerasResponse{}
	p := page{size: size, left: size}
	for id, v := range s.server.cache.camerasAfter(fleet.CameraID(after)) {
		if !f.matches(v) {
			continue
		}
		c := v.message()
		if !p.add(string(id), c) {
			resp.NextPageToken = pageToken(query, p.last)
			break
		}
		resp.Cameras = append(resp.Cameras, c)
	}
	return resp, nil
}

// UpdateCamera changes a camera.
func (s *cameraService) UpdateCamera(ctx context.Context, req *controlv1.UpdateCameraRequest) (*controlv1.UpdateCameraResponse, error) {
	asked := req.GetCamera()
	id, err := fleet.ParseCameraName(asked.GetName())
	if err != nil {
		return nil, fmt.Errorf("update camera: %w", err)
	}
	fields, password, err := checkMask(req.GetUpdateMask().GetPaths())
	if err != nil {
		return nil, fmt.Errorf("update camera %q: %w", id, err)
	}
	if password {
		if err := checkCredential("password", asked.GetPassword()); err != nil {
			return nil, fmt.Errorf("update camera %q: %w", id, err)
		}
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("update camera %q: %w", id, err)
	}
	for try := 1; ; try++ {
		c, err := s.update(ctx, id, asked, fields, password)
		if errors.Is(err, fleet.ETagMismatch) && asked.GetEtag() == "" && try < maxTries {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("update camera %q: %w", id, err)
		}
		return &controlv1.UpdateCameraResponse{Camera: c}, nil
	}
}

// update tries once.
func (s *cameraService) update(ctx context.Context, id fleet.CameraID, asked *controlv1.Camera, fields []string, password bool) (*controlv1.Camera, error) {
	old, err := s.server.store.Camera(ctx, id)
	if err != nil {
		return nil, err
	}
	if e := asked.GetEtag(); e != "" && e != etag(old.Revision) {
		return nil, fleet.ETagMismatch
	}
	next := *old
	next.Desired = proto.CloneOf(old.Desired)
	asked = proto.CloneOf(asked)
	for _, f := range fields {
		mutable[f](next.Desired, asked)
	}
	if password {
		next.Sealed = s.server.store.Seal(id, asked.GetPassword())
	}
	if err := normalizeCamera(next.Desired, len(next.Sealed) > 0, s.server.cfg.CameraNetworks); err != nil {
		return nil, err
	}
	if !password && len(old.Sealed) > 0 {
		if err := checkPasswordStays(old.Desired, next.Desired); err != nil {
			return nil, err
		}
	}
	rev := old.Revision
	if password || !proto.Equal(next.Desired, old.Desired) {
		next.Desired.UpdateTime = timestamppb.Now()
		if rev, err = s.server.store.UpdateCamera(ctx, &next); err != nil {
			return nil, err
		}
	}
	if err := s.server.cache.wait(ctx, rev); err != nil {
		return nil, err
	}
	return s.view(&next, rev), nil
}

// DeleteCamera removes a camera.
func (s *cameraService) DeleteCamera(ctx context.Context, req *controlv1.DeleteCameraRequest) (*controlv1.DeleteCameraResponse, error) {
	id, err := fleet.ParseCameraName(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("delete camera: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("delete camera: %w", err)
	}
	var revision int64
	if e := req.GetEtag(); e != "" {
		c, err := s.server.store.Camera(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("delete camera: %w", err)
		}
		if e != etag(c.Revision) {
			return nil, fmt.Errorf("delete camera %q: %w", id, fleet.ETagMismatch)
		}
		revision = c.Revision
	}
	rev, err := s.server.store.DeleteCamera(ctx, id, revision)
	if err != nil {
		return nil, fmt.Errorf("delete camera: %w", err)
	}
	if err := s.server.cache.wait(ctx, rev); err != nil {
		return nil, fmt.Errorf("delete camera %q: %w", id, err)
	}
	return &controlv1.DeleteCameraResponse{}, nil
}

// RetryCamera has a camera tried at once.
func (s *cameraService) RetryCamera(ctx context.Context, req *controlv1.RetryCameraRequest) (*controlv1.RetryCameraResponse, error) {
	id, err := fleet.ParseCameraName(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("retry camera: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("retry camera: %w", err)
	}
	rev, err := s.server.store.Retry(ctx, id, time.Now())
	if err != nil {
		return nil, fmt.Errorf("retry camera: %w", err)
	}
	if err := s.server.cache.wait(ctx, rev); err != nil {
		return nil, fmt.Errorf("retry camera %q: %w", id, err)
	}
	v, ok := s.server.cache.camera(id)
	if !ok { // deleted since
		return nil, fmt.Errorf("retry camera %q: %w", id, fleet.CameraNotFound)
	}
	return &controlv1.RetryCameraResponse{Camera: v.message()}, nil
}

// filter selects cameras.
type filter struct {
	labels map[string]string
	states []controlv1.CameraStatus_State
	node   fleet.NodeID // "": any or none
}

func newFilter(f *controlv1.CameraFilter) (*filter, error) {
	out := &filter{labels: f.GetLabels(), states: f.GetStates()}
	for _, st := range f.GetStates() {
		if _, ok := controlv1.CameraStatus_State_name[int32(st)]; !ok || st == controlv1.CameraStatus_STATE_UNSPECIFIED {
			return nil, invalid("filter.states", "has %d, which is no state; remove it", st)
		}
	}
	if f.GetNode() != "" {
		id, err := fleet.ParseNodeName(f.GetNode())
		if err != nil {
			return nil, fmt.Errorf("filter.node: %w", err)
		}
		out.node = id
	}
	return out, nil
}

func (f *filter) matches(v cameraView) bool {
	have := v.camera.Desired.GetLabels()
	for k, want := range f.labels {
		if got, ok := have[k]; !ok || got != want {
			return false
		}
	}
	if f.node != "" && !slices.Contains(nodesOf(v.assignment), f.node) {
		return false
	}
	return len(f.states) == 0 || slices.Contains(f.states, v.state())
}
