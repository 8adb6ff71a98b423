package simcam

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

const (
	videoPayloadType = 96

	// The payload of a full RTP packet in bytes, as cameras on an Ethernet send
	// it; SRTP needs some of it. More than a browser takes, which is the point.
	payloadSize       = 1460
	securePayloadSize = 1440
)

// camera is one simulated camera.
type camera struct {
	// Static after New.
	name string
	clip *clip
	size int  // bytes that an access unit is filled up to
	deaf bool // to picture loss indications

	// Static after open.
	stream *gortsplib.ServerStream
	video  *description.Media
	audio  *description.Media // nil: none

	// Owned by pace.
	encoder   *rtph264.Encoder
	next      int // index into clip.units
	timestamp uint32
	tone      tone

	mu               sync.Mutex // guards the rest
	fault            Fault
	until            time.Time // zero: the fault stays
	sessions         map[*gortsplib.ServerSession]struct{}
	plays            int
	peak             int // the most sessions there ever were at once
	keyframeRequests int
	keyframeWanted   bool
}

// newCamera returns the index-th camera of a server.
func newCamera(name string, index int, clip *clip, cfg Config) *camera {
	h264 := &format.H264{PayloadTyp: videoPayloadType, PacketizationMode: 1}
	if !cfg.OmitParameterSets {
		h264.SPS, h264.PPS = clip.sps, clip.pps
	}
	cam := &camera{
		name:      name,
		clip:      clip,
		size:      cfg.Bitrate / 8 / frameRate,
		deaf:      cfg.IgnorePLI,
		video:     &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{h264}},
		encoder:   &rtph264.Encoder{PayloadType: videoPayloadType, PacketizationMode: 1, PayloadMaxSize: cfg.PacketSize},
		next:      index * frameRate % len(clip.units),
		timestamp: rand.Uint32(),
		sessions:  make(map[*gortsplib.ServerSession]struct{}),
	}
	if cfg.PacketSize == 0 {
		cam.encoder.PayloadMaxSize = payloadSize
		if cfg.TLS != nil {
			cam.encoder.PayloadMaxSize = securePayloadSize
		}
	}
	if cfg.Audio {
		cam.audio = &description.Media{
			Type:    description.MediaTypeAudio,
			Formats: []format.Format{&format.G711{PayloadTyp: tonePayloadType, SampleRate: toneRate, ChannelCount: 1}},
		}
	}
	return cam
}

// open makes the camera's stream on a server that was started.
func (c *camera) open(server *gortsplib.Server) error {
	if err := c.encoder.Init(); err != nil {
		return err
	}
	desc := &description.Session{Title: c.name, Medias: []*description.Media{c.video}}
	if c.audio != nil {
		desc.Medias = append(desc.Medias, c.audio)
	}
	c.stream = &gortsplib.ServerStream{Server: server, Desc: desc}
	return c.stream.Initialize()
}

// pace sends the cameras' pictures until ctx ends. Within a frame's period each
// camera has its own moment, so that they don't all send at once.
func (s *Server) pace(ctx context.Context) {
	if len(s.cameras) == 0 {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	start := time.Now()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(n) * framePeriod / time.Duration(len(s.cameras)))
		late := time.Since(due)
		if late > time.Second { // the machine slept: go on from here
			start = start.Add(late)
		}
		timer.Reset(-late)
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			cam := s.cameras[n%len(s.cameras)]
			if err := cam.send(now); err != nil && !errors.As(err, &liberrors.ErrServerStreamClosed{}) {
				s.log.Warn("picture not sent", "camera", cam.name, "error", err)
			}
		}
	}
}

// send sends the next picture, and the sound that belongs to it.
func (c *camera) send(now time.Time) error {
	c.mu.Lock()
	fault := c.currentFault(now)
	watched := len(c.sessions) > 0
	wanted := c.keyframeWanted
	c.keyframeWanted = false
	c.mu.Unlock()

	if wanted {
		for !c.clip.units[c.next].keyframe {
			c.next = (c.next + 1) % len(c.clip.units)
		}
	}
	u := c.clip.units[c.next]
	c.next = (c.next + 1) % len(c.clip.units)
	c.timestamp += clockRate / frameRate
	sound := c.tone.next()
	if !watched || fault == Freeze {
		return nil
	}

	if fault != FreezeVideo {
		pkts, err := c.encoder.Encode(fill(u.stamped(now), c.size))
		if err != nil {
			return err
		}
		for _, p := range pkts {
			p.Timestamp = c.timestamp
			if err := c.write(c.video, p, now, fault); err != nil {
				return err
			}
		}
	}
	if c.audio != nil {
		return c.write(c.audio, sound, now, fault)
	}
	return nil
}

func (c *camera) write(m *description.Media, p *rtp.Packet, now time.Time, fault Fault) error {
	if fault == TimestampJump || fault == SequenceJump {
		p.Timestamp += timestampJump
	}
	if fault == SequenceJump {
		p.SequenceNumber += sequenceJump
	}
	if fault == Lossy && p.SequenceNumber%10 == 0 {
		return nil
	}
	return c.stream.WritePacketRTPWithNTP(m, p, now)
}

// stamped returns the unit's NAL units with the sending time before the slice.
func (u unit) stamped(t time.Time) [][]byte {
	last := len(u.nals) - 1
	au := make([][]byte, 0, len(u.nals)+1)
	au = append(au, u.nals[:last]...)
	return append(au, TimestampSEI(t), u.nals[last])
}

// fill returns an access unit with filler data after its slice (ITU-T H.264
// §7.3.2.7, §7.4.1.2.3), which decoders drop, so that it has size bytes. One that
// has as many, or lacks less than a NAL unit takes, stays as it is.
func fill(au [][]byte, size int) [][]byte {
	for _, nal := range au {
		size -= len(nal)
	}
	if size < 2 {
		return au
	}
	filler := bytes.Repeat([]byte{0xff}, size)
	filler[0], filler[size-1] = nalFill, 0x80 // rbsp_trailing_bits
	return append(au, filler)
}

// currentFault is called with the lock held.
func (c *camera) currentFault(now time.Time) Fault {
	if c.fault != None && !c.until.IsZero() && now.After(c.until) {
		c.fault = None
	}
	return c.fault
}

func (c *camera) setFault(f Fault, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault, c.until = f, time.Time{}
	if d > 0 {
		c.until = time.Now().Add(d)
	}
	if f == Drop {
		c.fault = None
	}
	if f == Drop || f == Stop {
		for session := range c.sessions {
			session.Close() // only says so; its goroutine closes its connections
		}
	}
}

func (c *camera) status(url string) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{
		Camera: c.name, URL: url, Plays: c.plays, Sessions: len(c.sessions), Peak: c.peak,
		KeyframeRequests: c.keyframeRequests, Fault: c.currentFault(time.Now()).String(),
	}
}

// onRTCP answers a picture loss indication (RFC 4585 §6.3.1).
func (c *camera) onRTCP(pkt rtcp.Packet) {
	if _, ok := pkt.(*rtcp.PictureLossIndication); !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keyframeRequests++
	c.keyframeWanted = c.keyframeWanted || !c.deaf
}
