package source

import (
	"context"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"fanlight/internal/fleet"
)

// attempt goes back to an earlier URL: it makes a connection to it while the one
// in use goes on, and waits for its first packet of video, with which the stream
// is the new connection's. It may take a minute, over which the one in use is
// watched as ever. Owned by watch; its goroutine touches nothing that is Run's,
// and sends what came of it.
type attempt struct {
	index   int
	url     *base.URL
	abandon context.CancelFunc // gives it up; a connection that has come about is not affected
	wg      sync.WaitGroup
	results chan arrival // gets what came of it; one
}

// arrival is what came of an attempt.
type arrival struct {
	c            *connection // nil: none has come about
	f            *failure    // why none has
	abandoned    bool        // it was given up
	audioRefused bool
	played       bool // the camera has accepted PLAY, and with it the credentials
}

// goBack begins an attempt; nil: the URL cannot be used.
func (s *Source) goBack(ctx context.Context, inUse *connection, index int) *attempt {
	u, f := s.parseURL(index)
	if f != nil {
		return nil
	}
	a := &attempt{index: index, url: u, results: make(chan arrival, 1)}
	patience, abandon := context.WithCancel(ctx)
	a.abandon = abandon
	transports, audioRefused := s.transports(u), s.audioRefused
	a.wg.Go(func() { a.results <- a.run(ctx, patience, inUse, transports, audioRefused) })
	return a
}

// run is the attempt's goroutine. The new connection ends with ctx; with patience
// the attempt is given up.
func (a *attempt) run(ctx, patience context.Context, inUse *connection, transports []fleet.Transport, audioRefused bool) arrival {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		select {
		case <-patience.Done():
			cancel()
		case <-over:
		}
	})
	r := a.connect(ctx, inUse, transports, audioRefused)
	close(over)
	wg.Wait()
	r.abandoned = ctx.Err() != nil
	if r.c != nil && r.abandoned { // at the last moment
		r.c.close()
		r.c.giveBack()
		r.c, r.f = nil, failed(fleet.ReasonConnectionClosed, "the attempt was given up")
	}
	if r.c == nil {
		cancel()
		return r
	}
	r.c.cancel = cancel
	r.c.settle()
	return r
}

// connect makes the connection, over the transports in order.
func (a *attempt) connect(ctx context.Context, inUse *connection, transports []fleet.Transport, audioRefused bool) arrival {
	r := arrival{audioRefused: audioRefused}
	for _, t := range transports {
		r.f = follow(target{a.index, a.url, a.url, t}, func(to target) *failure {
			next, f := inUse.source.open(ctx, to, opening{audioRefused: r.audioRefused, replaces: inUse})
			if next == nil {
				return f
			}
			r.audioRefused, r.played = next.audioRefused, r.played || next.played.Load()
			if f == nil {
				if f = next.awaitVideo(ctx); f == nil {
					r.c = next
					return nil
				}
				next.close()
			}
			next.giveBack()
			return f
		})
		if r.f == nil || ctx.Err() != nil || !r.f.otherTransport {
			break
		}
	}
	return r
}

// goBack goes back to an earlier URL; -1: there is none. It returns why the
// connection that is watched ends before, if the camera accepts one session.
func (w *watching) goBack(ctx context.Context, index int) *failure {
	s := w.source
	if index < 0 {
		return nil
	}
	if s.cfg.MaxSessions == 1 {
		f := w.end(failed(fleet.ReasonConnectionClosed, "an earlier URL is in use again"))
		f.again = true
		s.returns.begun(index, time.Now())
		s.returns.next = true
		return f
	}
	if w.attempt = s.goBack(ctx, w.c, index); w.attempt == nil {
		w.prober.failed()
	}
	return nil
}

// arrivals returns where what came of the attempt comes; nil: there is none.
func (w *watching) arrivals() <-chan arrival {
	if w.attempt == nil {
		return nil
	}
	return w.attempt.results
}

// arrived takes what came of the attempt, and returns the connection that takes
// the place of the one that is watched; nil: there is none.
func (w *watching) arrived(r arrival) *connection {
	s, a := w.source, w.attempt
	w.attempt = nil
	a.abandon()
	a.wg.Wait()
	s.learn(a.url, r.audioRefused, r.played)
	if !r.abandoned { // else nothing is known of the URL
		s.returns.begun(a.index, time.Now())
	}
	if r.c != nil {
		s.backoff.live(time.Since(w.live))
		return r.c
	}
	if !r.abandoned {
		s.returns.ended(a.index, time.Now(), s.backoff.retry)
	}
	if r.f.reason == fleet.ReasonAuthenticationFailed {
		s.refuse(a.url, r.f)
	}
	s.log.Info("camera not back at an earlier URL", "url_index", a.index, "reason", string(r.f.reason), "message", r.f.message)
	w.prober.failed()
	return nil
}

// fail ends the watch over a connection that has failed, as watch does. If the
// attempt has come about, its connection takes the failed one's place; else it is
// given up.
func (w *watching) fail(ctx context.Context, f *failure) (*failure, *connection) {
	if w.attempt != nil {
		w.attempt.abandon()
		if next := w.arrived(<-w.attempt.results); next != nil {
			if ctx.Err() == nil {
				return nil, next
			}
			next.close()
		}
	}
	return w.end(f), nil
}
