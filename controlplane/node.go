package controlplane

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// drainTime is how long a drain may take if the operator doesn't say.
const drainTime = 10 * time.Minute

// nodeService is the operators' service for nodes.
type nodeService struct {
	controlv1.UnimplementedNodeServiceServer
	server *Server
}

// GetNode returns one node.
func (s *nodeService) GetNode(ctx context.Context, req *controlv1.GetNodeRequest) (*controlv1.GetNodeResponse, error) {
	_, v, err := s.find(ctx, req.GetName())
	if err != nil {
		return nil, fmt.Errorf("get node: %w", err)
	}
	return &controlv1.GetNodeResponse{Node: v.message()}, nil
}

// find returns the node of a name.
func (s *nodeService) find(ctx context.Context, name string) (fleet.NodeID, nodeView, error) {
	id, err := fleet.ParseNodeName(name)
	if err != nil {
		return "", nodeView{}, err
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return "", nodeView{}, err
	}
	v, ok := s.server.cache.node(id)
	if !ok {
		return "", nodeView{}, fmt.Errorf("node %q: %w", id, fleet.NodeNotFound)
	}
	return id, v, nil
}

// ListNodes returns a page of nodes.
func (s *nodeService) ListNodes(ctx context.Context, req *controlv1.ListNodesRequest) (*controlv1.ListNodesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	query := queryBytes("nodes", nil)
	after, err := afterToken(req.GetPageToken(), query)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	if err := s.server.cache.waitReady(ctx); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	resp := &controlv1.ListNodesResponse{}
	p := page{size: size, left: size}
	for _, id := range s.server.cache.nodeIDs() {
		v, ok := s.server.cache.node(id)
		if !ok || string(id) <= after {
			continue
		}
		n := v.message()
		if !p.add(string(id), n) {
			resp.NextPageToken = pageToken(query, p.last)
			break
		}
		resp.Nodes = append(resp.Nodes, n)
	}
	return resp, nil
}

// DrainNode gives a node no more cameras and moves those that it has.
func (s *nodeService) DrainNode(ctx context.Context, req *controlv1.DrainNodeRequest) (*controlv1.DrainNodeResponse, error) {
	if err := checkDuration("timeout", req.GetTimeout()); err != nil {
		return nil, fmt.Errorf("drain node: %w", err)
	}
	id, v, err := s.find(ctx, req.GetName())
	if err != nil {
		return nil, fmt.Errorf("drain node: %w", err)
	}
	timeout := drainTime
	if req.GetTimeout() != nil {
		timeout = req.GetTimeout().AsDuration()
	}
	now := time.Now()
	d := &controlv1.Drain{StartTime: timestamppb.New(now), Deadline: timestamppb.New(now.Add(timeout))}
	if v.drain != nil {
		d.StartTime = v.drain.Drain.GetStartTime()
	}
	rev, err := s.server.store.PutDrain(ctx, id, d)
	if err == nil {
		err = s.server.cache.wait(ctx, rev)
	}
	if err != nil {
		return nil, fmt.Errorf("drain node %q: %w", id, err)
	}
	v, _ = s.server.cache.node(id)
	return &controlv1.DrainNodeResponse{Node: v.message()}, nil
}

// UndrainNode lets a node take cameras again. A node that isn't being drained
// stays as it is.
func (s *nodeService) UndrainNode(ctx context.Context, req *controlv1.UndrainNodeRequest) (*controlv1.UndrainNodeResponse, error) {
	id, _, err := s.find(ctx, req.GetName())
	if err != nil {
		return nil, fmt.Errorf("undrain node: %w", err)
	}
	rev, err := s.server.store.DeleteDrain(ctx, id)
	if err == nil {
		err = s.server.cache.wait(ctx, rev)
	}
	if err != nil {
		return nil, fmt.Errorf("undrain node %q: %w", id, err)
	}
	v, _ := s.server.cache.node(id)
	return &controlv1.UndrainNodeResponse{Node: v.message()}, nil
}

// WatchNodes sends a snapshot, then every change.
func (s *nodeService) WatchNodes(req *controlv1.WatchNodesRequest, stream controlv1.NodeService_WatchNodesServer) error {
	ctx, srv := stream.Context(), s.server
	if err := srv.cache.waitReady(ctx); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	out := eventBuffer[*controlv1.NodeEvent]{send: func(events []*controlv1.NodeEvent, complete bool, rev int64) error {
		return stream.Send(&controlv1.WatchNodesResponse{
			Events: events, SnapshotComplete: complete, ResumeToken: resumeToken(srv.store.ClusterID(), rev),
		})
	}}
	sub := newSubscriber()
	rev := srv.cache.subscribe(sub, srv.cache.interest.ofNodes)
	defer srv.cache.unsubscribe(sub, srv.cache.interest.ofNodes)
	ids, resumed := srv.cache.nodeIDs(), req.GetResumeToken() != ""
	if resumed {
		since, err := srv.since(ctx, req.GetResumeToken(), rev)
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
		ids = ids[:0]
		for id := range since.nodes {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		out.revision, rev = since.from, max(rev, since.from)
	}
	for _, id := range ids {
		if err := out.add(srv.nodeEvent(id)); err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
	}
	if err := out.flush(!resumed, rev); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	return srv.follow(ctx, sub, func() error {
		_, nodes, rev := srv.cache.take(sub)
		for id := range nodes {
			if err := out.add(srv.nodeEvent(id)); err != nil {
				return err
			}
		}
		return out.flush(false, rev)
	})
}

// nodeEvent tells what a node is now.
func (s *Server) nodeEvent(id fleet.NodeID) *controlv1.NodeEvent {
	if v, ok := s.cache.node(id); ok {
		return &controlv1.NodeEvent{Type: controlv1.NodeEvent_TYPE_PUT, Node: v.message()}
	}
	return &controlv1.NodeEvent{Type: controlv1.NodeEvent_TYPE_DELETED, Node: &controlv1.Node{Name: id.Name()}}
}
