package session

import (
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// The budget is what is kept, then a quarter of what was sent and 50 packets a
// second. What is sent for the first time is not charged.
func TestResendBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first rtp.Header
		var sent, passed uint64
		r := &resends{sent: func() uint64 { return sent }, original: func(h *rtp.Header) bool { return h == &first }}
		w := r.BindLocalStream(&interceptor.StreamInfo{SSRC: 7}, interceptor.RTPWriterFunc(func(*rtp.Header, []byte, interceptor.Attributes) (int, error) {
			passed++
			return 1, nil
		}))
		var seq uint16
		resend := func(what string, packets, want uint64) {
			t.Helper()
			passed = 0
			refused := r.refused.Load()
			for range packets {
				seq++
				rtx := binary.BigEndian.AppendUint16(nil, seq)
				if _, err := w.Write(&rtp.Header{SSRC: 8, SequenceNumber: 1}, rtx, nil); err != nil && !errors.Is(err, errOverBudget) {
					t.Fatal(err)
				}
			}
			if passed != want || r.refused.Load()-refused != packets-want {
				t.Errorf("%s: %d of %d packets were sent again and %d refused, want %d", what, passed, packets, r.refused.Load()-refused, want)
			}
		}
		resend("all that are kept", 600, 512)
		time.Sleep(time.Second)
		resend("a second later", 100, 50)
		sent += 400
		resend("a quarter of 400", 200, 100)
		for range 1000 {
			if _, err := w.Write(&first, nil, nil); err != nil {
				t.Fatalf("for the first time: %v", err)
			}
		}
		sent += 1_000_000
		time.Sleep(time.Hour)
		resend("no more than are kept, ever", 600, 512)
		time.Sleep(2 * time.Second)
		first600 := seq - 600
		seq = first600 + 100
		resend("again, with less than half the budget", 100, 0)
		seq = first600 + 600
		resend("others then", 50, 50)
		time.Sleep(6 * time.Second)
		seq = first600 + 200
		resend("again, with more than half", 150, 95)
	})
}

// One datagram's lists are cut where they are longer than what is kept.
func TestResendShorten(t *testing.T) {
	r := &resends{}
	list := func(pairs int) *rtcp.TransportLayerNack {
		nack := &rtcp.TransportLayerNack{}
		for i := range pairs {
			nack.Nacks = append(nack.Nacks, rtcp.NackPair{PacketID: uint16(20 * i), LostPackets: 0x1ff}) // 10 packets
		}
		return nack
	}
	first, second, third := list(30), list(40), list(1)
	r.shorten([]rtcp.Packet{first, &rtcp.PictureLossIndication{}, second, third})
	if len(first.Nacks) != 30 || len(second.Nacks) != 21 || len(third.Nacks) != 0 {
		t.Errorf("%d, %d and %d pairs are left, want 30, 21 and none", len(first.Nacks), len(second.Nacks), len(third.Nacks))
	}
	if second.Nacks[20].PacketID != 400 {
		t.Errorf("the last pair is of packet %d", second.Nacks[20].PacketID)
	}
	if r.asked.Load() != 710 || r.refused.Load() != 200 {
		t.Errorf("%d packets were asked for and %d refused", r.asked.Load(), r.refused.Load())
	}
}
