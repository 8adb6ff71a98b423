package store

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	storev1 "fanlight/proto/fanlight/store/v1"
)

// What is read from the store is shared between its readers: nobody may change
// it. Revision is etcd's, of the last write to the key.

// Camera is a camera as operators want it.
type Camera struct {
	ID fleet.CameraID
	// Desired has neither password nor anything that is output only, but the
	// times.
	Desired   *controlv1.Camera
	Sealed    []byte // the password, see Store.Seal; nil: none
	RequestID string // of the call that created it
	Revision  int64
	Created   int64 // the revision that created the key
}

// Node is a connected media node.
type Node struct {
	ID fleet.NodeID
	// Registered has neither state, drain nor assigned_cameras.
	Registered *controlv1.Node
	Lease      int64 // the id of the lease that it goes with
	Revision   int64
}

// Drain is the order to empty a node.
type Drain struct {
	Node     fleet.NodeID
	Drain    *controlv1.Drain // without cameras_left
	Revision int64
}

// Assignment is the leader's decision on one camera.
type Assignment struct {
	Camera     fleet.CameraID
	Node       fleet.NodeID // empty: no node can take it; Reason says why
	Generation int64
	Previous   fleet.NodeID // had the camera under the decision before; empty: none
	// Reason says why there is no node; with one, why the camera stays on the
	// node that it should leave: Node, or From if the camera is Warming.
	Reason   controlv1.Reason
	Message  string // Reason in a sentence that says what to change
	Time     *timestamppb.Timestamp
	Revision int64

	// From has not let go of the camera yet, which it has under FromGeneration;
	// empty: no move is under way, and the rest is zero.
	From           fleet.NodeID
	FromGeneration int64
	Move           Move
	MoveTime       *timestamppb.Timestamp // since when it is that far
}

// Retry is an operator's wish to have a camera tried at once. It is stored for as
// long as there is the camera.
type Retry struct {
	Camera   fleet.CameraID
	Time     *timestamppb.Timestamp // of the last such wish
	Revision int64                  // grows with each
}

// Observed is what a camera's node last reported.
type Observed struct {
	Camera   fleet.CameraID
	Status   *controlv1.CameraStatus // with node and generation
	Revision int64
}

// Entry is a key with its value: one field is set. Deleted entries have an
// empty value with its id.
type Entry struct {
	Camera     *Camera
	Node       *Node
	Drain      *Drain
	Assignment *Assignment
	Observed   *Observed
	Retry      *Retry
}

// Event is a change of one key.
type Event struct {
	Entry
	Deleted  bool
	Revision int64
	// Before is the assignment that an assignment's event replaced or deleted,
	// in events of [Store.Changes] where etcd still had it.
	Before *Assignment
}

// The keys, under the prefix.
const (
	camerasKey     = "cameras/"
	nodesKey       = "nodes/"
	drainsKey      = "drains/"
	assignmentsKey = "assignments/"
	observedKey    = "observed/"
	retriesKey     = "retries/"
	electionKey    = "election"
	membersKey     = "members/"
	vacantKey      = "vacant" // never there
)

func (s *Store) cameraKey(id fleet.CameraID) string { return s.prefix + camerasKey + string(id) }
func (s *Store) nodeKey(id fleet.NodeID) string     { return s.prefix + nodesKey + string(id) }
func (s *Store) drainKey(id fleet.NodeID) string    { return s.prefix + drainsKey + string(id) }
func (s *Store) assignmentKey(id fleet.CameraID) string {
	return s.prefix + assignmentsKey + string(id)
}
func (s *Store) retryKey(id fleet.CameraID) string    { return s.prefix + retriesKey + string(id) }
func (s *Store) observedKey(id fleet.CameraID) string { return s.prefix + observedKey + string(id) }

// decode reads a key and its value; ok is false for keys that are no entry. Of
// deleted keys the value is not read.
func (s *Store) decode(kv *mvccpb.KeyValue, deleted bool) (e Entry, ok bool, err error) {
	key := strings.TrimPrefix(string(kv.GetKey()), s.prefix)
	kind, id, found := strings.Cut(key, "/")
	if !found || id == "" {
		return Entry{}, false, nil
	}
	rev := kv.GetModRevision()
	var value proto.Message
	var fill func()
	switch kind + "/" {
	case camerasKey:
		v, c := &storev1.Camera{}, &Camera{ID: fleet.CameraID(id), Revision: rev, Created: kv.GetCreateRevision()}
		e.Camera, value = c, v
		fill = func() {
			c.Desired, c.Sealed, c.RequestID = v.GetCamera(), v.GetSealedPassword(), v.GetCreateRequestId()
		}
	case nodesKey:
		v := &controlv1.Node{}
		e.Node, value = &Node{ID: fleet.NodeID(id), Registered: v, Lease: kv.GetLease(), Revision: rev}, v
	case drainsKey:
		v := &controlv1.Drain{}
		e.Drain, value = &Drain{Node: fleet.NodeID(id), Drain: v, Revision: rev}, v
	case assignmentsKey:
		v, a := &storev1.Assignment{}, &Assignment{Camera: fleet.CameraID(id), Revision: rev}
		e.Assignment, value = a, v
		fill = func() { a.fill(v) }
	case observedKey:
		v := &controlv1.CameraStatus{}
		e.Observed, value = &Observed{Camera: fleet.CameraID(id), Status: v, Revision: rev}, v
	case retriesKey:
		v, r := &storev1.Retry{}, &Retry{Camera: fleet.CameraID(id), Revision: rev}
		e.Retry, value = r, v
		fill = func() { r.Time = v.GetRequestTime() }
	default:
		return Entry{}, false, nil
	}
	if deleted {
		return e, true, nil
	}
	if err := proto.Unmarshal(kv.GetValue(), value); err != nil {
		return Entry{}, false, fmt.Errorf("decode %s: %w", key, err)
	}
	if fill != nil {
		fill()
	}
	return e, true, nil
}

func (a *Assignment) fill(v *storev1.Assignment) {
	a.Node = fleet.NodeID(v.GetNode())
	a.Generation = v.GetGeneration()
	a.Previous = fleet.NodeID(v.GetPreviousNode())
	a.Reason = v.GetReason()
	a.Message = v.GetMessage()
	a.Time = v.GetAssignTime()
	a.From, a.FromGeneration = fleet.NodeID(v.GetFromNode()), v.GetFromGeneration()
	a.Move, a.MoveTime = Move(v.GetMove()), v.GetMoveTime()
}

func (a *Assignment) encode() (string, error) {
	return encode(&storev1.Assignment{
		Node:         string(a.Node),
		Generation:   a.Generation,
		PreviousNode: string(a.Previous),
		Reason:       a.Reason,
		Message:      a.Message,
		AssignTime:   a.Time,

		FromNode:       string(a.From),
		FromGeneration: a.FromGeneration,
		Move:           storev1.Assignment_Move(a.Move),
		MoveTime:       a.MoveTime,
	})
}

func (c *Camera) encode() (string, error) {
	return encode(&storev1.Camera{
		Camera:          c.Desired,
		SealedPassword:  c.Sealed,
		CreateRequestId: c.RequestID,
	})
}

func encode(m proto.Message) (string, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	return string(b), nil
}
