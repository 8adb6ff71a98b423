package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "fanlight/proto/fanlight/store/v1"
)

const (
	maintainEvery = time.Second
	reportEvery   = 10 * time.Second
	reportTTL     = 30 // seconds
	reclaimEvery  = 10 * time.Second
)

// maintainer does what an embedded member needs done from time to time. Owned
// by its run.
type maintainer struct {
	store    *Store
	lease    clientv3.LeaseID // of the report; 0: none
	reported time.Time
	reclaim  time.Time // when to look for space again
}

// run maintains until ctx ends.
func (m *maintainer) run(ctx context.Context) {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.withdraw(ctx)
			return
		}
		h := m.store.Health()
		if h.Leader {
			m.promote(ctx)
		}
		if h.Members > 1 && !h.Learner && time.Since(m.reported) >= reportEvery {
			m.report(ctx, h)
		}
		if now := time.Now(); now.After(m.reclaim) {
			m.reclaim = now.Add(reclaimEvery/2 + rand.N(reclaimEvery))
			m.reclaimSpace(ctx, h)
		}
	}
}

// promote makes full members of learners that have caught up: until then a new
// member must not count, or the cluster might wait for it.
func (m *maintainer) promote(ctx context.Context) {
	for _, member := range m.store.embedded.others() {
		if !member.IsLearner || !member.IsStarted() {
			continue
		}
		call, cancel := m.store.write(ctx)
		_, err := m.store.client.MemberPromote(call, uint64(member.ID))
		cancel()
		switch {
		case err == nil:
			m.store.log.Info("member has caught up", "member", member.Name)
		case ctx.Err() == nil && !errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
			m.store.log.Warn("member not promoted", "member", member.Name, "error", err)
		}
	}
}

// report tells the other members how this one is.
func (m *maintainer) report(ctx context.Context, h Health) {
	s := m.store
	r := &storev1.Replica{
		Name: s.name, Version: s.version, State: stateOf(h.Err), DbSize: h.DBSize, DbInUse: h.DBInUse, DiskFree: max(0, h.FreeDisk),
		ReportTime: timestamppb.Now(),
	}
	if h.Err != nil {
		r.Message = h.Err.Error()
	}
	value, err := encode(r)
	if err != nil {
		return
	}
	ctx, cancel := s.write(ctx)
	defer cancel()
	m.reported = time.Now()
	if m.lease != 0 {
		if _, err := s.client.KeepAliveOnce(ctx, m.lease); err != nil {
			m.lease = 0
		}
	}
	if m.lease == 0 {
		granted, err := s.client.Grant(ctx, reportTTL)
		if err != nil {
			return // the next time
		}
		m.lease = granted.ID
	}
	if _, err := s.client.Put(ctx, s.prefix+membersKey+s.embedded.etcd.Server.MemberID().String(), value, clientv3.WithLease(m.lease)); err != nil {
		s.log.Debug("report not stored", "error", err)
	}
}

// withdraw takes the report back when the member is stopped.
func (m *maintainer) withdraw(ctx context.Context) {
	if m.lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout/2)
	defer cancel()
	_, _ = m.store.client.Revoke(ctx, m.lease) // else it runs out
}

// settle has etcd's database count as free what compaction has freed. It does so
// when it writes next, and a store that is full refuses writes: it would never
// see that there is room. A deletion it takes, also one of nothing.
func (m *maintainer) settle(ctx context.Context) {
	s := m.store
	for range 2 { // what the first frees, the second counts
		call, cancel := s.write(ctx)
		_, err := s.client.Delete(call, s.prefix+vacantKey)
		cancel()
		if err != nil {
			return // the next time
		}
		s.embedded.etcd.Server.Backend().ForceCommit()
	}
}

// reclaimSpace gives the disk back what the database does not use, when it is
// worth the pause that this is for this member: when the quota is reached, or
// half of it and half of the file is empty. Else etcd uses the room again by
// itself.
func (m *maintainer) reclaimSpace(ctx context.Context, h Health) {
	s := m.store
	full := false
	for _, a := range s.embedded.etcd.Server.Alarms() {
		full = full || a.GetAlarm() == etcdserverpb.AlarmType_NOSPACE
	}
	if full && h.Leader {
		if rev, err := s.Revision(ctx); err == nil {
			err = s.Compact(ctx, rev)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("store not compacted", "error", err)
			}
		}
		m.settle(ctx)
	}
	if h.DBInUse < h.DBSize/2 && h.DBSize > h.Quota/2 || full && h.DBInUse < h.Quota/10*9 && h.DBSize >= h.Quota/10*9 {
		began := time.Now()
		if err := s.embedded.etcd.Server.Defragment(); err != nil {
			s.log.Warn("database not defragmented", "error", err)
		} else {
			s.log.Info("database defragmented", "before", h.DBSize, "after", s.embedded.etcd.Server.Backend().Size(), "took", time.Since(began))
		}
	}
	if full && h.Leader && s.embedded.etcd.Server.Backend().Size() < h.Quota/10*9 {
		call, cancel := s.write(ctx)
		defer cancel()
		if _, err := s.client.AlarmDisarm(call, &clientv3.AlarmMember{}); err != nil && ctx.Err() == nil {
			s.log.Warn("etcd's alarm not withdrawn", "error", err)
		}
	}
}
