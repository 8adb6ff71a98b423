package viewertest

import (
	"slices"
	"time"
)

// LostAfter is how long a picture may stand still before its viewer counts as
// lost.
const LostAfter = 2 * time.Second

// Gap is the time between two frames that were shown one after the other.
type Gap struct {
	Start  time.Time // the frame before it
	Length time.Duration
}

// End returns when the frame after it came.
func (g Gap) End() time.Time { return g.Start.Add(g.Length) }

// Event is one thing that happened to a Follower.
type Event struct {
	Time    time.Time
	Kind    EventKind
	Session string // empty: of the websocket
	Detail  string // a reason or state, as the gateway said it
}

// EventKind is what happened.
type EventKind string

// What happens to a Follower.
const (
	EventWelcome     EventKind = "welcome"      // a websocket is open
	EventGatewayLost EventKind = "gateway_lost" // a websocket was lost, or an attempt failed
	EventWatch       EventKind = "watch"        // a session was asked for
	EventAnswer      EventKind = "answer"       // the node's answer came
	EventConnected   EventKind = "connected"    // ICE and DTLS are done
	EventMedia       EventKind = "media"        // the first packet of a session
	EventShown       EventKind = "shown"        // the first complete frame of a session, which is shown from now on
	EventState       EventKind = "state"        // the gateway said how the session stands
	EventMove        EventKind = "move"         // the gateway asked for another session
	EventEnded       EventKind = "ended"        // a session failed, or the gateway ended it
	EventLoss        EventKind = "loss"         // packets were missing and did not come in time
)

// Summary is what a Follower has seen in a span of time.
type Summary struct {
	Frames  int
	Skipped int           // frames that should have come within sessions and did not, by RTP timestamps
	Longest Gap           // also one that had not ended at the end of the span
	Usual   time.Duration // the median of the gaps: the interval between frames
	Last    time.Time     // when the last frame came; zero: none
	Lost    bool          // at the end no frame had come for LostAfter

	Swaps      int // from one session's picture to another's
	Reconnects int // of the websocket
	Losses     int // times that packets did not come
}

// series is what a Follower has seen, in order. The owner locks.
type series struct {
	base   time.Time
	frames []frameTime
	events []Event
}

// frameTime is one frame's arrival since base.
type frameTime struct {
	at      time.Duration
	sent    time.Duration // by the camera, since base; 0: unknown
	skipped int
}

func (s *series) frame(now time.Time, p picture) {
	f := frameTime{at: now.Sub(s.base), skipped: p.skipped}
	if !p.sent.IsZero() {
		f.sent = p.sent.Sub(s.base)
	}
	s.frames = append(s.frames, f)
}

// between returns the frames from one time to another, and the one before
// them, if there is one.
func (s *series) between(from, to time.Time) []frameTime {
	after := func(t time.Time) int {
		i, _ := slices.BinarySearchFunc(s.frames, t.Sub(s.base), func(f frameTime, d time.Duration) int { return int(f.at - d) })
		return i
	}
	return s.frames[max(0, after(from)-1):after(to)]
}

func (s *series) gaps(from, to time.Time) []Gap {
	frames := s.between(from, to)
	if len(frames) == 0 {
		return []Gap{{Start: from, Length: to.Sub(from)}}
	}
	gaps := make([]Gap, 0, len(frames))
	for i, f := range frames {
		end := to.Sub(s.base)
		if i+1 < len(frames) {
			end = frames[i+1].at
		}
		gaps = append(gaps, Gap{Start: s.base.Add(f.at), Length: end - f.at})
	}
	return gaps
}

func (s *series) summary(from, to time.Time) Summary {
	var sum Summary
	lengths := make([]time.Duration, 0, len(s.frames))
	for _, g := range s.gaps(from, to) {
		lengths = append(lengths, g.Length)
		if g.Length > sum.Longest.Length {
			sum.Longest = g
		}
	}
	slices.Sort(lengths)
	sum.Usual = lengths[len(lengths)/2]
	for _, f := range s.between(from, to) {
		if at := s.base.Add(f.at); !at.Before(from) {
			sum.Frames++
			sum.Skipped += f.skipped
		}
		sum.Last = s.base.Add(f.at)
	}
	sum.Lost = to.Sub(sum.Last) > LostAfter
	for _, e := range s.eventsBetween(from, to) {
		switch e.Kind {
		case EventShown:
			if s.seenBefore(e) {
				sum.Swaps++
			}
		case EventWelcome:
			if e.Time.After(s.firstWelcome()) {
				sum.Reconnects++
			}
		case EventLoss:
			sum.Losses++
		default: // of no number here
		}
	}
	return sum
}

func (s *series) eventsBetween(from, to time.Time) []Event {
	var list []Event
	for _, e := range s.events {
		if !e.Time.Before(from) && e.Time.Before(to) {
			list = append(list, e)
		}
	}
	return list
}

// seenBefore tells whether a picture was shown before an event.
func (s *series) seenBefore(e Event) bool {
	return len(s.frames) > 0 && s.base.Add(s.frames[0].at).Before(e.Time)
}

func (s *series) firstWelcome() time.Time {
	for _, e := range s.events {
		if e.Kind == EventWelcome {
			return e.Time
		}
	}
	return time.Time{}
}
