package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"fanlight/internal/fleet"
)

// errNotLeader is what a leader's write ends with when it no longer leads.
var errNotLeader = fmt.Errorf("another replica leads: %w", fleet.Unavailable)

// withdrawTimeout is how long a replica tries to withdraw its candidacy or to
// resign. Without a quorum it can't; its lease then runs out.
const withdrawTimeout = time.Second

// Leader is a replica's leadership. Writes made under it are refused once it is
// lost, whether or not the replica has noticed.
type Leader struct {
	store   *Store
	name    string
	session *concurrency.Session
	end     context.CancelFunc // ends what session has under way
	key     string

	// TTL is how long the leadership lives after its last renewal. Etcd may have
	// granted more than was asked for.
	TTL time.Duration
	// Revision is that of the candidacy. Every assignment of earlier leaders is
	// older than the revision at which this leader's first write is made.
	Revision int64
}

// Campaign waits until the replica leads, or ctx ends. name is the replica's,
// different from every other's: a candidacy of the same name is one from before
// a restart, and is withdrawn at once instead of being waited for. ttl is how
// long others wait for a leader that vanishes.
//
// Resign must be called on the Leader.
func (s *Store) Campaign(ctx context.Context, name string, ttl time.Duration) (*Leader, error) {
	if err := s.withdraw(ctx, name); err != nil {
		return nil, fmt.Errorf("campaign: %w", err)
	}
	grant, cancel := s.write(ctx)
	lease, err := s.client.Grant(grant, seconds(ttl))
	cancel()
	if err != nil {
		return nil, fmt.Errorf("campaign: grant a lease: %w", s.unavailable(grant, err))
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	session, err := concurrency.NewSession(s.clientOf(life), concurrency.WithLease(lease.ID), concurrency.WithTTL(int(lease.TTL)))
	if err != nil {
		end()
		return nil, fmt.Errorf("campaign: %w", s.unavailable(ctx, err))
	}
	election := concurrency.NewElection(session, s.prefix+electionKey)
	waiting, stop := context.WithCancel(ctx)
	elected, done := make(chan struct{}), make(chan struct{})
	go func() { // ends the campaign when its lease does, and its withdrawal in time
		defer close(done)
		select {
		case <-session.Done():
			stop()
		case <-waiting.Done():
		case <-elected:
			return
		}
		select {
		case <-time.After(withdrawTimeout):
			end()
		case <-elected:
		}
	}()
	var depose sync.WaitGroup
	depose.Go(func() { s.depose(waiting, name) })
	err = election.Campaign(waiting, name)
	close(elected)
	<-done
	stop()
	depose.Wait()
	leader := &Leader{store: s, name: name, session: session, end: end, key: election.Key(), TTL: time.Duration(lease.TTL) * time.Second, Revision: election.Rev()}
	if err != nil {
		leader.Resign()
		return nil, fmt.Errorf("campaign: %w", s.unavailable(ctx, err))
	}
	return leader, nil
}

// deposeEvery is how often a candidate asks whether the leader's process is
// there.
const deposeEvery = 100 * time.Millisecond

// depose ends the leadership of a replica whose process is gone, until ctx
// ends, so that nobody has to wait for its lease: where it listened for its
// peers, connections are refused twice in a row. That a candidate may be wrong
// about that costs an election and nothing else: what a deposed leader decides
// is refused like that of any former one.
func (s *Store) depose(ctx context.Context, name string) {
	if s.embedded == nil || s.embedded.peers == nil {
		return // nobody knows where the others' processes are
	}
	tick := time.NewTicker(deposeEvery)
	defer tick.Stop()
	refusals := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		holder, err := s.holder(ctx)
		if err != nil || holder == nil || string(holder.GetValue()) == name {
			refusals = 0
			continue
		}
		if refusals = refusals + 1; !s.gone(ctx, string(holder.GetValue())) {
			refusals = 0
		}
		if refusals < 2 {
			continue
		}
		call, cancel := s.write(ctx)
		_, err = s.client.Revoke(call, clientv3.LeaseID(holder.GetLease()))
		cancel()
		if err == nil {
			s.log.Warn("the leader's process is gone", "replica", string(holder.GetValue()))
		}
		refusals = 0
	}
}

// gone tells whether nobody listens where the member of a name did.
func (s *Store) gone(ctx context.Context, name string) bool {
	for _, m := range s.embedded.others() {
		if m.Name == name {
			return refused(s.embedded.askMember(ctx, m))
		}
	}
	return false
}

// holder returns the key of the leader, as far as this member knows; nil: there
// is none.
func (s *Store) holder(ctx context.Context) (*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix+electionKey+"/", append(clientv3.WithFirstCreate(), clientv3.WithSerializable())...)
	if err != nil {
		return nil, fmt.Errorf("read candidacies: %w", unavailable(err))
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return resp.Kvs[0], nil
}

// clientOf returns the client with another life: package concurrency makes
// calls of its own that only the client's context ends.
func (s *Store) clientOf(life context.Context) *clientv3.Client {
	c := clientv3.NewCtxClient(life)
	c.KV, c.Lease, c.Watcher = s.client.KV, s.client.Lease, s.client.Watcher
	return c
}

// withdraw ends candidacies of a name.
func (s *Store) withdraw(ctx context.Context, name string) error {
	ctx, cancel := s.write(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix+electionKey+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read candidacies: %w", s.unavailable(ctx, err))
	}
	for _, kv := range resp.Kvs {
		if string(kv.GetValue()) != name {
			continue
		}
		if _, err := s.client.Delete(ctx, string(kv.GetKey())); err != nil {
			return fmt.Errorf("withdraw a candidacy: %w", s.unavailable(ctx, err))
		}
	}
	return nil
}

// Done is closed when the leadership's lease is lost.
func (l *Leader) Done() <-chan struct{} { return l.session.Done() }

// Resign ends the leadership, so that another replica can lead at once. If that
// can't be had within a second, the lease runs out by itself.
func (l *Leader) Resign() {
	late := time.AfterFunc(withdrawTimeout, l.end)
	defer late.Stop()
	_ = l.session.Close() // an error means that the lease runs out by itself
	l.end()
}
