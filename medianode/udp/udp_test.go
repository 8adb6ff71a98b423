package udp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fanlight/medianode/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t testing.TB, addr string, cfg udp.Config) *udp.Conn {
	t.Helper()
	c, err := udp.Listen(netip.MustParseAddrPort(addr), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// datagram is one that was received.
type datagram struct {
	payload string
	from    netip.AddrPort
}

// serve reads from c until the test ends.
func serve(t testing.TB, c *udp.Conn) <-chan datagram {
	t.Helper()
	out := make(chan datagram, 100_000)
	done := make(chan error, 1)
	go func() {
		done <- c.Serve(func(b []byte, from netip.AddrPort) { out <- datagram{string(b), from} })
	}()
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	return out
}

func receive(t testing.TB, in <-chan datagram) datagram {
	t.Helper()
	select {
	case d := <-in:
		return d
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		return datagram{}
	}
}

func dest(t testing.TB, c *udp.Conn, to netip.AddrPort) *udp.Dest {
	t.Helper()
	d, err := c.Dest(to)
	if err != nil {
		t.Fatal(err)
	}
	return &d
}

func TestListen(t *testing.T) {
	tests := []struct {
		addr    string
		want    string // the address it says it is bound to
		reaches []string
	}{
		{"127.0.0.1:0", "127.0.0.1", []string{"127.0.0.1"}},
		{"0.0.0.0:0", "0.0.0.0", []string{"127.0.0.1"}},
		{"[::1]:0", "::1", []string{"::1"}},
		{"[::]:0", "::", []string{"127.0.0.1", "::1"}},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			if netip.MustParseAddrPort(tt.addr).Addr().Is6() && !haveIPv6() {
				t.Skip("this machine has no IPv6")
			}
			c := listen(t, tt.addr, udp.Config{})
			if got := c.AddrPort(); got.Addr().String() != tt.want || got.Port() == 0 {
				t.Errorf("AddrPort() = %v, want %s and a port", got, tt.want)
			}
			in := serve(t, c)
			for _, host := range tt.reaches {
				echo(t, c, in, host)
			}
		})
	}
}

func haveIPv6() bool {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// echo sends a datagram from host to c, and two back to where it came from: one
// at once, and one by a batch.
func echo(t *testing.T, c *udp.Conn, in <-chan datagram, host string) {
	t.Helper()
	peer, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(host), c.AddrPort().Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	if _, err := peer.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := receive(t, in)
	if got.payload != "ping" || got.from.Addr().String() != host {
		t.Fatalf("read %q from %v", got.payload, got.from)
	}
	if _, err := c.WriteToAddrPort([]byte("pong"), got.from); err != nil {
		t.Fatal(err)
	}
	b := c.NewBatch()
	b.Commit(copy(b.Room(), "pang"), dest(t, c, got.from))
	b.Flush()
	buf := make([]byte, 100)
	_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	for _, want := range []string{"pong", "pang"} {
		if n, err := peer.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("peer read %q, %v; want %q", buf[:n], err, want)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	if _, err := udp.Listen(netip.AddrPort{}, udp.Config{}); err == nil {
		t.Error("no address was accepted")
	}
	c := listen(t, "127.0.0.1:0", udp.Config{})
	if second, err := udp.Listen(c.AddrPort(), udp.Config{}); err == nil {
		_ = second.Close()
		t.Errorf("%v was opened twice", c.AddrPort())
	}
}

func TestDestRefuses(t *testing.T) {
	c := listen(t, "127.0.0.1:0", udp.Config{})
	for _, to := range []netip.AddrPort{{}, netip.MustParseAddrPort("[2001:db8::1]:5"), netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[fe80::1%lo]:5")} {
		if _, err := c.Dest(to); err == nil {
			t.Errorf("%v was accepted", to)
		}
	}
	if _, err := c.Dest(netip.MustParseAddrPort("[::ffff:127.0.0.1]:5")); err != nil {
		t.Errorf("a mapped address: %v", err)
	}
}

// Datagrams arrive each by itself, as they were committed and in order, whatever
// their sizes and peers.
func TestBatch(t *testing.T) {
	for _, cfg := range []udp.Config{{}, {NoSegmentation: true}} {
		t.Run(fmt.Sprintf("NoSegmentation=%v", cfg.NoSegmentation), func(t *testing.T) {
			a := listen(t, "127.0.0.1:0", cfg)
			t.Log(a.Segmentation())
			var ins []<-chan datagram
			var dests []*udp.Dest
			for range 3 {
				peer := listen(t, "127.0.0.1:0", udp.Config{})
				ins = append(ins, serve(t, peer))
				dests = append(dests, dest(t, a, peer.AddrPort()))
			}
			r := rand.New(rand.NewPCG(1, 2))
			want := make([][]string, len(ins))
			var total, bytes uint64
			b := a.NewBatch()
			peer, size := 0, 1000
			for i := range 5000 {
				if r.IntN(8) == 0 {
					peer = r.IntN(len(dests))
				}
				if r.IntN(12) == 0 {
					size = []int{1, 20, 500, 1000, 1228, 1600}[r.IntN(6)]
				}
				n := size
				if r.IntN(15) == 0 {
					n = 1 + r.IntN(1600)
				}
				payload := make([]byte, n)
				for j := range payload {
					payload[j] = byte(i + j)
				}
				b.Commit(copy(b.Room(), payload), dests[peer])
				want[peer] = append(want[peer], string(payload))
				total++
				bytes += uint64(n)
				if r.IntN(30) == 0 {
					b.Flush()
					time.Sleep(100 * time.Microsecond) // for the receivers' buffers
				}
			}
			b.Flush()
			for i, in := range ins {
				for j, w := range want[i] {
					if got := receive(t, in); got.payload != w || got.from != a.AddrPort() {
						t.Fatalf("peer %d, datagram %d: %d bytes from %v, want %d", i, j, len(got.payload), got.from, len(w))
					}
				}
			}
			s := a.Stats()
			if s.PacketsOut != total || s.BytesOut != bytes || s.WriteErrors+s.Dropped > 0 || s.Batches == 0 || s.Messages < s.Batches {
				t.Errorf("stats are %+v, want %d packets of %d bytes", s, total, bytes)
			}
			if cfg.NoSegmentation && s.Messages != total {
				t.Errorf("%d messages for %d datagrams without segmentation", s.Messages, total)
			}
			if runtime.GOOS == "linux" && !cfg.NoSegmentation && s.Messages > total/2 {
				t.Errorf("%d messages for %d datagrams: they are hardly cut", s.Messages, total)
			}
		})
	}
}

// A message has no more datagrams and bytes than the kernel takes.
func TestBatchLimits(t *testing.T) {
	for _, size := range []int{1, 100, 1022, 1023, 1228, 1600} {
		a, peer := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
		in, to, b := serve(t, peer), dest(t, a, peer.AddrPort()), a.NewBatch()
		const n = 200
		for i := range n {
			room := b.Room()[:size]
			room[0] = byte(i)
			b.Commit(size, to)
		}
		b.Flush()
		for i := range n {
			if got := receive(t, in); len(got.payload) != size || got.payload[0] != byte(i) {
				t.Fatalf("size %d: datagram %d has %d bytes and is number %d", size, i, len(got.payload), got.payload[0])
			}
		}
		if s := a.Stats(); s.WriteErrors > 0 || s.PacketsOut != n {
			t.Errorf("size %d: %+v", size, s)
		}
	}
}

// What is no datagram is left alone.
func TestCommitRefuses(t *testing.T) {
	a, peer := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	b, to := a.NewBatch(), dest(t, a, peer.AddrPort())
	for _, n := range []int{-1, 0, udp.PacketRoom + 1} {
		b.Room()
		b.Commit(n, to)
	}
	b.Flush()
	if s := a.Stats(); s != (udp.Stats{}) {
		t.Errorf("stats are %+v", s)
	}
}

// Each goroutine has a batch of its own, and none disturbs another's.
func TestBatchesTogether(t *testing.T) {
	const senders, each = 4, 2000
	a, peer := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	in, to := serve(t, peer), dest(t, a, peer.AddrPort())
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			b := a.NewBatch()
			for i := range each {
				room := b.Room()[:1000]
				clear(room)
				binary.BigEndian.PutUint32(room, uint32(s))
				binary.BigEndian.PutUint32(room[4:], uint32(i))
				b.Commit(len(room), to)
				if i%20 == 19 {
					b.Flush()
					time.Sleep(200 * time.Microsecond)
				}
			}
		})
	}
	var next [senders]uint32
	for range senders * each {
		p := []byte(receive(t, in).payload)
		s, i := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])
		if i != next[s] || !bytes.Equal(p[8:], make([]byte, 992)) {
			t.Fatalf("sender %d: datagram %d, want %d", s, i, next[s])
		}
		next[s]++
	}
	wg.Wait()
}

// A peer that is gone costs the others nothing: the system reports it with a
// datagram that may be another's.
func TestUnreachable(t *testing.T) {
	a, peer, gone := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	in, to, nowhere := serve(t, peer), dest(t, a, peer.AddrPort()), dest(t, a, gone.AddrPort())
	_ = gone.Close()
	b := a.NewBatch()
	for i := range 100 {
		b.Commit(copy(b.Room(), "x"), nowhere)
		b.Commit(copy(b.Room(), fmt.Sprint(i)), to)
		b.Flush()
	}
	for i := range 100 {
		if got := receive(t, in).payload; got != fmt.Sprint(i) {
			t.Fatalf("datagram %d is %q", i, got)
		}
	}
}

// A device that cannot take messages of that size gets the datagrams one by one,
// and after three the socket does without.
func TestSegmentationRefused(t *testing.T) {
	if os.Getenv("FANLIGHT_UDP_NAMESPACE") == "" {
		if runtime.GOOS != "linux" || os.Geteuid() != 0 {
			t.Skip("needs Linux and root, for a network of its own")
		}
		const script = "ip link set lo up mtu 1000 && exec \"$0\" -test.run '^TestSegmentationRefused$' -test.v"
		cmd := exec.Command("unshare", "-n", "sh", "-c", script, os.Args[0])
		cmd.Env = append(os.Environ(), "FANLIGHT_UDP_NAMESPACE=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	a, peer := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	in, to, b := serve(t, peer), dest(t, a, peer.AddrPort()), a.NewBatch()
	for round := range 5 {
		for i := range 4 { // fragmented by IP, which segmentation cannot be
			room := b.Room()[:1200]
			room[0], room[1] = byte(round), byte(i)
			b.Commit(len(room), to)
		}
		b.Flush()
	}
	for i := range 20 {
		if got := receive(t, in).payload; len(got) != 1200 || got[0] != byte(i/4) || got[1] != byte(i%4) {
			t.Fatalf("datagram %d: %d bytes, round %d, number %d", i, len(got), got[0], got[1])
		}
	}
	if s := a.Stats(); s.Messages != 20 || s.PacketsOut != 20 || s.WriteErrors > 0 {
		t.Errorf("stats are %+v, want each datagram in a message of its own", s)
	}
}

// With no room in the socket's buffer, what does not fit is dropped and counted,
// soon.
func TestNoRoom(t *testing.T) {
	a, peer := listen(t, "127.0.0.1:0", udp.Config{WriteBuffer: 4096}), listen(t, "127.0.0.1:0", udp.Config{})
	to, b := dest(t, a, peer.AddrPort()), a.NewBatch()
	const n = 20_000
	for range n {
		b.Room()
		b.Commit(1000, to)
	}
	b.Flush()
	if s := a.Stats(); s.PacketsOut+s.WriteErrors+s.Dropped != n {
		t.Errorf("%+v does not add up to %d", s, n)
	}
}

func TestStats(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	in := serve(t, b)
	for _, s := range []string{"one", "three"} {
		if _, err := a.WriteToAddrPort([]byte(s), b.AddrPort()); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, in); got.from != a.AddrPort() || got.payload != s {
			t.Fatalf("read %+v", got)
		}
	}
	if _, err := a.WriteToAddrPort(make([]byte, 70_000), b.AddrPort()); err == nil {
		t.Error("a datagram of 70,000 bytes was sent")
	}
	if got, want := a.Stats(), (udp.Stats{PacketsOut: 2, BytesOut: 8, WriteErrors: 1}); got != want {
		t.Errorf("sender's stats are %+v, want %+v", got, want)
	}
	if got, want := b.Stats(), (udp.Stats{PacketsIn: 2, BytesIn: 8}); got != want {
		t.Errorf("receiver's stats are %+v, want %+v", got, want)
	}
}

func TestClose(t *testing.T) {
	c := listen(t, "127.0.0.1:0", udp.Config{})
	served := make(chan error)
	go func() { served <- c.Serve(func([]byte, netip.AddrPort) {}) }()
	b, to := c.NewBatch(), dest(t, c, c.AddrPort())
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := c.WriteToAddrPort([]byte("x"), c.AddrPort()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close returned %v, want net.ErrClosed", err)
	}
	before := c.Stats().WriteErrors
	b.Commit(copy(b.Room(), "x"), to)
	b.Flush()
	if got := c.Stats().WriteErrors - before; got != 1 {
		t.Errorf("%d datagrams of a batch after Close are counted as refused, want 1", got)
	}
}

// A packet's way through the socket allocates nothing, out or in.
func TestAllocs(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	got := make(chan int, 100)
	served := make(chan error, 1)
	go func() { served <- b.Serve(func(p []byte, _ netip.AddrPort) { got <- len(p) }) }()
	buf, addr, to, batch := make([]byte, 1200), b.AddrPort(), dest(t, a, b.AddrPort()), a.NewBatch()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.WriteToAddrPort(buf, addr); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			batch.Room()
			batch.Commit(1000, to)
		}
		batch.Flush()
		for range 6 {
			<-got
		}
	}); n != 0 {
		t.Errorf("%v allocations for six packets, want none", n)
	}
	_ = b.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// BenchmarkBatch sends a frame of ten packets to each of 100 peers: by one write
// each, by sendmmsg, and with segmentation. An operation is one packet.
func BenchmarkBatch(b *testing.B) {
	const peers, packets, size = 100, 10, 1200
	sink := listen(b, "127.0.0.1:0", udp.Config{ReadBuffer: 4096}) // reads nothing
	for _, bb := range []struct {
		name string
		cfg  udp.Config
	}{{"writes", udp.Config{}}, {"sendmmsg", udp.Config{NoSegmentation: true}}, {"segments", udp.Config{}}} {
		b.Run(bb.name, func(b *testing.B) {
			c := listen(b, "127.0.0.1:0", bb.cfg)
			batch, payload, addr := c.NewBatch(), make([]byte, size), sink.AddrPort()
			var dests [peers]*udp.Dest // each has its own, so that no message is for two
			for i := range dests {
				dests[i] = dest(b, c, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i%2)}), addr.Port()))
			}
			b.ReportAllocs()
			b.SetBytes(size)
			for i := 0; i < b.N; {
				for _, to := range dests {
					for range packets {
						if bb.name == "writes" {
							_, _ = c.WriteToAddrPort(payload, addr)
						} else {
							batch.Commit(copy(batch.Room(), payload), to)
						}
						i++
					}
				}
				batch.Flush()
			}
		})
	}
}

func TestSegmentationSays(t *testing.T) {
	if got := listen(t, "127.0.0.1:0", udp.Config{NoSegmentation: true}).Segmentation(); strings.Contains(got, "with UDP_SEGMENT") {
		t.Errorf("switched off, it says %q", got)
	}
	if got := listen(t, "127.0.0.1:0", udp.Config{}).Segmentation(); got == "" {
		t.Error("it does not say how datagrams leave")
	}
}
