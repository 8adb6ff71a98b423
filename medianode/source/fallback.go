package source

import (
	"context"
	"sync"
	"time"

	"fanlight/internal/fleet"
)

// returns is what a source knows of its returns to earlier URLs. Owned by Run.
type returns struct {
	to    int           // the URL returned to last
	at    time.Time     // when; zero: there has been no return, or it has turned out well
	next  bool          // that URL is to be tried first, once
	hold  time.Duration // how long the URL was put off when it last failed soon after
	until time.Time     // it is put off until then
}

// longestHold bounds how long a URL is put off.
const longestHold = time.Hour

// begun says that the source goes back to a URL.
func (r *returns) begun(index int, now time.Time) {
	if r.to != index {
		r.hold = 0
	}
	r.to, r.at = index, now
}

// ended says that the connection to a URL has ended, or did not come about. If
// that is too soon after a return, the next one is put off, each time for twice
// as long.
func (r *returns) ended(index int, now time.Time, retry Retry) {
	if r.at.IsZero() || r.to != index {
		return
	}
	if now.Sub(r.at) >= retry.Settled {
		*r = returns{}
		return
	}
	r.hold = min(max(2*r.hold, retry.ProbeMax), longestHold)
	r.until = now.Add(between(r.hold*3/4, r.hold))
	r.at = time.Time{}
}

// held tells whether a URL is put off.
func (r *returns) held(index int, now time.Time) bool { return r.to == index && now.Before(r.until) }

// prober looks now and then whether a URL before the one in use is well again.
// Owned by watch; its goroutine sends what it found.
type prober struct {
	source *Source
	index  int // of the URL in use

	timer  *time.Timer
	wait   time.Duration // the latest wait after a probe in vain
	good   int           // the URL that answered the last probe; -1: none did
	needed int           // good answers in a row

	cancel  context.CancelFunc // ends the probe under way
	wg      sync.WaitGroup
	results chan probed // has room for one: there is one probe at a time
	running bool
}

// probed is what a round of probes found.
type probed struct {
	index   int       // the first URL that is well; -1: none is
	refused []refused // who refused the credentials
}

type refused struct {
	to target
	f  *failure
}

// newProber returns a prober that probes nothing before due, and nothing at all
// while the first URL is in use.
func (s *Source) newProber(index int) *prober {
	p := &prober{source: s, index: index, good: -1, needed: 2, timer: time.NewTimer(time.Hour), results: make(chan probed, 1)}
	p.timer.Stop()
	return p
}

// begin has the first probe made after the usual wait.
func (p *prober) begin() {
	if p.index > 0 {
		p.later()
	}
}

// now has a probe made at once, whose answer is enough.
func (p *prober) now() {
	p.needed, p.wait = 1, 0
	if !p.running {
		p.timer.Reset(0)
	}
}

// later has the next probe made after a longer wait.
func (p *prober) later() {
	retry := p.source.backoff.retry
	if p.wait == 0 {
		p.wait = retry.Probe
	} else {
		p.wait = min(2*p.wait, max(retry.ProbeMax, retry.Probe))
	}
	p.timer.Reset(between(p.wait*3/4, p.wait))
}

// start begins a round of probes of the URLs that may be tried.
func (p *prober) start(ctx context.Context) {
	s := p.source
	var targets []target
	for i := range p.index {
		u, f := s.parseURL(i)
		if f != nil || s.givenUp(u) != nil || s.returns.held(i, time.Now()) {
			continue
		}
		targets = append(targets, target{i, u, u, fleet.TransportTCP})
	}
	if len(targets) == 0 {
		p.later()
		return
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.running = true
	p.wg.Go(func() { p.results <- s.probe(ctx, targets) })
}

// found takes what a round of probes found, and returns the URL to go back to;
// -1: none yet.
func (p *prober) found(r probed) int {
	s := p.source
	p.running = false
	p.cancel()
	for _, r := range r.refused {
		s.refuse(r.to.url, r.f)
	}
	before := p.good
	p.good = r.index
	switch {
	case r.index < 0:
		p.later()
	case p.needed == 1 || before == r.index:
		p.good = -1
		return r.index
	default:
		confirm := s.backoff.retry.Confirm
		p.timer.Reset(between(confirm*3/4, confirm))
	}
	return -1
}

// failed says that going back did not come about.
func (p *prober) failed() {
	p.needed = 2
	p.later()
}

// stop ends the probe under way and waits for it.
func (p *prober) stop() {
	p.timer.Stop()
	if p.cancel != nil {
		p.cancel()
	}
	p.wg.Wait()
}

// probe asks for what there is at each target, until one has a video track that
// can be passed on. It opens no RTSP session.
func (s *Source) probe(ctx context.Context, targets []target) probed {
	out := probed{index: -1}
	for _, to := range targets {
		skip := false
		for _, r := range out.refused {
			skip = skip || accountHost(r.to.url) == accountHost(to.url)
		}
		if skip {
			continue
		}
		f := follow(to, func(to target) *failure { return s.probeOnce(ctx, to) })
		if ctx.Err() != nil {
			return probed{index: -1}
		}
		if f == nil {
			out.index = to.index
			return out
		}
		s.log.Debug("probe failed", "url_index", to.index, "reason", string(f.reason), "message", f.message)
		if f.reason == fleet.ReasonAuthenticationFailed {
			out.refused = append(out.refused, refused{to, f})
		}
	}
	return out
}

func (s *Source) probeOnce(ctx context.Context, to target) *failure {
	c, f := s.newConnection(ctx, to, nil)
	if f != nil {
		return f
	}
	defer c.close()
	if _, _, err := c.describe(); err != nil {
		return c.failure(err)
	}
	return nil
}
