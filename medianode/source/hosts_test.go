package source

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
)

var host1, host2 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// A burst passes at once, the rest in the order in which they asked, one after
// the other; another host has its own bucket.
func TestHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHosts(HostLimit{})
		start := time.Now()
		var mu sync.Mutex
		var order []int
		turns := make(map[int]time.Duration)
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if !h.wait(t.Context(), host1, nil) {
					t.Error("the turn did not come")
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
				turns[i] = time.Since(start)
			})
			synctest.Wait() // it has asked
		}
		for range 20 {
			if !h.wait(t.Context(), host2, func(time.Time) { t.Error("another host's sources wait") }) {
				t.Error("the turn did not come")
			}
		}
		wg.Wait()
		if !slices.IsSorted(order) {
			t.Errorf("out of turn: %v", order)
		}
		for i, at := range turns {
			want := max(0, time.Duration(i-19)*100*time.Millisecond)
			if at.Round(time.Millisecond) != want {
				t.Errorf("attempt %d after %v, want %v", i, at, want)
			}
		}
	})
}

// Who gives up loses its turn and is no burden on the others for good; hosts that
// are idle are forgotten.
func TestHostsGiveUpAndForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHosts(HostLimit{PerSecond: 1, Burst: 1})
		if !h.wait(t.Context(), host1, nil) {
			t.Fatal("the first attempt waits")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		var turn time.Time
		if h.wait(ctx, host1, func(at time.Time) { turn = at }) {
			t.Error("a turn came after its context's end")
		}
		if want := time.Now().Add(990 * time.Millisecond); turn.Sub(want).Abs() > time.Millisecond {
			t.Errorf("the turn was to come at %v, want %v", turn, want)
		}
		if d, _ := h.reserve(host1); d > time.Second {
			t.Errorf("the next waits %v", d)
		}
		for i := range 1000 {
			h.reserve(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		}
		if n := h.len(); n != 1001 {
			t.Errorf("%d hosts are remembered, want 1001", n)
		}
		time.Sleep(time.Minute)
		h.reserve(host2)
		if n := h.len(); n != 1 {
			t.Errorf("%d hosts are remembered a minute later, want 1", n)
		}
		if d, _ := NewHosts(HostLimit{PerSecond: -1}).reserve(host1); d != 0 {
			t.Errorf("without a limit %v", d)
		}
	})
}

// A server whose cameras' sources all begin at once is connected to no faster than
// the limit says; the sources that wait say so, and all come live.
func TestStorm(t *testing.T) {
	const cameras, burst, perSecond = 12, 4, 4
	var names []string
	for i := range cameras {
		names = append(names, fmt.Sprintf("cam%d", i))
	}
	sim, _ := runSim(t, simcam.Config{Cameras: names})
	hosts := NewHosts(HostLimit{PerSecond: perSecond, Burst: burst})
	start := time.Now()
	var rigs []*rig
	for _, name := range names {
		rigs = append(rigs, pull(t, Config{Profile: fleet.Profile{URL: sim.URL(name), Transport: fleet.TransportTCP}, Hosts: hosts}))
	}
	var waits int
	for _, r := range rigs {
		_, n := r.waitLive(t, 0)
		r.mu.Lock()
		for _, s := range r.statuses[:n] {
			if s.State == fleet.CameraConnecting && !s.RetryTime.IsZero() && s.Message != "" {
				waits++
				break
			}
		}
		r.mu.Unlock()
	}
	if took, least := time.Since(start), time.Duration(cameras-burst)*time.Second/perSecond; took < least {
		t.Errorf("all are live after %v; with the limit that takes %v at least", took, least)
	}
	// Those whose turn comes within a second don't say so.
	if waits < cameras-burst-perSecond {
		t.Errorf("%d sources say that they wait, want %d at least", waits, cameras-burst-perSecond)
	}
}
