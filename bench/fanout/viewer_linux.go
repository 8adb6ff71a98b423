package fanout

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v5/packetio"

	"fanlight/internal/simcam"
)

const (
	consentRounds = 2 // seconds between checks of consent (RFC 7675 allows up to 30 without)
	stampTries    = 4 // packets at the beginning of a picture that may have the camera's stamp
	rtpHeader     = 12
	nackEvery     = 60 * time.Millisecond // for one packet
	nackTries     = 8
	nackedAtOnce  = 256
)

// viewer is one light viewer.
type viewer struct {
	// Static after newViewer.
	camera int
	lossy  float64 // share of packets that it throws away
	reader *reader
	socket *socket
	creds  credentials
	inbox  *packetio.Buffer // DTLS from the server

	// Owned by join, then leave.
	resource string     // the session's URL
	secure   *dtls.Conn // nil: none yet

	nominated chan struct{} // one slot: the server has answered the nomination

	// Guarded by the reader's mu, as all that follows.
	server      *answer // nil: there is none yet
	transaction [12]byte
	keys        *keys // nil: not yet
	ssrc        uint32
	seq         sequence
	packets     uint64 // RTP that arrived, with all that is thrown away or sent again
	repaired    uint64
	header      rtp.Header
	plain       []byte
	missing     []wanted // asked for again

	checked bool // packets are decrypted for their stamps
	checks  uint64
	picture picture
	shape   *shape // being recorded; nil: not
}

// keys are a viewer's SRTP contexts.
type keys struct{ in, out *srtp.Context }

// wanted is a packet that a lossy viewer has not got.
type wanted struct {
	number uint16
	tries  int
	next   time.Time
}

// picture is the picture that a spot-checked viewer is receiving.
type picture struct {
	begun     bool
	timestamp uint32
	tries     int
	sent      time.Time // zero: no stamp yet
	broken    bool      // packets of it are missing
}

// datagram takes what comes at the socket (RFC 7983 §7, RFC 5761 §4).
func (v *viewer) datagram(b []byte, at int64) {
	switch {
	case len(b) < 2:
	case b[0] < 4:
		v.stun(b)
	case b[0] >= 20 && b[0] <= 63:
		_, _ = v.inbox.Write(b, nil) // a full buffer loses it, as a network may
	case b[0] >= 128 && b[0] <= 191 && (b[1] < 192 || b[1] > 223) && len(b) >= rtpHeader:
		v.rtp(b, at)
	}
}

func (v *viewer) rtp(b []byte, at int64) {
	v.packets++
	if v.lossy > 0 && rand.Float64() < v.lossy {
		return
	}
	switch payloadType := b[1] & 0x7f; {
	case v.server == nil: // of somebody else
	case payloadType == v.server.rtx && v.server.rtx != 0:
		v.repair(b)
	case payloadType == v.server.media:
		v.media(b, at)
	}
}

func (v *viewer) media(b []byte, at int64) {
	number := binary.BigEndian.Uint16(b[2:])
	if !v.seq.begun {
		v.ssrc = binary.BigEndian.Uint32(b[8:])
	}
	what, skipped := v.seq.add(number)
	if what == again {
		return
	}
	marker := b[1]&0x80 != 0
	if v.lossy > 0 && skipped > 0 {
		v.want(number, skipped)
	}
	if v.shape != nil && what == inOrder {
		v.shape.add(len(b), marker)
	}
	switch {
	case !v.checked || v.keys == nil:
	case what == late:
		v.picture.broken = true
	default:
		v.follow(b, at, marker, skipped > 0)
	}
}

// follow looks for the stamp of the picture that a packet is part of, and for
// its end.
func (v *viewer) follow(b []byte, at int64, marker, gap bool) {
	p := &v.picture
	if ts := binary.BigEndian.Uint32(b[4:]); !p.begun || ts != p.timestamp {
		*p = picture{begun: true, timestamp: ts, broken: gap || !p.begun}
	} else if gap {
		p.broken = true
	}
	if p.sent.IsZero() && p.tries < stampTries {
		p.tries++
		// Of the packets before, the context has seen only some.
		v.keys.in.SetROC(v.ssrc, v.seq.rollovers())
		if payload := v.decrypt(b); payload != nil {
			if sent, ok := stampIn(payload); ok {
				p.sent = sent
				if v.reader.sampling && at != 0 {
					v.reader.stamps = append(v.reader.stamps, time.Unix(0, at).Sub(sent))
				}
			}
		}
	}
	if marker && !p.broken && !p.sent.IsZero() && v.reader.sampling && at != 0 {
		v.reader.latency = append(v.reader.latency, time.Unix(0, at).Sub(p.sent))
	}
}

// decrypt returns a packet's payload; nil if that cannot be had, which the
// reader keeps.
func (v *viewer) decrypt(b []byte) []byte {
	v.checks++
	n, err := v.header.Unmarshal(b)
	if err == nil {
		v.plain, err = v.keys.in.DecryptRTP(v.plain[:0], b, &v.header)
	}
	if err == nil && n < len(v.plain) {
		return v.plain[n:]
	}
	if err == nil {
		err = fmt.Errorf("%d bytes of header in %d", n, len(v.plain))
	}
	if v.reader.failed == nil {
		v.reader.failed = fmt.Errorf("decrypt packet %d of SSRC %d: %w", v.header.SequenceNumber, v.header.SSRC, err)
	}
	return nil
}

// stampIn returns the camera's stamp in a payload of H264 (RFC 6184 §5.6, §5.7.1).
func stampIn(b []byte) (time.Time, bool) {
	const aggregate = 24 // STAP-A
	if len(b) == 0 {
		return time.Time{}, false
	}
	if b[0]&0x1f != aggregate {
		return simcam.ParseTimestamp(b)
	}
	for b = b[1:]; len(b) > 2; {
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n == 0 || n > len(b) {
			break
		}
		if sent, ok := simcam.ParseTimestamp(b[:n]); ok {
			return sent, true
		}
		b = b[n:]
	}
	return time.Time{}, false
}

// want notes packets that are missing before one, and asks for them.
func (v *viewer) want(number uint16, skipped int) {
	for i := skipped; i > 0 && len(v.missing) < nackedAtOnce; i-- {
		v.missing = append(v.missing, wanted{number: number - uint16(i)})
	}
	v.ask(time.Now())
}

// ask sends a NACK for what is missing and due (RFC 4585 §6.2.1).
func (v *viewer) ask(now time.Time) {
	if len(v.missing) == 0 || v.keys == nil {
		return
	}
	var due []uint16
	left := v.missing[:0]
	for _, w := range v.missing {
		if now.After(w.next) {
			if w.tries == nackTries {
				continue
			}
			w.tries, w.next = w.tries+1, now.Add(nackEvery)
			due = append(due, w.number)
		}
		left = append(left, w)
	}
	if v.missing = left; len(due) > 0 {
		v.report(&rtcp.TransportLayerNack{SenderSSRC: 1, MediaSSRC: v.ssrc, Nacks: rtcp.NackPairsFromSequenceNumbers(due)})
	}
}

// repair takes a packet that was sent again (RFC 4588 §4).
func (v *viewer) repair(b []byte) {
	if v.keys == nil || !v.seq.begun {
		return
	}
	payload := v.decrypt(b)
	if len(payload) < 2 {
		return // padding
	}
	number := binary.BigEndian.Uint16(payload)
	if what, _ := v.seq.add(number); what != late {
		return
	}
	v.repaired++
	for i, w := range v.missing {
		if w.number == number {
			v.missing = append(v.missing[:i], v.missing[i+1:]...)
			break
		}
	}
}

// tick sends what is due; turn says that the viewer's second has passed, round
// which it is. The caller holds the reader's mu.
func (v *viewer) tick(now time.Time, turn bool, round int) {
	if v.lossy > 0 {
		v.ask(now)
	}
	if !turn || v.keys == nil {
		return
	}
	if v.seq.begun {
		lost := v.seq.expected() - min(v.seq.got, v.seq.expected())
		v.report(&rtcp.ReceiverReport{SSRC: 1, Reports: []rtcp.ReceptionReport{{
			SSRC: v.ssrc, TotalLost: uint32(min(lost, 1<<23-1)), LastSequenceNumber: v.seq.last,
		}}})
	}
	if round%consentRounds == 0 {
		if m, err := v.check(); err == nil {
			v.write(m.Raw)
		}
	}
}

// report sends RTCP.
func (v *viewer) report(p rtcp.Packet) {
	b, err := p.Marshal()
	if err == nil {
		b, err = v.keys.out.EncryptRTCP(nil, b, nil)
	}
	if err != nil {
		if v.reader.failed == nil {
			v.reader.failed = fmt.Errorf("encrypt RTCP: %w", err)
		}
		return
	}
	v.write(b)
}

// shape is how packets make up pictures.
type shape struct {
	frames [][]int // bytes of each packet
	open   []int
	whole  bool // the picture under way was seen from its beginning
	times  [2]time.Time
}

// shapeFrames is how many pictures are recorded: two seconds of 25 frames.
const shapeFrames = 50

func (s *shape) add(size int, marker bool) {
	if len(s.frames) == shapeFrames {
		return
	}
	s.open = append(s.open, size)
	if !marker {
		return
	}
	if s.whole {
		s.frames = append(s.frames, s.open)
		s.times[1] = time.Now()
	} else {
		s.times[0] = time.Now()
	}
	s.open, s.whole = nil, true
}

// period returns the time between pictures.
func (s *shape) period() time.Duration {
	return s.times[1].Sub(s.times[0]) / time.Duration(max(1, len(s.frames)))
}
