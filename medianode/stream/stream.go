package stream

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"fanlight/internal/fleet"
)

// Kind is what a track carries.
type Kind int

// The kinds.
const (
	Video Kind = iota
	Audio
	kinds // how many there are
)

// String returns the kind as SDP names it.
func (k Kind) String() string {
	if k == Audio {
		return "audio"
	}
	return "video"
}

// Track is one audio or video component of a stream.
type Track struct {
	Kind          Kind
	Codec         string   // RTP encoding name in upper case: "H264", "H265", "VP8", "VP9", "AV1"; "OPUS", "PCMA", "PCMU", "G722"
	ClockRate     uint32   // Hz; G722: 8,000, as in SDP, not its 16,000 samples a second (RFC 3551 §4.5.2)
	Channels      int      // audio; 0: one
	FMTP          string   // the format's parameters as in the SDP, without "a=fmtp:96 "
	ParameterSets [][]byte // NAL units of the SDP. H264: SPS and PPS; H265: VPS, SPS and PPS; other codecs have none
}

// Config is what a stream can be told. The zero value is good.
type Config struct {
	MTU   int              // bytes of RTP payload in a packet at most; 0: 1,200; at least 64
	Clock func() time.Time // nil: time.Now

	// OnBFrames is called when BFrames becomes fleet.BFramesReferenced, with the
	// stream's lock held: it must not block, and call nothing of the stream. nil:
	// nobody is told.
	OnBFrames func()

	// What is kept of what followed the last keyframe, for who begins to watch.
	CacheBytes int           // of payload; 0: 8 MiB; below 0: nothing is kept
	CacheTime  time.Duration // 0: 15 s
}

const (
	defaultMTU = 1200
	minMTU     = 64
)

// Stream is one camera's packets, shared by its sessions. Its methods may be
// called from any goroutine.
type Stream struct {
	// Static after New.
	mtu   int
	clock func() time.Time
	board *Board

	onBFrames func()

	mu      sync.Mutex // guards the rest; taken before a Subscription's
	closed  error      // why, once closed
	tracks  []Track
	writer  *Writer // the latest; nil before the first
	outputs [kinds]output
	subs    []*Subscription // each knows its index
	keys    keyframes
	cache   cache
	meter   meter
	bFrames fleet.BFrames // of the video published, or of the same before
}

// New returns a stream without tracks, in state connecting.
func New(cfg Config) *Stream {
	s := &Stream{mtu: cfg.MTU, clock: cfg.Clock, board: NewBoard(), onBFrames: cfg.OnBFrames, cache: newCache(cfg.CacheBytes, cfg.CacheTime)}
	if s.mtu == 0 {
		s.mtu = defaultMTU
	}
	s.mtu = max(s.mtu, minMTU)
	if s.clock == nil {
		s.clock = time.Now
	}
	for k := range s.outputs {
		next := uint64(uint16(rand.Uint32())) // RFC 3550 §5.1: random
		s.outputs[k] = output{kind: Kind(k), next: next, withheld: &s.meter.discards.Damaged}
	}
	return s
}

// Publish begins a source's connection with the tracks that it will write, at
// most one of each kind. It replaces the connection before, whose Writer has no
// effect from then on. Sequence numbers and timestamps go on where they were;
// subscriptions wait for a keyframe of the new connection, for which the camera
// is asked if it does not begin with one.
//
// The error is fleet.CodecUnsupported, fleet.InvalidArgument for tracks that
// are not well formed, or why the stream was closed.
func (s *Stream) Publish(tracks []Track) (*Writer, error) {
	w := &Writer{stream: s}
	tracks = slices.Clone(tracks)
	var seen [kinds]bool
	for i := range tracks {
		t := &tracks[i]
		t.Codec = strings.ToUpper(t.Codec)
		if err := checkTrack(*t); err != nil {
			return nil, fmt.Errorf("publish track %d: %w", i, err)
		}
		if seen[t.Kind] {
			return nil, fmt.Errorf("publish track %d: a second %s track: %w", i, t.Kind, fleet.InvalidArgument)
		}
		seen[t.Kind] = true
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, fmt.Errorf("publish: %w", s.closed)
	}
	s.meter.connectionLost, s.meter.first, s.meter.jitter = 0, 0, 0
	s.meter.width, s.meter.height = 0, 0
	if !sameVideo(s.tracks, tracks) {
		s.bFrames = fleet.BFramesUnknown
	}
	s.tracks = tracks
	s.writer = w
	s.keys = s.keys.connect(seen[Video] && len(s.subs) > 0)
	s.cache.drop()
	for k := range s.outputs {
		s.outputs[k].discard()
		s.outputs[k].senderReport = clockPoint{}
		s.outputs[k].damaged = false // subscriptions wait for a keyframe
	}
	for i, t := range tracks {
		out := &s.outputs[t.Kind]
		out.connect(i, t)
		in := &input{stream: s, out: out}
		in.video = newNormalizer(in, s.mtu, t)
		w.inputs = append(w.inputs, in)
	}
	for _, sub := range s.subs {
		sub.gate(seen[Video])
	}
	return w, nil
}

func checkTrack(t Track) error {
	codec, ok := kindOf[t.Codec]
	switch {
	case t.Kind < 0 || t.Kind >= kinds:
		return fmt.Errorf("kind %d: %w", t.Kind, fleet.InvalidArgument)
	case !ok || codec != t.Kind:
		return fmt.Errorf("%s codec %q: %w", t.Kind, t.Codec, fleet.CodecUnsupported)
	case t.ClockRate == 0 || t.ClockRate > maxClockRate:
		return fmt.Errorf("clock rate %d Hz: %w", t.ClockRate, fleet.InvalidArgument)
	}
	return nil
}

// kindOf has the codecs that a stream can carry.
var kindOf = map[string]Kind{
	"H264": Video, "H265": Video, "VP8": Video, "VP9": Video, "AV1": Video,
	"OPUS": Audio, "PCMA": Audio, "PCMU": Audio, "G722": Audio,
}

// Supported tells whether a stream can carry a codec, by the encoding name of
// its RTP payload format in any case.
func Supported(kind Kind, codec string) bool {
	k, ok := kindOf[strings.ToUpper(codec)]
	return ok && k == kind
}

// maxClockRate is the fastest RTP clock there is use for, in Hz.
const maxClockRate = 192_000

// Closed tells whether the stream has been closed.
func (s *Stream) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed != nil
}

// Tracks returns the tracks last published; none before the first Publish. The
// result is shared: it must not be changed.
func (s *Stream) Tracks() []Track {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tracks
}

// Board returns where it is said what is seen of the stream's source.
func (s *Stream) Board() *Board { return s.board }

// Close ends the stream. Next of every subscription, and Status of every watch,
// present and future, returns err; io.EOF if it is nil. What is queued is dropped.
// Only the first Close has an effect.
func (s *Stream) Close(err error) {
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return
	}
	s.closed = err
	s.writer = nil
	s.cache.drop()
	s.keys.published(nil)
	for _, sub := range s.subs {
		sub.end(err)
	}
	s.board.Close(err)
}

// SenderClock returns one point of the mapping from the stream's timestamps of
// a kind to wall-clock time, for sender reports (RFC 3550 §6.4.1). It is the
// camera's mapping when the camera has reported on all its tracks since they
// were published or their clock leapt, and the arrival time of the packet with the
// latest timestamp otherwise, for all tracks alike: so the kinds can be synchronized. ok
// is false before the first packet of the kind.
func (s *Stream) SenderClock(kind Kind) (ntp time.Time, rtpTime uint32, ok bool) {
	if kind < 0 || kind >= kinds {
		return time.Time{}, 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fromCamera := true
	for _, t := range s.tracks {
		fromCamera = fromCamera && !s.outputs[t.Kind].senderReport.at.IsZero()
	}
	out := &s.outputs[kind]
	if !out.line.started {
		return time.Time{}, 0, false
	}
	if fromCamera && !out.senderReport.at.IsZero() {
		return out.senderReport.at, out.senderReport.rtp, true
	}
	return out.line.highAt, out.line.high, true // not a B-frame's
}
