package store

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"fanlight/internal/fleet"
)

const (
	healthEvery = 250 * time.Millisecond
	diskEvery   = time.Second // between two looks at the free space
	// defaultMinFree is two of etcd's log files, of 64 MB each, which are made
	// whole in advance: with less than one, it can't go on when one is full.
	defaultMinFree = 128 << 20
	// A call that takes longer than suspectAfter has the disk asked; one whose
	// answer takes longer than slowAfter is slow, until one takes less than
	// suspectAfter.
	suspectAfter = 500 * time.Millisecond
	slowAfter    = 3 * time.Second
	// leaderlessAfter is longer than an election takes.
	leaderlessAfter = 2 * time.Second
)

// Health is how the store is. Numbers are of this replica's own member; all
// are 0 when etcd is elsewhere.
type Health struct {
	// Err is nil when the store is well. It wraps [fleet.StoreFull] when
	// operators' writes are refused for want of space, and everything else goes
	// on; [fleet.Unavailable] when calls fail. Its text says what to do.
	Err error

	// Slow is true while this member's disk does not answer, so that other
	// replicas are the ones to ask.
	Slow bool

	Leader  bool // this member leads the etcd cluster
	Learner bool // it is catching up, and has no vote
	Members int  // of the etcd cluster, this one and learners too

	FreeDisk    int64         // bytes in the data directory's file system; -1: not known
	MinFreeDisk int64         // below it, Err wraps fleet.StoreFull
	DBSize      int64         // bytes of the database on disk
	DBInUse     int64         // bytes of that which are in use
	Quota       int64         // bytes that DBSize can't exceed
	DiskLatency time.Duration // of the last write that was made to ask the disk; 0: none was needed lately
}

// health watches the embedded etcd, and ends calls that it can't answer.
type health struct {
	// Static after newHealth.
	log      *slog.Logger
	embedded *embedded
	minFree  int64

	// Owned by run.
	lookedAt        time.Time // at the free space
	leaderlessSince time.Time
	said            error

	probes sync.WaitGroup

	mu      sync.Mutex // guards the rest
	calls   map[*call]struct{}
	trouble *trouble // nil: calls can be made
	full    error    // nil: there is space
	now     Health
	probing time.Time // when the probe under way began; zero: none is
	latency time.Duration
	probed  time.Time // when the last probe ended
}

// call is a call to etcd under way.
type call struct {
	began time.Time
	write bool
	fail  context.CancelCauseFunc
}

func newHealth(log *slog.Logger, e *embedded, minFree int64) *health {
	if minFree == 0 {
		minFree = defaultMinFree
	}
	return &health{log: log, embedded: e, minFree: max(0, minFree), calls: make(map[*call]struct{})}
}

// run watches until ctx ends.
func (h *health) run(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		h.look(time.Now())
		changed := h.embedded.etcd.Server.LeaderChangedNotify()
		select {
		case <-tick.C:
		case <-changed:
			h.failLost(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// errLeaderLost is why a write ends whose etcd leader was lost.
var errLeaderLost = &trouble{error: fmt.Errorf("%w: etcd's leader was lost while it was asked, and there is another: try again", fleet.Unavailable)}

// failLost ends the writes that were sent to a leader which is no more: etcd
// itself would let them wait for 6 s and more. Whether they were made is not
// known.
func (h *health) failLost(now time.Time) {
	if !h.leaderlessSince.IsZero() {
		now = h.leaderlessSince // later ones have waited for the new leader
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.calls {
		if c.write && c.began.Before(now) {
			c.fail(errLeaderLost)
			delete(h.calls, c)
		}
	}
}

// follow makes a call one that ends when it can't be answered.
func (h *health) follow(ctx context.Context, cancel context.CancelFunc, write bool) (context.Context, context.CancelFunc) {
	ctx, fail := context.WithCancelCause(ctx)
	c := &call{time.Now(), write, fail}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trouble != nil {
		fail(h.trouble)
	} else {
		h.calls[c] = struct{}{}
	}
	return ctx, func() {
		h.mu.Lock()
		delete(h.calls, c)
		h.mu.Unlock()
		fail(nil)
		cancel()
	}
}

// look looks at everything once.
func (h *health) look(now time.Time) {
	server := h.embedded.etcd.Server
	next := Health{
		Leader:      server.Leader() == server.MemberID(),
		Learner:     h.embedded.isLearner(),
		Members:     len(server.Cluster().Members()),
		MinFreeDisk: h.minFree,
		DBSize:      server.Backend().Size(),
		DBInUse:     server.Backend().SizeInUse(),
		Quota:       h.embedded.quota,
	}
	if server.Leader() != 0 {
		h.leaderlessSince = time.Time{}
	} else if h.leaderlessSince.IsZero() {
		h.leaderlessSince = now
	}
	full, looked := error(nil), now.Sub(h.lookedAt) >= diskEvery
	if looked {
		h.lookedAt = now
		next.FreeDisk, full = h.lookForSpace()
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if looked {
		h.full = full
	} else {
		next.FreeDisk = h.now.FreeDisk
	}
	slow := h.lookAtDisk(now)
	if now.Sub(h.probed) < 10*time.Second {
		next.DiskLatency = h.latency
	}
	switch {
	case slow > 0:
		h.trouble = &trouble{slow: true, error: fmt.Errorf("%w: the store is slow: a write to %s has taken %v so far; other replicas, if there are, "+
			"still serve; check its disk, which must be local and not overloaded", fleet.Unavailable, h.embedded.dir, slow.Round(time.Second))}
		next.DiskLatency = slow
	case !h.leaderlessSince.IsZero() && now.Sub(h.leaderlessSince) > leaderlessAfter:
		votes := voters(server.Cluster().Members())
		h.trouble = &trouble{error: fmt.Errorf("%w: the control planes have no quorum: %d of %d must run and reach each other; "+
			"if more are lost for good, restore a backup", fleet.Unavailable, votes/2+1, votes)}
	default:
		h.trouble = nil
	}
	if h.trouble != nil {
		for c := range h.calls {
			c.fail(h.trouble)
			delete(h.calls, c)
		}
	}
	if next.Err = h.full; h.trouble != nil {
		next.Err, next.Slow = h.trouble, h.trouble.slow
	}
	h.now = next
	h.tell(next.Err)
}

// tell logs when the state changes. Called with mu held.
func (h *health) tell(err error) {
	switch {
	case err != nil && h.said == nil:
		h.log.Error("store degraded", "error", err)
	case err == nil && h.said != nil:
		h.log.Info("store recovered")
	}
	h.said = err
}

// lookForSpace looks at the free space, and at etcd's alarm that its quota is
// reached.
func (h *health) lookForSpace() (free int64, full error) {
	for _, a := range h.embedded.etcd.Server.Alarms() {
		if a.GetAlarm() == etcdserverpb.AlarmType_NOSPACE {
			full = h.quotaError()
		}
	}
	free, err := freeDisk(h.embedded.dir)
	if err != nil {
		return -1, full
	}
	if free < h.minFree {
		full = fmt.Errorf("%w: %s has %d MiB left, and %d MiB must be: free or add space there; until then operators' changes are refused, "+
			"and everything else goes on", fleet.StoreFull, h.embedded.dir, free>>20, h.minFree>>20)
	}
	return free, full
}

func (h *health) quotaError() error {
	return fmt.Errorf("%w: the database in %s has reached its quota of %d MiB: delete what is not needed; the space is then reclaimed within a minute",
		fleet.StoreFull, h.embedded.dir, h.embedded.quota>>20)
}

// lookAtDisk asks the disk if a call takes long, and returns how long it has
// owed an answer if that is too long. Called with mu held.
func (h *health) lookAtDisk(now time.Time) time.Duration {
	wasSlow := h.trouble != nil && h.trouble.slow
	if !h.probing.IsZero() {
		if d := now.Sub(h.probing); d >= slowAfter {
			h.latency = d
			return d
		}
		if wasSlow {
			return h.latency
		}
		return 0
	}
	if wasSlow && h.latency < suspectAfter {
		wasSlow = false
	}
	suspect := wasSlow
	for c := range h.calls {
		suspect = suspect || now.Sub(c.began) > suspectAfter
	}
	if suspect {
		h.probing = now
		h.probes.Go(h.probe)
	}
	if wasSlow {
		return h.latency
	}
	return 0
}

// probe writes to the disk, where etcd does.
func (h *health) probe() {
	began := time.Now()
	err := h.embedded.lock.probe()
	d := time.Since(began)
	if err != nil {
		h.log.Warn("data directory can't be written", "dir", h.embedded.dir, "error", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probing, h.latency, h.probed = time.Time{}, d, time.Now()
}

// close waits for the probe, unless the disk hangs.
func (h *health) close() {
	h.mu.Lock()
	hangs := !h.probing.IsZero() && time.Since(h.probing) > slowAfter
	h.mu.Unlock()
	if !hangs {
		h.probes.Wait()
	}
}

// Health returns how the store is, as of at most a second ago. Of an etcd
// elsewhere nothing is known but what calls to it return.
func (s *Store) Health() Health {
	if s.health == nil {
		return Health{}
	}
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.now
}

// admit refuses operators' writes that need space when there is none.
func (s *Store) admit() error {
	if s.health == nil {
		return nil
	}
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.full
}
