package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	storev1 "fanlight/proto/fanlight/store/v1"
)

// Move is how far a camera's move from one node to another is.
type Move int32

// The phases of a move. A move that makes before it breaks goes through Warming
// and Serving, that of a camera which accepts one RTSP session through
// Releasing.
const (
	// NoMove: no move is under way.
	NoMove = Move(storev1.Assignment_MOVE_UNSPECIFIED)
	// Warming: From serves, and Node is to become LIVE.
	Warming = Move(storev1.Assignment_MOVE_WARMING)
	// Serving: Node serves, and From keeps the sessions that it has until they
	// have left.
	Serving = Move(storev1.Assignment_MOVE_SERVING)
	// Releasing: nobody serves; From is to let go before Node may pull. Node may
	// be empty.
	Releasing = Move(storev1.Assignment_MOVE_RELEASING)
)

// String returns the phase as it is logged.
func (m Move) String() string {
	switch m {
	case NoMove:
		return "none"
	case Warming:
		return "warming"
	case Serving:
		return "serving"
	case Releasing:
		return "releasing"
	}
	return fmt.Sprintf("move %d", int32(m))
}

// Settle returns the assignment with its move done: From is no part of it any
// more.
func (a *Assignment) Settle() Assignment {
	done := *a
	done.From, done.FromGeneration, done.Move, done.MoveTime = "", 0, NoMove, nil
	return done
}

// Release stores that the From nodes of assignments have let go of their
// cameras. It returns the revision of each, 0 for those that are no longer as
// they were read.
func (s *Store) Release(ctx context.Context, assignments []*Assignment) ([]int64, error) {
	writes := make([]write, len(assignments))
	for i, a := range assignments {
		done := a.Settle()
		value, err := done.encode()
		if err != nil {
			return nil, err
		}
		key := s.assignmentKey(a.Camera)
		writes[i] = write{
			holds: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", a.Revision)},
			op:    clientv3.OpPut(key, value),
		}
	}
	return s.commit(ctx, nil, writes)
}
