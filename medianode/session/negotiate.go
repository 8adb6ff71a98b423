package session

import (
	"fmt"
	"slices"
	"strings"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// plan is what a session will answer and send. No two of its payload types,
// retransmissions' included, are the same.
type plan struct {
	fits  []int          // the camera's profiles that the viewer can take, by index, best first; one at least
	video []offeredCodec // what can be sent, one payload type a codec: that of the first of fits first
	audio []offeredCodec // the same; empty: none is offered
	quiet bool           // the camera has no audio that the viewer can take: answer inactive
}

// negotiate chooses what to send to a viewer with the offer. profiles are the
// tracks of each of the camera's profiles, the best first; none for a profile
// whose tracks are not known yet. prefer orders the answer's audio codecs by name.
// The error is fleet.CodecUnsupported.
//
// One payload type is answered for each codec that a session can send: the one
// whose profile is the camera's if that is known and offered, else the one that a
// decoder is least likely to refuse. Which one is sent is each burst's to say, so
// that nothing is negotiated anew when a camera comes back with another codec, or
// the viewer is to get another profile. Decoders of H264 go by the parameter sets
// in the stream, not by the SDP: Chromium and OpenH264 decode High profile on a
// payload type of the baseline profile.
func negotiate(o *offer, profiles [][]stream.Track, prefer []string) (*plan, error) {
	if len(profiles) == 0 {
		profiles = [][]stream.Track{nil}
	}
	p := new(plan)
	if err := p.chooseVideo(o.sections[o.video].codecs, profiles); err != nil {
		return nil, err
	}
	if o.audio >= 0 {
		p.chooseAudio(o.sections[o.audio].codecs, profiles, prefer)
	}
	return p, nil
}

func trackOf(tracks []stream.Track, kind stream.Kind) *stream.Track {
	i := slices.IndexFunc(tracks, func(t stream.Track) bool { return t.Kind == kind })
	if i < 0 {
		return nil
	}
	return &tracks[i]
}

// chooseVideo finds the profiles that fit and the payload types, of what the
// camera sends first.
func (p *plan) chooseVideo(offered []offeredCodec, profiles [][]stream.Track) error {
	var known []stream.Track
	for i, tracks := range profiles {
		track := trackOf(tracks, stream.Video)
		var c *offeredCodec
		if track != nil {
			known = append(known, *track)
			c = best(offered, track.Codec, track)
		} else {
			c = likeliest(offered)
		}
		if c == nil {
			continue
		}
		p.fits = append(p.fits, i)
		if !has(p.video, c.name) {
			p.video = append(p.video, *c)
		}
	}
	if len(p.fits) == 0 {
		return codecUnsupported(known, offered)
	}
	for i := range offered {
		if name := offered[i].name; !has(p.video, name) {
			if c := best(offered, name, nil); c != nil {
				p.video = append(p.video, *c)
			}
		}
	}
	return nil
}

// best returns the payload type of a codec that fits a track best, the first of
// equals; nil: there is none.
func best(offered []offeredCodec, name string, track *stream.Track) *offeredCodec {
	var found *offeredCodec
	least := 0
	for i := range offered {
		c := &offered[i]
		if c.name != name || !c.usable(stream.Video) {
			continue
		}
		if rank, ok := c.fit(track); ok && (found == nil || rank < least) {
			found, least = c, rank
		}
	}
	return found
}

// likeliest returns the payload type for a camera of which nothing is known: H264,
// which most send, else what the viewer would rather have.
func likeliest(offered []offeredCodec) *offeredCodec {
	if c := best(offered, "H264", nil); c != nil {
		return c
	}
	for i := range offered {
		if c := best(offered, offered[i].name, nil); c != nil {
			return c
		}
	}
	return nil
}

func has(codecs []offeredCodec, name string) bool {
	return slices.ContainsFunc(codecs, func(c offeredCodec) bool { return c.name == name })
}

// codecUnsupported is the error of a viewer who can take none of the codecs that a
// camera sends; none: of a camera that has not been seen yet.
func codecUnsupported(sends []stream.Track, offered []offeredCodec) error {
	var ours, theirs []string
	for _, t := range sends {
		name := t.Codec
		if n, ok := profileParameters[name]; ok && slices.ContainsFunc(offered, func(c offeredCodec) bool { return c.name == name && c.usable(stream.Video) }) {
			profile := n.number(t.FMTP)
			if p, _, ok := h265Level(&t); ok && name == "H265" {
				profile = p
			}
			name = fmt.Sprintf("%s (%s=%d)", name, n.key, profile)
		}
		if !slices.Contains(ours, name) {
			ours = append(ours, name)
		}
	}
	if len(ours) == 0 {
		for _, c := range codecs {
			if c.kind == stream.Video {
				ours = append(ours, c.name)
			}
		}
		ours = []string{"one of " + strings.Join(ours, ", ")}
	}
	for _, c := range offered {
		name := c.name
		n, numbered := profileParameters[name]
		switch {
		case slices.Contains([]string{"RED", "ULPFEC", "FLEXFEC", "FLEXFEC-03"}, name):
			continue
		case name == "H264" && !c.usable(stream.Video):
			name = "H264 (packetization-mode=0)"
		case numbered && slices.ContainsFunc(sends, func(t stream.Track) bool { return t.Codec == name }):
			name = fmt.Sprintf("%s (%s=%d)", name, n.key, n.number(c.fmtp))
		}
		if !slices.Contains(theirs, name) {
			theirs = append(theirs, clip(name))
		}
	}
	const most = 10
	if len(theirs) > most {
		theirs = append(theirs[:most], "…")
	}
	list := strings.Join(theirs, ", ")
	if list == "" {
		list = "nothing"
	}
	return fmt.Errorf("%w: camera sends %s, browser offers %s", fleet.CodecUnsupported, strings.Join(ours, ", "), list)
}

// chooseAudio notes the payload type of each codec that the viewer can take, that
// of the first profile with audio first.
func (p *plan) chooseAudio(offered []offeredCodec, profiles [][]stream.Track, prefer []string) {
	for _, c := range offered {
		if c.usable(stream.Audio) && !has(p.audio, c.name) && !p.claimed(c.payloadType) {
			p.audio = append(p.audio, c)
		}
	}
	var heard string // the codec of the first profile whose audio the viewer can take
	open := false    // a profile may yet turn out to have some
	for _, i := range p.fits {
		track := trackOf(profiles[i], stream.Audio)
		switch {
		case len(profiles[i]) == 0:
			open = true
		case heard == "" && track != nil && has(p.audio, track.Codec):
			heard = track.Codec
		}
	}
	rank := func(c offeredCodec) int {
		if c.name == heard {
			return -1
		}
		i := slices.IndexFunc(prefer, func(s string) bool { return strings.EqualFold(s, c.name) })
		if i < 0 {
			return len(prefer)
		}
		return i
	}
	slices.SortStableFunc(p.audio, func(a, b offeredCodec) int { return rank(a) - rank(b) })
	p.quiet = len(p.audio) == 0 || heard == "" && !open
}

// claimed tells whether a payload type stands for something already: in a bundle
// it means the same everywhere (RFC 8843 §9.1).
func (p *plan) claimed(payloadType uint8) bool {
	return slices.ContainsFunc(slices.Concat(p.video, p.audio), func(c offeredCodec) bool {
		return c.payloadType == payloadType || c.hasRTX && c.rtx == payloadType
	})
}

// answered returns the codecs that are answered in one of the offer's sections,
// the best first. A section that stays off has one all the same: without any it
// would be refused, and with it, if it is the first, the transport of the bundle
// (RFC 8843 §7.3).
func (p *plan) answered(o *offer, index int) []offeredCodec {
	offered := o.sections[index].codecs
	all := p.audio
	if o.sections[index].kind == stream.Video.String() {
		all = p.video
	}
	var out []offeredCodec
	// The plan's payload types mean the same in every section of a bundle (RFC
	// 8843 §9.1), so that a section that stays off may have them too.
	for _, planned := range all {
		for _, c := range offered {
			if c.same(&planned) {
				out = append(out, c)
			}
		}
	}
	if len(out) > 0 || len(offered) == 0 {
		return out
	}
	i := max(0, slices.IndexFunc(offered, func(c offeredCodec) bool { return !p.claimed(c.payloadType) }))
	c := offered[i]
	c.hasRTX = c.hasRTX && !p.claimed(c.rtx)
	return []offeredCodec{c}
}

// same tells whether two payload types, of one section or offer and of another,
// mean the same.
func (c *offeredCodec) same(other *offeredCodec) bool {
	return c.name == other.name && c.payloadType == other.payloadType && c.hasRTX == other.hasRTX && c.rtx == other.rtx
}

// checkKept tells whether another offer of the same peer connection still has all
// that is sent.
func (p *plan) checkKept(next *offer) error {
	check := func(planned []offeredCodec, section int) error {
		for _, c := range planned {
			if !slices.ContainsFunc(next.sections[section].codecs, func(o offeredCodec) bool { return o.same(&c) }) {
				return badOffer("payload type %d is no longer %s, or its retransmissions have another one", c.payloadType, c.name)
			}
		}
		return nil
	}
	if err := check(p.video, next.video); err != nil || p.quiet || next.audio < 0 {
		return err
	}
	return check(p.audio, next.audio)
}

// payloadTypes returns what codecs are sent with, by name.
func payloadTypes(codecs []offeredCodec) map[string]payloadType {
	m := make(map[string]payloadType, len(codecs))
	for _, c := range codecs {
		m[c.name] = payloadType{media: c.payloadType, rtx: c.rtx}
	}
	return m
}
