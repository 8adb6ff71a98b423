package signaling

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/signaling/viewer"
)

// admission is who may come in, from where, and how much each may have.
type admission struct {
	// Static.
	auth    *viewer.Verifier // nil: everyone may view
	origins origins
	proxies []netip.Prefix

	connections tally // by viewer, and by address
	sessions    tally // by viewer, or by address where tokens name nobody
	orphans     tally // the same, of sessions that were lost and may still go on at their nodes
}

// tally counts what each viewer or address has, and refuses what is too much.
type tally struct {
	mu     sync.Mutex // guards the rest
	counts map[string]int
}

// add counts one more for a key, and returns what takes it back, which may be
// called more than once. False: there are most already.
func (t *tally) add(key string, most int) (func(), bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts[key] >= most {
		return nil, false
	}
	t.counts[key]++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.counts[key]--; t.counts[key] == 0 {
			delete(t.counts, key)
		}
	}), true
}

// credentials are whom a connection or a WHEP session belongs to. A websocket
// may renew them.
type credentials struct {
	mu      sync.Mutex // guards the rest
	viewer  viewer.Viewer
	renewed chan struct{} // closed when viewer is replaced
}

func newCredentials(v viewer.Viewer) *credentials {
	return &credentials{viewer: v, renewed: make(chan struct{})}
}

// get returns the viewer, and a channel that is closed when it is replaced.
func (c *credentials) get() (viewer.Viewer, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.viewer, c.renewed
}

// renew replaces the viewer by the same one with other rights.
func (c *credentials) renew(v viewer.Viewer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.Subject != c.viewer.Subject {
		return fmt.Errorf("the new token is of another viewer, make a new connection for it: %w", fleet.Unauthenticated)
	}
	c.viewer = v
	close(c.renewed)
	c.renewed = make(chan struct{})
	return nil
}

// who is the key of what a viewer has: its subject, or its address where its
// token names nobody.
func who(v viewer.Viewer, remote string) string {
	if v.Subject != "" {
		return "viewer " + v.Subject
	}
	return "address " + remote
}

// orphan counts a session in that was lost, for as long as its node may go on
// with it. False: there are most already; else a viewer who breaks its
// connections would have more sessions than it may.
func (a *admission) orphan(key string, most int) bool {
	release, ok := a.orphans.add(key, most)
	if ok {
		time.AfterFunc(orphanTime, release)
	}
	return ok
}

// viewing is what the audit line tells of a session.
type viewing struct {
	// Static.
	camera fleet.CameraID
	viewer string
	remote string
	via    string // "websocket" or "whep"
	began  time.Time

	node       fleet.NodeID // owned by the session's run; empty: never answered
	firstFrame atomic.Int64 // milliseconds, as the browser said; 0: it did not
}

// audit writes the line that tells who watched which camera, from where, and
// for how long. It has neither tokens nor SDP.
func (v *viewing) audit(log *slog.Logger, why error) {
	attrs := []any{
		"viewer", v.viewer, "camera", v.camera, "remote_address", v.remote, "via", v.via,
		"node", v.node, "duration", time.Since(v.began).Round(time.Millisecond), "reason", endReason(why),
	}
	if ms := v.firstFrame.Load(); ms > 0 {
		attrs = append(attrs, "first_frame", time.Duration(ms)*time.Millisecond)
	}
	if v.node == "" {
		log.Info("viewing never began", attrs...)
		return
	}
	log.Info("viewing ended", attrs...)
}

// refused writes the line of a session that was not allowed.
func (v *viewing) refused(log *slog.Logger, why error) {
	log.Info("viewing refused", "viewer", v.viewer, "camera", v.camera, "remote_address", v.remote, "via", v.via, "reason", endReason(why))
}

func endReason(err error) string {
	if err == errLeft || err == errLost { //nolint:errorlint // never wrapped
		return err.Error()
	}
	return wireReason(err)
}
