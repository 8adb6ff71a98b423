package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fanlight/internal/fleet"
)

// loadPage is how many keys a request of Load reads.
const loadPage = 5_000

// progressEvery is how often Changes asks how far it is.
const progressEvery = 20 * time.Millisecond

// Load reads everything at one revision, and returns that. What can't be
// decoded is logged and left out.
func (s *Store) Load(ctx context.Context) ([]Entry, int64, error) {
	var entries []Entry
	var revision int64
	end := clientv3.GetPrefixRangeEnd(s.prefix)
	for from := s.prefix; ; {
		page, cancel := s.call(ctx)
		resp, err := s.client.Get(page, from,
			clientv3.WithRange(end), clientv3.WithLimit(loadPage), clientv3.WithRev(revision))
		cancel()
		if err != nil {
			return nil, 0, fmt.Errorf("load from etcd: %w", s.unavailable(page, err))
		}
		if revision == 0 {
			revision = resp.Header.GetRevision()
		}
		for _, kv := range resp.Kvs {
			e, ok, err := s.decode(kv, false)
			if err != nil {
				s.log.Error("key left out", "key", string(kv.GetKey()), "error", err)
			}
			if ok {
				entries = append(entries, e)
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return entries, revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].GetKey()) + "\x00"
	}
}

// Watch calls handle with all changes after a revision, in order, until ctx
// ends, and returns its error then. Each call has all changes up to and with
// the revision that it is told; there may be none. An error that wraps
// [fleet.ResumeTokenTooOld] says that etcd no longer has the changes: load anew.
func (s *Store) Watch(ctx context.Context, after int64, handle func(revision int64, events []Event)) error {
	return s.watch(ctx, after, nil, func(rev int64, events []Event) bool {
		handle(rev, events)
		return true
	})
}

// Changes returns the changes after one revision up to another that is not in
// the future, or later ones. The error wraps [fleet.ResumeTokenTooOld] if etcd
// no longer has them.
func (s *Store) Changes(ctx context.Context, after, through int64) ([]Event, error) {
	if after >= through {
		return nil, nil
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	var all []Event
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	err := s.watch(ctx, after, tick.C, func(rev int64, events []Event) bool {
		all = append(all, events...)
		return rev < through
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// watch is Watch, until handle returns false. With ask, it asks etcd for the
// revision that it is complete through each time, and also fills Before.
func (s *Store) watch(ctx context.Context, after int64, ask <-chan time.Time, handle func(int64, []Event) bool) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	opts := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(after + 1), clientv3.WithProgressNotify()}
	if ask != nil {
		opts = append(opts, clientv3.WithPrevKV())
	}
	responses := s.client.Watch(ctx, s.prefix, opts...)
	for {
		select {
		case <-ask:
			if err := s.client.RequestProgress(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("watch etcd: %w", s.unavailable(ctx, err))
			}
		case resp, ok := <-responses:
			switch err := watchError(ctx, resp, ok); {
			case err != nil:
				return err
			case resp.Created:
				continue
			}
			if rev, events := s.events(resp); rev > 0 && !handle(rev, events) {
				return nil
			}
		}
	}
}

// watchError returns why a watch can't go on after a response; nil if it can.
func watchError(ctx context.Context, resp clientv3.WatchResponse, ok bool) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("watch etcd: %w", ctx.Err())
	case !ok:
		return fmt.Errorf("watch etcd: it ended: %w", fleet.Unavailable)
	case resp.CompactRevision > 0 || errors.Is(resp.Err(), rpctypes.ErrCompacted):
		return fmt.Errorf("etcd has no changes before revision %d any more: %w", resp.CompactRevision, fleet.ResumeTokenTooOld)
	case resp.Err() != nil:
		return fmt.Errorf("watch etcd: %w", unavailable(resp.Err()))
	}
	return nil
}

// events decodes a response. The revision is the one that it is complete
// through: a response with events may have been made at a later one.
func (s *Store) events(resp clientv3.WatchResponse) (int64, []Event) {
	if len(resp.Events) == 0 {
		return resp.Header.GetRevision(), nil
	}
	events := make([]Event, 0, len(resp.Events))
	for _, ev := range resp.Events {
		deleted := ev.Type == clientv3.EventTypeDelete
		entry, ok, err := s.decode(ev.Kv, deleted)
		if err != nil {
			s.log.Error("change left out", "key", string(ev.Kv.GetKey()), "error", err)
		}
		if !ok {
			continue
		}
		e := Event{Entry: entry, Deleted: deleted, Revision: ev.Kv.GetModRevision()}
		if ev.PrevKv != nil {
			if before, ok, err := s.decode(ev.PrevKv, false); ok && err == nil {
				e.Before = before.Assignment
			}
		}
		events = append(events, e)
	}
	return resp.Events[len(resp.Events)-1].Kv.GetModRevision(), events
}

// Revision returns etcd's current revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("read from etcd: %w", s.unavailable(ctx, err))
	}
	return resp.Header.GetRevision(), nil
}

// Compact drops the history before a revision: watches can't resume from
// there any more. Etcd has one history of all its keys, whatever their prefix.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.client.Compact(ctx, revision)
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact etcd: %w", s.unavailable(ctx, err))
	}
	return nil
}
