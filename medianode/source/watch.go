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

// awaitVideo waits for the first packet of video. Of several things that are so
// at once, the connection's end counts before its video, and that before the end
// of the wait.
func (c *connection) awaitVideo(ctx context.Context) *failure {
	wait := c.videoWait()
	t := time.NewTimer(wait)
	defer t.Stop()
	var f *failure
	select {
	case <-c.first:
	case <-c.gone:
	case <-ctx.Done():
		f = failed(fleet.ReasonConnectionClosed, "the node stopped")
	case f := <-c.broken:
		return f
	case <-t.C:
		f = noMedia(c.target.transport, wait, false)
	}
	select {
	case f := <-c.broken:
		return f
	case err := <-c.ended:
		return c.failure(err)
	default:
	}
	select {
	case <-c.first:
		return nil
	default:
		return f
	}
}

// watching is the watch over a connection that plays. Owned by Run.
type watching struct {
	source  *Source
	c       *connection
	prober  *prober
	attempt *attempt  // nil: none is under way
	live    time.Time // since when; zero: not yet
}

// watch waits for the connection's end and returns why it ended; or, with nil,
// the connection that takes its place.
func (s *Source) watch(ctx context.Context, c *connection) (*failure, *connection) {
	w := &watching{source: s, c: c, prober: s.newProber(c.target.index)}
	defer w.prober.stop()
	first, wait := c.first, c.videoWait()
	live := func() {
		first, wait = nil, s.cfg.Timeouts.Media
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
			return w.fail(ctx, failed(fleet.ReasonConnectionClosed, "the node stopped"))
		case f := <-c.broken:
			return w.fail(ctx, f)
		case err := <-c.ended:
			return w.fail(ctx, c.failure(err))
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
		case <-w.retries():
			if c.target.index > 0 {
				s.startOver()
				w.prober.now()
			}
		case <-w.prober.timer.C:
			w.prober.start(ctx)
		case r := <-w.prober.results:
			if f := w.goBack(ctx, w.prober.found(r)); f != nil {
				return f, nil
			}
		case r := <-w.arrivals():
			if next := w.arrived(r); next != nil {
				return nil, next
			}
		case <-tick.C:
			since := max(playing, time.Duration(c.lastVideo.Load()))
			if time.Since(c.start)-since > wait {
				return w.fail(ctx, noMedia(c.target.transport, wait, !w.live.IsZero()))
			}
		}
	}
}

// retries returns where Retry is heeded; nil: not until media comes, which Run
// waits for anyway, and not while the way back is under way, for what comes of it
// is to be forgotten too.
func (w *watching) retries() <-chan struct{} {
	if w.live.IsZero() || w.attempt != nil {
		return nil
	}
	return w.source.retry
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
