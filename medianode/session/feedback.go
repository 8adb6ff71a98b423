package session

import (
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"

	"fanlight/medianode/stream"
)

// keyframePause is how often one viewer's wish for a keyframe is heard, at most. The
// stream coalesces those of all viewers to one a second.
const keyframePause = 200 * time.Millisecond

// videoClockRate is that of all video, in Hz.
const videoClockRate = 90_000

// feedback is what a viewer said of what it receives.
type feedback struct {
	keyframeRequests atomic.Uint64 // PLI and FIR
	nacked           atomic.Uint64 // packets asked for again
	lost             atomic.Uint32 // video packets lost in all, by the latest report
	fraction         atomic.Uint32 // of video packets lost, in 256ths, by the latest report
	jitter           atomic.Int64  // nanoseconds, by the latest report
	estimate         atomic.Int64  // bits per second, by the latest REMB; 0: there has been none
	roundTrip        atomic.Int64  // nanoseconds, by the latest report that had it; 0: unknown

	cushion       cushion
	keyframeAsked time.Time // owned by hearAll
}

// hearAll acts on what a viewer reports. It is called by the goroutines that read
// from the network, one call at a time, with whatever the viewer sent.
func (s *Session) hearAll(b []byte) {
	err := guard(func() error {
		packets, err := rtcp.Unmarshal(b)
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is not acted upon
		}
		left := maxNacked
		for _, p := range packets {
			left = s.hear(p, left)
		}
		return nil
	})
	if err != nil {
		s.fail(err)
	}
}

// hear acts on one RTCP packet. left is how many packets may still be asked for
// in this datagram.
func (s *Session) hear(p rtcp.Packet, left int) int {
	switch p := p.(type) {
	case *rtcp.PictureLossIndication:
		s.wantKeyframe()
	case *rtcp.FullIntraRequest:
		s.wantKeyframe()
	case *rtcp.ReceiverReport:
		s.reported(p.Reports)
	case *rtcp.ReceiverEstimatedMaximumBitrate:
		if estimate := int64(min(float64(p.Bitrate), 1e12)); estimate > 0 {
			s.feedback.estimate.Store(estimate)
			s.course.look()
		}
	case *rtcp.TransportLayerNack:
		for kind := range s.lanes {
			if l := &s.lanes[kind]; l.nack && l.payloads != nil && l.ssrc == p.MediaSSRC {
				return s.nacked(stream.Kind(kind), p.Nacks, left)
			}
		}
	}
	return left
}

// reported takes the report blocks of a receiver report (RFC 3550 §6.4.2).
func (s *Session) reported(blocks []rtcp.ReceptionReport) {
	for _, r := range blocks {
		if r.SSRC != s.lanes[stream.Video].ssrc {
			continue
		}
		s.feedback.lost.Store(r.TotalLost)
		s.feedback.fraction.Store(uint32(r.FractionLost))
		s.feedback.jitter.Store(int64(r.Jitter) * int64(time.Second) / videoClockRate)
		s.course.reported(r.FractionLost)
		s.feedback.cushion.reported(time.Now(), r.FractionLost, s.roundTrip())
		if r.LastSenderReport == 0 {
			continue
		}
		// The middle 32 bits of NTP times: 16.16 bits of seconds (RFC 3550 §6.4.1).
		const unit = 1 << 16
		passed := uint32(ntpTime(time.Now())>>16) - r.LastSenderReport - r.Delay
		if passed < 10*unit {
			s.feedback.roundTrip.Store(int64(passed) * int64(time.Second) / unit)
		}
	}
}

// nacked passes on what the viewer asks for again.
func (s *Session) nacked(kind stream.Kind, pairs []rtcp.NackPair, left int) int {
	kept, left, asked, refused := shorten(pairs, left)
	s.feedback.nacked.Add(uint64(asked))
	s.counts.refused.Add(uint64(refused))
	if v := s.viewer.Load(); v != nil && len(kept) > 0 {
		v.shard.post(mail{nack: v, kind: kind, pair: kept})
	}
	return left
}

// roundTrip returns the viewer's, as far as it is known.
func (s *Session) roundTrip() time.Duration { return time.Duration(s.feedback.roundTrip.Load()) }

// wantKeyframe passes on the viewer's wish.
func (s *Session) wantKeyframe() {
	s.feedback.keyframeRequests.Add(1)
	now := time.Now()
	if now.Sub(s.feedback.keyframeAsked) < keyframePause {
		return
	}
	s.feedback.keyframeAsked = now
	if v := s.viewer.Load(); v != nil {
		v.shard.post(mail{change: v, do: func(sh *shard, v *viewer) { v.refresh(sh, time.Now()) }})
	}
}

// reportInterval is the time between sender reports.
const reportInterval = time.Second

// sendReport sends sender reports for both kinds, now that a burst of one has
// left. The burst's last packet is what "now" is in the reports; the other kind's
// timestamp of the same moment follows by the stream's clock. So the wall-clock
// time in them is this node's, as round trip times need it, and the kinds are
// as far apart as the camera says.
func (v *viewer) sendReport(sh *shard, kind stream.Kind, to *path, now time.Time) {
	str, sent := v.seat.outlet.stream, &v.lanes[kind]
	at, timestamp, ok := str.SenderClock(kind)
	if !ok || sent.clockRate == 0 {
		return
	}
	moment := at.Add(span(sent.timestamp-timestamp-sent.runs[0].shift.offset, sent.clockRate))
	var reports []rtcp.Packet
	var names rtcp.SourceDescription // RFC 3550 §6.1: in each compound packet
	for k := range v.lanes {
		l := &v.lanes[k]
		if l.packets == 0 || l.runs[0].sub != v.seat.outlet.sub {
			continue
		}
		at, timestamp, ok := str.SenderClock(stream.Kind(k))
		if !ok {
			continue
		}
		reports = append(reports, &rtcp.SenderReport{
			SSRC: l.ssrc, NTPTime: ntpTime(now), RTPTime: timestamp + l.runs[0].shift.offset + ticks(moment.Sub(at), l.clockRate),
			PacketCount: l.packets, OctetCount: l.octets,
		})
		names.Chunks = append(names.Chunks, rtcp.SourceDescriptionChunk{
			Source: l.ssrc, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: v.session.name()}},
		})
	}
	plain, err := rtcp.Marshal(append(reports, &names))
	if err != nil {
		v.session.counts.errors.Add(1)
		return
	}
	n, err := v.cryptor.sealRTCP(sh.room(to), plain)
	if err != nil {
		v.session.counts.errors.Add(1)
		return
	}
	sh.commit(to, n, now)
}

// span is how long a difference of timestamps is.
func span(difference, rate uint32) time.Duration {
	return time.Duration(int64(int32(difference)) * int64(time.Second) / int64(rate))
}

// ticks is the difference of timestamps over a time. The time is bounded, for
// a camera's clock may be anything.
func ticks(d time.Duration, rate uint32) uint32 {
	const most = time.Hour
	d = min(max(d, -most), most)
	return uint32(int64(d) * int64(rate) / int64(time.Second))
}

// ntpTime returns a time as 32.32 bits of seconds since 1900 (RFC 5905 §6).
func ntpTime(t time.Time) uint64 {
	const from1900 = 2_208_988_800 // seconds until 1970
	return uint64(t.Unix()+from1900)<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}
