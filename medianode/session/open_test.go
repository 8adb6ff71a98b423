package session

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/sdp/v3"

	"fanlight/medianode/stream"
	"fanlight/medianode/udp"
)

// Offers of other shapes than a browser's own, and the directions they are
// answered with. No section is rejected: that of a bundle's transport must not
// be, and candidates are only in the first.
func TestOpenAnswers(t *testing.T) {
	e := newTestEngine(t)
	const on, off = "sendonly", "inactive"
	withAudio := []stream.Track{{Kind: stream.Video, Codec: "H264", ClockRate: 90000}, {Kind: stream.Audio, Codec: "PCMA", ClockRate: 8000}}
	bare := "a=rtpmap:102 H264/90000\r\na=fmtp:102 packetization-mode=1\r\n"
	second := strings.Replace(video("96 97 102 103", vp8+h264), "a=mid:0", "a=mid:1", 1)
	tests := []struct {
		name   string
		offer  string
		tracks []stream.Track
		want   []string
	}{
		{"video and audio", goodOffer, nil, []string{on, on}},
		{"static payload types", head + video("102", h264) + audio("0 8", ""), withAudio, []string{on, on}},
		{"sendrecv", strings.ReplaceAll(goodOffer, "a=recvonly\r\n", "a=sendrecv\r\n"), nil, []string{on, on}},
		{"audio first, camera without", head + audio("111 9", opus+g722) + video("102 103", h264), withAudio[:1], []string{off, on}},
		{"audio first, none of ours", head + audio("13", cn) + video("102 103", h264), withAudio, []string{off, on}},
		{"camera's audio not offered", head + video("102 103", h264) + audio("111", opus), withAudio, []string{on, off}},
		{"two video sections", head + video("96 97 102 103", vp8+h264) + second, nil, []string{on, off}},
		{"second video section receives", head + video("96 97 102 103", "a=sendonly\r\n"+vp8+h264) + second, nil, []string{off, on}},
		{"second section of other codecs", head + video("102 103", h264) + strings.Replace(video("96 97", vp8), "a=mid:0", "a=mid:1", 1), nil, []string{on, off}},
		{"no profile", head + video("102 104", bare+h264Zero), nil, []string{on}},
		{"no retransmission", head + video("102", "a=rtpmap:102 H264/90000\r\na=fmtp:102 packetization-mode=1;profile-level-id=42e01f\r\n"), nil, []string{on}},
		{"garbage candidate", head + video("102", h264+"a=candidate:nonsense\r\n"), nil, []string{on}},
	}
	direction := regexp.MustCompile(`(?m)^a=(sendonly|inactive|recvonly|sendrecv)\r$`)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			str := stream.New(stream.Config{})
			if tt.tracks != nil {
				if _, err := str.Publish(tt.tracks); err != nil {
					t.Fatal(err)
				}
			}
			s, answer, err := e.Open(OpenConfig{Stream: str, Offer: tt.offer})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var got []string
			for _, m := range direction.FindAllStringSubmatch(answer, -1) {
				got = append(got, m[1])
			}
			if !slices.Equal(got, tt.want) || strings.Contains(answer, " 0 UDP/TLS") || !strings.Contains(answer, "a=candidate:") {
				t.Errorf("the sections are %v, want %v, none rejected, with candidates:\n%s", got, tt.want, answer)
			}
			if strings.Contains(answer, "packetization-mode=0") {
				t.Errorf("the answer has packetization mode 0:\n%s", answer)
			}
		})
	}
}

func newTestEngine(t *testing.T) *Engine {
	t.Helper()
	conn, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{UDP: conn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// The answer has what is sent, as it was offered, and nothing else.
func TestAnswerLines(t *testing.T) {
	extra := "a=ssrc:1 cname:x\r\na=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=simulcast:send 1\r\na=candidate:nonsense\r\n" +
		"a=candidate:1 1 udp 1 127.0.0.1 5000 typ host\r\n"
	offer := head + "a=extmap-allow-mixed\r\n" +
		video("96 97 102 103 104", "a=sendrecv\r\n"+extra+vp8+h264+h264Zero) + audio("111 9", "a=recvonly\r\n"+opus+g722)
	str := stream.New(stream.Config{})
	if _, err := str.Publish([]stream.Track{{Kind: stream.Video, Codec: "H264", ClockRate: 90000}}); err != nil {
		t.Fatal(err)
	}
	s, answer, err := newTestEngine(t).Open(OpenConfig{Stream: str, Offer: offer})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got sdp.SessionDescription
	if err := got.UnmarshalString(answer); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, md := range got.MediaDescriptions {
		lines = append(lines, md.MediaName.String())
		for _, a := range md.Attributes {
			switch a.Key {
			case "ice-ufrag", "ice-pwd", "fingerprint", "ssrc", "ssrc-group", "msid", "candidate":
			default:
				lines = append(lines, a.String())
			}
		}
	}
	want := []string{
		"video 9 UDP/TLS/RTP/SAVPF 102 103 96 97", "setup:passive", "mid:0", "rtcp-mux",
		"rtpmap:102 H264/90000", "fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
		"rtcp-fb:102 nack", "rtcp-fb:102 nack pli", "rtpmap:103 rtx/90000", "fmtp:103 apt=102",
		"rtpmap:96 VP8/90000", "rtcp-fb:96 nack", "rtpmap:97 rtx/90000", "fmtp:97 apt=96", "sendonly", "end-of-candidates",
		"audio 9 UDP/TLS/RTP/SAVPF 111 9", "setup:passive", "mid:1", "rtcp-mux", "rtpmap:111 opus/48000/2", "fmtp:111 minptime=10", "rtpmap:9 G722/8000", "inactive",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Sections that are not on the one transport are refused, and the group has the
// others in its order.
func TestBundle(t *testing.T) {
	e := newTestEngine(t)
	str := stream.New(stream.Config{})
	if _, err := str.Publish([]stream.Track{{Kind: stream.Video, Codec: "H264", ClockRate: 90000}, {Kind: stream.Audio, Codec: "OPUS", ClockRate: 48000, Channels: 2}}); err != nil {
		t.Fatal(err)
	}
	both := func(group string) string {
		return strings.Replace(head, "a=group:BUNDLE 0 1\r\n", group, 1) + video("102 103", h264) + audio("111", opus)
	}
	third := strings.Replace(audio("111", opus), "a=mid:1", "a=mid:2", 1)
	for _, tt := range []struct {
		name  string
		offer string
		group string   // of the answer; empty: none
		want  []string // directions, and "0" for a section with port 0
	}{
		{"both", both("a=group:BUNDLE 0 1\r\n"), "0 1", []string{"sendonly", "sendonly"}},
		{"in another order", both("a=group:BUNDLE 1 0\r\n"), "1 0", []string{"sendonly", "sendonly"}},
		{"behind another group", both("a=group:LS 0 1\r\na=group:BUNDLE 0 1\r\n"), "0 1", []string{"sendonly", "sendonly"}},
		{"none", both(""), "", []string{"sendonly", "0"}},
		{"of the video alone", both("a=group:BUNDLE 0\r\n"), "0", []string{"sendonly", "0"}},
		{"of others", both("a=group:BUNDLE 1 2\r\n") + third, "", []string{"sendonly", "0", "0"}},
		{"one switched off", strings.Replace(both("a=group:BUNDLE 0 1\r\n"), "m=audio 9", "m=audio 0", 1), "0", []string{"sendonly", "0"}},
		{"one without a format that is known", head + video("102 103", h264) + audio("18", ""), "0", []string{"sendonly", "0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, answer, err := e.Open(OpenConfig{Stream: str, Offer: tt.offer})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var got sdp.SessionDescription
			if err := got.UnmarshalString(answer); err != nil {
				t.Fatal(err)
			}
			group, _ := got.Attribute("group")
			var sections []string
			candidates := 0
			for i, md := range got.MediaDescriptions {
				direction := "0"
				for _, a := range md.Attributes {
					if md.MediaName.Port.Value != 0 && (a.Key == "sendonly" || a.Key == "inactive") {
						direction = a.Key
					}
					if a.Key == "candidate" {
						candidates++
					}
				}
				if len(md.MediaName.Formats) == 0 {
					t.Errorf("section %d has no format", i)
				}
				sections = append(sections, direction)
			}
			if strings.TrimPrefix(group, "BUNDLE ") != tt.group || !slices.Equal(sections, tt.want) || candidates == 0 {
				t.Errorf("group %q, sections %v, %d candidates; want %q, %v and some:\n%s", group, sections, candidates, tt.group, tt.want, answer)
			}
		})
	}
}
