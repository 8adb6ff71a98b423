//go:build linux && !plainudp

package udp_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fanlight/medianode/udp"
)

const segmented = "sendmmsg with UDP_SEGMENT"

// needSegmentation skips a test on a kernel before 4.18.
func needSegmentation(t *testing.T, c *udp.Conn) {
	t.Helper()
	if c.Segmentation() != segmented {
		t.Skip("datagrams leave by " + c.Segmentation())
	}
}

// Which datagrams are one message.
func TestSegments(t *testing.T) {
	tests := []struct {
		name     string
		sizes    []int
		messages int
	}{
		{"one", []int{1200}, 1},
		{"equal", slices.Repeat([]int{1200}, 10), 1},
		{"a shorter one closes", []int{1200, 1200, 7, 1200, 1200}, 2},
		{"a shorter one closes for its like", []int{1200, 7, 7, 7}, 2},
		{"a longer one is another", []int{100, 1200, 1200}, 2},
		{"64 segments", slices.Repeat([]int{100}, 64), 1},
		{"65 segments", slices.Repeat([]int{100}, 65), 2},
		{"128 segments", slices.Repeat([]int{100}, 128), 2},
		{"65,427 bytes", slices.Repeat([]int{1113}, 58), 1},
		{"more than 65,427 bytes", slices.Repeat([]int{1129}, 58), 2},
		{"the longest", slices.Repeat([]int{udp.PacketRoom}, 41), 2},
		{"empty", []int{0, 0, 100, 100, 0, 100}, 5},
	}
	for _, tt := range tests {
		for _, s := range sockets {
			t.Run(tt.name+"/"+s.name, func(t *testing.T) {
				c, s := listen(t, s.addr, s.cfg), serve(t, listen(t, s.peers[0], udp.Config{}))
				want := tt.messages
				if c.Segmentation() != segmented {
					want = len(tt.sizes)
				}
				b, to := c.NewBatch(), dest(t, c, s.conn.AddrPort())
				for i, size := range tt.sizes {
					b.Commit(len(append(b.Room()[:0], strings.Repeat(string(rune('a'+i%26)), size)...)), to)
				}
				b.Flush()
				got := s.wait(t, len(tt.sizes))
				for i, size := range tt.sizes {
					if got[i].data != strings.Repeat(string(rune('a'+i%26)), size) {
						t.Errorf("datagram %d has %d bytes, want %d", i, len(got[i].data), size)
					}
				}
				if stats := c.Stats(); stats.Messages != uint64(want) || stats.Batches < 1 || stats.Batches > stats.Messages {
					t.Errorf("stats are %+v, want %d messages", stats, want)
				}
			})
		}
	}
}

func TestSegmentation(t *testing.T) {
	if got, want := listen(t, "127.0.0.1:0", udp.Config{NoSegmentation: true}).Segmentation(), "sendmmsg (switched off)"; got != want {
		t.Errorf("datagrams leave by %s, want %s", got, want)
	}
}

// namespace moves the rest of the test into a network of its own. The sockets
// that the test's goroutine opens are in it.
func namespace(t *testing.T, commands ...string) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("this needs root, for a network namespace")
		}
		t.Skipf("no network namespaces here: %v", err)
	}
	for _, command := range append([]string{"ip link set lo up"}, commands...) {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("this machine can't %s: %v: %s", command, err, out)
		}
	}
}

// A network that takes no segments of the size gets single datagrams, and soon
// is not asked any more.
func TestShortMTU(t *testing.T) {
	namespace(t, "ip link set lo mtu 1000")
	c, s := listen(t, "127.0.0.1:0", udp.Config{}), serve(t, listen(t, "127.0.0.1:0", udp.Config{}))
	needSegmentation(t, c)
	b, to := c.NewBatch(), dest(t, c, s.conn.AddrPort())
	sent := 0
	for round := range 5 {
		if got, want := c.Segmentation() == segmented, round < 3; got != want {
			t.Errorf("after %d refusals datagrams leave by %s", round, c.Segmentation())
		}
		for _, size := range []int{1200, 1200, 1200, 500} {
			room := b.Room()
			clear(room[copy(room, fmt.Sprint(sent)):])
			b.Commit(size, to)
			sent++
		}
		b.Flush()
	}
	t.Log(c.Segmentation())
	for i, got := range s.wait(t, sent) {
		if want := []int{1200, 1200, 1200, 500}[i%4]; len(got.data) != want || strings.TrimRight(got.data, "\x00") != fmt.Sprint(i) {
			t.Errorf("datagram %d has %d bytes, want %d", i, len(got.data), want)
		}
	}
	if got := c.Stats(); got.PacketsOut != uint64(sent) || got.BytesOut != 5*4100 || got.WriteErrors+got.Dropped != 0 || got.Messages != uint64(sent) {
		t.Errorf("stats are %+v, want %d datagrams, each by itself", got, sent)
	}
}

// One peer's path that takes no segments of the size does not spoil it for the
// others.
func TestOneShortPath(t *testing.T) {
	namespace(t, "ip route replace local 127.0.0.2 dev lo table local mtu lock 800")
	c := listen(t, "127.0.0.1:0", udp.Config{})
	needSegmentation(t, c)
	long, short := serve(t, listen(t, "127.0.0.1:0", udp.Config{})), serve(t, listen(t, "127.0.0.2:0", udp.Config{}))
	b, toLong, toShort := c.NewBatch(), dest(t, c, long.conn.AddrPort()), dest(t, c, short.conn.AddrPort())
	for range 10 {
		for _, to := range []*udp.Dest{toShort, toLong, toShort} {
			for range 5 {
				b.Room()
				b.Commit(1200, to)
			}
		}
		b.Flush()
	}
	long.wait(t, 50)
	short.wait(t, 100)
	if c.Segmentation() != segmented {
		t.Errorf("datagrams leave by %s", c.Segmentation())
	}
	if got := c.Stats(); got.PacketsOut != 150 || got.Messages != 110 {
		t.Errorf("stats are %+v, want 150 datagrams in 110 messages", got)
	}
}

// A full socket costs a burst 2 ms and its datagrams, and nothing more. The
// packets pile up in front of an address that nobody answers for.
func TestNoRoom(t *testing.T) {
	for _, cfg := range []udp.Config{{WriteBuffer: 1}, {WriteBuffer: 1, NoSegmentation: true}} {
		t.Run(fmt.Sprint("no segmentation ", cfg.NoSegmentation), func(t *testing.T) {
			namespace(t, "ip link add there type veth peer name here", "ip address add 10.9.9.1/24 dev here",
				"ip link set here up", "ip link set there up", "ip ntable change name arp_cache dev here retrans 100")
			c := listen(t, "0.0.0.0:0", cfg)
			s := serve(t, listen(t, "127.0.0.1:0", udp.Config{}))
			b, nobody, somebody := c.NewBatch(), dest(t, c, netip.MustParseAddrPort("10.9.9.2:9")), dest(t, c, s.conn.AddrPort())
			start := time.Now()
			for i := range 400 {
				b.Room()
				b.Commit(1000+i%2, nobody) // a message each, or two
			}
			b.Flush()
			took := time.Since(start)
			got := c.Stats()
			t.Logf("%v, %+v", took, got)
			if got.Dropped == 0 || got.PacketsOut == 0 || got.PacketsOut+got.Dropped != 400 || got.WriteErrors != 0 {
				t.Errorf("stats are %+v, want 400 datagrams sent or dropped", got)
			}
			if took < time.Millisecond || took > 500*time.Millisecond {
				t.Errorf("a burst took %v, want about 2 ms", took)
			}
			if _, err := c.WriteToAddrPort([]byte("x"), netip.MustParseAddrPort("10.9.9.2:9")); err == nil {
				t.Error("a datagram was sent where there is no room")
			}
			if after := c.Stats(); after.Dropped != got.Dropped+1 || after.WriteErrors != 0 {
				t.Errorf("stats are %+v, want one more dropped than in %+v", after, got)
			}

			// The system gives up on the address soon, and there is room.
			for deadline := time.Now().Add(20 * time.Second); c.Stats().PacketsOut == got.PacketsOut; time.Sleep(50 * time.Millisecond) {
				commit(b, "again", somebody)
				b.Flush()
				if time.Now().After(deadline) {
					t.Fatalf("no room again: %+v", c.Stats())
				}
			}
			s.wait(t, 1)
		})
	}
}
