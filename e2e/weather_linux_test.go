//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
)

// weather is what a network does to the packets between a node's media port and
// this host, in both directions: it loses some, and delays all. Packets stay in
// order, as they do where it is a queue that delays them. The kernel hands over
// each of them (NFQUEUE, in the test's own network namespace), for it has no tc
// netem everywhere.
type weather struct {
	loss   atomic.Uint64 // of 10,000 packets
	delay  atomic.Int64  // nanoseconds, of each packet
	jitter atomic.Int64  // nanoseconds more, at most

	passed, lost [2]atomic.Int64 // packets from the node, and to it
}

// The directions, and the numbers of their queues.
const (
	fromNode = iota
	toNode
)

// most is how many packets may be under way in one direction.
const most = 4096

// newWeather has all packets between a media address and this host go through
// the weather, which is fine at first, until the end of the test.
func newWeather(t *testing.T, node netip.AddrPort) *weather {
	t.Helper()
	w := new(weather)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	var queues []*nfqueue.Nfqueue
	t.Cleanup(func() {
		cancel()
		work.Wait()
		for _, q := range queues {
			if err := q.Close(); err != nil {
				t.Errorf("close a queue: %v", err)
			}
		}
	})
	for direction := range 2 {
		q, err := nfqueue.Open(&nfqueue.Config{
			NfQueue: uint16(direction), MaxPacketLen: 128, MaxQueueLen: most, Copymode: nfqueue.NfQnlCopyMeta, WriteTimeout: time.Second,
		})
		if err != nil {
			t.Fatalf("open a queue: %v", err)
		}
		queues = append(queues, q)
		if err := q.SetOption(netlink.NoENOBUFS, true); err != nil {
			t.Fatalf("open a queue: %v", err)
		}
		if err := q.Con.SetReadBuffer(4 << 20); err != nil {
			t.Fatalf("open a queue: %v", err)
		}
		held := make(chan packet, most)
		work.Go(func() { w.release(ctx, q, direction, held) })
		err = q.RegisterWithErrorFunc(ctx, w.arrive(direction, held), func(error) int {
			if ctx.Err() != nil {
				return 1
			}
			return 0
		})
		if err != nil {
			t.Fatalf("open a queue: %v", err)
		}
	}
	for _, rule := range []string{
		fmt.Sprintf("INPUT -p udp -s %v --sport %d -j NFQUEUE --queue-num %d", node.Addr(), node.Port(), fromNode),
		fmt.Sprintf("OUTPUT -p udp -d %v --dport %d -j NFQUEUE --queue-num %d", node.Addr(), node.Port(), toNode),
	} {
		run, done := context.WithTimeout(t.Context(), startPatience)
		out, err := exec.CommandContext(run, "iptables", append([]string{"-w", "-I"}, strings.Fields(rule)...)...).CombinedOutput()
		done()
		if err != nil {
			t.Fatalf("iptables %s: %v\n%s", rule, err, out)
		}
	}
	return w
}

// packet is one that is under way.
type packet struct {
	id      uint32
	verdict int
	due     time.Time
}

// arrive decides about each packet. It is called by the queue's goroutine.
func (w *weather) arrive(direction int, held chan<- packet) nfqueue.HookFunc {
	var last time.Time
	return func(a nfqueue.Attribute) int {
		if a.PacketID == nil {
			return 0
		}
		p := packet{id: *a.PacketID, verdict: nfqueue.NfAccept, due: time.Now()}
		if rand.Uint64N(10_000) < w.loss.Load() {
			p.verdict = nfqueue.NfDrop
			w.lost[direction].Add(1)
		} else {
			p.due = p.due.Add(time.Duration(w.delay.Load() + rand.Int64N(w.jitter.Load()+1)))
			w.passed[direction].Add(1)
		}
		if p.due.Before(last) {
			p.due = last
		}
		last = p.due
		held <- p // there is room for all that the queue lets in
		return 0
	}
}

// release lets packets go when they are due.
func (w *weather) release(ctx context.Context, q *nfqueue.Nfqueue, direction int, held <-chan packet) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var p packet
		select {
		case p = <-held:
		case <-ctx.Done():
			return
		}
		if wait := time.Until(p.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		if err := q.SetVerdict(p.id, p.verdict); err != nil && ctx.Err() == nil {
			w.lost[direction].Add(1) // it stays in the kernel until the queue is closed
		}
	}
}

// set changes the weather.
func (w *weather) set(percent float64, delay, jitter time.Duration) {
	w.loss.Store(uint64(percent * 100))
	w.delay.Store(int64(delay))
	w.jitter.Store(int64(jitter))
}
