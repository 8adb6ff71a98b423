package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// browserOffer reads what a browser offered: chromium's is that of Chromium 156
// with recvonly transceivers for video and audio.
func browserOffer(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".sdp"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\n", "\r\n")
}

// offering makes an offer of video payload types 100, 102 and on, each a codec with
// its parameters, "VP9 profile-id=2", and each with retransmissions on the next.
func offering(codecs ...string) string {
	var payloads []string
	var attributes strings.Builder
	for i, c := range codecs {
		name, params, _ := strings.Cut(c, " ")
		pt := 100 + 2*i
		payloads = append(payloads, fmt.Sprint(pt), fmt.Sprint(pt+1))
		fmt.Fprintf(&attributes, "a=rtpmap:%d %s/90000\r\n", pt, name)
		if params != "" {
			fmt.Fprintf(&attributes, "a=fmtp:%d %s\r\n", pt, params)
		}
		fmt.Fprintf(&attributes, "a=rtcp-fb:%d nack\r\na=rtpmap:%d rtx/90000\r\na=fmtp:%d apt=%d\r\n", pt, pt+1, pt+1, pt)
	}
	return head + video(strings.Join(payloads, " "), attributes.String())
}

const (
	baseline = "H264 packetization-mode=1;profile-level-id=42e01f"
	high     = "H264 packetization-mode=1;profile-level-id=640c1f"
)

// browserOffers have the codecs of other browsers: of Safari, and of Firefox with
// and without its H264.
var browserOffers = []string{
	offering(high, baseline, "H265 level-id=93;profile-id=1;tier-flag=0;tx-mode=SRST", "H265 level-id=93;profile-id=2;tier-flag=0;tx-mode=SRST", "VP8", "VP9 profile-id=0", "VP9 profile-id=2"),
	offering("VP8 max-fs=12288;max-fr=60", "VP9 max-fs=12288;max-fr=60", baseline, "H264 profile-level-id=42e01f", "AV1"),
	offering("VP8", "VP9", "AV1"),
}

// h265Track is an H265 track whose sequence parameter set has this profile and
// level.
func h265Track(profile, level byte) stream.Track {
	tr := trackWith("H265")
	tr.ParameterSets = [][]byte{{0x40, 1, 0xff, 0xff}, {0x42, 1, 1, profile, 0x60, 0, 0, 3, 0, 0x90, 0, 0, 3, 0, 0, 3, 0, level, 0xa0}}
	return tr
}

func withFMTP(codec, fmtp string) stream.Track {
	tr := trackWith(codec)
	tr.FMTP = fmtp
	return tr
}

// What is answered: the payload types of video, what fits the camera first.
func TestNegotiateCodecs(t *testing.T) {
	safari, firefox := browserOffers[0], browserOffers[1]
	hevc := func(profiles ...string) string {
		for i, p := range profiles {
			profiles[i] = "H265 " + p
		}
		return offering(profiles...)
	}
	one := func(tracks ...stream.Track) [][]stream.Track { return [][]stream.Track{tracks} }
	for _, tt := range []struct {
		name     string
		offer    string
		profiles [][]stream.Track
		fits     []int // nil: none
		want     string
	}{
		{"unknown camera, Chromium", "chromium", nil, []int{0}, "H264/108 VP8/96 VP9/98 AV1/45"},
		{"high profile, Chromium", "chromium", [][]stream.Track{spsTrack(0x64, 0)}, []int{0}, "H264/116 VP8/96 VP9/98 AV1/45"},
		{"VP8, Chromium", "chromium", one(trackWith("VP8")), []int{0}, "VP8/96 VP9/98 H264/108 AV1/45"},
		{"VP9 of profile 2, Chromium", "chromium", one(withFMTP("VP9", "profile-id=2")), []int{0}, "VP9/100 VP8/96 H264/108 AV1/45"},
		{"VP9 of no profile that there is, Chromium", "chromium", one(withFMTP("VP9", "profile-id=4")), nil, "camera sends VP9 (profile-id=4), browser offers VP8, VP9 (profile-id=0), VP9 (profile-id=2), VP9 (profile-id=1), VP9 (profile-id=3), H264, H264 (packetization-mode=0), AV1"},
		{"AV1, Chromium", "chromium", one(withFMTP("AV1", "level-idx=8;profile=0;tier=0")), []int{0}, "AV1/45 VP8/96 VP9/98 H264/108"},
		{"AV1 of the high profile, Chromium", "chromium", one(withFMTP("AV1", "profile=1")), []int{0}, "AV1/47 VP8/96 VP9/98 H264/108"},
		{"AV1 of the professional profile, Chromium", "chromium", one(withFMTP("AV1", "profile=2")), nil, "camera sends AV1 (profile=2)"},
		{"AV1 of the main profile to the high one", offering("AV1 profile=1"), one(trackWith("AV1")), []int{0}, "AV1/100"},
		{"H265, Chromium", "chromium", one(trackWith("H265")), nil, "camera sends H265, browser offers VP8, VP9, H264, H264 (packetization-mode=0), AV1"},
		{"H265, Safari", safari, one(h265Track(1, 123)), []int{0}, "H265/104 H264/102 VP8/108 VP9/110"},
		{"Main 10, Safari", safari, one(h265Track(2, 93)), []int{0}, "H265/106 H264/102 VP8/108 VP9/110"},
		{"Main 10 by its SDP, Safari", safari, one(withFMTP("H265", "profile-id=2; level-id=93")), []int{0}, "H265/106 H264/102 VP8/108 VP9/110"},
		{"range extensions, Safari", safari, one(h265Track(4, 93)), nil, "camera sends H265 (profile-id=4), browser offers H264, H265 (profile-id=1), H265 (profile-id=2), VP8, VP9"},
		{"Main to Main 10", hevc("profile-id=2"), one(h265Track(1, 93)), []int{0}, "H265/100"},
		{"Main 10 to Main", hevc("profile-id=1"), one(h265Track(2, 93)), nil, "camera sends H265 (profile-id=2), browser offers H265 (profile-id=1)"},
		{"the level that is enough", hevc("level-id=93", "level-id=123", "level-id=180"), one(h265Track(1, 120)), []int{0}, "H265/102"},
		{"H264, Firefox", firefox, one(trackWith("H264")), []int{0}, "H264/104 VP8/100 VP9/102 AV1/108"},
		{"unknown camera, Firefox without H264", browserOffers[2], nil, []int{0}, "VP8/100 VP9/102 AV1/104"},
		{"H264, Firefox without", browserOffers[2], one(trackWith("H264")), nil, "camera sends H264, browser offers VP8, VP9, AV1"},
		{"H265 and H264", offering(baseline, "VP8"), [][]stream.Track{{trackWith("H265")}, {trackWith("H264")}}, []int{1}, "H264/100 VP8/102"},
		{"H265 and high profile, Chromium", "chromium", [][]stream.Track{{trackWith("H265")}, spsTrack(0x64, 0)}, []int{1}, "H264/116 VP8/96 VP9/98 AV1/45"},
		{"both fit", safari, [][]stream.Track{{h265Track(1, 93)}, {trackWith("H264")}}, []int{0, 1}, "H265/104 H264/102 VP8/108 VP9/110"},
		{"two of a codec", safari, [][]stream.Track{spsTrack(0x64, 0x0c), spsTrack(0x42, 0xc0)}, []int{0, 1}, "H264/100 H265/104 VP8/108 VP9/110"},
		{"the sub profile is not known yet", offering(baseline), [][]stream.Track{{trackWith("H265")}, nil}, []int{1}, "H264/100"},
		{"none fits", offering("VP8"), [][]stream.Track{{trackWith("H265")}, {trackWith("H264")}, spsTrack(0x64, 0)}, nil, "camera sends H265, H264, browser offers VP8"},
		{"only sound", offering("VP8"), one(trackWith("PCMA")), []int{0}, "VP8/100"},
		{"the form of the reason", head + video("102 96 97", h264+vp8), one(trackWith("H265")), nil, "the browser cannot play what the camera sends: camera sends H265, browser offers H264, VP8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.offer
			if text == "chromium" {
				text = browserOffer(t, text)
			}
			o, err := parseOffer(text)
			if err != nil {
				t.Fatal(err)
			}
			p, err := negotiate(o, tt.profiles, nil)
			if tt.fits == nil {
				if !errors.Is(err, fleet.CodecUnsupported) || !strings.HasSuffix(err.Error(), tt.want) && !strings.Contains(err.Error(), tt.want+",") {
					t.Errorf("the error is %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range p.video {
				got = append(got, fmt.Sprintf("%s/%d", c.name, c.payloadType))
			}
			if s := strings.Join(got, " "); s != tt.want || !slices.Equal(p.fits, tt.fits) {
				t.Errorf("answered with %s for the profiles %v, want %s for %v", s, p.fits, tt.want, tt.fits)
			}
			checkPlan(t, o, p)
		})
	}
}

// checkPlan checks what holds for what is answered to any offer: payload types are
// told apart, each is as it was offered, and the next offer must have them.
func checkPlan(t *testing.T, o *offer, p *plan) {
	t.Helper()
	seen := make(map[uint8]string)
	claim := func(payloadType uint8, name string) {
		if other, ok := seen[payloadType]; ok {
			t.Errorf("payload type %d is of %s and of %s", payloadType, other, name)
		}
		seen[payloadType] = name
	}
	for _, c := range slices.Concat(p.video, p.audio) {
		claim(c.payloadType, c.name)
		if c.hasRTX {
			claim(c.rtx, "retransmissions of "+c.name)
		}
	}
	if len(p.video) == 0 || len(p.fits) == 0 {
		t.Errorf("%d video codecs for the profiles %v", len(p.video), p.fits)
	}
	sent := p.answered(o, o.video)
	if diff := cmp.Diff(p.video, sent[:min(len(p.video), len(sent))], cmp.AllowUnexported(offeredCodec{})); diff != "" {
		t.Errorf("the answer has other video than the plan (-want +got):\n%s", diff)
	}
	for i := range o.sections {
		p.answered(o, i)
	}
	lanes := newLanes(o, p, false)
	for _, c := range p.video {
		if got := lanes[stream.Video].payloads[c.name]; got != (payloadType{c.payloadType, c.rtx}) || c.hasRTX && lanes[stream.Video].rtx.ssrc == 0 {
			t.Errorf("%s is sent as %v, want %d and %d", c.name, got, c.payloadType, c.rtx)
		}
	}
	if err := p.checkKept(o); err != nil {
		t.Errorf("the same offer again: %v", err)
	}
}

// An offer that restarts ICE has to have all that is sent.
func TestCheckKept(t *testing.T) {
	text := browserOffer(t, "chromium")
	o, err := parseOffer(text)
	if err != nil {
		t.Fatal(err)
	}
	p, err := negotiate(o, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, old, new string
		want           string // empty: it has
	}{
		{"the same", "", "", ""},
		{"a codec that is not sent has gone", "a=rtpmap:118 red/90000", "a=rtpmap:118 x-red/90000", ""},
		{"another payload type of H264 has gone", "a=rtpmap:102 H264/90000", "a=rtpmap:102 VP8/90000", ""},
		{"the first", "a=rtpmap:108 H264/90000", "a=rtpmap:108 VP8/90000", "payload type 108 is no longer H264"},
		{"the last", "a=rtpmap:45 AV1/90000", "a=rtpmap:45 VP8/90000", "payload type 45 is no longer AV1"},
		{"retransmissions", "a=fmtp:97 apt=96", "a=fmtp:97 apt=98", "payload type 96 is no longer VP8"},
		{"sound", "a=rtpmap:111 opus/48000/2", "a=rtpmap:111 opus/48000", ""},
		{"sound of another codec", "a=rtpmap:9 G722/8000", "a=rtpmap:9 L16/8000", "payload type 9 is no longer G722"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, err := parseOffer(strings.Replace(text, tt.old, tt.new, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.checkKept(next); (err == nil) != (tt.want == "") || err != nil && (!errors.Is(err, fleet.BadOffer) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
		})
	}
}

// Sound of the first profile that has some that the viewer can take.
func TestNegotiateAudioOfProfiles(t *testing.T) {
	h := trackWith("H264")
	o, err := parseOffer(head + video("102 103", h264) + audio("111 0 8", opus))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		profiles [][]stream.Track
		quiet    bool
		first    string
	}{
		{"both", [][]stream.Track{{h, trackWith("PCMA")}, {h, trackWith("PCMU")}}, false, "PCMA"},
		{"the second only", [][]stream.Track{{h}, {h, trackWith("PCMU")}}, false, "PCMU"},
		{"one that cannot be played", [][]stream.Track{{trackWith("H265"), trackWith("PCMA")}, {h, trackWith("PCMU")}}, false, "PCMU"},
		{"one that cannot be heard", [][]stream.Track{{h, trackWith("G722")}, {h, trackWith("PCMU")}}, false, "PCMU"},
		{"none", [][]stream.Track{{h}, {h}}, true, "OPUS"},
		{"not known yet", [][]stream.Track{{h}, nil}, false, "OPUS"},
	} {
		p, err := negotiate(o, tt.profiles, nil)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if p.quiet != tt.quiet || p.audio[0].name != tt.first {
			t.Errorf("%s: quiet %v, first %s; want %v, %s", tt.name, p.quiet, p.audio[0].name, tt.quiet, tt.first)
		}
	}
}
