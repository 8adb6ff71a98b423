package stream

import (
	"time"

	"github.com/pion/rtp"
)

// Writer is a source's end of a stream for the life of one connection. Its
// methods may be called from any goroutine, and have no effect after Close or
// after the next Publish.
type Writer struct {
	stream *Stream
	inputs []*input // static after Publish; what they point to is guarded by stream.mu
}

// WriteRTP writes one packet of a track, the index into the tracks published.
// It never blocks. The packet is the stream's afterwards: nobody may change it
// or reuse its payload.
func (w *Writer) WriteRTP(track int, pkt *rtp.Packet) {
	if pkt == nil || track < 0 || track >= len(w.inputs) {
		return
	}
	s := w.stream
	now := s.clock()
	s.mu.Lock()
	if s.writer != w {
		s.mu.Unlock()
		return
	}
	w.inputs[track].write(now, pkt)
	ask := s.keys.due(now)
	s.mu.Unlock()
	if ask != nil {
		ask()
	}
}

// WriteSenderReport says that the camera's RTP timestamp rtpTime of a track
// was at ntp by the camera's clock (RFC 3550 §6.4.1). A report that is more
// than 10 s away from the track's latest packet is ignored.
func (w *Writer) WriteSenderReport(track int, ntp time.Time, rtpTime uint32) {
	if track < 0 || track >= len(w.inputs) || ntp.IsZero() {
		return
	}
	s := w.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer != w {
		return
	}
	out := w.inputs[track].out
	if rtp, ok := out.line.translate(rtpTime); ok {
		out.senderReport = clockPoint{at: ntp, rtp: rtp}
	}
}

// OnKeyframeRequest sets what asks the camera for a keyframe. The requests of
// all subscriptions are coalesced to one a second at most. It is called from
// the goroutine of a session or of the source, must not block, and may still be
// called shortly after Close.
func (w *Writer) OnKeyframeRequest(ask func()) {
	s := w.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == w {
		s.keys.published(ask)
	}
}

// Close ends the connection, which flushes what is pending. The stream and its
// subscriptions stay.
func (w *Writer) Close() {
	s := w.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer != w {
		return
	}
	for _, in := range w.inputs {
		s.flush(in.out)
	}
	s.writer = nil
	s.keys.published(nil)
	s.cache.drop() // the picture is no longer that of now
}

// input is the way of one track's packets through one connection.
// Guarded by Stream.mu.
type input struct {
	stream *Stream
	out    *output
	seq    sequence
	video  normalizer // nil: audio

	lost   bool     // packets are missing before the next that is not empty
	before timeline // the output's, before the access unit under way
}

func (in *input) write(now time.Time, pkt *rtp.Packet) {
	m := &in.stream.meter
	m.packet(now, pkt.Header.MarshalSize()+len(pkt.Payload))
	gap, missing, ok := in.seq.next(pkt.SequenceNumber)
	if !ok {
		m.discards.Late++
		return
	}
	m.inSequence(now, missing)
	out := in.out
	leftOut := in.video != nil && in.video.leavesOut() // the access unit under way
	switch {
	case gap == 0:
	case out.kind == Audio:
		out.next += uint64(gap)
	case leftOut && pkt.Timestamp == out.line.in: // nobody misses what is missing of it
	default:
		in.damage()
	}
	in.lost = in.lost || gap > 0
	if len(pkt.Payload) == 0 {
		m.discards.Malformed++
		return
	}
	lost := in.lost
	in.lost = false
	leftOut = leftOut && pkt.Timestamp != out.line.in // and ends here
	if leftOut {
		in.forget()
	}
	before := out.line
	fresh := out.line.next(pkt.Timestamp, now) || leftOut
	if fresh {
		in.before = before
	}
	switch {
	case out.line.leapt:
		out.senderReport = clockPoint{}
	case out.kind == Video && before.started && out.line.high != before.high:
		m.picture(now.Sub(before.highAt), out.line.duration(out.line.high-before.high))
	}
	if in.video != nil {
		in.video.write(fresh, lost, pkt.Marker, pkt.Payload)
		return
	}
	out.gap = lost
	in.audio(pkt)
}

// damage is told that packets of video are missing. What follows is of no use
// until a keyframe, which the camera is asked for.
func (in *input) damage() {
	in.out.damage()
	if s := in.stream; len(s.subs) > 0 {
		s.keys.wanted()
	}
}

// forget takes back what an access unit that was left out did to the timestamps:
// those of B-frames go back, by more than a leap if there are few a second.
func (in *input) forget() {
	out := in.out
	if out.line.out-in.before.out != out.line.in-in.before.in {
		out.senderReport = clockPoint{} // in a mapping that is gone
	}
	out.line = in.before
}

// audio passes a packet on as a burst of its own. G.711 and G.722 have one octet
// a tick of their clock and channel (RFC 3551 §4.5.14, §4.5.2) and can be cut
// anywhere; Opus cannot be cut.
func (in *input) audio(pkt *rtp.Packet) {
	out, payload, marker, ts := in.out, pkt.Payload, pkt.Marker, in.out.line.out
	if len(payload) > in.stream.mtu && out.track.Codec == "OPUS" {
		in.stream.meter.discards.Oversized++
		return
	}
	channels := max(out.track.Channels, 1)
	size := in.stream.mtu / channels * channels
	for len(payload) > size {
		out.append(Packet{Timestamp: ts, Marker: marker, Payload: payload[:size:size]})
		in.stream.flush(out)
		payload, marker = payload[size:], false
		ts += uint32(size / channels)
	}
	out.append(Packet{Timestamp: ts, Marker: marker, Payload: payload})
	in.stream.flush(out)
}

// flush hands the pending burst of an output to every subscription.
func (s *Stream) flush(out *output) {
	if len(out.pending) == 0 {
		return
	}
	if len(s.subs) == 0 && (out.kind != Video || !s.cache.on()) {
		out.discard()
		return
	}
	b := out.take()
	out.kept.put(b)
	if b.Kind == Video {
		s.cache.put(b)
	}
	for _, sub := range s.subs {
		sub.push(b)
	}
}
