package controlplane

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"strings"

	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// backupChunk is how many bytes of a backup a message has at most.
const backupChunk = 256 << 10

// clusterService is the operators' service for replicas.
type clusterService struct {
	controlv1.UnimplementedClusterServiceServer
	server *Server
}

// ListMembers returns all members.
func (s *clusterService) ListMembers(ctx context.Context, _ *controlv1.ListMembersRequest) (*controlv1.ListMembersResponse, error) {
	m, err := s.server.store.Members(ctx)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return &controlv1.ListMembersResponse{Members: m.All, External: m.External, Quorum: int32(m.Quorum)}, nil
}

// AddMember adds a replica.
func (s *clusterService) AddMember(ctx context.Context, req *controlv1.AddMemberRequest) (*controlv1.AddMemberResponse, error) {
	name, err := memberID(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("add member: %w", err)
	}
	if _, err := fleet.ParseNodeID(name); err != nil {
		return nil, fmt.Errorf("add member: %w", invalid("name", "after members/ may have a to z, 0 to 9 and \"-\", at most 63, not at its ends"))
	}
	flags, id, err := s.server.store.AddMember(ctx, name, req.GetPeerUrl())
	if err != nil {
		return nil, fmt.Errorf("add member: %w", err)
	}
	s.server.log.Info("member added", "member", name, "address", req.GetPeerUrl())
	return &controlv1.AddMemberResponse{
		Flags: flags,
		Member: &controlv1.Member{
			Name: req.GetName(), Id: id, PeerUrls: []string{strings.TrimSuffix(req.GetPeerUrl(), "/")}, Learner: true,
			State: controlv1.Member_STATE_NOT_STARTED,
		},
	}, nil
}

// RemoveMember takes a replica out of the cluster.
func (s *clusterService) RemoveMember(ctx context.Context, req *controlv1.RemoveMemberRequest) (*controlv1.RemoveMemberResponse, error) {
	name, err := memberID(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("remove member: %w", err)
	}
	if err := s.server.store.RemoveMember(ctx, name, req.GetForce()); err != nil {
		return nil, fmt.Errorf("remove member: %w", err)
	}
	s.server.log.Info("member removed", "member", name, "forced", req.GetForce())
	m, err := s.server.store.Members(ctx)
	if err != nil {
		return nil, fmt.Errorf("the member is removed; list members: %w", err)
	}
	return &controlv1.RemoveMemberResponse{Members: m.All, Quorum: int32(m.Quorum)}, nil
}

// Backup sends all that is stored.
func (s *clusterService) Backup(_ *controlv1.BackupRequest, stream grpc.ServerStreamingServer[controlv1.BackupResponse]) error {
	w := &backupWriter{stream: stream, sum: sha256.New()}
	b := bufio.NewWriterSize(w, backupChunk)
	if err := s.server.store.Backup(stream.Context(), b); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	s.server.log.Info("backup made", "bytes", w.bytes)
	return stream.Send(&controlv1.BackupResponse{Sha256: w.sum.Sum(nil)})
}

// backupWriter sends what is written to it.
type backupWriter struct {
	stream grpc.ServerStreamingServer[controlv1.BackupResponse]
	sum    hash.Hash
	bytes  int
}

// Write sends p in messages of backupChunk bytes at most.
func (w *backupWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		chunk := p[sent:min(sent+backupChunk, len(p))]
		if err := w.stream.Send(&controlv1.BackupResponse{Data: chunk}); err != nil {
			return sent, err
		}
		_, _ = w.sum.Write(chunk) // never fails
		sent += len(chunk)
		w.bytes += len(chunk)
	}
	return len(p), nil
}

// memberID returns the id in "members/{member}".
func memberID(name string) (string, error) {
	id, ok := strings.CutPrefix(name, "members/")
	if !ok || id == "" {
		return "", invalid("name", "must be members/NAME")
	}
	return id, nil
}
