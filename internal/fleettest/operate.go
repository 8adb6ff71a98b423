package fleettest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

// lookAgain is how often the fleet is asked whether what is waited for is so.
const lookAgain = 50 * time.Millisecond

// wait has calls wait for a control plane that answers, within their ctx.
var wait = grpc.WaitForReady(true)

// CreateCameras registers all simulated cameras and waits until they are LIVE.
func (f *Fleet) CreateCameras(ctx context.Context) error {
	req := &controlv1.BatchCreateCamerasRequest{}
	for i := range f.cfg.Cameras {
		req.Requests = append(req.Requests, &controlv1.CreateCameraRequest{Camera: &controlv1.Camera{
			Name:     "cameras/" + Camera(i),
			Profiles: []*controlv1.Profile{{Url: f.Sim.URL(Camera(i)), Transport: controlv1.Profile_TRANSPORT_TCP}},
		}})
	}
	resp, err := f.CameraService().BatchCreateCameras(ctx, req, wait)
	if err != nil {
		return fmt.Errorf("create cameras: %w", err)
	}
	for _, r := range resp.GetResults() {
		if e := r.GetFailure(); e != nil {
			return fmt.Errorf("create a camera: %s", e.GetMessage())
		}
	}
	return f.AwaitLive(ctx, nil)
}

// ListCameras returns all cameras, by their ids.
func (f *Fleet) ListCameras(ctx context.Context) (map[string]*controlv1.Camera, error) {
	all := make(map[string]*controlv1.Camera)
	req := &controlv1.ListCamerasRequest{PageSize: 1000}
	for {
		resp, err := f.CameraService().ListCameras(ctx, req, wait)
		if err != nil {
			return nil, fmt.Errorf("list cameras: %w", err)
		}
		for _, c := range resp.GetCameras() {
			all[strings.TrimPrefix(c.GetName(), "cameras/")] = c
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// AwaitCameras waits until what is known of all cameras fits.
func (f *Fleet) AwaitCameras(ctx context.Context, what string, fits func(map[string]*controlv1.Camera) bool) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		all, err := f.ListCameras(ctx)
		if err == nil && fits(all) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w; %s", what, ctx.Err(), describe(all, err))
		}
	}
}

// describe counts the cameras by state and node.
func describe(all map[string]*controlv1.Camera, err error) string {
	if err != nil {
		return err.Error()
	}
	count := make(map[string]int)
	for _, c := range all {
		st := c.GetStatus()
		count[fmt.Sprintf("%v %v on %q", st.GetState(), st.GetReason(), st.GetNode())]++
	}
	return fmt.Sprint(count)
}

// AwaitLive waits until all cameras are LIVE; if node is given, on that one.
func (f *Fleet) AwaitLive(ctx context.Context, node *Process) error {
	what := "all cameras are live"
	if node != nil {
		what += " on " + node.Name
	}
	return f.AwaitCameras(ctx, what, func(all map[string]*controlv1.Camera) bool {
		for _, c := range all {
			st := c.GetStatus()
			if st.GetState() != controlv1.CameraStatus_STATE_LIVE || node != nil && st.GetNode() != "nodes/"+node.Name {
				return false
			}
		}
		return len(all) == f.cfg.Cameras
	})
}

// Drain asks for a node to be emptied. It does not wait until that is so.
func (f *Fleet) Drain(ctx context.Context, node *Process) error {
	_, err := f.NodeService().DrainNode(ctx, &controlv1.DrainNodeRequest{Name: "nodes/" + node.Name}, wait)
	if err != nil {
		return fmt.Errorf("drain %s: %w", node.Name, err)
	}
	return nil
}

// Undrain lets a node take cameras again.
func (f *Fleet) Undrain(ctx context.Context, node *Process) error {
	_, err := f.NodeService().UndrainNode(ctx, &controlv1.UndrainNodeRequest{Name: "nodes/" + node.Name}, wait)
	if err != nil {
		return fmt.Errorf("undrain %s: %w", node.Name, err)
	}
	return nil
}

// AwaitNode waits until what the fleet knows of a node fits; nil: it knows none
// of that name.
func (f *Fleet) AwaitNode(ctx context.Context, node *Process, what string, fits func(*controlv1.Node) bool) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		n, err := f.node(ctx, node)
		if err == nil && fits(n) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s %s: %w; now %v %w", node.Name, what, ctx.Err(), n, err)
		}
	}
}

func (f *Fleet) node(ctx context.Context, node *Process) (*controlv1.Node, error) {
	resp, err := f.NodeService().ListNodes(ctx, &controlv1.ListNodesRequest{PageSize: 1000}, wait)
	if err != nil {
		return nil, err
	}
	for _, n := range resp.GetNodes() {
		if n.GetName() == "nodes/"+node.Name {
			return n, nil
		}
	}
	return nil, nil //nolint:nilnil // there is none
}

// Gather brings all cameras to one node: the others are drained, and when all
// cameras are LIVE there and the others have none left, take cameras again. They
// stay there if control planes move little or nothing for balance
// (--rebalance-moves).
func (f *Fleet) Gather(ctx context.Context, node *Process) error {
	for _, n := range f.Nodes {
		if n != node && n.Running() {
			if err := f.Drain(ctx, n); err != nil {
				return err
			}
		}
	}
	if err := f.AwaitLive(ctx, node); err != nil {
		return err
	}
	for _, n := range f.Nodes {
		if n == node || !n.Running() {
			continue
		}
		if err := f.AwaitNode(ctx, n, "is empty", func(n *controlv1.Node) bool { return n.GetAssignedCameras() == 0 }); err != nil {
			return err
		}
		if err := f.Undrain(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Assignments returns the node and generation of each camera.
func (f *Fleet) Assignments(ctx context.Context) (map[string]Assigned, error) {
	all, err := f.ListCameras(ctx)
	if err != nil {
		return nil, err
	}
	as := make(map[string]Assigned, len(all))
	for id, c := range all {
		as[id] = Assigned{c.GetStatus().GetNode(), c.GetStatus().GetGeneration()}
	}
	return as, nil
}

// Assigned is where a camera is.
type Assigned struct {
	Node       string // "nodes/node-1"
	Generation int64
}

// Plays returns how often each simulated camera was asked to play, ever.
func (f *Fleet) Plays() map[string]int {
	plays := make(map[string]int, f.cfg.Cameras)
	for i := range f.cfg.Cameras {
		plays[Camera(i)] = f.Sim.Plays(Camera(i))
	}
	return plays
}
