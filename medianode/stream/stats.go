package stream

import (
	"time"

	"fanlight/internal/fleet"
)

// Stats are a stream's figures. Counters are since New unless they say
// otherwise; rates are over the last second, or the connection's first tenths of
// one.
type Stats struct {
	Packets   int64 // RTP packets from the camera
	Bytes     int64 // of these packets, headers included
	Frames    int64 // access units of video
	Keyframes int64 // access units that a decoder can start with
	// Undecodable are IDR pictures, IRAP pictures (H265) and keyframes of AV1 that
	// came before any parameter sets or sequence header. They are passed on to
	// whoever is watching already.
	Undecodable int64

	PacketsLost           int64 // missing in the camera's sequences
	ConnectionPacketsLost int64 // the same since the last Publish
	// Loss is the share of packets missing there in the last ten seconds, 0 to 1:
	// of what came and what is missing, of all tracks and connections.
	Loss    float64
	Missing int64 // packets that are missing there
	// Jitter is how unevenly the connection's pictures come: the interarrival
	// jitter of RFC 3550 §6.4.1, of the first packet of each access unit, from when
	// it came and its timestamp. It is a mean over some sixteen pictures. What the
	// network did is in it, what TCP held back and then delivered at once, what the
	// source held back over UDP because packets before it were missing, and how
	// unevenly the camera itself sends. Pictures that are shown before one that has
	// come already (B-frames) do not count, for their timestamps go back.
	Jitter        time.Duration
	Discards      Discards
	Drops         Drops
	Subscriptions int // those that take bursts

	BitrateBPS       int64 // bits per second
	PacketsPerSecond float64
	FramesPerSecond  float64

	Width, Height    int           // of the connection's picture in pixels; 0: unknown
	KeyframeInterval time.Duration // between the last two keyframes; 0: unknown
	LastKeyframe     time.Time     // when the last keyframe began to arrive; zero: there has been none
	BFrames          fleet.BFrames // as Stream.BFrames
}

// Add adds the counters and bit rates of another stream of the same camera. What
// is of pictures stays, unless there is none here; Loss, Missing and Jitter are the
// worse of both.
func (s *Stats) Add(o Stats) {
	if s.FramesPerSecond == 0 && o.FramesPerSecond > 0 {
		s.FramesPerSecond, s.Width, s.Height, s.KeyframeInterval = o.FramesPerSecond, o.Width, o.Height, o.KeyframeInterval
	}
	s.Loss, s.Missing, s.Jitter = max(s.Loss, o.Loss), max(s.Missing, o.Missing), max(s.Jitter, o.Jitter)
	s.Packets += o.Packets
	s.Bytes += o.Bytes
	s.Frames += o.Frames
	s.Keyframes += o.Keyframes
	s.Undecodable += o.Undecodable
	s.PacketsLost += o.PacketsLost
	s.ConnectionPacketsLost += o.ConnectionPacketsLost
	s.Discards.add(o.Discards)
	s.Drops.add(o.Drops)
	s.Subscriptions += o.Subscriptions
	s.BitrateBPS += o.BitrateBPS
	s.PacketsPerSecond += o.PacketsPerSecond
}

// Discards are packets that the camera sent and the stream did not take.
type Discards struct {
	Malformed         int64 // not the payload format, or empty
	Late              int64 // after their successors, or again
	Oversized         int64 // larger than the MTU and not to be cut
	ParameterSets     int64 // parameter sets and sequence headers too many, too large, or not to be read
	Supplements       int64 // SEI and the like: of no picture, incomplete, or too many or too large to hold for one
	UnsupportedFormat int64 // H264: interleaved mode, which nobody negotiates; H265: PACI, other layers than the base
	BFrames           int64 // of H264 B-frames that no picture refers to: browsers cannot play pictures out of order
	Damaged           int64 // of video after a loss on the camera's side, until the next keyframe, and of the access unit cut off
}

func (d *Discards) add(o Discards) {
	d.Malformed += o.Malformed
	d.Late += o.Late
	d.Oversized += o.Oversized
	d.ParameterSets += o.ParameterSets
	d.Supplements += o.Supplements
	d.UnsupportedFormat += o.UnsupportedFormat
	d.BFrames += o.BFrames
	d.Damaged += o.Damaged
}

// Drops are packets that viewers were not sent, one for each viewer and packet.
type Drops struct {
	Overflow         int64 // the subscription's queue was full
	AwaitingKeyframe int64 // the viewer could not start with them
	NoRoom           int64 // the viewer's connection had no room for them
}

func (d *Drops) add(o Drops) {
	d.Overflow += o.Overflow
	d.AwaitingKeyframe += o.AwaitingKeyframe
	d.NoRoom += o.NoRoom
}

// Stats returns the figures.
func (s *Stream) Stats() Stats {
	now := s.clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &s.meter
	st := Stats{
		Packets: m.packets, Bytes: m.bytes, Frames: m.frames, Keyframes: m.keyframes, Undecodable: m.undecodable,
		PacketsLost: m.lost, ConnectionPacketsLost: m.connectionLost, Jitter: m.jitter,
		Discards: m.discards, Drops: m.drops, Subscriptions: len(s.subs),
		Width: m.width, Height: m.height, KeyframeInterval: m.keyframeInterval, LastKeyframe: m.lastKeyframe, BFrames: s.bFrames,
	}
	st.Loss, st.Missing = m.loss(now)
	sum, second := m.lastSecond(now)
	st.BitrateBPS = int64(float64(sum.bytes*8) / second)
	st.PacketsPerSecond = float64(sum.packets) / second
	st.FramesPerSecond = float64(sum.frames) / second
	return st
}

// slotTime is the resolution of the rates; slots is more than a second's worth.
const (
	slotTime       = 100 * time.Millisecond
	slotsPerSecond = int64(time.Second / slotTime)
	slots          = 16

	// lossTime is over what Loss is taken, in lossSlots of a second each; there is
	// one more, for the second that has begun.
	lossTime  = 10
	lossSlots = lossTime + 1
)

// meter counts. Guarded by Stream.mu.
type meter struct {
	packets, bytes, frames int64
	keyframes, undecodable int64
	lost, connectionLost   int64
	discards               Discards
	drops                  Drops
	width, height          int
	keyframeInterval       time.Duration
	lastKeyframe           time.Time
	recent                 [slots]slot
	first                  int64 // index of the slot of the connection's first packet; 0: none yet
	losses                 [lossSlots]lossSlot
	jitter                 time.Duration
}

// slot counts what came in one slotTime, the index-th since 1970.
type slot struct{ index, packets, bytes, frames int64 }

// lossSlot counts what came and what is missing of one second, the index-th since
// 1970.
type lossSlot struct{ index, came, missing int64 }

// inSequence takes a packet that came in time, and how many are missing before it.
func (m *meter) inSequence(now time.Time, missing int64) {
	m.lost += missing
	m.connectionLost += missing
	index := now.Unix()
	s := &m.losses[uint64(index)%lossSlots]
	if s.index != index {
		*s = lossSlot{index: index}
	}
	s.came++
	s.missing += missing
}

// loss returns the share of packets missing in the last ten seconds and what has
// passed of this one, and how many that are.
func (m *meter) loss(now time.Time) (share float64, missing int64) {
	var came int64
	end := now.Unix()
	for _, s := range m.losses {
		if s.index <= end && s.index >= end-lossTime {
			came += s.came
			missing += s.missing
		}
	}
	if missing == 0 {
		return 0, 0
	}
	return float64(missing) / float64(came+missing), missing
}

// picture takes the first packet of an access unit with a greater timestamp than
// any before: passed is the time since the one that had the greatest until then,
// step how far apart their timestamps are.
func (m *meter) picture(passed, step time.Duration) {
	m.jitter += ((passed - step).Abs() - m.jitter) / 16 // RFC 3550 §6.4.1
}

func (m *meter) slot(now time.Time) *slot {
	index := now.UnixNano() / int64(slotTime)
	s := &m.recent[uint64(index)%slots]
	if s.index != index {
		*s = slot{index: index}
	}
	return s
}

func (m *meter) packet(now time.Time, size int) {
	m.packets++
	m.bytes += int64(size)
	s := m.slot(now)
	if m.first == 0 {
		m.first = s.index
	}
	s.packets++
	s.bytes += int64(size)
}

func (m *meter) frame(now time.Time) {
	m.frames++
	m.slot(now).frames++
}

// lastSecond sums the slots of the second that ended with the last full slot, or
// of what the connection has had of it, and returns which part of a second that is.
func (m *meter) lastSecond(now time.Time) (sum slot, part float64) {
	end := now.UnixNano() / int64(slotTime)
	begin := max(end-slotsPerSecond, m.first)
	for _, s := range m.recent {
		if s.index < end && s.index >= begin {
			sum.packets += s.packets
			sum.bytes += s.bytes
			sum.frames += s.frames
		}
	}
	return sum, float64(max(1, end-begin)) / float64(slotsPerSecond)
}
