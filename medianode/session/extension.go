package session

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pion/sdp/v3"
)

// The RTP header extensions that are sent where they are offered.
const (
	// sendTimeURI is when a packet left, in 6.18 bits of seconds: a browser
	// estimates from it what its path carries, and says so by REMB.
	sendTimeURI = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
	// playoutDelayURI is how long a picture is to be held back before it is shown,
	// at least and at most, 12 bits each in units of 10 ms.
	playoutDelayURI = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
	// captureTimeURI is when the camera took a picture, in NTP time of its clock, and
	// how far that clock is from ours.
	captureTimeURI = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"
)

// captureInterval is how often the capture time is sent: a receiver works out
// those in between.
const captureInterval = time.Second

// extensions are the numbers of header extensions in one section (RFC 8285); 0:
// not negotiated.
type extensions struct {
	sendTime, playoutDelay, captureTime uint8
}

// offeredExtensions returns those of a section that are sent. estimate: sendTime
// too.
func offeredExtensions(md *sdp.MediaDescription, video, estimate bool) extensions {
	var out extensions
	for _, a := range md.Attributes {
		if a.Key != "extmap" {
			continue
		}
		number, uri, _ := strings.Cut(a.Value, " ")
		number, direction, _ := strings.Cut(number, "/")
		id, err := strconv.ParseUint(number, 10, 8)
		if err != nil || id < 1 || id > 14 || slices.Contains([]string{"sendonly", "inactive"}, direction) {
			continue // RFC 8285 §4.2: with one byte, 1 to 14
		}
		uri, _, _ = strings.Cut(uri, " ")
		switch {
		case uri == sendTimeURI && video && estimate:
			out.sendTime = uint8(id)
		case uri == playoutDelayURI && video:
			out.playoutDelay = uint8(id)
		case uri == captureTimeURI:
			out.captureTime = uint8(id)
		}
	}
	return out
}

// each calls add with the number and URI of each that is negotiated.
func (e extensions) each(add func(id uint8, uri string)) {
	for _, x := range []struct {
		id  uint8
		uri string
	}{{e.sendTime, sendTimeURI}, {e.playoutDelay, playoutDelayURI}, {e.captureTime, captureTimeURI}} {
		if x.id != 0 {
			add(x.id, x.uri)
		}
	}
}

// maxExtensions is how many bytes appendExtensions appends at most.
const maxExtensions = 4 + 4 + 4 + 20

// extended is what a packet's header extensions are to say.
type extended struct {
	now time.Time // when it leaves

	says  bool   // it says delay
	delay uint32 // 12 bits each of the least and the most, in units of 10 ms

	capture bool // the next two are known, and due
	taken   uint64
	clock   int64 // in 32.32 bits of seconds, what is to be added to taken for our clock
}

// appendExtensions appends a packet's header extensions with one-byte headers
// (RFC 8285 §4.2), in 32-bit words, or nothing if there are none.
func (e extensions) appendExtensions(b []byte, x *extended) []byte {
	begin := len(b)
	b = append(b, 0xbe, 0xde, 0, 0)
	if e.sendTime != 0 {
		t := ntpTime(x.now) >> 14 // to 18 bits of fraction
		b = append(b, e.sendTime<<4|2, byte(t>>16), byte(t>>8), byte(t))
	}
	if e.playoutDelay != 0 && x.says {
		b = append(b, e.playoutDelay<<4|2, byte(x.delay>>16), byte(x.delay>>8), byte(x.delay))
	}
	if e.captureTime != 0 && x.capture {
		b = append(b, e.captureTime<<4|15)
		b = binary.BigEndian.AppendUint64(b, x.taken)
		b = binary.BigEndian.AppendUint64(b, uint64(x.clock))
	}
	size := len(b) - begin - 4
	if size == 0 {
		return b[:begin]
	}
	for ; size%4 != 0; size++ {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[begin+2:], uint16(size/4))
	return b
}
