package udp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	if netip.MustParseAddrPort(addr).Addr().Is6() && !haveIPv6() {
		t.Skip("this machine has no IPv6")
	}
	c, err := udp.Listen(netip.MustParseAddrPort(addr), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func haveIPv6() bool {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// received is a datagram that came in.
type received struct {
	data string
	from netip.AddrPort
}

// serve reads c until it is closed, which the test's end does.
func serve(t testing.TB, c *udp.Conn) *sink {
	t.Helper()
	s := &sink{conn: c, came: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() {
		done <- c.Serve(func(b []byte, from netip.AddrPort) {
			s.mu.Lock()
			s.got = append(s.got, received{string(b), from})
			s.mu.Unlock()
			select {
			case s.came <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s
}

// sink keeps what a Conn receives.
type sink struct {
	conn *udp.Conn
	came chan struct{}

	mu  sync.Mutex
	got []received
}

// wait returns what has come in once there are n datagrams, or fails.
func (s *sink) wait(t testing.TB, n int) []received {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		got := s.got
		s.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-s.came:
		case <-timeout:
			t.Fatalf("%d datagrams came in, want %d", len(got), n)
		}
	}
}

// dest is how c addresses s.
func dest(t testing.TB, c *udp.Conn, to netip.AddrPort) *udp.Dest {
	t.Helper()
	d, err := c.Dest(to)
	if err != nil {
		t.Fatal(err)
	}
	return &d
}

// commit puts a datagram into a batch.
func commit(b *udp.Batch, data string, to *udp.Dest) {
	b.Commit(copy(b.Room(), data), to)
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
			c := listen(t, tt.addr, udp.Config{})
			if got := c.AddrPort(); got.Addr().String() != tt.want || got.Port() == 0 {
				t.Errorf("AddrPort() = %v, want %s and a port", got, tt.want)
			}
			s := serve(t, c)
			for i, host := range tt.reaches {
				echo(t, s, host, i)
			}
		})
	}
}

// echo sends a datagram from host to c, and others back to where it came from.
// There were n before.
func echo(t *testing.T, s *sink, host string, n int) {
	t.Helper()
	peer, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(host), s.conn.AddrPort().Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	if _, err := peer.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := s.wait(t, n+1)[n]
	if got.data != "ping" || got.from.String() != peer.LocalAddr().String() {
		t.Fatalf("received %q from %v, want a ping from %v", got.data, got.from, peer.LocalAddr())
	}
	if _, err := s.conn.WriteToAddrPort([]byte("pong"), got.from); err != nil {
		t.Fatal(err)
	}
	b := s.conn.NewBatch()
	commit(b, "pang", dest(t, s.conn, got.from))
	commit(b, "pung", dest(t, s.conn, got.from))
	b.Flush()
	_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	for _, want := range []string{"pong", "pang", "pung"} {
		if n, err := peer.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("peer read %q, %v, want %s", buf[:n], err, want)
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

func TestDest(t *testing.T) {
	tests := []struct {
		socket, to string
		same       string // an address that is the same to the socket
		err        string
	}{
		{socket: "127.0.0.1:0", to: "192.0.2.1:9", same: "[::ffff:192.0.2.1]:9"},
		{socket: "127.0.0.1:0", to: "[2001:db8::1]:9", err: "an IPv6 address on an IPv4 socket"},
		{socket: "127.0.0.1:0", to: "192.0.2.1:0", err: "no address"},
		{socket: "[::1]:0", to: "[2001:db8::1]:9", same: "[2001:db8::1]:9"},
		{socket: "[::1]:0", to: "192.0.2.1:9", err: "an IPv4 address on an IPv6 socket"},
		{socket: "[::]:0", to: "192.0.2.1:9", same: "[::ffff:192.0.2.1]:9"},
		{socket: "[::]:0", to: "[2001:db8::1]:9", same: "[2001:db8::1]:9"},
	}
	for _, tt := range tests {
		t.Run(tt.socket+" to "+tt.to, func(t *testing.T) {
			c := listen(t, tt.socket, udp.Config{})
			d, err := c.Dest(netip.MustParseAddrPort(tt.to))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if *dest(t, c, netip.MustParseAddrPort(tt.to)) != d {
				t.Error("the same address made twice is not equal")
			}
			other := netip.MustParseAddrPort(tt.to)
			if *dest(t, c, netip.AddrPortFrom(other.Addr(), other.Port()+1)) == d {
				t.Error("addresses with different ports are equal")
			}
		})
	}
	c := listen(t, "127.0.0.1:0", udp.Config{})
	if _, err := c.Dest(netip.AddrPort{}); err == nil {
		t.Error("no address was accepted")
	}
}

func TestStats(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	s := serve(t, b)
	for _, data := range []string{"one", "three"} {
		if n, err := a.WriteToAddrPort([]byte(data), b.AddrPort()); err != nil || n != len(data) {
			t.Fatal(n, err)
		}
	}
	for i, got := range s.wait(t, 2) {
		if want := (received{[]string{"one", "three"}[i], a.AddrPort()}); got != want {
			t.Errorf("received %v, want %v", got, want)
		}
	}
	if _, err := a.WriteToAddrPort(make([]byte, 70_000), b.AddrPort()); err == nil {
		t.Error("a datagram of 70,000 bytes was sent")
	}
	if _, err := a.WriteToAddrPort([]byte("x"), netip.MustParseAddrPort("[2001:db8::1]:9")); err == nil {
		t.Error("a datagram was sent to an IPv6 address from an IPv4 socket")
	}
	if got, want := a.Stats(), (udp.Stats{PacketsOut: 2, BytesOut: 8, WriteErrors: 2}); got != want {
		t.Errorf("sender's stats are %+v, want %+v", got, want)
	}
	if got, want := b.Stats(), (udp.Stats{PacketsIn: 2, BytesIn: 8}); got != want {
		t.Errorf("receiver's stats are %+v, want %+v", got, want)
	}
}

func TestClose(t *testing.T) {
	c := listen(t, "127.0.0.1:0", udp.Config{})
	b, to := c.NewBatch(), dest(t, c, c.AddrPort())
	commit(b, "before", to)
	served := make(chan error)
	go func() { served <- c.Serve(func([]byte, netip.AddrPort) {}) }()
	time.Sleep(10 * time.Millisecond) // so that most runs close it while it waits
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if err := c.Serve(nil); err != nil {
		t.Errorf("Serve after Close returned %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := c.WriteToAddrPort([]byte("x"), c.AddrPort()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close returned %v, want net.ErrClosed", err)
	}
	commit(b, "after", to)
	commit(b, "after that", to)
	b.Flush()
	b.Flush()
	if got := c.Stats(); got.WriteErrors+got.PacketsOut != 4 || got.WriteErrors < 3 || got.ReadErrors != 0 {
		t.Errorf("stats are %+v, want 4 write errors", got)
	}
}

// Many goroutines serve and write while the socket is closed.
func TestCloseUnderWay(t *testing.T) {
	for range 20 {
		c := listen(t, "127.0.0.1:0", udp.Config{})
		to := dest(t, c, c.AddrPort())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				b := c.NewBatch()
				for range 50 {
					for range 20 {
						commit(b, "some", to)
					}
					b.Flush()
				}
			})
		}
		wg.Go(func() {
			if err := c.Serve(func([]byte, netip.AddrPort) {}); err != nil {
				t.Errorf("Serve returned %v", err)
			}
		})
		time.Sleep(time.Millisecond)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if got := c.Stats(); got.PacketsOut+got.WriteErrors+got.Dropped != 4*50*20 {
			t.Errorf("stats are %+v, want 4000 datagrams in all", got)
		}
	}
}

func TestServeCuts(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0", udp.Config{}), listen(t, "127.0.0.1:0", udp.Config{})
	s := serve(t, b)
	for _, n := range []int{5000, 0, 2048} {
		if _, err := a.WriteToAddrPort(make([]byte, n), b.AddrPort()); err != nil {
			t.Fatal(err)
		}
	}
	for i, got := range s.wait(t, 3) {
		if want := []int{2048, 0, 2048}[i]; len(got.data) != want {
			t.Errorf("datagram %d has %d bytes, want %d", i, len(got.data), want)
		}
	}
}

// A packet's way through the socket allocates nothing.
func TestAllocs(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		a, b := listen(t, addr, udp.Config{}), listen(t, addr, udp.Config{})
		came := make(chan struct{}, 1000)
		var wg sync.WaitGroup
		wg.Go(func() { _ = b.Serve(func([]byte, netip.AddrPort) { came <- struct{}{} }) })
		pkt, batch, to := make([]byte, 1200), a.NewBatch(), dest(t, a, b.AddrPort())
		for _, tt := range []struct {
			name string
			send func() int
		}{
			{"WriteToAddrPort", func() int {
				if _, err := a.WriteToAddrPort(pkt, b.AddrPort()); err != nil {
					t.Error(err)
				}
				return 1
			}},
			{"Batch", func() int {
				for i := range 300 {
					batch.Commit(copy(batch.Room(), pkt[:800+i%50/10]), to)
				}
				batch.Flush()
				return 300
			}},
		} {
			if n := testing.AllocsPerRun(100, func() {
				for range tt.send() {
					<-came
				}
			}); n != 0 {
				t.Errorf("%s and Serve: %v allocations, want none", tt.name, n)
			}
		}
		_ = b.Close()
		wg.Wait()
	}
}

// BenchmarkWriteMany is what sessions do: many goroutines, one socket. Package
// net's own socket is there to compare with.
func BenchmarkWriteMany(b *testing.B) {
	own := listen(b, "127.0.0.1:0", udp.Config{})
	std, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = std.Close() })
	to := listen(b, "127.0.0.1:0", udp.Config{}).AddrPort()
	for _, bb := range []struct {
		name  string
		write func([]byte, netip.AddrPort) (int, error)
	}{{"own", own.WriteToAddrPort}, {"net", std.WriteToUDPAddrPort}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(50)
			b.RunParallel(func(pb *testing.PB) {
				pkt := make([]byte, 1200)
				for pb.Next() {
					if _, err := bb.write(pkt, to); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkBatch sends 10 datagrams of 1,200 bytes to each of 100 peers, who
// don't read them.
func BenchmarkBatch(b *testing.B) {
	const peers, each = 100, 10
	addrs := make([]netip.AddrPort, peers)
	for i := range addrs {
		addrs[i] = listen(b, "127.0.0.1:0", udp.Config{ReadBuffer: 4096}).AddrPort()
	}
	pkt := make([]byte, 1200)
	run := func(name string, send func(), sent func() uint64) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(peers * each * int64(len(pkt)))
			before := sent()
			for b.Loop() {
				send()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent()-before), "ns/datagram")
		})
	}
	for _, bb := range []struct {
		name string
		cfg  udp.Config
	}{{"segmentation", udp.Config{}}, {"sendmmsg", udp.Config{NoSegmentation: true}}} {
		c := listen(b, "127.0.0.1:0", bb.cfg)
		batch, to := c.NewBatch(), make([]*udp.Dest, peers)
		for i := range to {
			to[i] = dest(b, c, addrs[i])
		}
		run(bb.name, func() {
			for _, d := range to {
				for range each {
					batch.Commit(copy(batch.Room(), pkt), d)
				}
			}
			batch.Flush()
		}, func() uint64 { return c.Stats().PacketsOut })
	}
	c := listen(b, "127.0.0.1:0", udp.Config{})
	run("one write", func() {
		for _, to := range addrs {
			for range each {
				if _, err := c.WriteToAddrPort(pkt, to); err != nil {
					b.Fatal(err)
				}
			}
		}
	}, func() uint64 { return c.Stats().PacketsOut })
}

func ExampleConn_NewBatch() {
	node, _ := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
	viewer, _ := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
	to, _ := node.Dest(viewer.AddrPort())

	batch := node.NewBatch()
	for _, packet := range []string{"a", "burst", "of media"} {
		n := copy(batch.Room(), packet) // encrypted in place, in truth
		batch.Commit(n, &to)
	}
	batch.Flush()

	received := 0
	_ = viewer.Serve(func(b []byte, _ netip.AddrPort) {
		fmt.Println(string(b))
		if received++; received == 3 {
			_ = viewer.Close()
		}
	})
	_ = node.Close()
	// Output:
	// a
	// burst
	// of media
}
