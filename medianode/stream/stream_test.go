package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"

	"fanlight/internal/fleet"
)

// clock is a time that tests move.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) time() time.Time { return c.now }

// What a camera does to its timestamps, and what viewers see of it.
func TestTimestamps(t *testing.T) {
	const second = 90_000
	type step struct {
		wait time.Duration // since the packet before
		jump int64         // of the camera's timestamp
		want int64         // of the stream's
	}
	for name, steps := range map[string][]step{
		"steady":              {{40 * time.Millisecond, 3600, 3600}, {40 * time.Millisecond, 3600, 3600}},
		"jitter of arrival":   {{5 * time.Millisecond, 3600, 3600}, {300 * time.Millisecond, 3600, 3600}, {0, 3600, 3600}},
		"B-frames":            {{40 * time.Millisecond, 10800, 10800}, {40 * time.Millisecond, -7200, -7200}, {40 * time.Millisecond, 3600, 3600}},
		"a pause":             {{20 * time.Second, 20 * second, 20 * second}, {40 * time.Millisecond, 3600, 3600}},
		"a stall, a backlog":  {{8 * time.Second, 3600, 3600}, {0, 3600, 3600}, {0, 3600, 3600}},
		"leaps ahead":         {{40 * time.Millisecond, 3600 * second, 3600}, {40 * time.Millisecond, 3600, 3600}},
		"set back":            {{40 * time.Millisecond, -3600 * second, 3600}, {40 * time.Millisecond, 3600, 3600}},
		"set back a second":   {{40 * time.Millisecond, -second, 3600}, {40 * time.Millisecond, 3600, 3600}},
		"half a round":        {{40 * time.Millisecond, 1 << 31, 3600}, {40 * time.Millisecond, 3600, 3600}},
		"stands for too long": {{11 * time.Second, 3600, 11 * second}, {40 * time.Millisecond, 3600, 3600}},
		"leaps within no time": {
			{0, 3600 * second, 1}, // never the same as the picture before
			{40 * time.Millisecond, 3600, 3600},
		},
		"leaps after a B-frame": {
			{40 * time.Millisecond, 10800, 10800},
			{40 * time.Millisecond, -7200, -7200},
			{40 * time.Millisecond, -3600 * second, 7200 + 7200}, // after the latest picture shown
		},
		"a leap after many hours": {{24 * time.Hour, -3600 * second, 3600 * second}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			s := New(Config{Clock: c.time})
			sub := s.Subscribe(SubscribeOptions{})
			cam := publish(t, s)
			cam.packet(0, true, sps)
			cam.packet(0, true, pps)
			cam.packet(0, true, idr(20))
			var want, got []int64
			for _, st := range steps {
				c.now = c.now.Add(st.wait)
				cam.ts += uint32(st.jump)
				cam.packet(0, true, inter(20))
				want = append(want, int64(int32(uint32(st.want))))
			}
			ps := packets(drain(t, sub))[1:] // after the parameter sets
			for i := range len(ps) - 1 {
				got = append(got, int64(int32(ps[i+1].Timestamp-ps[i].Timestamp)))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

// A new connection goes on where the one before was, whatever the camera's
// numbers are, and begins with a keyframe.
func TestReconnect(t *testing.T) {
	c := newClock()
	s := New(Config{Clock: c.time})
	sub := s.Subscribe(SubscribeOptions{})
	old := publish(t, s, videoTrack, audioTrack)
	old.unit(sps, pps, idr(20))
	old.packet(1, false, []byte{1})
	c.now = c.now.Add(40 * time.Millisecond)
	old.packet(0, false, inter(30)) // cut off

	c.now = c.now.Add(10*time.Second - 40*time.Millisecond)
	cam := publish(t, s, audioTrack, videoTrack) // in another order
	cam.seq, cam.ts = 7, 7
	old.unit(inter(40)) // too late
	cam.packet(1, true, inter(50))
	cam.packet(0, false, []byte{2})
	cam.packet(1, false, sps)
	cam.packet(1, false, pps)
	cam.packet(1, true, idr(60))

	var video, audio []Packet
	for _, b := range drain(t, sub) {
		want := map[Kind]int{Video: 0, Audio: 1}[b.Kind]
		if len(video) > 2 || len(audio) > 0 {
			want = 1 - want
		}
		if b.Track != want && len(b.Packets[0].Payload) > 1 {
			t.Errorf("%s burst of track %d, want %d", b.Kind, b.Track, want)
		}
		if b.Kind == Video {
			video = append(video, b.Packets...)
		} else {
			audio = append(audio, b.Packets...)
		}
	}
	if len(video) != 4 || len(audio) != 2 {
		t.Fatalf("%d packets of video, %d of audio", len(video), len(audio))
	}
	if d := video[2].Timestamp - video[1].Timestamp; d != 10*90_000 {
		t.Errorf("video timestamps leap by %d", d)
	}
	if d := audio[1].Timestamp - audio[0].Timestamp; d != 10*8_000 {
		t.Errorf("audio timestamps leap by %d", d)
	}
	if d := audio[1].Index - audio[0].Index; d != 1 {
		t.Errorf("audio sequence leaps by %d", d)
	}
	// The picture that was cut off and the one before the keyframe are missing.
	if d := video[2].Index - video[1].Index; d != 3 {
		t.Errorf("video sequence leaps by %d", d)
	}
	if got := s.Stats().Drops; got != (Drops{AwaitingKeyframe: 1}) {
		t.Errorf("drops %+v", got)
	}
}

func TestPublishRefuses(t *testing.T) {
	closed := New(Config{})
	closed.Close(fleet.CameraMoved)
	for _, c := range []struct {
		name   string
		stream *Stream
		tracks []Track
		want   error
	}{
		{"H266", New(Config{}), []Track{{Kind: Video, Codec: "H266", ClockRate: 90_000}}, fleet.CodecUnsupported},
		{"video codec as audio", New(Config{}), []Track{{Kind: Audio, Codec: "H264", ClockRate: 90_000}}, fleet.CodecUnsupported},
		{"no clock rate", New(Config{}), []Track{{Kind: Video, Codec: "H264"}}, fleet.InvalidArgument},
		{"no such kind", New(Config{}), []Track{{Kind: 7, Codec: "H264", ClockRate: 1}}, fleet.InvalidArgument},
		{"two of a kind", New(Config{}), []Track{videoTrack, videoTrack}, fleet.InvalidArgument},
		{"closed", closed, []Track{videoTrack}, fleet.CameraMoved},
	} {
		if _, err := c.stream.Publish(c.tracks); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

// A source's mistakes have no effect.
func TestWriterMisuse(t *testing.T) {
	s := New(Config{})
	cam := publish(t, s)
	cam.w.WriteRTP(-1, &rtp.Packet{})
	cam.w.WriteRTP(1, &rtp.Packet{})
	cam.w.WriteRTP(0, nil)
	cam.w.WriteSenderReport(1, time.Now(), 0)
	cam.w.WriteSenderReport(0, time.Time{}, 0)
	cam.w.Close()
	cam.w.Close()
	cam.unit(sps, pps, idr(20))
	cam.w.OnKeyframeRequest(func() { t.Error("asked after Close") })
	sub := s.Subscribe(SubscribeOptions{})
	sub.RequestKeyframe()
	if got := s.Stats().Packets; got != 0 {
		t.Errorf("%d packets", got)
	}
}

func TestAudio(t *testing.T) {
	for _, c := range []struct {
		track   Track
		payload []byte
		want    []outPacket
		lost    int64
	}{
		{track: audioTrack, payload: []byte{1, 2}, want: []outPacket{{marker: true, payload: []byte{1, 2}}}},
		{track: audioTrack, payload: bytes.Repeat([]byte{9}, 150), want: []outPacket{
			{marker: true, payload: bytes.Repeat([]byte{9}, 64)}, {step: 64, payload: bytes.Repeat([]byte{9}, 64)}, {step: 64, payload: bytes.Repeat([]byte{9}, 22)},
		}},
		{track: Track{Kind: Audio, Codec: "PCMU", ClockRate: 8000, Channels: 2}, payload: bytes.Repeat([]byte{9}, 66), want: []outPacket{
			{marker: true, payload: bytes.Repeat([]byte{9}, 64)}, {step: 32, payload: bytes.Repeat([]byte{9}, 2)},
		}},
		{track: Track{Kind: Audio, Codec: "opus", ClockRate: 48_000, Channels: 2}, payload: make([]byte, 64), want: []outPacket{{marker: true, payload: make([]byte, 64)}}},
		{track: Track{Kind: Audio, Codec: "opus", ClockRate: 48_000, Channels: 2}, payload: make([]byte, 65), lost: 1},
	} {
		s := New(Config{MTU: testMTU})
		cam := publish(t, s, c.track)
		sub := s.Subscribe(SubscribeOptions{}) // there is no video to wait for
		cam.packet(0, true, c.payload)
		if diff := cmp.Diff(c.want, relative(packets(drain(t, sub))), cmp.AllowUnexported(outPacket{})); diff != "" {
			t.Errorf("%s, %d bytes (-want +got):\n%s", c.track.Codec, len(c.payload), diff)
		}
		if got := s.Stats().Discards.Oversized; got != c.lost {
			t.Errorf("%s, %d bytes: %d oversized", c.track.Codec, len(c.payload), got)
		}
	}
}

// The camera's clock is used when all its tracks have reported, and the arrival
// of packets until then, so that the kinds stay together.
func TestSenderClock(t *testing.T) {
	c := newClock()
	s := New(Config{Clock: c.time})
	sub := s.Subscribe(SubscribeOptions{})
	cam := publish(t, s, videoTrack, audioTrack)
	if _, _, ok := s.SenderClock(Video); ok {
		t.Error("a clock before the first packet")
	}
	cam.ts = 1000
	cam.unit(sps, pps, idr(20))
	cam.ts = 500
	cam.packet(1, false, []byte{1})
	bursts := drain(t, sub)
	video, audio := bursts[0].Packets[0].Timestamp, bursts[1].Packets[0].Timestamp

	check := func(kind Kind, at time.Time, rtp uint32) {
		t.Helper()
		gotAt, gotRTP, ok := s.SenderClock(kind)
		if !ok || !gotAt.Equal(at) || gotRTP != rtp {
			t.Errorf("%s: %v is %d (%v), want %v is %d", kind, gotAt, gotRTP, ok, at, rtp)
		}
	}
	cameraTime := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	cam.w.WriteSenderReport(0, cameraTime, 1000-90)
	check(Video, c.now, video) // audio has not reported
	cam.w.WriteSenderReport(1, cameraTime, 500-8)
	check(Video, cameraTime, video-90)
	check(Audio, cameraTime, audio-8)
	cam.w.WriteSenderReport(0, cameraTime.Add(time.Hour), 1000+11*90_000) // of another clock
	check(Video, cameraTime, video-90)

	cam.ts = 1 << 30 // the camera's video clock leaps: its report is of the old one
	c.now = c.now.Add(time.Second)
	cam.packet(0, true, inter(20))
	check(Video, c.now, video+90_000)
	check(Audio, c.now.Add(-time.Second), audio)
}

func TestStats(t *testing.T) {
	c := newClock()
	s := New(Config{Clock: c.time})
	cam := publish(t, s, Track{Kind: Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{sps, pps}})
	start := c.now
	for i := range 50 { // 2 s of 25 frames, a keyframe a second, 2 packets of 112 bytes each
		nal := inter(100)
		if i%25 == 0 {
			nal = idr(100)
		}
		cam.packet(0, false, nal)
		cam.packet(0, true, nal)
		cam.ts += frame
		c.now = c.now.Add(40 * time.Millisecond)
	}
	cam.seq += 5
	cam.unit(inter(10))
	got := s.Stats()
	want := Stats{
		Packets: 101, Bytes: 100*112 + 22, Frames: 51, Keyframes: 2, PacketsLost: 5, ConnectionPacketsLost: 5, Loss: 5. / 106, Missing: 5, Discards: Discards{Damaged: 1},
		BitrateBPS: 50 * 112 * 8, PacketsPerSecond: 50, FramesPerSecond: 25, Width: 640, Height: 360, KeyframeInterval: time.Second, LastKeyframe: start.Add(time.Second),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	c.now = c.now.Add(5 * time.Second)
	publish(t, s)
	if got := s.Stats(); got.BitrateBPS != 0 || got.FramesPerSecond != 0 || got.PacketsLost != 5 || got.ConnectionPacketsLost != 0 {
		t.Errorf("after 5 s of silence and a new connection: %+v", got)
	}
}

// The share of packets missing is that of ten seconds.
func TestLoss(t *testing.T) {
	c := newClock()
	s := New(Config{Clock: c.time})
	cam := publish(t, s)
	send := func(seconds int, lost uint16) {
		t.Helper()
		for range seconds {
			for range 10 {
				cam.unit(inter(10))
				cam.seq += lost
				c.now = c.now.Add(100 * time.Millisecond)
			}
		}
	}
	check := func(what string, least, most float64) {
		t.Helper()
		if got := s.Stats().Loss; got < least || got > most {
			t.Errorf("%s: %v of the packets are lost, want %v to %v", what, got, least, most)
		}
	}
	send(12, 0)
	check("nothing is lost", 0, 0)
	send(5, 1)
	check("half is lost, for 5 s", 0.3, 0.35)
	send(6, 1)
	check("half is lost, for 11 s", 0.49, 0.51)
	if got := s.Stats().Missing; got < 95 || got > 110 {
		t.Errorf("%d packets are missing, want those of ten seconds, ten a second", got)
	}
	cam.w.Close()
	c.now = c.now.Add(2 * time.Second)
	cam = publish(t, s)
	check("and the camera connects again", 0.49, 0.51)
	send(12, 0)
	check("and all is well for 12 s", 0, 0)
	cam.seq += 3
	cam.unit(inter(10))
	c.now = c.now.Add(time.Minute)
	check("nothing for a minute", 0, 0)
	if got := s.Stats().Missing; got != 0 {
		t.Errorf("%d packets are missing after a minute", got)
	}
}

// Interarrival jitter of pictures in the order in which they are shown.
func TestJitter(t *testing.T) {
	for _, c := range []struct {
		name        string
		send        func(c *clock, cam *camera, i int)
		least, most time.Duration
	}{
		{"even", func(c *clock, cam *camera, _ int) {
			cam.unit(inter(10), inter(10))
			c.now = c.now.Add(40 * time.Millisecond)
		}, 0, 0},
		{"later and earlier by 20 ms", func(c *clock, cam *camera, i int) {
			cam.unit(inter(10))
			c.now = c.now.Add(40*time.Millisecond + time.Duration(i%2*2-1)*20*time.Millisecond)
		}, 19 * time.Millisecond, 20 * time.Millisecond},
		{"packets of a picture take their time", func(c *clock, cam *camera, _ int) {
			cam.packet(0, false, inter(10))
			c.now = c.now.Add(30 * time.Millisecond)
			cam.packet(0, true, inter(10))
			cam.ts += 3600
			c.now = c.now.Add(10 * time.Millisecond)
		}, 0, 0},
		{"B-frames, sent evenly", func(c *clock, cam *camera, i int) { // the first is shown as the third
			cam.packet(0, true, inter(10))
			cam.ts += uint32([...]int32{-2, 1, 4}[i%3] * 3600)
			c.now = c.now.Add(40 * time.Millisecond)
		}, 0, 0},
		{"TCP holds back a second of every four", func(c *clock, cam *camera, i int) {
			cam.unit(inter(10))
			switch i % 100 {
			case 74:
				c.now = c.now.Add(time.Second)
			case 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98:
			default:
				c.now = c.now.Add(40 * time.Millisecond)
			}
		}, 20 * time.Millisecond, 80 * time.Millisecond},
		{"the clock leaps", func(c *clock, cam *camera, i int) {
			cam.unit(inter(10))
			if i%10 == 0 {
				cam.ts += 90_000 * 3600
			}
			c.now = c.now.Add(40 * time.Millisecond)
		}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := newClock()
			s := New(Config{Clock: now.time})
			cam := publish(t, s)
			for i := range 300 {
				c.send(now, cam, i)
			}
			if got := s.Stats().Jitter.Round(time.Millisecond); got < c.least || got > c.most {
				t.Errorf("jitter %v, want %v to %v", got, c.least, c.most)
			}
			publish(t, s)
			if got := s.Stats().Jitter; got != 0 {
				t.Errorf("jitter %v in a new connection", got)
			}
		})
	}
}

// The rates of a connection's first second are of what there has been of it.
func TestFirstRates(t *testing.T) {
	c := newClock()
	s := New(Config{Clock: c.time})
	cam := publish(t, s)
	for range 25 {
		cam.unit(inter(100))
		c.now = c.now.Add(40 * time.Millisecond)
	}
	cam.w.Close()
	c.now = c.now.Add(500 * time.Millisecond)
	cam = publish(t, s)
	for i := range 50 { // 50 frames a second of one packet of 62 bytes
		if got := s.Stats(); i >= 5 && (got.FramesPerSecond != 50 || got.PacketsPerSecond != 50 || got.BitrateBPS != 50*62*8) {
			t.Fatalf("%v after the first packet: %v frames/s, %v packets/s, %v bit/s", time.Duration(i)*20*time.Millisecond,
				got.FramesPerSecond, got.PacketsPerSecond, got.BitrateBPS)
		}
		cam.unit(inter(50))
		c.now = c.now.Add(20 * time.Millisecond)
	}
}

// However many subscriptions ask, the camera is asked once a second until a
// keyframe begins, and not at all if one came by itself.
func TestKeyframeRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		subs := []*Subscription{s.Subscribe(SubscribeOptions{}), s.Subscribe(SubscribeOptions{})}
		subs[0].RequestKeyframe() // nobody there to ask
		cam := publish(t, s)
		asked := 0
		cam.w.OnKeyframeRequest(func() { asked++ })
		ask := func() {
			for _, sub := range subs {
				sub.RequestKeyframe()
			}
		}
		check := func(want int) {
			t.Helper()
			if asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
		}
		cam.unit(inter(20))
		check(1) // what was asked before the camera was there
		ask()
		cam.unit(inter(20))
		check(1)
		time.Sleep(time.Second)
		cam.unit(inter(20))
		check(2) // the request that came too soon, or the first one again
		time.Sleep(500 * time.Millisecond)
		ask()
		cam.unit(sps, pps, idr(20))
		time.Sleep(time.Second)
		cam.unit(inter(20))
		check(2) // there was one
		ask()
		check(3)
		for range 3 { // a camera that does not listen
			time.Sleep(999 * time.Millisecond)
			cam.unit(inter(20))
			time.Sleep(time.Millisecond)
			cam.unit(inter(20))
		}
		check(6)
		cam.w.Close()
		time.Sleep(2 * time.Second)
		ask()
		check(6)
	})
}

// Viewers who arrive one after the other don't wait a second each, as long as
// the camera answers and it is not for long.
func TestKeyframeRequestsInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		sub := s.Subscribe(SubscribeOptions{})
		cam := publish(t, s)
		asked := 0
		cam.w.OnKeyframeRequest(func() { asked++ })
		cam.unit(sps, pps, idr(20))
		check := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			sub.RequestKeyframe()
			if asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
			cam.unit(sps, pps, idr(20))
		}
		for range 2 {
			asked = 0
			check(0, 1)
			check(keyframeRequestSpacing-1, 1)
			check(1, 2)
			check(keyframeRequestSpacing, 3)
			check(keyframeRequestSpacing, 4)
			check(keyframeRequestSpacing, 4) // a second for each after that
			check(keyframeRequestInterval-4*keyframeRequestSpacing, 5)
			check(keyframeRequestInterval-1, 5)
			check(1, 6)
			time.Sleep(keyframeRequestBurst * keyframeRequestInterval)
		}
		asked = 0
		sub.RequestKeyframe()
		time.Sleep(keyframeRequestSpacing)
		sub.RequestKeyframe() // and none has come
		if asked != 1 {
			t.Errorf("asked %d times of a camera that has not answered", asked)
		}
	})
}

// Whoever makes a subscription wait for a keyframe asks the camera for one.
func TestKeyframeWanted(t *testing.T) {
	key := func(c *camera) { c.unit(sps, pps, idr(20)) }
	for _, c := range []struct {
		name   string
		viewer SubscribeOptions
		late   bool          // the viewer comes after the connection
		before func(*camera) // packets of a first connection; nil: there was none
		write  func(*camera)
		asked  int
	}{
		{name: "a subscription, which asks when it is ready", late: true, write: func(c *camera) { c.unit(inter(20)) }},
		{name: "a connection that begins between keyframes", before: key, write: func(c *camera) { c.unit(inter(20)) }, asked: 1},
		{name: "a connection that begins with a keyframe", before: key, write: key},
		{name: "an overflow", viewer: SubscribeOptions{QueueBursts: 3}, write: func(c *camera) {
			key(c)
			for range 10 {
				c.unit(inter(20))
			}
		}, asked: 1},
		{name: "an overflow that ends at a keyframe", viewer: SubscribeOptions{QueueBursts: 3}, write: func(c *camera) {
			for range 2 {
				key(c)
				c.unit(inter(20))
			}
		}},
		{name: "a burst larger than the queue", viewer: SubscribeOptions{QueueBytes: 50}, write: func(c *camera) {
			key(c)
			c.unit(inter(60))
			c.unit(inter(10))
		}, asked: 1},
		{name: "an overflow by audio", viewer: SubscribeOptions{QueueBursts: 3}, write: func(c *camera) {
			key(c)
			for range 3 {
				c.packet(1, false, []byte{1})
			}
		}, asked: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{})
			if !c.late {
				defer s.Subscribe(c.viewer).Close()
			}
			tracks := []Track{videoTrack, audioTrack}
			if c.before != nil {
				c.before(publish(t, s, tracks...))
			}
			cam := publish(t, s, tracks...)
			asked := 0
			cam.w.OnKeyframeRequest(func() { asked++ })
			if c.late {
				defer s.Subscribe(c.viewer).Close()
			}
			c.write(cam)
			if asked != c.asked {
				t.Errorf("asked %d times, want %d", asked, c.asked)
			}
		})
	}
}

// Sources, sessions and whoever reads figures at once; the packets of each
// subscription are in order.
func TestConcurrent(t *testing.T) {
	s := New(Config{MTU: testMTU})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	var publishing sync.WaitGroup
	for i := range 2 {
		publishing.Go(func() {
			for ctx.Err() == nil {
				w, err := s.Publish([]Track{videoTrack, audioTrack})
				if err != nil {
					t.Error(err)
					return
				}
				w.OnKeyframeRequest(func() {})
				video, audio := &camera{w: w}, &camera{w: w}
				var both sync.WaitGroup
				both.Go(func() {
					for j := range 50 {
						video.unit(sps, pps, idr(100+i), inter(10+j))
					}
				})
				both.Go(func() {
					for range 50 {
						audio.packet(1, false, []byte{1})
						w.WriteSenderReport(1, time.Now(), audio.ts)
					}
				})
				both.Wait()
				w.Close()
			}
		})
	}
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				sub := s.Subscribe(SubscribeOptions{QueueBursts: 4 + i})
				if err := follow(ctx, sub, 200); err != nil {
					t.Error(err)
				}
				sub.Close()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			s.Stats()
			s.Tracks()
			s.SenderClock(Video)
			s.Board().SetStatus(fleet.CameraStatus{State: fleet.CameraState(rand.IntN(3))})
			time.Sleep(time.Millisecond)
		}
	})
	publishing.Wait()
	s.Close(nil)
	wg.Wait()
	if got := s.Stats().Subscriptions; got != 0 {
		t.Errorf("%d viewers are left", got)
	}
}

// follow reads n bursts and checks their order.
func follow(ctx context.Context, sub *Subscription, n int) error {
	var last [kinds]*Packet
	for range n {
		b, err := sub.Next(ctx)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		sub.RequestKeyframe()
		for i := range b.Packets {
			p := &b.Packets[i]
			if l := last[b.Kind]; l != nil && p.Index <= l.Index {
				return fmt.Errorf("%s: index %d after %d", b.Kind, p.Index, l.Index)
			}
			last[b.Kind] = p
		}
	}
	return nil
}
