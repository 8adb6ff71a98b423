package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// head is an offer up to its media sections.
const head = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=ice-options:trickle\r\n"

// common is what every section has.
const common = "c=IN IP4 0.0.0.0\r\na=ice-ufrag:Ab3x\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n" +
	"a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n" +
	"a=setup:actpass\r\na=rtcp-mux\r\n"

const (
	vp8      = "a=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"
	h264     = "a=rtpmap:102 H264/90000\r\na=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\na=rtcp-fb:102 nack\r\na=rtcp-fb:102 nack pli\r\na=rtcp-fb:102 goog-remb\r\na=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=102\r\n"
	h264Zero = "a=rtpmap:104 H264/90000\r\na=fmtp:104 packetization-mode=0;profile-level-id=42e01f\r\n"
	opus     = "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10\r\n"
	g722     = "a=rtpmap:9 G722/8000\r\n"
	cn       = "a=rtpmap:13 CN/8000\r\n"
)

func video(payloads, attributes string) string {
	return "m=video 9 UDP/TLS/RTP/SAVPF " + payloads + "\r\n" + common + "a=mid:0\r\n" + attributes
}

func audio(payloads, attributes string) string {
	return "m=audio 9 UDP/TLS/RTP/SAVPF " + payloads + "\r\n" + common + "a=mid:1\r\n" + attributes
}

// goodOffer has all that can be sent.
var goodOffer = head + video("96 97 102 103", "a=recvonly\r\n"+vp8+h264) + audio("111 0 8", "a=recvonly\r\n"+opus)

var offers = []struct {
	name  string
	offer string
	want  error  // nil: it can be answered, the camera's codec permitting
	says  string // in the error
}{
	{"good", goodOffer, nil, ""},
	{"sendrecv", strings.ReplaceAll(goodOffer, "a=recvonly\r\n", ""), nil, ""},
	{"garbage candidate", goodOffer + "a=candidate:nonsense\r\n", nil, ""},
	{"several fingerprints", strings.ReplaceAll(goodOffer, "a=fingerprint:sha-256", "a=fingerprint:sha-1 AB:CD\r\na=fingerprint:sha-256"), nil, ""},
	{"no rtcp-mux", strings.ReplaceAll(goodOffer, "a=rtcp-mux\r\n", ""), fleet.BadOffer, "rtcp-mux"},
	{"ICE-lite", strings.Replace(goodOffer, "a=ice-options:trickle", "a=ice-lite", 1), fleet.BadOffer, "ice-lite"},
	{"not encrypted", strings.ReplaceAll(goodOffer, "UDP/TLS/RTP/SAVPF", "RTP/AVPF"), fleet.BadOffer, "DTLS"},
	{"empty", "", fleet.BadOffer, "empty"},
	{"spaces", " \r\n", fleet.BadOffer, "empty"},
	{"not SDP", "hello", fleet.BadOffer, "not SDP"},
	{"JSON", `{"type":"offer","sdp":"v=0"}`, fleet.BadOffer, "not SDP"},
	{"too large", strings.Repeat("a", maxOffer+1), fleet.BadOffer, "at most 65536"},
	{"no sections", head, fleet.NoVideoSection, "addTransceiver"},
	{"audio only", head + audio("111", opus), fleet.NoVideoSection, "addTransceiver"},
	{"sendonly", head + video("102", "a=sendonly\r\n"+h264), fleet.NoVideoSection, "recvonly"},
	{"inactive", head + video("102", "a=inactive\r\n"+h264), fleet.NoVideoSection, "recvonly"},
	{"inactive for all", head + "a=inactive\r\n" + video("102", h264), fleet.NoVideoSection, "recvonly"},
	{"port 0", head + strings.Replace(video("102", h264), "video 9", "video 0", 1), fleet.NoVideoSection, "recvonly"},
	{"data channel", head + video("102", h264) + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n" + common + "a=mid:1\r\n", fleet.BadOffer, "data channel"},
	{"no mid", head + strings.Replace(video("102", h264), "a=mid:0\r\n", "", 1), fleet.BadOffer, "a=mid"},
	{"mid twice", head + video("102", h264) + video("102", h264), fleet.BadOffer, "a=mid:0"},
	{"no ufrag", strings.ReplaceAll(goodOffer, "a=ice-ufrag:Ab3x\r\n", ""), fleet.BadOffer, "ice-ufrag"},
	{"no fingerprint", strings.ReplaceAll(goodOffer, "a=fingerprint:", "a=x-fingerprint:"), fleet.BadOffer, "fingerprint"},
	{"setup passive", strings.ReplaceAll(goodOffer, "a=setup:actpass", "a=setup:passive"), fleet.BadOffer, "actpass"},
	{"too many sections", head + strings.Repeat(video("102", h264), maxSections+1), fleet.BadOffer, "media sections"},
	{"too many candidates", goodOffer + strings.Repeat("a=candidate:1 1 udp 1 127.0.0.1 5000 typ host\r\n", maxCandidates+1), fleet.BadOffer, "candidates"},
	{"payload type is a word", head + video("h264", ""), fleet.BadOffer, "payload type"},
	{"payload type 200", head + video("200", ""), fleet.BadOffer, "payload type"},
	{"payload type twice", head + video("102 102", h264), fleet.BadOffer, "twice"},
	{"rtpmap without rate", head + video("102", "a=rtpmap:102 H264\r\n"), fleet.BadOffer, "rtpmap"},
	{"rtpmap with rate 0", head + video("102", "a=rtpmap:102 H264/0\r\n"), fleet.BadOffer, "clock rate"},
	{"H265", head + video("98", "a=rtpmap:98 H265/90000\r\n"), nil, ""},
	{"H265 in several RTP streams", head + video("98", "a=rtpmap:98 H265/90000\r\na=fmtp:98 tx-mode=MRST\r\n"), fleet.CodecUnsupported, "browser offers H265"},
	{"VP8", head + video("96 97", vp8), nil, ""},
	{"packetization mode 0", head + video("99 104", "a=rtpmap:99 H263/90000\r\n"+h264Zero), fleet.CodecUnsupported, "browser offers H263, H264 (packetization-mode=0)"},
	{"RTCP's payload type", head + video("72", "a=rtpmap:72 VP8/90000\r\n"), fleet.CodecUnsupported, "browser offers VP8"},
	{"no codecs", head + video("", ""), fleet.CodecUnsupported, "camera sends one of H264, H265, AV1, VP9, VP8, browser offers nothing"},
}

func TestOffers(t *testing.T) {
	for _, tt := range offers {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parseOffer(tt.offer)
			if err == nil {
				_, err = negotiate(o, nil, nil)
			}
			if !errors.Is(err, tt.want) || (err != nil && !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("the error is %v, want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
}

// profiles makes an offer of H264 payload types, 100 and on, with these
// profile-level-ids.
func profiles(ids ...string) string {
	var payloads, attributes string
	for i, id := range ids {
		payloads += fmt.Sprint(" ", 100+i)
		attributes += fmt.Sprintf("a=rtpmap:%d H264/90000\r\na=fmtp:%d packetization-mode=1;profile-level-id=%s\r\n", 100+i, 100+i, id)
	}
	return head + video(strings.TrimSpace(payloads), attributes)
}

func trackWith(codec string) stream.Track {
	kind := stream.Audio
	if known, ok := findCodec(codec); ok {
		kind = known.kind
	} else if strings.HasPrefix(codec, "H26") {
		kind = stream.Video
	}
	return stream.Track{Kind: kind, Codec: codec}
}

// spsTrack is an H264 track whose sequence parameter set begins so.
func spsTrack(idc, constraints byte) []stream.Track {
	tr := trackWith("H264")
	tr.ParameterSets = [][]byte{{0x68, 1, 2, 3}, {0x67, idc, constraints, 0x1f}}
	return []stream.Track{tr}
}

func TestNegotiateVideo(t *testing.T) {
	chromium := []string{"42001f", "42e01f", "4d001f", "f4001f"}
	safari := []string{"640c1f", "42e01f"}
	fmtpTrack := trackWith("H264")
	fmtpTrack.FMTP = "packetization-mode=1; profile-level-id=4D0029; sprop-parameter-sets=Zw=="
	tests := []struct {
		name   string
		offer  []string
		tracks []stream.Track
		want   string
	}{
		{"unknown camera", chromium, nil, "42e01f"},
		{"unknown profile", chromium, []stream.Track{trackWith("H264")}, "42e01f"},
		{"constrained baseline", chromium, spsTrack(0x42, 0xc0), "42e01f"},
		{"baseline", chromium, spsTrack(0x42, 0x80), "42001f"},
		{"main", chromium, spsTrack(0x4d, 0x40), "4d001f"},
		{"main by its SDP", chromium, []stream.Track{fmtpTrack}, "4d001f"},
		{"high not offered", chromium, spsTrack(0x64, 0), "4d001f"},
		{"high offered", append(chromium, "64001f"), spsTrack(0x64, 0), "64001f"},
		{"constrained high", safari, spsTrack(0x64, 0x0c), "640c1f"},
		{"high to constrained high", safari, spsTrack(0x64, 0), "640c1f"},
		{"main to high", safari, spsTrack(0x4d, 0), "640c1f"},
		{"nothing known is offered", []string{"f4001f", "xyz"}, spsTrack(0x42, 0xc0), "f4001f"},
		{"constrained by main's flag", []string{"4d801f", "4d001f"}, spsTrack(0x42, 0xe0), "4d801f"},
		{"first of equals", []string{"42e034", "42e01f"}, nil, "42e034"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parseOffer(profiles(tt.offer...))
			if err != nil {
				t.Fatal(err)
			}
			p, err := negotiate(o, [][]stream.Track{tt.tracks}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.video[0].parameter("profile-level-id"); got != tt.want {
				t.Errorf("answered with %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNegotiateAudio(t *testing.T) {
	h := trackWith("H264")
	tests := []struct {
		name   string
		offer  string // audio section; empty: none
		tracks []stream.Track
		prefer []string
		quiet  bool
		first  string
		can    []string
	}{
		{"no section", "", []stream.Track{h, trackWith("PCMA")}, nil, false, "", nil},
		{"unknown camera", audio("111 0 8", opus), nil, nil, false, "OPUS", []string{"OPUS", "PCMA", "PCMU"}},
		{"preferred", audio("111 0 8", opus), nil, []string{"pcma", "PCMU"}, false, "PCMA", []string{"OPUS", "PCMA", "PCMU"}},
		{"the camera's", audio("111 0 8", opus), []stream.Track{h, trackWith("PCMU")}, []string{"PCMA"}, false, "PCMU", []string{"OPUS", "PCMA", "PCMU"}},
		{"camera has none", audio("111", opus), []stream.Track{h}, nil, true, "OPUS", []string{"OPUS"}},
		{"camera's not offered", audio("111", opus), []stream.Track{h, trackWith("PCMA")}, nil, true, "OPUS", []string{"OPUS"}},
		{"wideband", audio("9", g722), []stream.Track{h, trackWith("G722")}, nil, false, "G722", []string{"G722"}},
		{"static", audio("9 8 0", ""), []stream.Track{h, trackWith("G722")}, nil, false, "G722", []string{"G722", "PCMA", "PCMU"}},
		{"none of ours", audio("13", cn), []stream.Track{h, trackWith("PCMA")}, nil, true, "", nil},
		{"none of ours, unknown camera", audio("13", cn), nil, nil, true, "", nil},
		{"payload type of the video", audio("102", "a=rtpmap:102 opus/48000/2\r\n"), nil, nil, true, "", nil},
		{"payload type of the video's retransmissions", audio("103 0", "a=rtpmap:103 opus/48000/2\r\n"), nil, nil, false, "PCMU", []string{"PCMU"}},
		{"video in the audio section", audio("120", "a=rtpmap:120 VP8/90000\r\n"), nil, nil, true, "", nil},
		{"mono opus", audio("111", "a=rtpmap:111 opus/48000\r\n"), nil, nil, true, "", nil},
		{"not received", audio("111", "a=sendonly\r\n"+opus), nil, nil, false, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parseOffer(head + video("102 103", h264) + tt.offer)
			if err != nil {
				t.Fatal(err)
			}
			p, err := negotiate(o, [][]stream.Track{tt.tracks}, tt.prefer)
			if err != nil {
				t.Fatal(err)
			}
			var can []string
			first := ""
			for _, c := range p.audio {
				can = append(can, c.name)
				first = can[0]
			}
			slices.Sort(can)
			if p.quiet != tt.quiet || first != tt.first || !slices.Equal(can, tt.can) {
				t.Errorf("quiet %v, first %q, can %v; want %v, %q, %v", p.quiet, first, can, tt.quiet, tt.first, tt.can)
			}
		})
	}
}

func FuzzOffer(f *testing.F) {
	for _, tt := range offers {
		f.Add(tt.offer)
	}
	for _, s := range browserOffers {
		f.Add(s)
	}
	f.Add(browserOffer(f, "chromium"))
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOffer(s)
		if err == nil {
			for _, profiles := range [][][]stream.Track{nil, {{trackWith("VP9")}, spsTrack(0x64, 0)}, {{trackWith("H265"), trackWith("G722")}}} {
				var p *plan
				if p, err = negotiate(o, profiles, nil); err == nil {
					checkPlan(t, o, p)
				}
			}
		}
		if err != nil && !errors.Is(err, fleet.BadOffer) && !errors.Is(err, fleet.NoVideoSection) && !errors.Is(err, fleet.CodecUnsupported) {
			t.Errorf("the error %v has none of the reasons of an offer", err)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	})
}
