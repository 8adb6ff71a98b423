package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Announce tells every replica, by [Store.Announcements], that this one leads,
// and returns the revision of that: what is written later is written by those
// who are alive under this leader. The error is [fleet.Unavailable] when the
// leadership is lost.
func (l *Leader) Announce(ctx context.Context) (int64, error) {
	s := l.store
	resp, err := s.txn(ctx, clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.Revision)},
		[]clientv3.Op{clientv3.OpPut(l.key, l.name, clientv3.WithLease(l.session.Lease()))}, nil))
	if err != nil {
		return 0, fmt.Errorf("announce the leader: %w", err)
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("announce the leader: %w", errNotLeader)
	}
	return resp.Header.GetRevision(), nil
}

// Announcements calls announced with the revision of every announcement of a
// leader, until ctx ends. It may miss some when etcd can't be reached, and then
// calls announced with the revision from which on it misses none.
func (s *Store) Announcements(ctx context.Context, announced func(revision int64)) {
	for ctx.Err() == nil {
		rev, err := s.Revision(ctx)
		if err == nil {
			announced(rev)
			err = s.watchAnnouncements(ctx, rev, announced)
		}
		if ctx.Err() == nil {
			s.log.Debug("watch of elections interrupted", "error", err)
			select {
			case <-time.After(announceRetry):
			case <-ctx.Done():
			}
		}
	}
}

// announceRetry is how long Announcements waits before it watches anew.
const announceRetry = 200 * time.Millisecond

func (s *Store) watchAnnouncements(ctx context.Context, after int64, announced func(int64)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	prefix := s.prefix + electionKey + "/"
	responses := s.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1), clientv3.WithFilterDelete())
	for {
		resp, ok := <-responses
		if err := watchError(ctx, resp, ok); err != nil {
			return err
		}
		for _, ev := range resp.Events {
			// A candidacy is created, and written again by Announce alone.
			if ev.IsModify() && strings.HasPrefix(string(ev.Kv.GetKey()), prefix) {
				announced(ev.Kv.GetModRevision())
			}
		}
	}
}
