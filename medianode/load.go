package medianode

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"fanlight/internal/fleet"
)

const (
	// measureEvery is how often what the node uses is measured, and smoothing the
	// time over which it is averaged: what is shorter, a collection of garbage or
	// a handful of handshakes, refuses nobody.
	measureEvery = time.Second
	smoothing    = 3 * time.Second
	// relief is by how much the processors must be less busy than the limit, as a
	// share of all, before a node that has reached it takes sessions again.
	relief = 0.05
	// assumedBitrate is what a session counts with whose camera does not send yet,
	// in bits per second: placement's assumption, a common setting for 1080p H264.
	assumedBitrate = 4_000_000
	// assumedCost is the processor time that moving a bit is taken to cost while
	// too little is moved to measure it, in seconds; see meter.cost.
	assumedCost = 2e-9
	// costRange is how many times more or less than assumedCost a measured cost
	// may be.
	costRange = 4
	// measurable is how much must be moved for its cost to be measured, in bits
	// per second: below it the processors are busy with something else.
	measurable = 10_000_000
)

// usage is what the node has used. Its times are counted from any moment, and
// only ever grow.
type usage struct {
	at      time.Time     // of the measurement
	cpu     time.Duration // user and system time of the process; always 0: not known
	cores   float64       // that the process may use; more than 0
	udp     uint64        // bytes that the UDP socket has sent
	media   uint64        // bytes of media that sessions have sent, over UDP and TCP
	ingress float64       // bits per second from cameras, now
}

// meter knows how loaded the node is, and whether there is room for a session
// more. See DefaultCPU for what is the process's alone.
//
// What is measured comes late: a session needs some tenths of a second to connect,
// and is seen in the averages seconds later. Until then its place is reserved, in
// bits per second. A reservation fades just as the averages take in what it was
// made for, so that the sum of both is right all the while.
type meter struct {
	// Static after newMeter.
	maxCPU    float64 // a share of all processors; 0: no limit
	maxEgress float64 // bits per second; 0: no limit

	mu         sync.Mutex // guards the rest; taken after the node's
	last       usage      // zero: there is none
	cpu        float64    // a share of all processors
	ingress    float64    // bits per second
	egress     float64    // bits per second
	fresh      float64    // reserved since last
	reserved   float64    // reserved before, and not in egress yet
	overloaded bool       // cpu has reached maxCPU, and not fallen by relief since
}

// newMeter returns the meter of a node that is idle.
func newMeter(c Capacity) *meter {
	m := &meter{maxEgress: float64(c.EgressBPS)}
	if c.CPU < 1 {
		m.maxCPU = c.CPU
	}
	return m
}

// measure takes a measurement, and tells whether the node has become overloaded
// with it, or is not any more.
func (m *meter) measure(u usage) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.last
	m.last = u
	passed := u.at.Sub(before.at).Seconds()
	if before.at.IsZero() || passed <= 0 {
		return false
	}
	weight := 1 - math.Exp(-passed/smoothing.Seconds())
	average := func(v *float64, now float64) { *v += weight * (now - *v) }
	average(&m.cpu, min(max((u.cpu-before.cpu).Seconds()/passed/u.cores, 0), 1))
	average(&m.ingress, u.ingress)
	since := func(now, before uint64) float64 { return float64(max(now, before)-before) * 8 / passed }
	average(&m.egress, max(since(u.udp, before.udp), since(u.media, before.media)))
	m.reserved = m.reserved*(1-weight) + m.fresh
	m.fresh = 0
	was := m.overloaded
	switch {
	case m.maxCPU <= 0:
	case m.cpu >= m.maxCPU:
		m.overloaded = true
	case m.cpu < m.enough():
		m.overloaded = false
	}
	return m.overloaded != was
}

// enough is below what an overloaded node takes sessions again. The caller holds
// m.mu.
func (m *meter) enough() float64 { return max(m.maxCPU-relief, m.maxCPU/2) }

// cost returns the processor time that moving a bit takes, in seconds: all that
// the process uses, over all that it takes in and sends. What it does besides is
// in it too, so it is an upper bound for a node with few viewers, and close for
// one that is busy with them, when it matters. The caller holds m.mu.
func (m *meter) cost() float64 {
	moved := m.ingress + m.egress
	if moved < measurable {
		return assumedCost
	}
	return min(max(m.cpu*m.last.cores/moved, assumedCost/costRange), assumedCost*costRange)
}

// admit reserves what a session will send, in bits per second. The error is
// fleet.NodeFull; its text is for operators and viewers.
func (m *meter) admit(bps float64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	due := m.reserved + m.fresh + bps
	if m.maxCPU > 0 && m.last.cores > 0 {
		cpu := m.cpu + due*m.cost()/m.last.cores
		switch {
		case m.overloaded && m.cpu >= m.maxCPU:
			return fmt.Errorf("%w: its processors are %s busy, its limit is %s", fleet.NodeFull, percent(m.cpu), percent(m.maxCPU))
		case m.overloaded:
			return fmt.Errorf("%w: its processors are %s busy after they had reached its limit, %s; below %s it goes on", fleet.NodeFull, percent(m.cpu), percent(m.maxCPU), percent(m.enough()))
		case cpu > m.maxCPU:
			return fmt.Errorf("%w: its processors would be %s busy with one more, its limit is %s", fleet.NodeFull, percent(math.Ceil(100*cpu)/100), percent(m.maxCPU))
		}
	}
	if m.maxEgress > 0 && m.egress+due > m.maxEgress {
		if m.egress > m.maxEgress {
			return fmt.Errorf("%w: it sends %s, its limit is %s", fleet.NodeFull, mbits(m.egress), mbits(m.maxEgress))
		}
		return fmt.Errorf("%w: it would send %s with one more, its limit is %s", fleet.NodeFull, mbits(m.egress+due), mbits(m.maxEgress))
	}
	m.fresh += bps
	return nil
}

// giveBack ends the reservation of a session that there is not. It must come
// soon: later there is less to give back.
func (m *meter) giveBack(bps float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := min(bps, m.fresh)
	m.fresh -= fresh
	m.reserved = max(m.reserved-(bps-fresh), 0)
}

// load returns what is measured.
func (m *meter) load() nodeLoad {
	m.mu.Lock()
	defer m.mu.Unlock()
	return nodeLoad{cpu: m.cpu, ingress: m.ingress, egress: m.egress, overloaded: m.overloaded}
}

// measure measures what the node uses until ctx ends.
func (n *Node) measure(ctx context.Context) {
	ticker := time.NewTicker(n.cfg.measureEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if !n.meter.measure(n.cfg.usage()) {
			continue
		}
		if l := n.meter.load(); l.overloaded {
			n.log.Warn("node overloaded: it refuses sessions", "cpu", percent(l.cpu), "limit", percent(n.meter.maxCPU))
		} else {
			n.log.Info("node takes sessions again", "cpu", percent(l.cpu), "limit", percent(n.meter.maxCPU))
		}
	}
}

// usage returns what the node uses. The socket does not count what viewers are
// sent over TCP, and the sessions count no more than the media: what has grown more
// counts.
func (n *Node) usage() usage {
	n.mu.Lock()
	engine := n.engine
	n.mu.Unlock()
	u := usage{at: time.Now(), cpu: processTime(), cores: processors()}
	if engine != nil {
		u.udp, u.media = engine.SocketStats().BytesOut, engine.Stats().Total.Bytes
	}
	for _, c := range n.list() {
		u.ingress += float64(c.stats().BitrateBPS)
	}
	return u
}

// place is the room that a session was given.
type place struct {
	bps    float64 // reserved
	orphan bool    // that of an orphan, whose viewer is back
}

// place finds room for a session of a camera. The viewer of an orphan is expected
// back, and adds nothing to what the node sends: it is never refused for load.
func (n *Node) place(c *camera) (place, error) {
	if c.replaces() {
		return place{orphan: true}, nil
	}
	bps := float64(c.stats().BitrateBPS)
	if bps <= 0 {
		bps = assumedBitrate
	}
	return place{bps: bps}, n.meter.admit(bps)
}

// vacate gives back the place of a session that could not be opened.
func (n *Node) vacate(c *camera, p place) {
	if p.orphan {
		c.replacesNot()
		return
	}
	n.meter.giveBack(p.bps)
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

func mbits(bps float64) string { return fmt.Sprintf("%.1f Mbit/s", bps/1e6) }
