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
	sdp := sdpHead +
		"m=audio 0 RTP/AVP 98\r\na=rtpmap:98 MPEG4-GENERIC/16000/1\r\na=fmtp:98 streamtype=5;profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config=1408\r\n" +
		"m=audio 0 RTP/AVP 8\r\n" +
		"m=audio 0 RTP/AVP 0\r\n" +
		"m=video 0 RTP/AVP 97\r\na=rtpmap:97 H265/90000\r\n" +
		"m=video 0 RTP/AVP 100 96\r\na=rtpmap:100 VP8/90000\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=Z0LAHtoCgL/lwEQAAAMABAAAAwDIPFi6gA==,aM4PyA==\r\n" +
		"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n" +
		"m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n"
	parsed, err := sdpunmarshaler.Unmarshal([]byte(sdp))
	if err != nil {
		t.Fatal(err)
	}
	var desc description.Session
	if err := desc.Unmarshal2(parsed); err != nil {
		t.Fatal(err)
	}
	tracks, statuses, problem := chooseTracks(&desc, fleet.Credentials{})
	if problem != nil {
		t.Fatal(problem)
	}
	if len(tracks) != 2 || tracks[0].track.Codec != "H264" || tracks[1].track.Codec != "PCMA" || len(tracks[0].media.Formats) != 1 || len(tracks[0].track.ParameterSets) != 2 {
		t.Errorf("tracks %+v, want one format of H264 and of PCMA", tracks)
	}
	want := []fleet.TrackStatus{
		{Codec: "H264", Width: 640, Height: 360},
		{Codec: "MPEG4-GENERIC", UnsupportedReason: "MPEG4-GENERIC cannot be passed on: set the camera's audio codec to G.711 (PCMA, PCMU) or Opus"},
		{Codec: "PCMA"},
		{Codec: "PCMU", UnsupportedReason: "only the first audio track is passed on"},
		{Codec: "H265", UnsupportedReason: "H265 cannot be passed on: set the camera's video codec to H264"},
		{Codec: "H264", UnsupportedReason: "only the first video track is passed on"},
	}
	if diff := cmp.Diff(want, statuses); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

func TestFindSPS(t *testing.T) {
	for _, c := range []struct{ payload, want []byte }{
		{[]byte{0x67, 1, 2}, []byte{0x67, 1, 2}},
		{[]byte{0x18, 0, 2, 0x68, 9, 0, 3, 0x67, 1, 2, 0, 1, 0x65}, []byte{0x67, 1, 2}},
		{[]byte{0x18, 0, 3, 0x67, 1, 2}, []byte{0x67, 1, 2}},
		{[]byte{0x18, 0, 9, 0x67, 1, 2}, nil},
		{[]byte{0x18, 0, 0, 0x67}, nil},
		{[]byte{0x65, 1}, nil},
		{[]byte{0x7c, 0x87, 1}, nil}, // FU-A
		{[]byte{0x18}, nil},
		{nil, nil},
	} {
		if got := findSPS(c.payload); !bytes.Equal(got, c.want) {
			t.Errorf("findSPS(%x) = %x, want %x", c.payload, got, c.want)
		}
	}
}

func FuzzFindSPS(f *testing.F) {
	f.Add([]byte{0x18, 0, 2, 0x68, 9, 0, 3, 0x67, 1, 2})
	f.Add([]byte{0x67, 0x42, 0xc0, 0x1e, 0xda, 0x02, 0x80, 0xbf, 0xe5, 0xc0, 0x44})
	f.Fuzz(func(t *testing.T, payload []byte) {
		width, height := pictureSize(findSPS(payload))
		if (width == 0) != (height == 0) || width < 0 || height < 0 || width > 16384 || height > 16384 {
			t.Errorf("%d x %d", width, height)
		}
	})
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
