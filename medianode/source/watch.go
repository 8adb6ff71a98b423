package source

import (
	"context"
	"time"

	"fanlight/internal/fleet"
)

// videoWait returns how long to wait for the first packet of video.
func (c *connection) videoWait() time.Duration {
	s := c.source
	if c.target.transport == fleet.TransportUDP && s.cfg.Profile.Transport == fleet.TransportAuto {
		return s.cfg.Timeouts.UDP
	}
	return s.cfg.Timeouts.Media
}

// awaitVideo waits for the first packet of video.
func (c *connection) awaitVideo(ctx context.Context) *failure {
	wait := c.videoWait()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-c.first:
		return nil
	case <-ctx.Done():
		return failed(fleet.ReasonConnectionClosed, "the node stopped")
	case f := <-c.broken:
		return f
	case err := <-c.ended:
		return c.failure(err)
	case <-t.C:
		return noMedia(c.target.transport, wait, false)
	}
}

// watching is the watch over a connection that plays. Owned by Run.
type watching struct {
	source *Source
	c      *connection
	prober *prober
	live   time.Time // since when; zero: not yet
}

// watch waits for the connection's end and returns why it ended; or, with nil,
// the connection that takes its place.
func (s *Source) watch(ctx context.Context, c *connection) (*failure, *connection) {
	w := &watching{source: s, c: c, prober: s.newProber(c.target.index)}
	defer w.prober.stop()
	first, wait := c.first, c.videoWait()
	var retry <-chan struct{} // nil until media comes
	live := func() {
		first, retry, wait = nil, s.retry, s.cfg.Timeouts.Media
		w.setLive()
	}
	select {
	case <-first: // it took another's place
		live()
	default:
	}
	tick := time.NewTicker(min(wait, s.cfg.Timeouts.Media) / 16)
	defer tick.Stop()
	playing := time.Since(c.start)
	for {
		select {
		case <-ctx.Done():
			return w.end(failed(fleet.ReasonConnectionClosed, "the node stopped")), nil
		case f := <-c.broken:
			return w.end(f), nil
		case err := <-c.ended:
			return w.end(c.failure(err)), nil
		case <-first:
			live()
		case size := <-c.size:
			c.statuses[0].Width, c.statuses[0].Height = size[0], size[1]
			if !w.live.IsZero() {
				s.setStatus(s.status)
			}
		case <-s.keys.changed:
			if !w.live.IsZero() {
				s.setStatus(s.status)
			}
		case <-retry:
			if c.target.index > 0 {
				s.startOver()
				w.prober.now()
			}
		case <-w.prober.timer.C:
			w.prober.start(ctx)
		case r := <-w.prober.results:
			if f, next := w.goBack(ctx, w.prober.found(r)); f != nil || next != nil {
				return f, next
			}
		case <-tick.C:
			since := max(playing, time.Duration(c.lastVideo.Load()))
			if time.Since(c.start)-since > wait {
				return w.end(noMedia(c.target.transport, wait, !w.live.IsZero())), nil
			}
		}
	}
}

// setLive says that media comes.
func (w *watching) setLive() {
	s, to := w.source, w.c.target
	w.live = time.Now()
	s.tcpFirst[to.asked.Host] = to.transport == fleet.TransportTCP
	s.profile.Transport, s.profile.URLIndex, s.profile.Tracks = to.transport, to.index, w.c.statuses
	s.log.Info("camera live", "transport", to.transport.String(), "url_index", to.index)
	s.setStatus(fleet.CameraStatus{State: fleet.CameraLive})
	w.prober.begin()
}

// goBack goes back to an earlier URL; -1: there is none. It returns the
// connection that takes the place of the one that is watched; or why that ends
// before, because the camera accepts one session.
func (w *watching) goBack(ctx context.Context, index int) (*failure, *connection) {
	s := w.source
	if index < 0 {
		return nil, nil
	}
	if s.cfg.MaxSessions == 1 {
		f := w.end(failed(fleet.ReasonConnectionClosed, "an earlier URL is in use again"))
		f.again = true
		s.returns.begun(index, time.Now())
		s.returns.next = true
		return f, nil
	}
	if next := s.goBack(ctx, w.c, index); next != nil {
		s.backoff.live(time.Since(w.live))
		return nil, next
	}
	w.prober.failed()
	return nil, nil
}

// end notes that the connection has ended.
func (w *watching) end(f *failure) *failure {
	s := w.source
	if !w.live.IsZero() {
		f.wasLive = true
		s.backoff.live(time.Since(w.live))
		s.returns.ended(w.c.target.index, time.Now(), s.backoff.retry)
	}
	return f
}
