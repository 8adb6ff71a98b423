package session

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

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
	{"H265", stream.Video, 90000, 0},
	{"AV1", stream.Video, 90000, 0},
	{"VP9", stream.Video, 90000, 0},
	{"VP8", stream.Video, 90000, 0},
	{"OPUS", stream.Audio, 48000, 2}, // RFC 7587 §7: always 2
	{"G722", stream.Audio, 8000, 0},  // not its sampling rate (RFC 3551 §4.5.2)
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
// §7.1), and estimateFeedback what it acts on where a viewer can be given another
// profile: the viewer's own estimate (REMB, draft-alvestrand-rmcat-remb). Feedback
// for each packet (transport-wide congestion control) costs more than it is worth
// here: docs/adr/0012.
const estimateFeedback = "goog-remb"

var videoFeedback = []string{"nack", "nack pli", "ccm fir"}

// usable tells whether a payload type of an offer is one that a session can send:
// the codec; for H264 packetization mode 1, in which a NAL unit may be split (RFC
// 6184 §6.3), and for H265 all of it in one RTP stream (RFC 7798 §7.1).
func (c *offeredCodec) usable(kind stream.Kind) bool {
	known, ok := findCodec(c.name)
	switch {
	case !ok || known.kind != kind || known.clockRate != c.clockRate || isRTCP(c.payloadType):
		return false
	case c.name == "H264":
		return c.parameter("packetization-mode") == "1"
	case c.name == "H265":
		mode := c.parameter("tx-mode")
		return mode == "" || strings.EqualFold(mode, "SRST")
	case c.name == "OPUS":
		return c.channels == 2
	}
	return c.channels <= 1
}

// isRTCP tells whether RTCP on the same port has a payload type to itself (RFC 5761
// §4).
func isRTCP(payloadType uint8) bool { return payloadType >= 64 && payloadType < 96 }

// numbered is a codec's parameter that numbers its profiles.
type numbered struct {
	key      string
	standard int // what it is if it is not given
	// inclusive: whoever decodes a profile decodes those below it too.
	inclusive bool
}

// profileParameters are of the codecs whose profiles are numbered: RFC 9628 §7.1;
// the RTP payload format of AV1, §7.2.1, and its decoders' conformance (AV1
// annex A.2); RFC 7798 §7.1, H.265 annex A.3.3: a Main 10 decoder decodes Main.
var profileParameters = map[string]numbered{
	"VP9":  {key: "profile-id"},
	"AV1":  {key: "profile", inclusive: true},
	"H265": {key: "profile-id", standard: 1},
}

// number reads a profile's number; -1: it is none.
func (n numbered) number(fmtp string) int {
	v := fmtpParameter(fmtp, n.key)
	if v == "" {
		return n.standard
	}
	p, err := strconv.ParseUint(v, 10, 8)
	if err != nil {
		return -1
	}
	return int(p)
}

// fit tells whether a payload type of the track's codec can take it, as far as
// the SDPs say, and how well: the lower the better. A nil track is not known yet.
// Levels do not count, for browsers decode far more than they offer, but for the
// choice between payload types of H265, where a receiver names its own.
func (c *offeredCodec) fit(track *stream.Track) (rank int, ok bool) {
	if c.name == "H264" {
		order := profileOrder(track)
		if i := slices.Index(order, h264Profile(c.parameter("profile-level-id"))); i >= 0 {
			return i, true
		}
		return len(order), true
	}
	n, ok := profileParameters[c.name]
	if !ok {
		return 0, true
	}
	theirs := n.number(c.fmtp)
	if track == nil {
		return theirs, theirs >= 0
	}
	ours := n.number(track.FMTP)
	level := -1 // of the track
	if c.name == "H265" {
		if profile, l, ok := h265Level(track); ok {
			ours, level = profile, l
		}
	}
	switch {
	case theirs == ours && ours >= 0:
	case ours >= 0 && theirs > ours && (n.inclusive || c.name == "H265" && ours == 1 && theirs == 2):
		rank = 2 * (theirs - ours)
	default:
		return 0, false
	}
	if most, err := strconv.Atoi(c.parameter("level-id")); err == nil && level > most {
		rank++
	}
	return rank, true
}

// h265Level reads general_profile_idc and general_level_idc from the camera's
// sequence parameter set (H.265 §7.3.2.2, §7.3.3), or else from its SDP; ok is
// false if neither has both.
func h265Level(track *stream.Track) (profile, level int, ok bool) {
	const (
		sps     = 33 // NAL unit type (H.265 table 7-1)
		levelAt = 14
	)
	for _, nal := range track.ParameterSets {
		if len(nal) == 0 || nal[0]>>1&0x3f != sps {
			continue
		}
		// Behind the header: a byte of ids, one of the profile, 4 of compatibility, 6
		// of constraints, the level; without emulation prevention bytes (§7.4.2).
		plain := bytes.ReplaceAll(nal[:min(len(nal), 32)], []byte{0, 0, 3}, []byte{0, 0})
		if len(plain) > levelAt {
			return int(plain[3] & 0x1f), int(plain[levelAt]), true
		}
	}
	profile, err := strconv.Atoi(fmtpParameter(track.FMTP, "profile-id"))
	if err != nil {
		return 0, 0, false
	}
	level, err = strconv.Atoi(fmtpParameter(track.FMTP, "level-id"))
	return profile, level, err == nil
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
