package failover

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"
)

// load is how much this process and the machine had to do: what of a gap is not
// the fleet's.
type load struct {
	mu      sync.Mutex // guards the rest
	stalls  []stalled
	seconds []busy // once a second
}

// stalled says that this process did not run when it wanted to.
type stalled struct {
	at     time.Time // when it ran again
	length time.Duration
}

// busy are counters at a time.
type busy struct {
	at             time.Time
	own            time.Duration // of CPU of this process
	active, passed float64       // of the machine, in the kernel's units of all cores together
}

// How often load looks, and from what a stall is noted.
const (
	stallTick  = 2 * time.Millisecond
	stallNoted = 3 * time.Millisecond
)

func newLoad() *load { return new(load) }

// run looks until ctx ends.
func (l *load) run(ctx context.Context) {
	tick := time.NewTicker(stallTick)
	defer tick.Stop()
	last, second := time.Now(), time.Time{}
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		now := time.Now()
		l.mu.Lock()
		if over := now.Sub(last) - stallTick; over >= stallNoted {
			l.stalls = append(l.stalls, stalled{now, over})
		}
		if now.Sub(second) >= time.Second {
			second = now
			active, passed := machine()
			l.seconds = append(l.seconds, busy{now, ownCPU(), active, passed})
		}
		l.mu.Unlock()
		last = now
	}
}

// stall returns the longest stall that ended between two times.
func (l *load) stall(from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var longest time.Duration
	for _, s := range l.stalls {
		if s.at.After(from) && s.at.Before(to.Add(stallTick)) {
			longest = max(longest, s.length)
		}
	}
	return longest
}

// cpu returns how many cores this process used between two times, and how busy
// the machine was, from 0 to 1; 0 where it is not known.
func (l *load) cpu(spans []span) (cores, machine float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var own, wall time.Duration
	var active, passed float64
	for i := 1; i < len(l.seconds); i++ {
		a, b := l.seconds[i-1], l.seconds[i]
		for _, s := range spans {
			if b.at.After(s.from) && a.at.Before(s.to) {
				own, wall = own+b.own-a.own, wall+b.at.Sub(a.at)
				active, passed = active+b.active-a.active, passed+b.passed-a.passed
				break
			}
		}
	}
	if wall > 0 {
		cores = own.Seconds() / wall.Seconds()
	}
	if passed > 0 {
		machine = active / passed
	}
	return cores, machine
}

// machine reads the first line of /proc/stat, where there is one (proc(5)):
// "cpu" and times spent as user, nice, system, idle, iowait, irq, softirq,
// steal, guest, guest nice, of which the last two are counted in the first.
func machine() (active, passed float64) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	for i, field := range bytes.Fields(line) {
		v, err := strconv.ParseFloat(string(field), 64)
		if err != nil || i > 8 {
			continue // "cpu"
		}
		passed += v
		if i != 4 && i != 5 {
			active += v
		}
	}
	return active, passed
}
