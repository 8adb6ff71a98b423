//go:build !plainudp

package udp

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the network sends back for an earlier datagram is reported by the next
// call, whatever that is for. It costs no datagram, and reading goes on. A
// socket is told such things only if it asks (IP_RECVERR), so no other test
// comes by here.
func TestErrorsOfEarlierDatagrams(t *testing.T) {
	open := func() *Conn {
		c, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c, peer, gone := open(), open(), open()
	before := c.Segmentation()
	_ = gone.Close()
	var err error
	if e := c.control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	toPeer, err := c.Dest(peer.AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	toGone, err := c.Dest(gone.AddrPort())
	if err != nil {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	got := make(chan int, 1000)
	for _, conn := range []*Conn{c, peer} {
		wg.Go(func() { _ = conn.Serve(func(b []byte, _ netip.AddrPort) { got <- len(b) }) })
		defer func() { _ = conn.Close() }()
	}
	b := c.NewBatch()
	for range 50 {
		for i, to := range []*Dest{&toGone, &toPeer, &toPeer, &toGone} {
			b.Room()
			b.Commit(100+i, to)
		}
	}
	b.Flush()
	for range 100 {
		select {
		case <-got:
		case <-time.After(10 * time.Second):
			t.Fatalf("datagrams are missing: %+v", c.Stats())
		}
	}
	if s := c.Stats(); s.PacketsOut != 200 || s.WriteErrors+s.Dropped != 0 || s.Batches <= s.Messages/enoughMessages {
		t.Errorf("stats are %+v, want 200 datagrams sent in more calls than without errors", s)
	}
	if s := c.Segmentation(); s != before {
		t.Errorf("datagrams leave by %s, want %s", s, before)
	}

	// Reading has met some of the errors.
	for c.Stats().ReadErrors == 0 {
		if _, err := c.WriteToAddrPort([]byte("x"), gone.AddrPort()); err != nil {
			t.Log(err)
		}
		time.Sleep(time.Millisecond)
	}
	_, port, _ := net.SplitHostPort(c.AddrPort().String())
	back, err := net.Dial("udp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	if _, err := back.Write(make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != 7 {
		t.Errorf("received %d bytes, want 7", n)
	}
}
