package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	storev1 "fanlight/proto/fanlight/store/v1"
)

// maxOps is how many comparisons, and how many operations, etcd takes in one
// transaction by default.
const maxOps = 128

// maxTxnBytes keeps a transaction well below etcd's limit for a request,
// 1.5 MiB by default.
const maxTxnBytes = 512 << 10

// write is one guarded write.
type write struct {
	holds []clientv3.Cmp
	op    clientv3.Op
}

// commit makes writes, as many as possible in a transaction. It returns each
// one's revision, 0 for those whose guard did not hold. With a leader, all are
// made under its leadership. After an error, those with a revision were made.
func (s *Store) commit(ctx context.Context, leader *Leader, writes []write) ([]int64, error) {
	revs := make([]int64, len(writes))
	limit := maxOps
	if leader != nil {
		limit-- // its own comparison
	}
	for from := 0; from < len(writes); {
		n, size, holds := 0, 0, 0
		for from+n < len(writes) {
			w := &writes[from+n]
			size += len(w.op.KeyBytes()) + len(w.op.ValueBytes())
			holds += len(w.holds)
			if n > 0 && (size > maxTxnBytes || max(holds, n+1) > limit) {
				break
			}
			n++
		}
		if err := s.commitTxn(ctx, leader, writes[from:from+n], revs[from:from+n]); err != nil {
			return revs, err
		}
		from += n
	}
	return revs, nil
}

// commitTxn makes writes in one transaction; if a guard does not hold, the
// halves in one each, until those that can't be made are found.
func (s *Store) commitTxn(ctx context.Context, leader *Leader, writes []write, revs []int64) error {
	holds := make([]clientv3.Cmp, 0, len(writes)+1)
	ops := make([]clientv3.Op, 0, len(writes))
	for _, w := range writes {
		holds = append(holds, w.holds...)
		ops = append(ops, w.op)
	}
	var otherwise []clientv3.Op
	if leader != nil {
		holds = append(holds, clientv3.Compare(clientv3.CreateRevision(leader.key), "=", leader.Revision))
		otherwise = []clientv3.Op{clientv3.OpGet(leader.key, clientv3.WithCountOnly())}
	}
	resp, err := s.txn(ctx, clientv3.OpTxn(holds, ops, otherwise))
	if err != nil {
		return err
	}
	switch {
	case resp.Succeeded:
		for i := range revs {
			revs[i] = resp.Header.GetRevision()
		}
		return nil
	case leader != nil && resp.Responses[0].GetResponseRange().GetCount() == 0:
		return errNotLeader
	case len(writes) == 1:
		return nil
	}
	half := len(writes) / 2
	if err := s.commitTxn(ctx, leader, writes[:half], revs[:half]); err != nil {
		return err
	}
	return s.commitTxn(ctx, leader, writes[half:], revs[half:])
}

func (s *Store) txn(ctx context.Context, op clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := s.write(ctx)
	defer cancel()
	resp, err := s.client.Do(ctx, op)
	if err != nil {
		return nil, fmt.Errorf("write to etcd: %w", s.unavailable(ctx, err))
	}
	return resp.Txn(), nil
}

// CreateCameras stores cameras with distinct ids. It returns the revision of
// each, 0 for those that exist already.
func (s *Store) CreateCameras(ctx context.Context, cameras []*Camera) ([]int64, error) {
	if err := s.admit(); err != nil {
		return nil, err
	}
	writes := make([]write, len(cameras))
	for i, c := range cameras {
		value, err := c.encode()
		if err != nil {
			return nil, err
		}
		key := s.cameraKey(c.ID)
		writes[i] = write{
			holds: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			op:    clientv3.OpPut(key, value),
		}
	}
	return s.commit(ctx, nil, writes)
}

// Camera reads a camera from etcd itself. The error wraps
// [fleet.CameraNotFound] if there is none.
func (s *Store) Camera(ctx context.Context, id fleet.CameraID) (*Camera, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, s.cameraKey(id))
	if err != nil {
		return nil, fmt.Errorf("read camera %q: %w", id, s.unavailable(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("camera %q: %w", id, fleet.CameraNotFound)
	}
	e, ok, err := s.decode(resp.Kvs[0], false)
	if err != nil || !ok {
		return nil, errors.Join(err, fmt.Errorf("read camera %q: %w", id, fleet.Internal))
	}
	return e.Camera, nil
}

// UpdateCamera stores a camera whose Revision is the one that was read, and
// returns the new one. The error wraps [fleet.ETagMismatch] if the camera was
// changed or deleted since.
func (s *Store) UpdateCamera(ctx context.Context, c *Camera) (int64, error) {
	if err := s.admit(); err != nil {
		return 0, err
	}
	value, err := c.encode()
	if err != nil {
		return 0, err
	}
	key := s.cameraKey(c.ID)
	revs, err := s.commit(ctx, nil, []write{{
		holds: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", c.Revision)},
		op:    clientv3.OpPut(key, value),
	}})
	if err != nil {
		return 0, err
	}
	if revs[0] == 0 {
		return 0, fmt.Errorf("camera %q: %w", c.ID, fleet.ETagMismatch)
	}
	return revs[0], nil
}

// Retry stores that an operator wants a camera tried at once, and returns the
// revision of that. The camera itself does not change. The error wraps
// [fleet.CameraNotFound] if there is none.
func (s *Store) Retry(ctx context.Context, id fleet.CameraID, at time.Time) (int64, error) {
	if err := s.admit(); err != nil {
		return 0, err
	}
	value, err := encode(&storev1.Retry{RequestTime: timestamppb.New(at)})
	if err != nil {
		return 0, err
	}
	revs, err := s.commit(ctx, nil, []write{{
		holds: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.cameraKey(id)), ">", 0)},
		op:    clientv3.OpPut(s.retryKey(id), value),
	}})
	if err != nil {
		return 0, err
	}
	if revs[0] == 0 {
		return 0, fmt.Errorf("camera %q: %w", id, fleet.CameraNotFound)
	}
	return revs[0], nil
}

// DeleteCamera removes a camera, its assignment and what was seen of it, and
// returns the revision of that. revision is the one that was read; 0: any. The
// error wraps [fleet.ETagMismatch] or [fleet.CameraNotFound].
func (s *Store) DeleteCamera(ctx context.Context, id fleet.CameraID, revision int64) (int64, error) {
	key := s.cameraKey(id)
	holds := clientv3.Compare(clientv3.ModRevision(key), "=", revision)
	if revision == 0 {
		holds = clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
	}
	resp, err := s.txn(ctx, clientv3.OpTxn(
		[]clientv3.Cmp{holds},
		[]clientv3.Op{
			clientv3.OpDelete(key),
			clientv3.OpDelete(s.assignmentKey(id)),
			clientv3.OpDelete(s.observedKey(id)),
			clientv3.OpDelete(s.retryKey(id)),
		},
		[]clientv3.Op{clientv3.OpGet(key, clientv3.WithCountOnly())},
	))
	switch {
	case err != nil:
		return 0, err
	case resp.Succeeded:
		return resp.Header.GetRevision(), nil
	case resp.Responses[0].GetResponseRange().GetCount() == 0:
		return 0, fmt.Errorf("camera %q: %w", id, fleet.CameraNotFound)
	default:
		return 0, fmt.Errorf("camera %q: %w", id, fleet.ETagMismatch)
	}
}

// PutDrain stores the order to empty a node, and returns its revision.
func (s *Store) PutDrain(ctx context.Context, node fleet.NodeID, d *controlv1.Drain) (int64, error) {
	if err := s.admit(); err != nil {
		return 0, err
	}
	value, err := encode(d)
	if err != nil {
		return 0, err
	}
	resp, err := s.txn(ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(s.drainKey(node), value)}, nil))
	if err != nil {
		return 0, err
	}
	return resp.Header.GetRevision(), nil
}

// DeleteDrain withdraws the order to empty a node, if there is one, and returns
// a revision by which it is gone.
func (s *Store) DeleteDrain(ctx context.Context, node fleet.NodeID) (int64, error) {
	resp, err := s.txn(ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpDelete(s.drainKey(node))}, nil))
	if err != nil {
		return 0, err
	}
	if resp.Responses[0].GetResponseDeleteRange().GetDeleted() == 0 {
		return 0, nil
	}
	return resp.Header.GetRevision(), nil
}

// Decision is an assignment to be stored in place of the one before.
type Decision struct {
	Assignment
	// Before is the Revision of the assignment that it replaces; 0: there is
	// none, and CameraCreated is the camera's Created.
	Before        int64
	CameraCreated int64
	// Doubt says that without Before there may be one all the same, as when the
	// leader was told that storing it timed out.
	Doubt bool
	// Gone is a node that must not have come back; empty: any may have.
	Gone fleet.NodeID
}

// Assign stores decisions of the leader. It returns the revision of each, 0 for
// those whose camera was deleted, whose assignment is no longer the one before,
// or whose Gone is connected. The error is [fleet.Unavailable] when the leadership is lost.
func (s *Store) Assign(ctx context.Context, leader *Leader, decisions []Decision) ([]int64, error) {
	writes := make([]write, len(decisions))
	for i := range decisions {
		d := &decisions[i]
		value, err := d.encode()
		if err != nil {
			return nil, err
		}
		key := s.assignmentKey(d.Camera)
		// Only the leader makes assignments and only a deletion of the camera
		// deletes them, so one comparison a decision is enough, but in doubt.
		var holds []clientv3.Cmp
		if d.Before == 0 {
			holds = append(holds, clientv3.Compare(clientv3.CreateRevision(s.cameraKey(d.Camera)), "=", d.CameraCreated))
		}
		if d.Before != 0 || d.Doubt {
			holds = append(holds, clientv3.Compare(clientv3.ModRevision(key), "=", d.Before))
		}
		if d.Gone != "" {
			holds = append(holds, clientv3.Compare(clientv3.CreateRevision(s.nodeKey(d.Gone)), "=", 0))
		}
		writes[i] = write{holds, clientv3.OpPut(key, value)}
	}
	return s.commit(ctx, leader, writes)
}

// Observation is what a node saw of a camera under an assignment.
type Observation struct {
	Camera     fleet.CameraID
	Status     *controlv1.CameraStatus
	Assignment int64 // the assignment's Revision
}

// Observe stores observations of distinct cameras. It returns the revision of
// each, 0 for those whose assignment is no longer the current one.
func (s *Store) Observe(ctx context.Context, observations []Observation) ([]int64, error) {
	writes := make([]write, len(observations))
	for i, o := range observations {
		value, err := encode(o.Status)
		if err != nil {
			return nil, err
		}
		writes[i] = write{
			holds: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.assignmentKey(o.Camera)), "=", o.Assignment)},
			op:    clientv3.OpPut(s.observedKey(o.Camera), value),
		}
	}
	return s.commit(ctx, nil, writes)
}

// cleanNode returns the part of a node that is stored.
func cleanNode(n *controlv1.Node) *controlv1.Node {
	n = proto.CloneOf(n)
	n.State, n.Drain, n.AssignedCameras = controlv1.Node_STATE_UNSPECIFIED, nil, 0
	return n
}
