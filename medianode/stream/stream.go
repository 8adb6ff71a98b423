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
	Codec         string   // RTP encoding name in upper case: "H264", "OPUS", "PCMA", "PCMU"
	ClockRate     uint32   // Hz
	Channels      int      // audio; 0: one
	FMTP          string   // the format's parameters as in the SDP, without "a=fmtp:96 "
	ParameterSets [][]byte // H264: SPS and PPS NAL units of the SDP
}

// Config is what a stream can be told. The zero value is good.
type Config struct {
	MTU   int              // bytes of RTP payload in a packet at most; 0: 1,200; at least 64
	Clock func() time.Time // nil: time.Now

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

	mu      sync.Mutex // guards the rest; taken before a Subscription's
	closed  error      // why, once closed
	status  fleet.CameraStatus
	tracks  []Track
	writer  *Writer // the latest; nil before the first
	outputs [kinds]output
	subs    []*Subscription // each knows its index
	watches map[*Watch]struct{}
	keys    keyframes
	cache   cache
	meter   meter
}

// New returns a stream without tracks, in state connecting.
func New(cfg Config) *Stream {
	s := &Stream{mtu: cfg.MTU, clock: cfg.Clock, watches: make(map[*Watch]struct{}), cache: newCache(cfg.CacheBytes, cfg.CacheTime)}
	if s.mtu == 0 {
		s.mtu = defaultMTU
	}
	s.mtu = max(s.mtu, minMTU)
	if s.clock == nil {
		s.clock = time.Now
	}
	for k := range s.outputs {
		s.outputs[k] = output{kind: Kind(k), next: uint64(uint16(rand.Uint32()))} // RFC 3550 §5.1: random
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
	s.meter.connectionLost, s.meter.first = 0, 0
	s.tracks = tracks
	s.writer = w
	s.keys = s.keys.connect(seen[Video] && len(s.subs) > 0)
	s.cache.drop()
	for k := range s.outputs {
		s.outputs[k].discard()
		s.outputs[k].senderReport = clockPoint{}
	}
	for i, t := range tracks {
		out := &s.outputs[t.Kind]
		out.connect(i, t)
		in := &input{stream: s, out: out}
		if t.Codec == "H264" {
			in.h264 = newH264(in, s.mtu, t.ParameterSets)
		}
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
var kindOf = map[string]Kind{"H264": Video, "OPUS": Audio, "PCMA": Audio, "PCMU": Audio}

// Supported tells whether a stream can carry a codec, by the encoding name of
// its RTP payload format in any case.
func Supported(kind Kind, codec string) bool {
	k, ok := kindOf[strings.ToUpper(codec)]
	return ok && k == kind
}

// maxClockRate is the fastest RTP clock there is use for, in Hz.
const maxClockRate = 192_000

// Tracks returns the tracks last published; none before the first Publish. The
// result is shared: it must not be changed.
func (s *Stream) Tracks() []Track {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tracks
}

// SetStatus says what is seen of the camera. Watches are told if what a viewer
// may know of it is different: state, reason, message, time of the next attempt.
func (s *Stream) SetStatus(status fleet.CameraStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.status
	s.status = status
	if old.State == status.State && old.Reason == status.Reason && old.Message == status.Message && old.RetryTime.Equal(status.RetryTime) {
		return
	}
	for w := range s.watches {
		signal(w.wake)
	}
}

// Status returns what SetStatus was last told.
func (s *Stream) Status() fleet.CameraStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

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
	for w := range s.watches {
		signal(w.wake)
	}
}

// SenderClock returns one point of the mapping from the stream's timestamps of
// a kind to wall-clock time, for sender reports (RFC 3550 §6.4.1). It is the
// camera's mapping when the camera has reported on all its tracks since they
// were published or their clock leapt, and the arrival time of the latest
// packet otherwise, for all tracks alike: so the kinds can be synchronized. ok
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
	return out.line.at, out.line.out, true
}
