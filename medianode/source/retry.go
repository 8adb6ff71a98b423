package source

import (
	"math/rand/v2"
	"time"

	"fanlight/internal/fleet"
)

// Retry is how long a source waits after failures. The zero values are the
// defaults.
type Retry struct {
	Min time.Duration // the first wait at most, at least a quarter of it; then it doubles; 0: 1 s
	Max time.Duration // the longest; 0: 30 s

	// Hold is the longest wait after a failure that does not go away by itself:
	// 404, 453, 503, no video, a codec, a certificate or a network that is not
	// allowed. The first such wait is an eighth of it. 0: 60 s.
	Hold time.Duration

	// Stable is how long media must have come for the waits to begin anew; 0: 10 s.
	Stable time.Duration

	// While media comes from a fallback URL, those before it are probed.
	Probe    time.Duration // the first wait before a probe at most, at least three quarters of it; then it doubles; 0: 30 s
	ProbeMax time.Duration // the longest such wait; 0: 5 min
	Confirm  time.Duration // the wait before the second probe, which must succeed too; 0: 5 s
	// Settled is how long media must have come after a return to an earlier URL
	// for the return to count as good; 0: 60 s.
	Settled time.Duration
}

func (r Retry) withDefaults() Retry {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&r.Min, time.Second},
		{&r.Max, 30 * time.Second},
		{&r.Hold, time.Minute},
		{&r.Stable, 10 * time.Second},
		{&r.Probe, 30 * time.Second},
		{&r.ProbeMax, 5 * time.Minute},
		{&r.Confirm, 5 * time.Second},
		{&r.Settled, time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	return r
}

// backoff decides when to try again.
type backoff struct {
	retry    Retry
	failures int // in a row
	holds    int // in a row
}

// live says that media had come for d when the connection ended.
func (b *backoff) live(d time.Duration) {
	b.holds = 0
	if d >= b.retry.Stable {
		b.failures = 0
	}
}

// after returns how long to wait after a failure. It knows nothing of hosts that
// are not to be tried again.
func (b *backoff) after(reason fleet.Reason) time.Duration {
	switch reason {
	case fleet.ReasonStreamNotFound, fleet.ReasonCameraBusy, fleet.ReasonTransportUnsupported, fleet.ReasonTLSFailed,
		fleet.ReasonNoVideo, fleet.ReasonCodecUnsupported, fleet.ReasonNetworkForbidden:
		b.holds++
		most := double(b.retry.Hold/8, b.holds-1, b.retry.Hold)
		return between(most/2, most)
	default:
	}
	b.holds = 0
	b.failures++
	return between(b.retry.Min/4, double(b.retry.Min, b.failures-1, b.retry.Max))
}

// double returns d doubled n times, at most limit.
func double(d time.Duration, n int, limit time.Duration) time.Duration {
	for range n {
		if d >= limit/2 {
			return limit
		}
		d *= 2
	}
	return min(d, limit)
}

// between returns a random duration, so that a thousand cameras behind one
// switch don't come back at the same moment.
func between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + rand.N(high-low+1)
}
