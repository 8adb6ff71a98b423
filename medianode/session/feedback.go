package session

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"

	"fanlight/medianode/stream"
)

const (
	// keyframePause is how often one viewer's wish for a keyframe is heard. The
	// stream coalesces those of all viewers to one a second.
	keyframePause = 200 * time.Millisecond
	// maxRTCPErrors is how many unreadable RTCP packets in a row end the reading.
	maxRTCPErrors = 100
)

// feedback is what a viewer said of what it receives.
type feedback struct {
	keyframeRequests atomic.Uint64 // PLI and FIR
	lost             atomic.Uint32 // packets lost in all, by the latest report
}

// readRTCP reads a track's RTCP until the peer connection is closed. pion's
// interceptors live by this reading too: it is how the NACK responder, and ours
// before it (resends), see what is asked for. Interceptors end where they see no more of it than PLI, and
// this session's has what they lack: the subscription to ask.
func (s *Session) readRTCP(t *track) {
	buf := make([]byte, 1500)
	for failed := 0; failed < maxRTCPErrors; {
		n, attributes, err := t.sender.Read(buf)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return
		}
		var packets []rtcp.Packet
		if err == nil {
			packets, err = attributes.GetRTCPPackets(buf[:n])
		}
		if err != nil {
			failed++
			continue
		}
		failed = 0
		for _, p := range packets {
			s.hear(t, p)
		}
	}
	s.log.Debug("rtcp given up", "kind", t.kind.String(), "errors", maxRTCPErrors)
}

// hear acts on one RTCP packet about a track.
func (s *Session) hear(t *track, p rtcp.Packet) {
	switch p := p.(type) {
	case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
		if t.kind == stream.Video {
			s.wantKeyframe()
		}
	case *rtcp.ReceiverReport:
		to := t.bound.Load()
		for _, r := range p.Reports {
			if to != nil && r.SSRC == to.ssrc && t.kind == stream.Video {
				s.feedback.lost.Store(r.TotalLost)
			}
		}
	}
}

// wantKeyframe passes on the viewer's wish. It is called by the reader of the
// video's RTCP only.
func (s *Session) wantKeyframe() {
	s.feedback.keyframeRequests.Add(1)
	now := time.Now()
	if now.Sub(s.keyframeAsked) < keyframePause {
		return
	}
	s.keyframeAsked = now
	if sub := s.subscription.Load(); sub != nil {
		sub.RequestKeyframe()
	}
}

// reportInterval is the time between sender reports.
const reportInterval = time.Second

// report sends sender reports for both tracks, now that a burst of t has left.
// The burst's last packet is what "now" is in the reports; the other track's
// timestamp of the same moment follows by the stream's clock. So the wall-clock
// time in them is this node's, as round trip times need it, and the kinds are
// as far apart as the camera says.
func (s *Session) report(t *track, now time.Time) {
	at, timestamp, ok := s.stream.SenderClock(t.kind)
	if !ok || t.sent.clockRate == 0 {
		return
	}
	moment := at.Add(span(t.sent.timestamp-timestamp, t.sent.clockRate))
	var reports []rtcp.Packet
	for _, track := range []*track{s.video, s.audio} {
		if track == nil || track.sent.packets == 0 {
			continue
		}
		to := track.bound.Load()
		at, timestamp, ok := s.stream.SenderClock(track.kind)
		if to == nil || !ok {
			continue
		}
		reports = append(reports, &rtcp.SenderReport{
			SSRC: to.ssrc, NTPTime: ntpTime(now), RTPTime: timestamp + ticks(moment.Sub(at), track.sent.clockRate),
			PacketCount: track.sent.packets, OctetCount: track.sent.octets,
		})
	}
	if len(reports) == 0 {
		return
	}
	if err := s.pc.WriteRTCP(reports); err != nil {
		s.log.Debug("sender report not sent", "error", err)
	}
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
