package session

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"

	"fanlight/internal/fleet"
	"fanlight/medianode/transport"
)

// The bounds of an offer. Chromium's offer of one audio and one video section
// has 7 KB, 2 sections, 60 payload types and 4 candidates.
const (
	maxOffer      = 64 << 10 // bytes
	maxSections   = 8        // media sections
	maxPayloads   = 128      // payload types of a section
	maxCredential = 256      // characters of ICE's (RFC 8839 §5.4)
	maxCandidates = 64       // remote candidates of an ICE generation, trickled ones included
)

// offer is what a viewer's SDP offer says, as far as a session needs it.
type offer struct {
	desc         sdp.SessionDescription
	sections     []section // in the offer's order
	video        int       // index of the first video section that receives
	audio        int       // index of the first audio section that receives; -1: none
	ice          transport.Credentials
	fingerprints []string // of the certificate (RFC 8122 §5), in upper case
	bundled      []string // mids of the a=group:BUNDLE that the video is in (RFC 8843); nil: it is in none
	addresses    []netip.AddrPort
	lite         bool // a=ice-lite
	candidates   int
}

// section is one media section of an offer.
type section struct {
	kind     string // "audio", "video"
	mid      string
	receives bool // the viewer wants to receive here
	off      bool // port 0, without waiting for its bundle (RFC 3264 §5.1, RFC 8843 §6)
	mux      bool // RTCP on the same port is offered (RFC 5761 §5.1.1)
	codecs   []offeredCodec
}

// offeredCodec is one payload type of a section. Retransmission (RFC 4588) is
// not listed on its own but with the codec that it repairs.
type offeredCodec struct {
	name        string // encoding name in upper case
	payloadType uint8
	clockRate   uint32
	channels    uint16
	fmtp        string
	feedback    []string // "nack", "nack pli", …
	rtx         uint8    // payload type of its retransmissions
	hasRTX      bool
}

// parseOffer reads a viewer's offer. Its errors are fleet.BadOffer and
// fleet.NoVideoSection, with what to change.
func parseOffer(s string) (*offer, error) {
	if len(s) > maxOffer {
		return nil, badOffer("the offer has %d bytes; at most %d are read", len(s), maxOffer)
	}
	if strings.TrimSpace(s) == "" {
		return nil, badOffer("the offer is empty; send the sdp of RTCPeerConnection.createOffer")
	}
	const asItIs = "send the sdp of RTCPeerConnection.createOffer as it is"
	if !strings.HasPrefix(s, "v=0") {
		return nil, badOffer("the offer is not SDP (RFC 8866), which begins with v=0; %s", asItIs)
	}
	o := &offer{video: -1, audio: -1}
	if err := o.desc.UnmarshalString(s); err != nil {
		return nil, badOffer("the offer is not SDP (RFC 8866): %s; %s", clip(err.Error()), asItIs)
	}
	if n := len(o.desc.MediaDescriptions); n > maxSections {
		return nil, badOffer("the offer has %d media sections; at most %d are answered: make a peer connection for each camera", n, maxSections)
	}
	for i, md := range o.desc.MediaDescriptions {
		if err := o.addSection(md, i); err != nil {
			return nil, err
		}
	}
	_, o.lite = o.desc.Attribute("ice-lite")
	if err := o.check(); err != nil {
		return nil, err
	}
	o.findBundle()
	return o, nil
}

// findBundle finds the group that the video is in. There is one transport, and what
// is not in that group has none.
func (o *offer) findBundle() {
	for _, a := range o.desc.Attributes {
		if mids := strings.Fields(a.Value); a.Key == "group" && len(mids) > 1 && mids[0] == "BUNDLE" && slices.Contains(mids[1:], o.sections[o.video].mid) {
			o.bundled = mids[1:]
			break
		}
	}
	if o.audio >= 0 && !o.carried(o.audio) {
		o.audio = -1
	}
}

// carried tells whether a section is on the transport: it is not switched off, and
// it is the video's own or bundled with it.
func (o *offer) carried(index int) bool {
	s := &o.sections[index]
	return !s.off && (index == o.video || slices.Contains(o.bundled, s.mid))
}

// check is the part of parseOffer that looks at the offer as a whole.
func (o *offer) check() error {
	switch {
	case o.video < 0:
		return fmt.Errorf("%w: add one with addTransceiver(\"video\", {direction: \"recvonly\"})", fleet.NoVideoSection)
	case !o.sections[o.video].mux:
		return badOffer("the video section has no a=rtcp-mux (RFC 5761); RTCP has no port of its own here")
	case o.lite:
		return badOffer("the offer has a=ice-lite; this side waits for checks too (RFC 8445 §2.5)")
	case !strings.HasSuffix(strings.Join(o.desc.MediaDescriptions[o.video].MediaName.Protos, "/"), "TLS/RTP/SAVPF"):
		return badOffer("the video section's protocol is not UDP/TLS/RTP/SAVPF (RFC 5764 §8); media is only sent encrypted with DTLS")
	case o.ice.Fragment == "" || o.ice.Password == "":
		return badOffer("the offer has no a=ice-ufrag or no a=ice-pwd (RFC 8839 §5.4)")
	case len(o.ice.Fragment) > maxCredential || len(o.ice.Password) > maxCredential:
		return badOffer("the offer's a=ice-ufrag or a=ice-pwd has more than %d characters (RFC 8839 §5.4)", maxCredential)
	case len(o.fingerprints) == 0:
		return badOffer("the offer has no a=fingerprint (RFC 8122 §5); media is only sent encrypted with DTLS")
	case transport.CheckFingerprints(o.fingerprints) != nil:
		return badOffer("the offer's a=fingerprint: %v", transport.CheckFingerprints(o.fingerprints))
	case o.candidates > maxCandidates:
		return badOffer("the offer has %d candidates; at most %d are tried", o.candidates, maxCandidates)
	}
	return nil
}

func (o *offer) addSection(md *sdp.MediaDescription, index int) error {
	kind := md.MediaName.Media
	if kind != "audio" && kind != "video" {
		return badOffer("media section %d is %q; only audio and video are answered: offer no data channel", index, clip(kind))
	}
	mid, _ := md.Attribute(sdp.AttrKeyMID)
	if mid == "" {
		return badOffer("media section %d has no a=mid (RFC 8843)", index)
	}
	if slices.ContainsFunc(o.sections, func(other section) bool { return other.mid == mid }) {
		return badOffer("two media sections have a=mid:%s", clip(mid))
	}
	if n := len(md.MediaName.Formats); n > maxPayloads {
		return badOffer("media section %d has %d payload types; at most %d are read", index, n, maxPayloads)
	}
	codecs, err := parseCodecs(md)
	if err != nil {
		return badOffer("media section %d: %v", index, err)
	}
	s := section{kind: kind, mid: mid, receives: receives(&o.desc, md), off: switchedOff(md) || len(codecs) == 0, codecs: codecs}
	_, s.mux = md.Attribute("rtcp-mux")
	o.sections = append(o.sections, s)
	if s.receives && kind == "video" && o.video < 0 {
		o.video = index
	}
	if s.receives && kind == "audio" && o.audio < 0 {
		o.audio = index
	}
	if o.ice.Fragment == "" {
		o.ice = transport.Credentials{Fragment: attribute(&o.desc, md, "ice-ufrag"), Password: attribute(&o.desc, md, "ice-pwd")}
	}
	for _, a := range slices.Concat(md.Attributes, o.desc.Attributes) {
		if f := strings.ToUpper(a.Value); a.Key == "fingerprint" && f != "" && !slices.Contains(o.fingerprints, f) {
			o.fingerprints = append(o.fingerprints, f)
		}
	}
	if attribute(&o.desc, md, "setup") == "passive" {
		return badOffer("media section %d has a=setup:passive; this side waits for the DTLS handshake too: offer actpass (RFC 8842 §5.2)", index)
	}
	for _, a := range md.Attributes {
		if a.Key == "candidate" {
			o.candidates++
			if addr, _ := parseCandidate(a.Value); addr.IsValid() {
				o.addresses = append(o.addresses, addr)
			}
		}
	}
	return nil
}

// sameSections tells whether another offer is of the same peer connection:
// sections keep their place, kind and mid for its life (RFC 9429 §5.2.2).
func (o *offer) sameSections(other *offer) bool {
	return slices.EqualFunc(o.sections, other.sections, func(a, b section) bool {
		return a.kind == b.kind && a.mid == b.mid
	})
}

// attribute returns a section's attribute, or else the session's.
func attribute(desc *sdp.SessionDescription, md *sdp.MediaDescription, key string) string {
	if v, ok := md.Attribute(key); ok {
		return v
	}
	v, _ := desc.Attribute(key)
	return v
}

// receives tells whether the offerer wants to receive in a section (RFC 3264
// §5.1, §6). Port 0 switches a section off, unless it waits for its bundle (RFC
// 8843 §6).
func receives(desc *sdp.SessionDescription, md *sdp.MediaDescription) bool {
	if switchedOff(md) {
		return false
	}
	for _, attrs := range [][]sdp.Attribute{md.Attributes, desc.Attributes} {
		for _, a := range attrs {
			switch a.Key {
			case "sendrecv", "recvonly":
				return true
			case "sendonly", "inactive":
				return false
			}
		}
	}
	return true
}

// switchedOff tells whether a section has port 0, and does not wait for its
// bundle.
func switchedOff(md *sdp.MediaDescription) bool {
	_, bundleOnly := md.Attribute("bundle-only")
	return md.MediaName.Port.Value == 0 && !bundleOnly
}

// parseCodecs reads a section's payload types in the offer's order: a=rtpmap,
// a=fmtp (RFC 8866 §6.6, §6.15) and a=rtcp-fb (RFC 4585 §4.2).
func parseCodecs(md *sdp.MediaDescription) ([]offeredCodec, error) {
	codecs := make([]offeredCodec, 0, len(md.MediaName.Formats))
	byPayload := make(map[string]int)
	for _, f := range md.MediaName.Formats {
		pt, err := strconv.ParseUint(f, 10, 7)
		if err != nil {
			return nil, fmt.Errorf("payload type %q is not a number from 0 to 127", clip(f))
		}
		if _, ok := byPayload[f]; ok {
			return nil, fmt.Errorf("payload type %s is listed twice", f)
		}
		c := offeredCodec{payloadType: uint8(pt)}
		switch pt { // without a=rtpmap (RFC 3551 §6)
		case 0:
			c.name, c.clockRate = "PCMU", 8000
		case 8:
			c.name, c.clockRate = "PCMA", 8000
		case 9:
			c.name, c.clockRate = "G722", 8000
		}
		byPayload[f] = len(codecs)
		codecs = append(codecs, c)
	}
	for _, a := range md.Attributes {
		pt, value, _ := strings.Cut(a.Value, " ")
		if a.Key == "rtcp-fb" && pt == "*" {
			for i := range codecs {
				codecs[i].feedback = append(codecs[i].feedback, value)
			}
			continue
		}
		i, ok := byPayload[pt]
		if !ok {
			continue
		}
		switch a.Key {
		case "rtpmap":
			if err := codecs[i].setMap(value); err != nil {
				return nil, err
			}
		case "fmtp":
			codecs[i].fmtp = value
		case "rtcp-fb":
			codecs[i].feedback = append(codecs[i].feedback, value)
		}
	}
	return attachRTX(codecs), nil
}

// setMap reads "H264/90000" or "opus/48000/2".
func (c *offeredCodec) setMap(value string) error {
	parts := strings.Split(value, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return fmt.Errorf("a=rtpmap:%d %s is not of the form name/rate", c.payloadType, clip(value))
	}
	rate, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil || rate == 0 {
		return fmt.Errorf("a=rtpmap:%d %s has no clock rate", c.payloadType, clip(value))
	}
	c.name, c.clockRate, c.channels = strings.ToUpper(parts[0]), uint32(rate), 0
	if len(parts) == 3 {
		channels, err := strconv.ParseUint(parts[2], 10, 8)
		if err != nil {
			return fmt.Errorf("a=rtpmap:%d %s: the number of channels is no number", c.payloadType, clip(value))
		}
		c.channels = uint16(channels)
	}
	return nil
}

// attachRTX takes the retransmission payload types out of the list and notes
// each with its codec.
func attachRTX(all []offeredCodec) []offeredCodec {
	codecs := slices.DeleteFunc(slices.Clone(all), func(c offeredCodec) bool { return c.name == "RTX" || c.name == "" })
	for _, r := range all {
		apt, ok := strings.CutPrefix(strings.TrimSpace(r.fmtp), "apt=")
		if r.name != "RTX" || !ok || r.payloadType == 0 || isRTCP(r.payloadType) {
			continue
		}
		apt, _, _ = strings.Cut(apt, ";")
		for i := range codecs {
			if strconv.Itoa(int(codecs[i].payloadType)) == apt && !codecs[i].hasRTX {
				codecs[i].rtx, codecs[i].hasRTX = r.payloadType, true
			}
		}
	}
	return codecs
}

// parameter returns the value of one of a codec's format parameters.
func (c *offeredCodec) parameter(key string) string { return fmtpParameter(c.fmtp, key) }

// fmtpParameter finds "key=value" in a list that semicolons divide.
func fmtpParameter(fmtp, key string) string {
	for p := range strings.SplitSeq(fmtp, ";") {
		if k, v, ok := strings.Cut(p, "="); ok && strings.EqualFold(strings.TrimSpace(k), key) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func badOffer(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fleet.BadOffer, fmt.Sprintf(format, args...))
}

// clip keeps what is quoted from a viewer in an error short.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
