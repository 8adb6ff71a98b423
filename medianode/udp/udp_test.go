package udp_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fanlight/medianode/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ net.PacketConn = (*udp.Conn)(nil)

func listen(t testing.TB, addr string) *udp.Conn {
	t.Helper()
	c, err := udp.Listen(netip.MustParseAddrPort(addr), udp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
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
			c := listen(t, tt.addr)
			if got := c.AddrPort(); got.Addr().String() != tt.want || got.Port() == 0 {
				t.Errorf("AddrPort() = %v, want %s and a port", got, tt.want)
			}
			if got, ok := c.LocalAddr().(*net.UDPAddr); !ok || got.AddrPort() != c.AddrPort() {
				t.Errorf("LocalAddr() = %v, want %v", got, c.AddrPort())
			}
			for _, host := range tt.reaches {
				echo(t, c, host)
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

// echo sends a datagram from host to c, and another back to where it came from.
func echo(t *testing.T, c *udp.Conn, host string) {
	t.Helper()
	peer, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(host), c.AddrPort().Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	if _, err := peer.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := c.ReadFromAddrPort(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	if _, err := c.WriteToAddrPort([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	c.Flush()
	_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err = peer.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Fatalf("peer read %q, %v", buf[:n], err)
	}
}

func TestListenRefuses(t *testing.T) {
	if _, err := udp.Listen(netip.AddrPort{}, udp.Config{}); err == nil {
		t.Error("no address was accepted")
	}
	c := listen(t, "127.0.0.1:0")
	if second, err := udp.Listen(c.AddrPort(), udp.Config{}); err == nil {
		_ = second.Close()
		t.Errorf("%v was opened twice", c.AddrPort())
	}
}

func TestStats(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	for _, s := range []string{"one", "three"} {
		if _, err := a.WriteTo([]byte(s), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	a.Flush()
	buf := make([]byte, 100)
	for range 2 {
		if _, from, err := b.ReadFrom(buf); err != nil || from.String() != a.LocalAddr().String() {
			t.Fatalf("read from %v, %v", from, err)
		}
	}
	if _, err := a.WriteToAddrPort(make([]byte, 70_000), b.AddrPort()); err == nil {
		t.Error("a datagram of 70,000 bytes was sent")
	}
	if _, err := a.WriteTo([]byte("x"), &net.TCPAddr{}); err == nil {
		t.Error("a datagram was sent to a TCP address")
	}
	if got, want := a.Stats(), (udp.Stats{PacketsOut: 2, BytesOut: 8, WriteErrors: 2, Flushes: 1}); got != want {
		t.Errorf("sender's stats are %+v, want %+v", got, want)
	}
	if got, want := b.Stats(), (udp.Stats{PacketsIn: 2, BytesIn: 8}); got != want {
		t.Errorf("receiver's stats are %+v, want %+v", got, want)
	}
}

func TestClose(t *testing.T) {
	c := listen(t, "127.0.0.1:0")
	read := make(chan error)
	go func() {
		_, _, err := c.ReadFromAddrPort(make([]byte, 100))
		read <- err
	}()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read under way returned %v, want net.ErrClosed", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := c.WriteToAddrPort([]byte("x"), c.AddrPort()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close returned %v, want net.ErrClosed", err)
	}
}

func TestDeadline(t *testing.T) {
	c := listen(t, "127.0.0.1:0")
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ReadFromAddrPort(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read after its deadline returned %v", err)
	}
}

// A packet's way through the socket allocates nothing.
func TestAllocs(t *testing.T) {
	a, b := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	buf, to := make([]byte, 1200), b.AddrPort()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.WriteToAddrPort(buf, to); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.ReadFromAddrPort(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a packet, want none", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	from, to := listen(b, "127.0.0.1:0"), listen(b, "127.0.0.1:0")
	pkt, addr := make([]byte, 1200), to.AddrPort()
	b.SetBytes(int64(len(pkt)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := from.WriteToAddrPort(pkt, addr); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteMany is what sessions do: many goroutines, one socket. Package
// net's own socket is there to compare with.
func BenchmarkWriteMany(b *testing.B) {
	own := listen(b, "127.0.0.1:0")
	std, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = std.Close() })
	to := listen(b, "127.0.0.1:0").AddrPort()
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
