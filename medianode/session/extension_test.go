package session

import (
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/srtp/v3"

	"fanlight/medianode/transport"
)

// What is built is what pion reads, whichever of the extensions are negotiated.
func TestExtensions(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 250e6, time.UTC)
	x := extended{now: now, says: true, delay: 25<<12 | 100, capture: true, taken: ntpTime(now.Add(-time.Second)), clock: -1 << 31}
	for _, e := range []extensions{
		{sendTime: 2}, {playoutDelay: 14}, {captureTime: 1}, {sendTime: 3, playoutDelay: 4, captureTime: 5}, {sendTime: 3, captureTime: 9},
	} {
		b := e.appendExtensions(make([]byte, 0, maxExtensions), &x)
		if len(b)%4 != 0 || len(b) > maxExtensions {
			t.Fatalf("%+v: %d bytes", e, len(b))
		}
		raw := append([]byte{0x90, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3}, b...)
		var p rtp.Packet
		if err := p.Unmarshal(append(raw, "payload"...)); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		if string(p.Payload) != "payload" {
			t.Errorf("%+v: the payload is %q", e, p.Payload)
		}
		if e.sendTime != 0 {
			var send rtp.AbsSendTimeExtension
			if err := send.Unmarshal(p.GetExtension(e.sendTime)); err != nil || send.Estimate(now.Add(time.Second)).Sub(now).Abs() > time.Millisecond {
				t.Errorf("%+v: sent at %v, want %v (%v)", e, send.Estimate(now), now, err)
			}
		}
		if e.playoutDelay != 0 {
			var delay rtp.PlayoutDelayExtension
			if err := delay.Unmarshal(p.GetExtension(e.playoutDelay)); err != nil || delay.MinDelay != 25 || delay.MaxDelay != 100 {
				t.Errorf("%+v: hold back %+v (%v)", e, delay, err)
			}
		}
		if e.captureTime != 0 {
			var taken rtp.AbsCaptureTimeExtension
			if err := taken.Unmarshal(p.GetExtension(e.captureTime)); err != nil {
				t.Errorf("%+v: %v", e, err)
			} else if offset := taken.EstimatedCaptureClockOffsetDuration(); taken.CaptureTime().Sub(now.Add(-time.Second)).Abs() > time.Millisecond || offset == nil || (*offset+500*time.Millisecond).Abs() > time.Millisecond {
				t.Errorf("%+v: taken at %v, offset %v", e, taken.CaptureTime(), offset)
			}
		}
	}
	if b := (extensions{sendTime: 2}).appendExtensions(nil, &extended{}); len(b) != 8 {
		t.Errorf("the time alone has %d bytes", len(b))
	}
	if b := (extensions{playoutDelay: 2}).appendExtensions(nil, &x); len(b) == 0 {
		t.Error("no delay is said")
	}
	if b := (extensions{playoutDelay: 2}).appendExtensions(nil, &extended{now: now}); len(b) != 0 {
		t.Errorf("%d bytes say nothing", len(b))
	}
}

// Only what was offered with a number that fits into one byte, and to be sent to
// the viewer, is answered; the time of sending only where it is of use.
func TestOfferedExtensions(t *testing.T) {
	md := new(sdp.MediaDescription)
	for _, v := range []string{
		"1 urn:ietf:params:rtp-hdrext:toffset", "2 " + sendTimeURI, "15 " + playoutDelayURI, "x " + captureTimeURI, "3/sendonly " + captureTimeURI,
		"4/recvonly " + captureTimeURI, "5 " + playoutDelayURI + " attributes",
	} {
		md.Attributes = append(md.Attributes, sdp.NewAttribute("extmap", v))
	}
	for _, tt := range []struct {
		video, estimate bool
		want            extensions
	}{
		{true, true, extensions{sendTime: 2, playoutDelay: 5, captureTime: 4}},
		{true, false, extensions{playoutDelay: 5, captureTime: 4}},
		{false, true, extensions{captureTime: 4}},
	} {
		if got := offeredExtensions(md, tt.video, tt.estimate); got != tt.want {
			t.Errorf("video %v, estimate %v: %+v, want %+v", tt.video, tt.estimate, got, tt.want)
		}
	}
}

// A sealed packet with extensions is what the viewer's SRTP opens.
func TestSealExtensions(t *testing.T) {
	for _, profile := range []srtp.ProtectionProfile{srtp.ProtectionProfileAeadAes128Gcm, srtp.ProtectionProfileAes128CmHmacSha1_80} {
		keys := &transport.Keys{Profile: profile, Key: randomBytes(16), Salt: randomBytes(12)}
		if profile == srtp.ProtectionProfileAes128CmHmacSha1_80 {
			keys.Salt = randomBytes(14)
		}
		c, err := newCryptor(keys)
		if err != nil {
			t.Fatal(err)
		}
		viewer, err := srtp.CreateContext(keys.Key, keys.Salt, profile)
		if err != nil {
			t.Fatal(err)
		}
		e := extensions{sendTime: 2, playoutDelay: 3}
		ext := e.appendExtensions(nil, &extended{now: time.Now(), says: true, delay: 7})
		for i, before := range [][]byte{nil, {1, 2}} {
			room := make([]byte, 1600)
			n, err := c.seal(room, &image{index: uint64(100 + i), timestamp: 5, ssrc: 9, payload: 96, marker: true, extension: ext}, before, []byte("picture"))
			if err != nil {
				t.Fatal(err)
			}
			var header rtp.Header
			plain, err := viewer.DecryptRTP(nil, room[:n], &header)
			if err != nil {
				t.Fatalf("%v: %v", profile, err)
			}
			var p rtp.Packet
			if err := p.Unmarshal(plain); err != nil {
				t.Fatal(err)
			}
			if string(p.Payload) != string(before)+"picture" || p.GetExtension(2) == nil || !slices.Equal(p.GetExtension(3), []byte{0, 0, 7}) {
				t.Errorf("%v: %+v with %q", profile, p.Header, p.Payload)
			}
		}
	}
}
