package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"

	"fanlight/medianode/stream"
)

// answerSDP is the answer to an offer (RFC 3264 §6, RFC 9429 §5.3.1): its
// sections in their order, those that are sent in sendonly, the others inactive.
// Everything is bundled on one transport (RFC 8843), with RTCP on the same port
// (RFC 5761). complete: with our candidates.
func (s *Session) answerSDP(o *offer, complete bool) (string, error) {
	desc := sdp.SessionDescription{
		Origin:           sdp.Origin{Username: "-", SessionID: s.sdpID, SessionVersion: s.sdpVersion, NetworkType: "IN", AddressType: "IP4", UnicastAddress: "127.0.0.1"},
		SessionName:      "-",
		TimeDescriptions: []sdp.TimeDescription{{}},
	}
	s.sdpVersion++
	if mids := o.mids(); len(o.bundled) > 0 {
		desc.Attributes = append(desc.Attributes, sdp.NewAttribute("group", "BUNDLE "+strings.Join(mids, " ")))
	}
	desc.Attributes = append(desc.Attributes, sdp.NewAttribute("msid-semantic", " WMS "+string(s.cfg.Camera)))
	for i := range o.sections {
		desc.MediaDescriptions = append(desc.MediaDescriptions, s.answerSection(o, i, complete))
	}
	b, err := desc.Marshal()
	if err != nil {
		return "", fmt.Errorf("write the answer: %w", err)
	}
	return string(b), nil
}

// mids returns the names of the sections that are on the transport, in the order
// of their group (RFC 8843 §7.3.1).
func (o *offer) mids() []string {
	if len(o.bundled) == 0 {
		return []string{o.sections[o.video].mid}
	}
	var out []string
	for _, mid := range o.bundled {
		i := slices.IndexFunc(o.sections, func(s section) bool { return s.mid == mid })
		if i >= 0 && o.carried(i) && !slices.Contains(out, mid) {
			out = append(out, mid)
		}
	}
	return out
}

// bundle returns the section that stands for the transport: the first of those on
// it.
func (o *offer) bundle() string { return o.mids()[0] }

func (s *Session) answerSection(o *offer, index int, complete bool) *sdp.MediaDescription {
	section := &o.sections[index]
	offered := o.desc.MediaDescriptions[index]
	codecs := s.plan.answered(o, index)
	if !o.carried(index) || len(codecs) == 0 {
		return refusedSection(offered, section.mid)
	}
	md := &sdp.MediaDescription{
		MediaName: sdp.MediaName{
			Media: section.kind, Port: sdp.RangedPort{Value: 9}, // discard: the candidates say where
			Protos: offered.MediaName.Protos,
		},
		ConnectionInformation: &sdp.ConnectionInformation{NetworkType: "IN", AddressType: "IP4", Address: &sdp.Address{Address: "0.0.0.0"}},
	}
	add := func(key string, value ...string) {
		md.Attributes = append(md.Attributes, sdp.Attribute{Key: key, Value: strings.Join(value, " ")})
	}
	local := s.transport.Local()
	add("setup", "passive")
	add("mid", section.mid)
	add("ice-ufrag", local.Fragment)
	add("ice-pwd", local.Password)
	if !complete {
		add("ice-options", "trickle")
	}
	add("fingerprint", s.engine.port.Fingerprint())
	add("rtcp-mux")
	if _, ok := offered.Attribute("rtcp-rsize"); ok {
		add("rtcp-rsize")
	}
	for _, c := range codecs {
		answerCodec(md, c, s.feedbackFor(section.kind))
	}
	if l := s.laneOf(o, index); l != nil {
		l.extensions.each(func(id uint8, uri string) { add("extmap", strconv.Itoa(int(id)), uri) })
		s.answerTrack(add, l)
		add("sendonly")
	} else {
		add("inactive")
	}
	if complete && section.mid == o.bundle() {
		for _, c := range s.engine.port.Candidates() {
			add("candidate", c)
		}
		add("end-of-candidates")
	}
	return md
}

// refusedSection is a section with port 0 (RFC 3264 §6).
func refusedSection(offered *sdp.MediaDescription, mid string) *sdp.MediaDescription {
	return &sdp.MediaDescription{
		MediaName:             sdp.MediaName{Media: offered.MediaName.Media, Protos: offered.MediaName.Protos, Formats: offered.MediaName.Formats},
		ConnectionInformation: &sdp.ConnectionInformation{NetworkType: "IN", AddressType: "IP4", Address: &sdp.Address{Address: "0.0.0.0"}},
		Attributes:            []sdp.Attribute{sdp.NewAttribute("mid", mid), sdp.NewPropertyAttribute("inactive")},
	}
}

// laneOf returns what is sent in a section; nil: nothing.
func (s *Session) laneOf(o *offer, index int) *lane {
	for kind, at := range map[stream.Kind]int{stream.Video: o.video, stream.Audio: o.audio} {
		if l := &s.lanes[kind]; at == index && l.payloads != nil {
			return l
		}
	}
	return nil
}

// feedbackFor returns the feedback that is answered in a section of a kind.
func (s *Session) feedbackFor(kind string) []string {
	switch {
	case kind != "video":
		return nil
	case s.lanes[stream.Video].extensions.sendTime != 0:
		return append(slices.Clone(videoFeedback), estimateFeedback)
	}
	return videoFeedback
}

// answerCodec adds a payload type, and that of its retransmissions, as they were
// offered (RFC 3264 §6.1), with the feedback of ours.
func answerCodec(md *sdp.MediaDescription, c offeredCodec, feedback []string) {
	add := func(key string, payload uint8, value string) {
		md.Attributes = append(md.Attributes, sdp.NewAttribute(key, strconv.Itoa(int(payload))+" "+value))
	}
	md.MediaName.Formats = append(md.MediaName.Formats, strconv.Itoa(int(c.payloadType)))
	add("rtpmap", c.payloadType, c.rtpmap())
	if c.fmtp != "" {
		add("fmtp", c.payloadType, c.fmtp)
	}
	if feedback == nil {
		return
	}
	for _, f := range feedback {
		if slices.Contains(c.feedback, f) {
			add("rtcp-fb", c.payloadType, f)
		}
	}
	if c.hasRTX {
		md.MediaName.Formats = append(md.MediaName.Formats, strconv.Itoa(int(c.rtx)))
		add("rtpmap", c.rtx, fmt.Sprintf("rtx/%d", c.clockRate))
		add("fmtp", c.rtx, fmt.Sprintf("apt=%d", c.payloadType))
	}
}

// rtpmap returns the codec as a=rtpmap has it.
func (c *offeredCodec) rtpmap() string {
	name := c.name
	if name == "OPUS" {
		name = "opus" // as everybody writes it
	}
	if c.channels > 0 {
		return fmt.Sprintf("%s/%d/%d", name, c.clockRate, c.channels)
	}
	return fmt.Sprintf("%s/%d", name, c.clockRate)
}

// answerTrack names the SSRCs and what they belong to (RFC 5576, RFC 8830): sound
// and picture of one camera are one stream, played in step.
func (s *Session) answerTrack(add func(string, ...string), l *lane) {
	camera, kind := s.name(), l.kind.String()
	add("msid", camera, kind)
	sources := []uint32{l.ssrc}
	if l.rtx.ssrc != 0 {
		sources = append(sources, l.rtx.ssrc)
		add("ssrc-group", "FID", strconv.FormatUint(uint64(l.ssrc), 10), strconv.FormatUint(uint64(l.rtx.ssrc), 10)) // RFC 5576 §4.2
	}
	for _, ssrc := range sources {
		id := strconv.FormatUint(uint64(ssrc), 10)
		add("ssrc", id, "cname:"+camera)
		add("ssrc", id, "msid:"+camera, kind)
	}
}

// name is the stream's, and the CNAME of its SSRCs (RFC 3550 §6.5.1).
func (s *Session) name() string {
	if s.cfg.Camera == "" {
		return "-"
	}
	return string(s.cfg.Camera)
}

// newLanes makes what the plan sends, with random SSRCs (RFC 3550 §8.1). adapts:
// what the viewer's path carries is worth knowing.
func newLanes(o *offer, p *plan, adapts bool) [2]lane {
	used := map[uint32]bool{0: true}
	ssrc := func() uint32 {
		n := rand.Uint32()
		for used[n] {
			n = rand.Uint32()
		}
		used[n] = true
		return n
	}
	var lanes [2]lane
	video := &lanes[stream.Video]
	video.kind, video.ssrc, video.payloads = stream.Video, ssrc(), payloadTypes(p.video)
	video.nack = slices.ContainsFunc(p.video, func(c offeredCodec) bool { return slices.Contains(c.feedback, "nack") })
	if slices.ContainsFunc(p.video, func(c offeredCodec) bool { return c.hasRTX }) {
		video.rtx = rtx{ssrc: ssrc(), index: rand.Uint64() & 0x7fff}
	}
	// Without RTX a packet is sent again under its own nonce, and must be the same
	// to the bit: it cannot say when it left.
	if all := !slices.ContainsFunc(p.video, func(c offeredCodec) bool { return !c.hasRTX }); all || !video.nack {
		remb := adapts && !slices.ContainsFunc(p.video, func(c offeredCodec) bool { return !slices.Contains(c.feedback, estimateFeedback) })
		video.extensions = offeredExtensions(o.desc.MediaDescriptions[o.video], true, remb)
	}
	if audio := &lanes[stream.Audio]; !p.quiet && o.audio >= 0 {
		audio.kind, audio.ssrc, audio.payloads = stream.Audio, ssrc(), payloadTypes(p.audio)
		audio.extensions = offeredExtensions(o.desc.MediaDescriptions[o.audio], false, false)
	}
	return lanes
}
