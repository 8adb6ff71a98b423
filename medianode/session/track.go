package session

import (
	"fmt"
	"sync/atomic"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"fanlight/medianode/stream"
)

// track is what pion sends one kind of media from (webrtc.TrackLocal). Its
// packets are the stream's, with an SSRC of this session and a payload type of
// its answer.
type track struct {
	// Static.
	kind     stream.Kind
	streamID string           // the camera
	payloads map[string]uint8 // by codec
	bind     uint8            // the payload type that pion is told is sent; RTX repairs that one

	bound  atomic.Pointer[binding] // nil while pion has no writer for it
	sender *webrtc.RTPSender       // set before the first Bind

	// Owned by the pump.
	header rtp.Header
	sent   sent

	packets, bytes, errors atomic.Uint64
}

// binding is what pion gives a track when the answer is made.
type binding struct {
	writer webrtc.TrackLocalWriter
	ssrc   uint32
}

// sent is what a sender report says (RFC 3550 §6.4.1).
type sent struct {
	packets, octets uint32 // modulo 2^32
	timestamp       uint32 // of the latest packet
	clockRate       uint32 // of its codec
}

// Bind takes pion's writer, once the payload types are agreed on.
func (t *track) Bind(c webrtc.TrackLocalContext) (webrtc.RTPCodecParameters, error) {
	for _, p := range c.CodecParameters() {
		if uint8(p.PayloadType) == t.bind {
			t.bound.Store(&binding{writer: c.WriteStream(), ssrc: uint32(c.SSRC())})
			return p, nil
		}
	}
	return webrtc.RTPCodecParameters{}, fmt.Errorf("payload type %d: %w", t.bind, webrtc.ErrUnsupportedCodec)
}

// Unbind gives the writer up.
func (t *track) Unbind(webrtc.TrackLocalContext) error {
	t.bound.Store(nil)
	return nil
}

// ID returns the track's id in the SDP.
func (t *track) ID() string { return t.kind.String() }

// RID returns none: there is no simulcast.
func (t *track) RID() string { return "" }

// StreamID returns what browsers group audio and video by.
func (t *track) StreamID() string { return t.streamID }

// Kind returns the kind of media.
func (t *track) Kind() webrtc.RTPCodecType {
	if t.kind == stream.Audio {
		return webrtc.RTPCodecTypeAudio
	}
	return webrtc.RTPCodecTypeVideo
}

// write sends a burst's packets, up to the first that cannot be sent. ok is
// false if the codec was not negotiated.
func (t *track) write(b *stream.Burst) (ok bool) {
	payloadType, ok := t.payloads[b.Codec]
	if !ok {
		return false
	}
	to := t.bound.Load()
	if to == nil {
		return true // closing
	}
	known, _ := findCodec(b.Codec)
	t.sent.clockRate = known.clockRate
	for i := range b.Packets {
		p := &b.Packets[i]
		t.header = rtp.Header{
			Version: 2, Marker: p.Marker, PayloadType: payloadType,
			SequenceNumber: p.SequenceNumber, Timestamp: p.Timestamp, SSRC: to.ssrc,
		}
		if _, err := to.writer.WriteRTP(&t.header, p.Payload); err != nil {
			t.errors.Add(1)
			continue // a gap that the viewer sees, and asks for
		}
		t.sent.packets++
		t.sent.octets += uint32(len(p.Payload))
		t.sent.timestamp = p.Timestamp
		t.packets.Add(1)
		t.bytes.Add(uint64(len(p.Payload)))
	}
	return true
}
