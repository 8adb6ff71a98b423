package source

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Hosts bounds how often the sources of a node connect to one host, so that a
// recorder, or a site behind one address, that comes back is not met by all of
// its cameras' sources at once. Its methods may be called from any goroutine.
//
// A host is an address, whatever the port and whatever name led there: what a
// storm overwhelms is the machine (or the router in front of a site), and one
// machine may have many names and a port for each camera. Cameras with addresses
// of their own are hosts of their own, and never wait for one another.
//
// Only attempts to connect are counted, also those that probe whether a URL
// answers again; connections that stand cost nothing. They are let through in the
// order in which they asked.
type Hosts struct {
	// Static after NewHosts.
	perSecond rate.Limit
	burst     int

	mu    sync.Mutex // guards the rest
	hosts map[netip.Addr]*rate.Limiter
	swept time.Time // when those that have a full bucket were dropped
}

// DefaultConnects is HostLimit.PerSecond if that is 0.
const DefaultConnects = 10

// HostLimit is what Hosts allows for each host. The zero values are the defaults.
type HostLimit struct {
	PerSecond float64 // attempts to connect, in the long run; 0: 10; below 0: no limit
	Burst     int     // attempts that are let through at once, after a pause; 0: twice as many as the default of PerSecond
}

// sweepEvery is how often hosts that nobody connects to are forgotten.
const sweepEvery = 10 * time.Second

// NewHosts returns a limit that nobody has used.
func NewHosts(limit HostLimit) *Hosts {
	h := &Hosts{perSecond: rate.Limit(limit.PerSecond), burst: limit.Burst, hosts: make(map[netip.Addr]*rate.Limiter), swept: time.Now()}
	switch {
	case limit.PerSecond < 0:
		h.perSecond = rate.Inf
	case limit.PerSecond == 0:
		h.perSecond = DefaultConnects
	}
	if h.burst <= 0 {
		h.burst = 2 * DefaultConnects
	}
	return h
}

// reserve takes the next place in the host's queue, and returns how long it is
// to wait. cancel gives the place up. A nil Hosts has no limit.
func (h *Hosts) reserve(addr netip.Addr) (wait time.Duration, cancel func()) {
	if h == nil || h.perSecond == rate.Inf {
		return 0, func() {}
	}
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.swept) > sweepEvery {
		h.swept = now
		for a, l := range h.hosts {
			// A full bucket is as good as a new one.
			if l.TokensAt(now) >= float64(h.burst) {
				delete(h.hosts, a)
			}
		}
	}
	addr = addr.Unmap()
	l := h.hosts[addr]
	if l == nil {
		l = rate.NewLimiter(h.perSecond, h.burst)
		h.hosts[addr] = l
	}
	r := l.ReserveN(now, 1)
	return r.DelayFrom(now), r.Cancel
}

// wait takes a place in the host's queue and waits until its turn has come. It
// tells whether it has: else ctx has ended. waiting, if not nil, is called with
// when the turn comes, if that is not at once.
func (h *Hosts) wait(ctx context.Context, addr netip.Addr, waiting func(turn time.Time)) bool {
	d, cancel := h.reserve(addr)
	if d <= 0 {
		return true
	}
	if waiting != nil {
		waiting(time.Now().Add(d))
	}
	if !sleep(ctx, d) {
		cancel()
		return false
	}
	return true
}

// len returns how many hosts are remembered.
func (h *Hosts) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hosts)
}
