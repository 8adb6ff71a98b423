package fanout

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pion/ice/v4"
	"github.com/pion/sdp/v3"
)

// Payload types of the offer. What the answer says counts.
const (
	offeredH264 = 96
	offeredRTX  = 97
)

// Priorities of a viewer's candidate, and of one that the server learns from a
// check (RFC 8445 §5.1.2).
const (
	hostPriority      = 126<<24 | 65535<<8 | 255
	reflexivePriority = 110<<24 | 65535<<8 | 255
)

// credentials are a viewer's part of an ICE session (RFC 8445 §5.3, §16.1).
type credentials struct {
	ufrag, pwd string
	tie        uint64
}

func newCredentials() credentials {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it cannot fail
	return credentials{ufrag: rand.Text()[:8], pwd: rand.Text(), tie: binary.BigEndian.Uint64(b[:])}
}

// offer returns an SDP offer to receive H264 with retransmission (RFC 4588),
// with one host candidate.
func offer(c credentials, local netip.AddrPort, fingerprint string) string {
	lines := []string{
		"v=0", "o=- " + strconv.FormatUint(c.tie>>2, 10) + " 2 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0",
		fmt.Sprintf("m=video 9 UDP/TLS/RTP/SAVPF %d %d", offeredH264, offeredRTX), "c=IN IP4 0.0.0.0", "a=rtcp:9 IN IP4 0.0.0.0",
		"a=ice-ufrag:" + c.ufrag, "a=ice-pwd:" + c.pwd,
		"a=fingerprint:sha-256 " + fingerprint, "a=setup:actpass", "a=mid:0", "a=recvonly", "a=rtcp-mux", "a=rtcp-rsize",
		fmt.Sprintf("a=rtpmap:%d H264/90000", offeredH264),
		fmt.Sprintf("a=rtcp-fb:%d nack", offeredH264), fmt.Sprintf("a=rtcp-fb:%d nack pli", offeredH264), fmt.Sprintf("a=rtcp-fb:%d ccm fir", offeredH264),
		fmt.Sprintf("a=fmtp:%d level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f", offeredH264),
		fmt.Sprintf("a=rtpmap:%d rtx/90000", offeredRTX), fmt.Sprintf("a=fmtp:%d apt=%d", offeredRTX, offeredH264),
		fmt.Sprintf("a=candidate:1 1 udp %d %s %d typ host", hostPriority, local.Addr(), local.Port()), "a=end-of-candidates",
	}
	return strings.Join(lines, "\r\n") + "\r\n"
}

// answer is what a server's SDP answer says, as far as a viewer needs it.
type answer struct {
	ufrag, pwd  string
	remote      netip.AddrPort // where checks are sent
	fingerprint []byte         // SHA-256 of the certificate
	active      bool           // the server begins the DTLS handshake
	media       uint8          // payload types
	rtx         uint8          // 0: none
}

func parseAnswer(text string) (*answer, error) {
	var desc sdp.SessionDescription
	if err := desc.UnmarshalString(text); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(desc.MediaDescriptions) != 1 || desc.MediaDescriptions[0].MediaName.Port.Value == 0 {
		return nil, errors.New("the answer has no video")
	}
	md := desc.MediaDescriptions[0]
	attribute := func(key string) string {
		if v, ok := md.Attribute(key); ok {
			return v
		}
		v, _ := desc.Attribute(key)
		return v
	}
	a := &answer{ufrag: attribute("ice-ufrag"), pwd: attribute("ice-pwd"), active: attribute("setup") == "active"}
	if a.ufrag == "" || a.pwd == "" {
		return nil, errors.New("the answer has no ICE credentials")
	}
	hash, digest, _ := strings.Cut(attribute("fingerprint"), " ")
	var err error
	if a.fingerprint, err = hex.DecodeString(strings.ReplaceAll(digest, ":", "")); err != nil || !strings.EqualFold(hash, "sha-256") {
		return nil, fmt.Errorf("the answer's fingerprint is %q: only SHA-256 is known", hash)
	}
	for _, attr := range md.Attributes {
		pt, what, _ := strings.Cut(attr.Value, " ")
		n, _ := strconv.ParseUint(pt, 10, 7)
		what = strings.ToLower(what)
		switch {
		case attr.Key == "rtpmap" && what == "h264/90000" && a.media == 0:
			a.media = uint8(n)
		case attr.Key == "rtpmap" && what == "rtx/90000" && a.rtx == 0:
			a.rtx = uint8(n)
		case attr.Key == "candidate" && !a.remote.IsValid():
			a.remote = udpCandidate(attr.Value)
		}
	}
	if a.media == 0 {
		return nil, errors.New("the answer has no H264")
	}
	if !a.remote.IsValid() {
		return nil, errors.New("the answer has no candidate for UDP over IPv4")
	}
	return a, nil
}

// udpCandidate returns the address of a host candidate for UDP over IPv4; else
// none.
func udpCandidate(value string) netip.AddrPort {
	c, err := ice.UnmarshalCandidate(value)
	if err != nil || !c.NetworkType().IsUDP() || c.Component() != 1 {
		return netip.AddrPort{}
	}
	ip, err := netip.ParseAddr(c.Address())
	if err != nil || !ip.Is4() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, uint16(c.Port()))
}
