package session

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// What a viewer may be sent again. pion's responder answers whatever is asked,
// each packet as often as every 5 ms, so that a list of 30 pairs, 150 bytes,
// would bring half a megabyte on its way. With these, a camera of 2 Mbit/s (some
// 210 packets a second) costs at most 100 packets a second more, which is
// 1 Mbit/s, and a viewer that loses a quarter of its packets still gets them all.
const (
	// resendShare is how many packets are sent for one more that may be sent again.
	resendShare = 4
	// resendFloor is how many packets a second may be besides, for audio and for
	// cameras that send little.
	resendFloor = 50
	// resendBurst is how many packets may be sent again at once: all that are kept.
	resendBurst = resendPackets
	// resendRepeats is what must be left of the budget for a packet that has been
	// sent again before. Some viewers, pion's among them, go on asking for what
	// has come over RTX; what is asked for the first time must not wait for that.
	resendRepeats = resendBurst / 2
	// maxNacked is how many packets of one RTCP datagram's NACKs are looked for:
	// as many as are kept.
	maxNacked = resendPackets
)

// errOverBudget is what the responder hears of a packet that is not sent again.
var errOverBudget = errors.New("the viewer has asked for too much")

// resends is around pion's NACK responder: it shortens the lists that the
// responder reads and refuses what it sends over the session's budget. It is
// charged for what is sent, not for what is asked, for a viewer may ask several
// times for what is under way, and for what is long gone. It is one session's
// interceptor, the one before the responder.
type resends struct {
	interceptor.NoOp
	sent     func() uint64          // packets sent so far, not counting those sent again
	original func(*rtp.Header) bool // whether a header is that of the first sending

	asked, resent, refused atomic.Uint64 // packets

	mu      sync.Mutex // guards the rest
	budget  float64    // packets
	at      time.Time  // when budget was that; zero: nothing has been sent again
	counted uint64     // sent, then
}

// NewInterceptor returns r itself: a peer connection makes its interceptors by a
// factory.
func (r *resends) NewInterceptor(string) (interceptor.Interceptor, error) { return r, nil }

// BindRTCPReader shortens the NACKs that a track's reader reads. They are decoded
// once, and those that read after it get the same.
func (r *resends) BindRTCPReader(reader interceptor.RTCPReader) interceptor.RTCPReader {
	return interceptor.RTCPReaderFunc(func(b []byte, a interceptor.Attributes) (int, interceptor.Attributes, error) {
		n, a, err := reader.Read(b, a)
		if err != nil {
			return n, a, err
		}
		if a == nil {
			a = make(interceptor.Attributes)
		}
		packets, err := a.GetRTCPPackets(b[:n])
		if err != nil {
			return n, a, err
		}
		r.shorten(packets)
		return n, a, nil
	})
}

// shorten cuts the NACKs of one datagram where they ask for more than is kept.
func (r *resends) shorten(packets []rtcp.Packet) {
	left := maxNacked
	for _, p := range packets {
		nack, ok := p.(*rtcp.TransportLayerNack)
		if !ok {
			continue
		}
		kept := 0
		for _, pair := range nack.Nacks {
			n := 1 + bits.OnesCount16(uint16(pair.LostPackets))
			r.asked.Add(uint64(n))
			if n > left {
				left = 0
				r.refused.Add(uint64(n))
				continue
			}
			left -= n
			kept++
		}
		nack.Nacks = nack.Nacks[:kept]
	}
}

// BindLocalStream refuses what is sent again over the budget.
func (r *resends) BindLocalStream(info *interceptor.StreamInfo, writer interceptor.RTPWriter) interceptor.RTPWriter {
	var before repeats // guarded by r.mu
	return interceptor.RTPWriterFunc(func(h *rtp.Header, payload []byte, a interceptor.Attributes) (int, error) {
		if r.original(h) {
			return writer.Write(h, payload, a)
		}
		seq := h.SequenceNumber
		if h.SSRC != info.SSRC && len(payload) >= 2 { // RTX begins with it (RFC 4588 §4)
			seq = binary.BigEndian.Uint16(payload)
		}
		if !r.pay(&before, seq, time.Now()) {
			r.refused.Add(1)
			return 0, errOverBudget
		}
		r.resent.Add(1)
		return writer.Write(h, payload, a)
	})
}

// repeats are the packets of a track that have been sent again, by sequence
// number: 1 more than it, so that 0 is none.
type repeats [resendPackets]uint32

// pay takes one packet from the budget, if it is there.
func (r *resends) pay(before *repeats, seq uint16, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent()
	if r.at.IsZero() {
		r.budget = resendBurst
	} else {
		r.budget += float64(sent-r.counted)/resendShare + resendFloor*now.Sub(r.at).Seconds()
		r.budget = min(r.budget, resendBurst)
	}
	r.at, r.counted = now, sent
	last := &before[seq%resendPackets]
	if r.budget < 1 || *last == uint32(seq)+1 && r.budget < resendRepeats {
		return false
	}
	*last = uint32(seq) + 1
	r.budget--
	return true
}
