package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// ErrSuperseded says that a node's key has come under another lease: the node
// has registered anew, here or at another replica.
var ErrSuperseded = errors.New("the node has registered anew")

// Lease is the proof that nodes are alive: their keys go with it.
type Lease struct {
	store *Store
	id    clientv3.LeaseID
	// TTL is how long it lives after the last renewal. Etcd may have granted more
	// than was asked for.
	TTL time.Duration
}

// Grant makes a lease. ttl is rounded up to a second.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (*Lease, error) {
	ctx, cancel := s.write(ctx)
	defer cancel()
	resp, err := s.client.Grant(ctx, seconds(ttl))
	if err != nil {
		return nil, fmt.Errorf("grant a lease: %w", s.unavailable(ctx, err))
	}
	return &Lease{store: s, id: resp.ID, TTL: time.Duration(resp.TTL) * time.Second}, nil
}

func seconds(d time.Duration) int64 {
	return max(1, int64((d+time.Second-1)/time.Second))
}

// ID identifies the lease: a node's key has it in its Lease.
func (l *Lease) ID() int64 { return int64(l.id) }

// Renew renews the lease until ctx ends, and returns nil; or until it is lost,
// and returns an error.
func (l *Lease) Renew(ctx context.Context) error {
	alive, err := l.store.client.KeepAlive(ctx, l.id)
	if err == nil {
		for range alive { // closed by the client
		}
		err = errors.New("it ran out")
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end that was asked for
	}
	return fmt.Errorf("renew lease %x: %w", l.ID(), unavailable(err))
}

// Revoke ends the lease, and with it the nodes that are under it.
// An error means that the lease will run out by itself.
func (l *Lease) Revoke(ctx context.Context) error {
	ctx, cancel := l.store.write(ctx)
	defer cancel()
	if _, err := l.store.client.Revoke(ctx, l.id); err != nil {
		return fmt.Errorf("revoke lease %x: %w", l.ID(), l.store.unavailable(ctx, err))
	}
	return nil
}

// Unregister removes a node that is under the lease. Of one that is under
// another, or gone, nothing is removed, and that is no error.
func (l *Lease) Unregister(ctx context.Context, id fleet.NodeID) error {
	key := l.store.nodeKey(id)
	_, err := l.store.txn(ctx, clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue(key), "=", l.id)},
		[]clientv3.Op{clientv3.OpDelete(key)}, nil))
	if err != nil {
		return fmt.Errorf("unregister node %q: %w", id, err)
	}
	return nil
}

// Forget removes a node that is registered as it was read, whatever lease it is
// under, and tells whether it was.
func (s *Store) Forget(ctx context.Context, n *Node) (bool, error) {
	key := s.nodeKey(n.ID)
	resp, err := s.txn(ctx, clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", n.Revision)},
		[]clientv3.Op{clientv3.OpDelete(key)}, nil))
	if err != nil {
		return false, fmt.Errorf("forget node %q: %w", n.ID, err)
	}
	return resp.Succeeded, nil
}

// Register stores a node under the lease, whatever lease it was under before,
// and returns the revision. State, drain and assigned_cameras are not stored.
func (l *Lease) Register(ctx context.Context, id fleet.NodeID, n *controlv1.Node) (int64, error) {
	put, err := l.put(id, n)
	if err != nil {
		return 0, err
	}
	resp, err := l.store.txn(ctx, clientv3.OpTxn(nil, []clientv3.Op{put}, nil))
	if err != nil {
		return 0, fmt.Errorf("register node %q: %w", id, err)
	}
	return resp.Header.GetRevision(), nil
}

// Succeed stores a node under the lease that was under another which has been
// lost. The error wraps [ErrSuperseded] if it is under a third.
func (l *Lease) Succeed(ctx context.Context, lost *Lease, id fleet.NodeID, n *controlv1.Node) (int64, error) {
	key := l.store.nodeKey(id)
	for _, holds := range []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(key), "=", 0),
		clientv3.Compare(clientv3.LeaseValue(key), "=", lost.id),
	} {
		rev, err := l.putIf(ctx, holds, id, n)
		if !errors.Is(err, ErrSuperseded) {
			return rev, err
		}
	}
	return 0, fmt.Errorf("register node %q: %w", id, ErrSuperseded)
}

// Update stores a node that is under the lease. The error wraps
// [ErrSuperseded] if it is under another, or gone.
func (l *Lease) Update(ctx context.Context, id fleet.NodeID, n *controlv1.Node) (int64, error) {
	return l.putIf(ctx, clientv3.Compare(clientv3.LeaseValue(l.store.nodeKey(id)), "=", l.id), id, n)
}

func (l *Lease) putIf(ctx context.Context, holds clientv3.Cmp, id fleet.NodeID, n *controlv1.Node) (int64, error) {
	put, err := l.put(id, n)
	if err != nil {
		return 0, err
	}
	revs, err := l.store.commit(ctx, nil, []write{{[]clientv3.Cmp{holds}, put}})
	if err != nil {
		return 0, fmt.Errorf("store node %q: %w", id, err)
	}
	if revs[0] == 0 {
		return 0, fmt.Errorf("store node %q: %w", id, ErrSuperseded)
	}
	return revs[0], nil
}

func (l *Lease) put(id fleet.NodeID, n *controlv1.Node) (clientv3.Op, error) {
	value, err := encode(cleanNode(n))
	if err != nil {
		return clientv3.Op{}, err
	}
	return clientv3.OpPut(l.store.nodeKey(id), value, clientv3.WithLease(l.id)), nil
}
