package source

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/onvif"
	"fanlight/medianode/stream"
)

const (
	// enoughMisses is how many requests in a row must have had no effect for a way
	// to count as one that has none.
	enoughMisses = 3
	// earlyBy is how much sooner than by the camera's own interval a keyframe must
	// come to count as asked for, or a quarter of the interval if that is more.
	earlyBy = time.Second
	// restTime is how often a camera is asked that heeds no request.
	restTime = time.Minute

	onvifForget       = 24 * time.Hour // for a camera without ONVIF to be tried again
	onvifBackoff      = time.Minute    // after it was not reached; then it doubles
	onvifBackoffLimit = time.Hour
)

// KeyframeMemory is what is known of how a camera is asked for keyframes. It
// outlives its sources. Which credentials were refused is not the camera's alone,
// see [Accounts]. The zero value knows nothing. Its methods may be called from any
// goroutine.
type KeyframeMemory struct {
	asks askCounters

	mu      sync.Mutex // guards the rest
	habits  map[habitKey]*habit
	devices map[deviceKey]*device
}

// Counters returns what all sources with this memory have counted.
func (m *KeyframeMemory) Counters() KeyframeCounters { return m.asks.load() }

// KeyframeCounters count how cameras were asked for keyframes.
type KeyframeCounters struct {
	RTCP   int64 // picture loss indications sent
	ONVIF  int64 // SetSynchronizationPoint that the camera accepted
	Failed int64 // attempts of both kinds that failed
}

// asked is what became of an attempt to ask a camera.
type asked int

const (
	askedRTCP asked = iota
	askedONVIF
	askFailed
	askKinds
)

type askCounters [askKinds]atomic.Int64

func (c *askCounters) load() KeyframeCounters {
	return KeyframeCounters{RTCP: c[askedRTCP].Load(), ONVIF: c[askedONVIF].Load(), Failed: c[askFailed].Load()}
}

// countKeyframe counts an attempt to ask the camera.
func (s *Source) countKeyframe(a asked) {
	s.counters.keyframes[a].Add(1)
	s.keys.memory.asks[a].Add(1)
}

// deviceKey is an ONVIF device service, and by whom it is asked.
type deviceKey struct {
	url         string
	credentials fleet.Credentials
}

// habitKey is what a camera's behaviour is known by: another URL or other
// credentials are another camera.
type habitKey struct {
	profile string
	device  deviceKey
}

// maxHabits is how many are kept: a camera has a few profiles, and its
// configuration may change.
const maxHabits = 16

// with calls f with what is known under a key, with the lock held.
func (m *KeyframeMemory) with(key habitKey, f func(*habit)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.habits[key]
	if h == nil {
		if m.habits == nil || len(m.habits) >= maxHabits {
			m.habits = make(map[habitKey]*habit)
		}
		h = new(habit)
		m.habits[key] = h
	}
	f(h)
}

// device returns what is known of a device service; called with the lock held.
func (m *KeyframeMemory) device(key deviceKey) *device {
	d := m.devices[key]
	if d == nil {
		if m.devices == nil || len(m.devices) >= maxHabits {
			m.devices = make(map[deviceKey]*device)
		}
		d = new(device)
		m.devices[key] = d
	}
	return d
}

// possible tells whether a device service may be asked now.
func (m *KeyframeMemory) possible(key deviceKey, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return key.url != "" && !now.Before(m.device(key).until)
}

// possibleAtAll tells whether one may be asked now, or soon.
func (m *KeyframeMemory) possibleAtAll(key deviceKey, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.device(key)
	return key.url != "" && (d.failures > 0 || !now.Before(d.until))
}

// note takes the outcome of asking one.
func (m *KeyframeMemory) note(key deviceKey, now time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.device(key).note(now, err)
}

// device is an ONVIF device service as it has shown itself, apart from whether it
// accepts the credentials. It is the camera's: a recorder may have a profile for
// one of its channels and none for another.
type device struct {
	failures int       // to reach it, in a row
	until    time.Time // when it may be asked again
}

func (d *device) note(now time.Time, err error) {
	switch {
	case err == nil:
		*d = device{}
	case errors.Is(err, onvif.ErrRefused), errors.Is(err, errUntried):
	case errors.Is(err, onvif.ErrUnsupported):
		*d = device{until: now.Add(onvifForget)}
	default:
		wait := double(onvifBackoff, d.failures, onvifBackoffLimit)
		d.failures++
		d.until = now.Add(between(wait*3/4, wait))
	}
}

// habit is how a camera's profile behaves when it is asked for keyframes.
type habit struct {
	way fleet.KeyframeRequest

	// interval is the camera's own between keyframes that nobody asked for: the
	// latest two such; 0: not known.
	interval [2]time.Duration
	forced   int64 // how many keyframes there had been when the last may have been asked for

	rtcpMisses  int       // requests without effect, in a row
	onvifMisses int       // the same
	useless     time.Time // until when ONVIF is not used because it had none
	rest        time.Time // until when the camera is not asked because it heeds nothing
}

// observe takes the interval between the last two keyframes, if the last was not
// asked for. If the one before was, the interval is the camera's own, or less.
func (h *habit) observe(s stream.Stats) {
	if s.Keyframes > h.forced && s.KeyframeInterval > 0 {
		h.interval = [2]time.Duration{s.KeyframeInterval, h.interval[0]}
		h.forced = s.Keyframes // the same interval is not taken twice
	}
}

// due returns when the camera's next keyframe comes by itself, at the earliest;
// zero: not known.
func (h *habit) due(s stream.Stats) time.Time {
	interval := h.interval[0]
	if h.interval[1] > 0 {
		interval = min(interval, h.interval[1])
	}
	if interval <= 0 || s.LastKeyframe.IsZero() {
		return time.Time{}
	}
	return s.LastKeyframe.Add(interval)
}

// margin is how much sooner a keyframe must come to count as asked for.
func (h *habit) margin() time.Duration { return max(earlyBy, h.interval[0]/4) }

// resting tells whether the camera is not to be asked now.
func (h *habit) resting(now time.Time) bool {
	return h.way == fleet.KeyframeRequestNone && now.Before(h.rest)
}

// worthONVIF tells whether ONVIF is worth a request: it has not been without
// effect, and a keyframe does not come soon anyway.
func (h *habit) worthONVIF(now time.Time, s stream.Stats) bool {
	due := h.due(s)
	return !now.Before(h.useless) && (due.IsZero() || due.Sub(now) >= earlyBy || now.After(due))
}

// came takes a keyframe that came in time after a request. It shows that the way
// works if it came clearly before its own time, which takes an interval that is
// known and long enough.
func (h *habit) came(way fleet.KeyframeRequest, before, after stream.Stats) {
	due := h.due(before)
	early := after.Keyframes == before.Keyframes+1 && !due.IsZero() && due.Sub(after.LastKeyframe) >= h.margin()
	if !early && h.way != way {
		return
	}
	if early {
		h.way = way
	}
	if way == fleet.KeyframeRequestONVIF {
		h.onvifMisses = 0
	} else {
		h.rtcpMisses = 0
	}
}

// missed takes a request after which no keyframe came. possible: ONVIF may be
// asked, now or later.
func (h *habit) missed(way fleet.KeyframeRequest, possible bool, now time.Time) {
	misses := &h.rtcpMisses
	if way == fleet.KeyframeRequestONVIF {
		misses = &h.onvifMisses
	}
	*misses++
	if *misses >= enoughMisses {
		if way == fleet.KeyframeRequestONVIF {
			h.useless = now.Add(onvifForget)
		}
		if h.way == way {
			h.way = fleet.KeyframeRequestUnknown
		}
	}
	if h.rtcpMisses >= enoughMisses && (!possible || now.Before(h.useless)) {
		h.way = fleet.KeyframeRequestNone
		h.rest = now.Add(restTime)
	}
}

// wayName is what the log says of a way.
func wayName(way fleet.KeyframeRequest) string {
	switch way {
	case fleet.KeyframeRequestRTCP:
		return "rtcp"
	case fleet.KeyframeRequestONVIF:
		return "onvif"
	case fleet.KeyframeRequestNone:
		return "none"
	default:
		return "unknown"
	}
}
