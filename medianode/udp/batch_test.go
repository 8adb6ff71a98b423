package udp_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"fanlight/medianode/udp"
)

// step is a datagram of a sequence that a test sends.
type step struct {
	size  int // bytes
	peer  int
	flush bool // after it
}

// exchange sends the sequence from a socket at addr, which has a batch for it,
// and checks that each peer receives what is for it, once and in order.
func exchange(t *testing.T, c *udp.Conn, steps []step, sinks []*sink) {
	t.Helper()
	b, dests := c.NewBatch(), make([]*udp.Dest, len(sinks))
	already := make([]int, len(sinks))
	for i, s := range sinks {
		dests[i] = dest(t, c, s.conn.AddrPort())
		already[i] = len(s.wait(t, 0))
	}
	want := make([][]string, len(sinks))
	before, bytes := c.Stats(), 0
	for i, st := range steps {
		// What is behind the datagram must not be sent.
		room := b.Room()
		if len(room) != udp.PacketRoom {
			t.Fatalf("room for %d bytes, want %d", len(room), udp.PacketRoom)
		}
		for j := range room {
			room[j] = byte(i + j)
		}
		binary.BigEndian.PutUint32(room, uint32(i))
		want[st.peer] = append(want[st.peer], string(room[:st.size]))
		to := *dests[st.peer] // of the path of another session: equal, not the same
		b.Commit(st.size, &to)
		to = udp.Dest{} // the batch does not keep it
		bytes += st.size
		if st.flush {
			b.Flush()
		}
		if i%100 == 99 { // so that no receiver's buffer is too small
			b.Flush()
			for p, s := range sinks {
				s.wait(t, already[p]+len(want[p]))
			}
		}
	}
	b.Flush()
	for p, s := range sinks {
		got := s.wait(t, already[p]+len(want[p]))[already[p]:]
		if len(got) != len(want[p]) {
			t.Fatalf("peer %d received %d datagrams, want %d", p, len(got), len(want[p]))
		}
		for i := range got {
			if got[i].data != want[p][i] {
				t.Fatalf("peer %d's datagram %d is not what was sent: %d bytes, want %d", p, i, len(got[i].data), len(want[p][i]))
			}
			if got[i].from.Port() != c.AddrPort().Port() {
				t.Fatalf("peer %d's datagram %d is from %v", p, i, got[i].from)
			}
		}
	}
	after := c.Stats()
	if n := after.PacketsOut - before.PacketsOut; n != uint64(len(steps)) || after.BytesOut-before.BytesOut != uint64(bytes) ||
		after.WriteErrors != before.WriteErrors || after.Dropped != before.Dropped {
		t.Errorf("stats went from %+v to %+v, want %d datagrams of %d bytes", before, after, len(steps), bytes)
	}
}

// sockets are the ways of a batch to its peers.
var sockets = []struct {
	name  string
	addr  string
	peers []string
	cfg   udp.Config
}{
	{"segmentation", "127.0.0.1:0", []string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0"}, udp.Config{}},
	{"no segmentation", "127.0.0.1:0", []string{"127.0.0.1:0", "127.0.0.1:0"}, udp.Config{NoSegmentation: true}},
	{"IPv6", "[::1]:0", []string{"[::1]:0", "[::1]:0"}, udp.Config{}},
	{"both families", "[::]:0", []string{"[::1]:0", "127.0.0.1:0"}, udp.Config{}},
}

// Any sequence of datagrams arrives.
func TestBatch(t *testing.T) {
	for _, tt := range sockets {
		t.Run(tt.name, func(t *testing.T) {
			c := listen(t, tt.addr, tt.cfg)
			sinks := make([]*sink, len(tt.peers))
			for i, addr := range tt.peers {
				sinks[i] = serve(t, listen(t, addr, udp.Config{}))
			}
			t.Log(c.Segmentation())
			for seed := range uint64(20) {
				r := rand.New(rand.NewPCG(seed, 1))
				sizes := []int{4, 100, 1199, 1200, 1201, udp.PacketRoom}
				steps := make([]step, 1+r.IntN(600))
				for i := range steps {
					steps[i] = step{sizes[r.IntN(len(sizes))], r.IntN(len(sinks)), r.IntN(50) == 0}
					if i > 0 && r.IntN(10) > 0 { // runs
						steps[i].size, steps[i].peer = steps[i-1].size, steps[i-1].peer
					}
					if r.IntN(20) == 0 {
						steps[i].size = r.IntN(udp.PacketRoom + 1)
					}
				}
				exchange(t, c, steps, sinks)
			}
		})
	}
}

// Three bytes of input are a datagram.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("abcabcabdabcabc"))
	f.Add(slices.Repeat([]byte{200, 4, 0}, 150))
	f.Add(slices.Concat(slices.Repeat([]byte{255, 5, 1}, 70), []byte{0, 0, 1, 0, 0, 1, 9, 9, 9}))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := listen(t, "127.0.0.1:0", udp.Config{})
		sinks := []*sink{serve(t, listen(t, "127.0.0.1:0", udp.Config{})), serve(t, listen(t, "127.0.0.1:0", udp.Config{}))}
		var steps []step
		for ; len(in) >= 3; in = in[3:] {
			size := int(binary.LittleEndian.Uint16(in)) % (udp.PacketRoom + 1)
			steps = append(steps, step{size, int(in[2]) % 2, in[2]&0xf0 == 0xf0})
		}
		exchange(t, c, steps, sinks)
	})
}

// A batch holds a bounded amount: it sends by itself.
func TestBatchSends(t *testing.T) {
	c, s := listen(t, "127.0.0.1:0", udp.Config{}), serve(t, listen(t, "127.0.0.1:0", udp.Config{}))
	b, to := c.NewBatch(), dest(t, c, s.conn.AddrPort())
	for range 192<<10/1000 + 65 {
		b.Room()
		b.Commit(1000, to)
	}
	s.wait(t, 65)
	b.Flush()
	s.wait(t, 192<<10/1000+65)
}

func TestCommitRefuses(t *testing.T) {
	c := listen(t, "127.0.0.1:0", udp.Config{})
	b, to := c.NewBatch(), dest(t, c, c.AddrPort())
	for _, n := range []int{-1, udp.PacketRoom + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Commit took %d bytes", n)
				}
			}()
			b.Commit(n, to)
		}()
	}
}

// Batches of one socket don't disturb each other.
func TestBatches(t *testing.T) {
	const senders, peers, rounds, each = 4, 3, 50, 20
	c := listen(t, "127.0.0.1:0", udp.Config{})
	var sinks [peers]*sink
	for i := range sinks {
		sinks[i] = serve(t, listen(t, "127.0.0.1:0", udp.Config{}))
	}
	var wg sync.WaitGroup
	for sender := range senders {
		wg.Go(func() {
			b := c.NewBatch()
			var to [peers]*udp.Dest
			for i, s := range sinks {
				to[i] = dest(t, c, s.conn.AddrPort())
			}
			for round := range rounds {
				for _, d := range to {
					for i := range each {
						room := b.Room()
						room[0] = byte(sender)
						binary.BigEndian.PutUint32(room[1:], uint32(round*each+i))
						b.Commit(100+sender, d)
					}
				}
				b.Flush()
			}
		})
	}
	wg.Wait()
	for _, s := range sinks {
		var next [senders]uint32
		for _, got := range s.wait(t, senders*rounds*each) {
			sender := got.data[0]
			if n := binary.BigEndian.Uint32([]byte(got.data[1:])); n != next[sender] || len(got.data) != 100+int(sender) {
				t.Fatalf("sender %d's datagram %d of %d bytes, want %d of %d", sender, n, len(got.data), next[sender], 100+sender)
			}
			next[sender]++
		}
	}
	if got := c.Stats(); got.PacketsOut != senders*peers*rounds*each || got.WriteErrors+got.Dropped != 0 {
		t.Errorf("stats are %+v", got)
	}
}

// An address that can't be reached costs the others nothing.
func TestBatchRefused(t *testing.T) {
	c, s := listen(t, "127.0.0.1:0", udp.Config{}), serve(t, listen(t, "127.0.0.1:0", udp.Config{}))
	good, bad := dest(t, c, s.conn.AddrPort()), dest(t, c, netip.MustParseAddrPort("192.0.2.1:9")) // not from a loopback address
	b := c.NewBatch()
	for range 5 {
		for range 3 {
			commit(b, "good", good)
		}
		commit(b, "bad", bad)
		commit(b, "good", good)
		commit(b, "bad", bad)
		commit(b, "bad", bad)
	}
	b.Flush()
	s.wait(t, 20)
	if got := c.Stats(); got.PacketsOut != 20 || got.BytesOut != 80 || got.WriteErrors != 15 || got.Dropped != 0 {
		t.Errorf("stats are %+v, want 20 datagrams of 80 bytes and 15 refused", got)
	}
	if before := listen(t, "127.0.0.1:0", udp.Config{}).Segmentation(); c.Segmentation() != before {
		t.Errorf("datagrams leave by %s, want %s", c.Segmentation(), before)
	}
}
