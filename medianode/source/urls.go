package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"fanlight/internal/fleet"
)

// authTries is how many times a host is tried that refuses the credentials.
// Cameras lock an account after five or more failures.
const authTries = 3

// refusal is how often a host has refused the credentials in a row.
type refusal struct {
	count int
	last  *failure // the one after which the host is given up; nil: it is not
}

// target is where a connection goes.
type target struct {
	index     int       // of the URL; 0: the profile's, n: the n-th of its fallback URLs
	asked     *base.URL // that URL
	url       *base.URL // the same, or where the camera redirected to
	transport fleet.Transport
}

// pullOnce tries the URLs in order. It returns what to say: why the first of them
// failed, or the one that media came from; and what decides when to try again:
// the first failure of a URL that may be tried again, nil if none may.
func (s *Source) pullOnce(ctx context.Context) (said, tried *failure) {
	failures := make([]*failure, 1+len(s.cfg.Profile.FallbackURLs))
	refused := make(map[string]bool) // hosts that refused the credentials in this round
	for _, i := range s.order(time.Now()) {
		u, f := s.parseURL(i)
		again := true
		switch {
		case f != nil:
		case s.givenUp(u) != nil:
			f, again = s.givenUp(u), false
		case refused[accountHost(u)]:
			continue // would only bring the account nearer to being locked
		default:
			f = s.pull(ctx, i, u)
			if ctx.Err() != nil || f.wasLive {
				return f, f
			}
			s.returns.ended(i, time.Now(), s.backoff.retry)
			if f.reason == fleet.ReasonAuthenticationFailed {
				refused[accountHost(u)] = true
				s.refuse(u, f)
				if last := s.givenUp(u); last != nil {
					f, again = last, false
				}
			}
		}
		failures[i] = f
		if again && tried == nil {
			tried = f
		}
		if i > 0 {
			s.log.Debug("fallback URL failed", "url_index", i, "reason", string(f.reason), "message", f.message)
		}
	}
	for _, f := range failures {
		if f != nil {
			return f, tried
		}
	}
	return tried, tried
}

// order returns the indices of the URLs in the order in which they are tried: as
// configured, but one that failed soon after a return to it comes last for some
// time, and one that has answered probes comes first.
func (s *Source) order(now time.Time) []int {
	order := make([]int, 1+len(s.cfg.Profile.FallbackURLs))
	for i := range order {
		order[i] = i
	}
	move := func(index, to int) {
		if index < len(order) {
			order = slices.Insert(slices.DeleteFunc(order, func(i int) bool { return i == index }), to, index)
		}
	}
	if s.returns.held(s.returns.to, now) {
		move(s.returns.to, len(order)-1)
	}
	if s.returns.next {
		s.returns.next = false
		move(s.returns.to, 0)
	}
	return order
}

// accountHost returns where the account of a URL is kept: the ports of a camera or
// recorder have the same accounts.
func accountHost(u *base.URL) string { return strings.ToLower(u.Hostname()) }

// refuse counts that a host refused the credentials.
func (s *Source) refuse(u *base.URL, f *failure) {
	r := s.refusals[accountHost(u)]
	if r == nil {
		r = &refusal{}
		s.refusals[accountHost(u)] = r
	}
	r.count++
	if r.count == authTries {
		last := *f
		last.message += fmt.Sprintf("; after %d refusals it is not tried again, for cameras lock accounts: update the credentials, or use \"fanlight camera retry\"", authTries)
		r.last = &last
	}
}

// givenUp returns why the host of a URL is not tried any more; nil: it is.
func (s *Source) givenUp(u *base.URL) *failure {
	if r := s.refusals[accountHost(u)]; r != nil {
		return r.last
	}
	return nil
}

// parseURL returns a configured URL with the credentials in it, which is how
// gortsplib takes them; it sends and prints URLs without.
func (s *Source) parseURL(index int) (*base.URL, *failure) {
	raw := s.cfg.Profile.URL
	if index > 0 {
		raw = s.cfg.Profile.FallbackURLs[index-1]
	}
	u, err := base.ParseURL(raw)
	if err != nil || u.Hostname() == "" {
		// The error would quote the URL.
		return nil, failed(fleet.ReasonProtocolError, "the URL cannot be used: it must be like rtsp://host:port/path or rtsps://host:port/path")
	}
	creds := s.cfg.Credentials
	if strings.ContainsFunc(creds.Username+creds.Password, unicode.IsControl) {
		return nil, failed(fleet.ReasonAuthenticationFailed, "the user name or password has control characters, which cannot be sent: set them without")
	}
	return withCredentials(u, creds), nil
}

// pull pulls from one URL over the transports that are allowed for it.
func (s *Source) pull(ctx context.Context, index int, u *base.URL) *failure {
	var f *failure
	for _, t := range s.transports(u) {
		f = follow(target{index, u, u, t}, func(to target) *failure { return s.play(ctx, to) })
		if ctx.Err() != nil || f.wasLive || !f.otherTransport {
			break
		}
		s.log.Debug("transport failed", "transport", t.String(), "reason", string(f.reason), "message", f.message)
	}
	return f
}

// transports returns what to try for a URL, in order.
func (s *Source) transports(u *base.URL) []fleet.Transport {
	switch {
	case s.cfg.Profile.Transport != fleet.TransportAuto:
		return []fleet.Transport{s.cfg.Profile.Transport}
	case u.Scheme == "rtsps":
		return []fleet.Transport{fleet.TransportTCP} // inside TLS, whether or not the camera has SRTP
	case s.tcpBefore(u):
		return []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP}
	default:
		return []fleet.Transport{fleet.TransportUDP, fleet.TransportTCP}
	}
}

// tcpBefore tells whether TCP is tried before UDP for a URL.
func (s *Source) tcpBefore(u *base.URL) bool {
	if worked, known := s.tcpFirst[u.Host]; known {
		return worked
	}
	return s.cfg.TCPFirst
}

// follow tries a target, and where the camera redirects to.
func follow(to target, try func(target) *failure) *failure {
	const redirects = 3
	for range redirects + 1 {
		f := try(to)
		var r *redirectError
		if f == nil || !errors.As(f.err, &r) {
			return f
		}
		next, problem := redirect(to.url, r.location)
		if problem != nil {
			return problem
		}
		to.url = next
	}
	return failed(fleet.ReasonProtocolError, fmt.Sprintf("the camera redirected more than %d times: set the URL it leads to", redirects))
}

// play holds one RTSP connection, and those that take its place, from dialling to
// the end.
func (s *Source) play(ctx context.Context, to target) *failure {
	c, f := s.open(ctx, to, opening{audioRefused: s.audioRefused, waiting: s.waiting})
	if c != nil {
		s.learn(to.asked, c.audioRefused, c.played.Load())
		if c.statuses != nil {
			s.profile.Tracks = c.statuses
		}
	}
	for f == nil {
		var next *connection
		f, next = s.watch(ctx, c)
		c.close()
		c = next
	}
	return f
}

// learn takes what opening a connection has shown.
func (s *Source) learn(u *base.URL, audioRefused, played bool) {
	s.audioRefused = s.audioRefused || audioRefused
	if played { // not before: some cameras ask for the password at SETUP or PLAY
		delete(s.refusals, accountHost(u))
	}
}

// opening is what there is to know for a connection to be opened.
type opening struct {
	audioRefused bool            // the camera has refused to set its audio up before
	replaces     *connection     // that goes on until the new one has the stream; nil: there is none
	waiting      func(time.Time) // is told when the host's turn comes; nil: nobody is
}

// open makes a connection that plays. It is the caller's to close; with a
// failure, it has been. open touches nothing that is Run's.
func (s *Source) open(ctx context.Context, to target, o opening) (*connection, *failure) {
	c, f := s.newConnection(ctx, to, o.waiting)
	if f != nil {
		return nil, f
	}
	c.audioRefused, c.replaces = o.audioRefused, o.replaces
	if err := c.open(); err != nil {
		f := c.failure(err)
		c.close()
		return c, f
	}
	return c, nil
}

// waiting says that the source waits for its turn at the host.
func (s *Source) waiting(turn time.Time) {
	const worth = time.Second // saying
	if time.Until(turn) < worth {
		return
	}
	status := s.status
	status.RetryTime = turn
	if status.State != fleet.CameraFailed {
		status.Message = "many cameras of the same host are being connected: this one waits for its turn"
	}
	s.setStatus(status)
}
