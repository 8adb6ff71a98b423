package session

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// codec is one that a session can send.
type codec struct {
	name      string // as stream.Track.Codec
	kind      stream.Kind
	clockRate uint32
	channels  uint16 // as in a=rtpmap; 0: not given
}

// codecs are the codecs a session can send, payloads untouched.
var codecs = []codec{
	{"H264", stream.Video, 90000, 0},
	{"OPUS", stream.Audio, 48000, 2}, // RFC 7587 §7: always 2
	{"PCMU", stream.Audio, 8000, 0},
	{"PCMA", stream.Audio, 8000, 0},
}

func findCodec(name string) (codec, bool) {
	i := slices.IndexFunc(codecs, func(c codec) bool { return c.name == name })
	if i < 0 {
		return codec{}, false
	}
	return codecs[i], true
}

// videoFeedback is the feedback a session acts on (RFC 4585 §4.2, RFC 5104
// §7.1). Transport-wide congestion control and REMB are not: nothing adapts yet.
var videoFeedback = []string{"nack", "nack pli", "ccm fir"}

// usable tells whether a payload type of an offer is one that a session can
// send: the codec, and for H264 packetization mode 1, in which a NAL unit may
// be split (RFC 6184 §6.3).
func (c *offeredCodec) usable() bool {
	known, ok := findCodec(c.name)
	switch {
	case !ok || known.clockRate != c.clockRate:
		return false
	case c.name == "H264":
		return c.parameter("packetization-mode") == "1"
	case c.name == "OPUS":
		return c.channels == 2
	}
	return c.channels <= 1
}

// plan is what a session will answer and send.
type plan struct {
	video offeredCodec   // the one video payload type
	audio []offeredCodec // what can be sent, the best first; empty: none is offered
	quiet bool           // the camera has no audio that the viewer can take: answer inactive
}

// negotiate chooses what to send of the camera's tracks, none if they are not
// known yet, to a viewer with the offer. prefer orders the answer's audio codecs
// by name. The error is fleet.CodecUnsupported.
//
// One video payload type is answered: the one whose profile is the camera's if
// that is known and offered, else the one that a decoder is least likely to
// refuse. Decoders go by the parameter sets in the stream, not by the SDP:
// Chromium and OpenH264 decode High profile on a payload type of the baseline
// profile.
func negotiate(o *offer, tracks []stream.Track, prefer []string) (*plan, error) {
	p := new(plan)
	video, err := chooseVideo(o, trackOf(tracks, stream.Video))
	if err != nil {
		return nil, err
	}
	p.video = video
	if o.audio >= 0 {
		p.chooseAudio(o.sections[o.audio].codecs, tracks, prefer)
	}
	return p, nil
}

// negotiateAny negotiates for the first of a camera's profiles that the viewer
// can take.
func negotiateAny(o *offer, cfg OpenConfig) (p *plan, err error) {
	for _, profile := range cfg.Profiles {
		var failed error
		if p, failed = negotiate(o, profile.Stream.Tracks(), cfg.Codecs); failed == nil {
			return p, nil
		}
		if err == nil {
			err = failed
		}
	}
	return nil, err
}

// takes tells whether a video codec can be sent.
func (p *plan) takes(codec string) bool { return p.video.name == codec }

func trackOf(tracks []stream.Track, kind stream.Kind) *stream.Track {
	i := slices.IndexFunc(tracks, func(t stream.Track) bool { return t.Kind == kind })
	if i < 0 {
		return nil
	}
	return &tracks[i]
}

func chooseVideo(o *offer, track *stream.Track) (offeredCodec, error) {
	offered := o.sections[o.video].codecs
	want := "H264"
	if track != nil {
		want = track.Codec
	}
	var candidates []offeredCodec
	for _, c := range offered {
		if c.name == want && c.usable() {
			candidates = append(candidates, c)
		}
	}
	if len(candidates) == 0 {
		return offeredCodec{}, codecUnsupported(want, offered)
	}
	order := profileOrder(track)
	rank := func(c offeredCodec) int {
		if i := slices.Index(order, h264Profile(c.parameter("profile-level-id"))); i >= 0 {
			return i
		}
		return len(order)
	}
	return slices.MinFunc(candidates, func(a, b offeredCodec) int { return rank(a) - rank(b) }), nil
}

// codecUnsupported is the error of a viewer who cannot take a camera's codec.
func codecUnsupported(sends string, offered []offeredCodec) error {
	var names []string
	for _, c := range offered {
		name := c.name
		switch {
		case slices.Contains([]string{"RED", "ULPFEC", "FLEXFEC", "FLEXFEC-03"}, name):
			continue
		case name == "H264" && !c.usable():
			name = "H264 (packetization-mode=0)"
		}
		if !slices.Contains(names, name) {
			names = append(names, clip(name))
		}
	}
	const most = 10
	if len(names) > most {
		names = append(names[:most], "…")
	}
	list := strings.Join(names, ", ")
	if list == "" {
		list = "nothing"
	}
	return fmt.Errorf("%w: camera sends %s, browser offers %s", fleet.CodecUnsupported, sends, list)
}

// chooseAudio notes the payload type of each codec that the viewer can take.
// Which one is sent is each burst's to say, so that a camera that comes back
// with another codec is heard.
func (p *plan) chooseAudio(offered []offeredCodec, tracks []stream.Track, prefer []string) {
	for _, c := range offered {
		if c.usable() && !slices.ContainsFunc(p.audio, func(other offeredCodec) bool { return other.name == c.name }) {
			p.audio = append(p.audio, c)
		}
	}
	track := trackOf(tracks, stream.Audio)
	rank := func(c offeredCodec) int {
		if track != nil && c.name == track.Codec {
			return -1
		}
		i := slices.IndexFunc(prefer, func(s string) bool { return strings.EqualFold(s, c.name) })
		if i < 0 {
			return len(prefer)
		}
		return i
	}
	slices.SortStableFunc(p.audio, func(a, b offeredCodec) int { return rank(a) - rank(b) })
	switch {
	case len(tracks) > 0 && track == nil:
		p.quiet = true
	case track != nil:
		p.quiet = len(p.audio) == 0 || p.audio[0].name != track.Codec
	}
	p.quiet = p.quiet || len(p.audio) == 0
}

// answered returns the codecs that are answered in one of the offer's sections,
// the best first. A section that stays off has one all the same: without any it
// would be refused, and with it, if it is the first, the transport of the bundle
// (RFC 8843 §7.3).
func (p *plan) answered(o *offer, index int) []offeredCodec {
	offered := o.sections[index].codecs
	var out []offeredCodec
	// The plan's payload types mean the same in every section of a bundle (RFC
	// 8843 §9.1), so that a section that stays off has one of them too.
	for _, planned := range append([]offeredCodec{p.video}, p.audio...) {
		for _, c := range offered {
			if c.name == planned.name && c.payloadType == planned.payloadType {
				out = append(out, c)
			}
		}
	}
	if len(out) == 0 && len(offered) > 0 {
		out = append(out, offered[0])
	}
	return out
}

// profile is an H264 profile (RFC 6184 §8.1, table 5).
type profile int

const (
	profileOther profile = iota
	profileConstrainedBaseline
	profileBaseline
	profileMain
	profileConstrainedHigh
	profileHigh
)

// h264Profile reads a profile-level-id, six hexadecimal digits. An empty one is
// the default, baseline (RFC 6184 §8.1).
func h264Profile(id string) profile {
	if id == "" {
		return profileBaseline
	}
	n, err := strconv.ParseUint(id, 16, 24)
	if err != nil || len(id) != 6 {
		return profileOther
	}
	return profileOf(byte(n>>16), byte(n>>8))
}

// profileOf reads profile_idc and the byte of constraint flags, the first two
// of a sequence parameter set and of a profile-level-id.
func profileOf(idc, constraints byte) profile {
	set := func(bit int) bool { return constraints&(0x80>>bit) != 0 }
	switch {
	case idc == 0x42 && set(1), idc == 0x4d && set(0), idc == 0x58 && set(0) && set(1):
		return profileConstrainedBaseline
	case idc == 0x42, idc == 0x58 && set(0):
		return profileBaseline
	case idc == 0x4d:
		return profileMain
	case idc == 0x64 && set(4) && set(5):
		return profileConstrainedHigh
	case idc == 0x64:
		return profileHigh
	}
	return profileOther
}

// profileOrder returns the profiles to answer with, best first: the camera's
// own, those whose decoders can decode it, and then those that decoders are
// least particular about.
func profileOrder(track *stream.Track) []profile {
	rest := []profile{profileConstrainedBaseline, profileBaseline, profileMain, profileConstrainedHigh, profileHigh}
	switch trackProfile(track) {
	case profileOther, profileConstrainedBaseline:
	case profileBaseline:
		return []profile{profileBaseline, profileConstrainedBaseline, profileMain, profileConstrainedHigh, profileHigh}
	case profileMain:
		return append([]profile{profileMain, profileHigh, profileConstrainedHigh}, rest...)
	case profileConstrainedHigh:
		return append([]profile{profileConstrainedHigh, profileHigh, profileMain}, rest...)
	case profileHigh:
		return append([]profile{profileHigh, profileConstrainedHigh, profileMain}, rest...)
	}
	return rest
}

// trackProfile reads the profile from the camera's sequence parameter set, or
// else from its SDP.
func trackProfile(track *stream.Track) profile {
	if track == nil {
		return profileOther
	}
	const sps = 7 // NAL unit type (ITU-T H.264 table 7-1)
	for _, nal := range track.ParameterSets {
		if len(nal) >= 4 && nal[0]&0x1f == sps {
			return profileOf(nal[1], nal[2])
		}
	}
	if id := fmtpParameter(track.FMTP, "profile-level-id"); id != "" {
		return h264Profile(id)
	}
	return profileOther
}
