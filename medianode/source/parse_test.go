package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/bluenviron/gortsplib/v5/pkg/sdpunmarshaler"
	"github.com/google/go-cmp/cmp"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

func mustURL(t *testing.T, s string) *base.URL {
	t.Helper()
	u, err := base.ParseURL(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const (
	goodVideo = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;\r\na=control:rtsp://127.0.0.1/x/trackID=0\r\n"
	badVideo  = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=!!!,???\r\na=control:t\r\n"
	goodAudio = "m=audio 0 RTP/AVP 0\r\na=control:u\r\n"
	badAudio  = "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 opus/48000\r\n"
)

func TestRepairSDP(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"good", sdpHead + goodVideo + goodAudio, sdpHead + goodVideo + goodAudio},
		{"bad audio", sdpHead + goodVideo + badAudio, sdpHead + goodVideo},
		{"bad parameters", sdpHead + badVideo + goodAudio, sdpHead + "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t\r\n" + goodAudio},
		{"odd control", sdpHead + "a=control:stream\r\na=x:y\r\n" + goodVideo, sdpHead + "a=x:y\r\n" + goodVideo},
		{"no control", sdpHead + "a=control:\r\n" + goodVideo, sdpHead + goodVideo},
		{"all", sdpHead + "a=control:*\r\n" + goodVideo, sdpHead + "a=control:*\r\n" + goodVideo},
		{"control is a URL", sdpHead + "a=control:rtsp://camera/x\r\n" + goodVideo, sdpHead + "a=control:rtsp://camera/x\r\n" + goodVideo},
		{"nothing good", sdpHead + badAudio, sdpHead + badAudio},
		{"no SDP", "hello", "hello"},
		{"empty", "", ""},
	} {
		if got := string(repairSDP([]byte(c.in))); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzRepairSDP(f *testing.F) {
	for _, s := range []string{sdpHead + goodVideo + badAudio, sdpHead + badVideo + goodAudio, "m=", "v=0\r\nm=\r\nm="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		out := repairSDP(in)
		if !bytes.Equal(in, before) {
			t.Error("the input was changed")
		}
		if len(out) > len(in) {
			t.Errorf("%d bytes became %d", len(in), len(out))
		}
		if !readableSDP(out) {
			if readableSDP(in) {
				t.Error("a readable description was made unreadable")
			}
			return
		}
		// What comes after it must bear anything that can be read.
		sdp, err := sdpunmarshaler.Unmarshal(out)
		if err != nil {
			t.Fatal(err)
		}
		var desc description.Session
		if err := desc.Unmarshal2(sdp); err != nil {
			t.Fatal(err)
		}
		tracks, statuses, problem := chooseTracks(&desc, fleet.Credentials{})
		if (problem == nil) != (len(tracks) > 0) || len(statuses) < len(tracks) {
			t.Errorf("%d tracks, %d statuses, problem %v", len(tracks), len(statuses), problem)
		}
	})
}

func TestChooseTracks(t *testing.T) {
	const (
		aac  = "m=audio 0 RTP/AVP 98\r\na=rtpmap:98 MPEG4-GENERIC/16000/1\r\na=fmtp:98 streamtype=5;profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config=1408\r\n"
		h264 = "m=video 0 RTP/AVP 100 96\r\na=rtpmap:100 MP4V-ES/90000\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=Z0LAHtoCgL/lwEQAAAMABAAAAwDIPFi6gA==,aM4PyA==\r\n"
		h265 = "m=video 0 RTP/AVP 97\r\na=rtpmap:97 H265/90000\r\na=fmtp:97 sprop-vps=QAEMAf//AWAAAAMAkAAAAwAAAwBdlZQJ;" +
			"sprop-sps=QgEBAWAAAAMAkAAAAwAAAwBdoAKAgC0WWVlSkwvAWgIAAAMAAgAAAwAyEA==;sprop-pps=RAHAc8GJ"
		jpeg     = "m=video 0 RTP/AVP 26\r\n"
		metadata = "m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n"
		noSound  = "no sound: AAC (MPEG4-GENERIC) cannot be passed on to browsers: set the camera's audio codec to G.711 (PCMA, PCMU), G.722 or Opus"
	)
	video := func(rtpmap string) string { return "m=video 0 RTP/AVP 99\r\na=rtpmap:99 " + rtpmap + "\r\n" }
	for _, c := range []struct {
		name, sdp string
		codecs    []string // of the tracks
		sets      int      // of the video
		statuses  []fleet.TrackStatus
	}{
		{
			"the first of each kind that can be passed on", aac + "m=audio 0 RTP/AVP 8\r\n" + "m=audio 0 RTP/AVP 0\r\n" + jpeg + h264 + video("H264/90000") + metadata,
			[]string{"H264", "PCMA"},
			2,
			[]fleet.TrackStatus{
				{Codec: "H264", Width: 640, Height: 360},
				{Codec: "MPEG4-GENERIC", UnsupportedReason: noSound},
				{Codec: "PCMA"},
				{Codec: "PCMU", UnsupportedReason: "only the first audio track is passed on"},
				{Codec: "JPEG", UnsupportedReason: "JPEG cannot be passed on: set the camera's video codec to H264, H265, VP8, VP9 or AV1"},
				{Codec: "H264", UnsupportedReason: onlyOneVideo},
			},
		},
		{
			"H264 rather than others", h265 + "\r\n" + video("VP9/90000") + h264 + video("AV1/90000"),
			[]string{"H264"},
			2,
			[]fleet.TrackStatus{
				{Codec: "H264", Width: 640, Height: 360},
				{Codec: "VP9", UnsupportedReason: onlyOneVideo},
				{Codec: "H265", Width: 1280, Height: 720, UnsupportedReason: onlyOneVideo},
				{Codec: "AV1", UnsupportedReason: onlyOneVideo},
			},
		},
		{
			"others rather than H265", h265 + "\r\n" + video("AV1/90000") + video("VP8/90000"),
			[]string{"AV1"},
			0,
			[]fleet.TrackStatus{
				{Codec: "AV1"},
				{Codec: "H265", Width: 1280, Height: 720, UnsupportedReason: onlyOneVideo},
				{Codec: "VP8", UnsupportedReason: onlyOneVideo},
			},
		},
		{
			"several formats of a track", "m=video 0 RTP/AVP 97 98 99 96\r\na=rtpmap:97 H265/90000\r\na=rtpmap:98 VP9/90000\r\na=rtpmap:99 VP8/90000\r\na=rtpmap:96 H264/90000\r\n" +
				"m=audio 0 RTP/AVP 0 8\r\n",
			[]string{"H264", "PCMU"},
			0,
			[]fleet.TrackStatus{{Codec: "H264"}, {Codec: "PCMU"}},
		},
		{"H265", h265 + "\r\n", []string{"H265"}, 3, []fleet.TrackStatus{{Codec: "H265", Width: 1280, Height: 720}}},
		{"H265 without parameters", video("H265/90000"), []string{"H265"}, 0, []fleet.TrackStatus{{Codec: "H265"}}},
		{
			"H265 interleaved", h265 + ";sprop-max-don-diff=2\r\n" + video("VP8/90000"),
			[]string{"VP8"},
			0,
			[]fleet.TrackStatus{{Codec: "VP8"}, {Codec: "H265 (interleaved)", UnsupportedReason: "H265 (interleaved) cannot be passed on: set the camera's video codec to H264, H265, VP8, VP9 or AV1"}},
		},
		{"VP9 and Opus", video("VP9/90000") + "m=audio 0 RTP/AVP 98\r\na=rtpmap:98 opus/48000/2\r\n", []string{"VP9", "OPUS"}, 0, []fleet.TrackStatus{{Codec: "VP9"}, {Codec: "OPUS"}}},
		{"AV1 and G722", video("AV1/90000") + "m=audio 0 RTP/AVP 9\r\n", []string{"AV1", "G722"}, 0, []fleet.TrackStatus{{Codec: "AV1"}, {Codec: "G722"}}},
		{
			"another clock", video("VP8/48000") + video("AV1/90000"),
			[]string{"AV1"},
			0,
			[]fleet.TrackStatus{{Codec: "AV1"}, {Codec: "VP8", UnsupportedReason: "VP8 cannot be passed on: set the camera's video codec to H264, H265, VP8, VP9 or AV1"}},
		},
		{
			"LATM", video("VP8/90000") + "m=audio 0 RTP/AVP 98\r\na=rtpmap:98 MP4A-LATM/16000/1\r\na=fmtp:98 cpresent=0; config=40002810\r\n",
			[]string{"VP8"},
			0,
			[]fleet.TrackStatus{{Codec: "VP8"}, {Codec: "MP4A-LATM", UnsupportedReason: strings.ReplaceAll(noSound, "MPEG4-GENERIC", "MP4A-LATM")}},
		},
		{"nothing that can be passed on", jpeg, nil, 0, []fleet.TrackStatus{{Codec: "JPEG", UnsupportedReason: "JPEG cannot be passed on: set the camera's video codec to H264, H265, VP8, VP9 or AV1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			parsed, err := sdpunmarshaler.Unmarshal([]byte(sdpHead + c.sdp))
			if err != nil {
				t.Fatal(err)
			}
			var desc description.Session
			if err := desc.Unmarshal2(parsed); err != nil {
				t.Fatal(err)
			}
			tracks, statuses, problem := chooseTracks(&desc, fleet.Credentials{})
			if diff := cmp.Diff(c.statuses, statuses); diff != "" {
				t.Errorf("statuses (-want +got):\n%s", diff)
			}
			if (problem != nil) != (c.codecs == nil) || problem != nil && problem.reason != fleet.ReasonCodecUnsupported {
				t.Fatalf("problem %v", problem)
			}
			var codecs []string
			var published []stream.Track
			for _, track := range tracks {
				codecs, published = append(codecs, track.track.Codec), append(published, track.track)
				if len(track.media.Formats) != 1 {
					t.Errorf("%d formats of %s, want one", len(track.media.Formats), track.track.Codec)
				}
			}
			if diff := cmp.Diff(c.codecs, codecs); diff != "" {
				t.Errorf("codecs (-want +got):\n%s", diff)
			}
			if problem != nil {
				return
			}
			if got := len(tracks[0].track.ParameterSets); got != c.sets {
				t.Errorf("%d parameter sets, want %d", got, c.sets)
			}
			// The stream reads the same of the parameter sets.
			s := stream.New(stream.Config{})
			if _, err := s.Publish(published); err != nil {
				t.Fatal(err)
			}
			if stats := s.Stats(); stats.Width != statuses[0].Width || stats.Height != statuses[0].Height || stats.Discards != (stream.Discards{}) {
				t.Errorf("the stream has %d x %d and discards %+v", stats.Width, stats.Height, stats.Discards)
			}
		})
	}
}

func TestNTPTime(t *testing.T) {
	// 2026-03-04 05:06:07.5 UTC
	want := time.Date(2026, 3, 4, 5, 6, 7, 500_000_000, time.UTC)
	if got := ntpTime(uint64(want.Unix()+2_208_988_800)<<32 | 1<<31); !got.Equal(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestClassify(t *testing.T) {
	creds := fleet.Credentials{Username: "u", Password: "p"}
	status := func(code base.StatusCode) error { return liberrors.ErrClientBadStatusCode{Code: code, Message: "x"} }
	for _, c := range []struct {
		err    error
		reason fleet.Reason
		other  bool
	}{
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, fleet.ReasonConnectionRefused, false},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, fleet.ReasonTimeout, false},
		{&net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, fleet.ReasonTimeout, false},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, fleet.ReasonTimeout, false},
		{fmt.Errorf("dial: %w", context.DeadlineExceeded), fleet.ReasonTimeout, false},
		{&net.DNSError{Name: "camera"}, fleet.ReasonHostNotFound, false},
		{&net.DNSError{Name: "camera", IsTimeout: true}, fleet.ReasonHostNotFound, false},
		{io.EOF, fleet.ReasonConnectionClosed, false},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, fleet.ReasonConnectionClosed, false},
		{liberrors.ErrClientRequestTimedOut{}, fleet.ReasonTimeout, false},
		{liberrors.ErrClientTCPTimeout{}, fleet.ReasonNoMedia, false},
		{liberrors.ErrClientServerRequestedTCP{}, fleet.ReasonTransportUnsupported, true},
		{liberrors.ErrClientServerRequestedUDP{}, fleet.ReasonTransportUnsupported, true},
		{status(base.StatusUnauthorized), fleet.ReasonAuthenticationFailed, false},
		{status(base.StatusForbidden), fleet.ReasonAuthenticationFailed, false},
		{status(base.StatusNotFound), fleet.ReasonStreamNotFound, false},
		{status(base.StatusNotEnoughBandwidth), fleet.ReasonCameraBusy, false},
		{status(base.StatusServiceUnavailable), fleet.ReasonCameraBusy, false},
		{status(base.StatusUnsupportedTransport), fleet.ReasonTransportUnsupported, true},
		{status(base.StatusInternalServerError), fleet.ReasonProtocolError, false},
		{errors.New("something else"), fleet.ReasonProtocolError, false},
	} {
		f := classify(c.err, "camera:554", creds)
		if f.reason != c.reason || f.otherTransport != c.other || f.message == "" {
			t.Errorf("%v: %s, other transport %v, message %q; want %s, %v", c.err, f.reason, f.otherTransport, f.message, c.reason, c.other)
		}
		if !errors.Is(f, c.err) {
			t.Errorf("%v: the error is not in the failure", c.err)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{retry: Retry{}.withDefaults()}
	within := func(what string, got, low, high time.Duration) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %v, want %v to %v", what, got, low, high)
		}
	}
	const quarter = 250 * time.Millisecond
	for i, seconds := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
		within(fmt.Sprintf("failure %d", i+1), b.after(fleet.ReasonConnectionRefused), quarter, time.Duration(seconds)*time.Second)
	}
	b.live(time.Second)
	within("after a second of media", b.after(fleet.ReasonConnectionClosed), quarter, 30*time.Second)
	b.live(time.Minute)
	within("after a minute of media", b.after(fleet.ReasonConnectionClosed), quarter, time.Second)

	for i, millis := range []int{7500, 15000, 30000, 60000, 60000} {
		most := time.Duration(millis) * time.Millisecond
		within(fmt.Sprintf("hold %d", i+1), b.after(fleet.ReasonStreamNotFound), most/2, most)
	}
	b = backoff{retry: Retry{}.withDefaults()}
	within("refusal 1", b.after(fleet.ReasonAuthenticationFailed), quarter, time.Second)
	within("refusal 2", b.after(fleet.ReasonAuthenticationFailed), quarter, 2*time.Second)

	// Full jitter: the waits differ.
	seen := map[time.Duration]bool{}
	for range 20 {
		b := backoff{retry: Retry{}.withDefaults()}
		seen[b.after(fleet.ReasonTimeout)] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 waits have %d values", len(seen))
	}
}

func TestQuote(t *testing.T) {
	none := fleet.Credentials{}
	if got := quote("a\x1b[31m\r\nb\xff", none); got != "a?[31m??b?" {
		t.Errorf("got %q", got)
	}
	if got := quote(strings.Repeat("é", 1000), none); len([]rune(got)) != 121 {
		t.Errorf("%d characters", len([]rune(got)))
	}
	creds := fleet.Credentials{Username: "operator", Password: `Pa"ss/w.rd`}
	for _, c := range []struct{ text, want string }{
		{`wrong Pa"ss/w.rd for operator`, "wrong [hidden] for operator"},
		{`PA"SS/W.RD and pa"ss/w.rd`, "[hidden] and [hidden]"},
		{fmt.Sprintf("%q", `bad Pa"ss/w.rd`), `"bad [hidden]"`},
		{"rtsp://operator:Pa%22ss%2Fw.rd@host", "rtsp://operator:[hidden]@host"},
		{"Basic b3BlcmF0b3I6UGEic3Mvdy5yZA==", "Basic [hidden]"},
		{`Pa"ss/wxrd`, `Pa"ss/wxrd`},
		{strings.Repeat("x", 115) + `Pa"ss/w.rd`, strings.Repeat("x", 115) + "[hidd…"}, // hidden before it is cut
	} {
		if got := quote(c.text, creds); got != c.want {
			t.Errorf("quote(%q) = %q, want %q", c.text, got, c.want)
		}
	}
	if got := quote("bad \xffsecret", fleet.Credentials{Password: "\xffsecret"}); got != "bad [hidden]" {
		t.Errorf("a password that is not UTF-8: %q", got)
	}
}
