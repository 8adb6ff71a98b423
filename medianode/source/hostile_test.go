package source

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
)

const sdpHead = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"

// Cameras that say what cannot be pulled.
func TestUnusableAnswers(t *testing.T) {
	h264 := "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
	describe := func(sdp string) func(request) string {
		return func(q request) string {
			switch q.method {
			case "OPTIONS":
				return q.answer("200 OK", "")
			case "DESCRIBE":
				return q.sdp(sdpHead + sdp)
			}
			return q.answer("501 Not Implemented", "")
		}
	}
	for name, c := range map[string]struct {
		answer func(request) string
		reason fleet.Reason
		want   string // in the message
	}{
		"no video":     {describe("m=audio 0 RTP/AVP 8\r\na=control:track1\r\n"), fleet.ReasonNoVideo, "no video"},
		"no tracks":    {describe(""), fleet.ReasonNoVideo, "no video"},
		"metadata":     {describe("m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n"), fleet.ReasonNoVideo, "no video"},
		"MJPEG":        {describe("m=video 0 RTP/AVP 26\r\n"), fleet.ReasonCodecUnsupported, "JPEG"},
		"MPEG-4":       {describe("m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\n"), fleet.ReasonCodecUnsupported, "MP4V-ES"},
		"JPEG":         {describe("m=video 0 RTP/AVP 26\r\n"), fleet.ReasonCodecUnsupported, "JPEG"},
		"unknown":      {describe("m=video 0 RTP/AVP 97\r\na=rtpmap:97 X-\x01ODD/90000\r\n"), fleet.ReasonCodecUnsupported, "X-?ODD"},
		"bad control":  {describe(h264 + "a=control:%zz\r\n"), fleet.ReasonProtocolError, "control"},
		"bad control2": {describe(h264 + "a=control:rtsp://%zz\r\n"), fleet.ReasonProtocolError, ""},
		"no SDP": {
			func(q request) string { return q.sdp("\x00\x01\x02") }, fleet.ReasonProtocolError, "",
		},
		"unreadable SDP": {
			describe("m=video 0 RTP/AVP x\r\n"), fleet.ReasonProtocolError, "SDP",
		},
		"no setup": {describe(h264), fleet.ReasonProtocolError, "501"},
		"closed at once": {
			func(request) string { return "" }, fleet.ReasonConnectionClosed, "closed",
		},
		"says nothing": {
			func(request) string { return "\r\n" }, fleet.ReasonTimeout, "does not answer",
		},
		"garbage": {
			func(request) string { return "RT" + strings.Repeat("x", 4096) }, fleet.ReasonProtocolError, "",
		},
		"huge body": {
			func(q request) string { return q.answer("200 OK", "Content-Length: 4000000000\r\n\r\n") }, fleet.ReasonProtocolError, "",
		},
		"endless headers": {
			func(q request) string { return q.answer("200 OK", strings.Repeat("X-Header: x\r\n", 5000)) }, fleet.ReasonProtocolError, "",
		},
		"forbidden": {
			func(q request) string { return q.answer("403 Forbidden", "") }, fleet.ReasonAuthenticationFailed, "403",
		},
		"odd authentication": {
			func(q request) string {
				return q.answer("401 Unauthorized", "WWW-Authenticate: Negotiate\r\n\r\n")
			}, fleet.ReasonAuthenticationFailed, "Basic and Digest",
		},
		"server error": {
			func(q request) string { return q.answer("500 Out of \x1b[31mCheese", "") }, fleet.ReasonProtocolError, "500 Out of ?[31mCheese",
		},
		"long server error": {
			func(q request) string { return q.answer("500 "+strings.Repeat("x", 118)+"Cheese", "") }, fleet.ReasonProtocolError, "500 xxx",
		},
		"password as a codec": {
			describe("m=video 0 RTP/AVP 96\r\na=rtpmap:96 Cheese/90000\r\n"), fleet.ReasonCodecUnsupported, "the camera sends Cheese,",
		},
		"password as a host": {
			func(q request) string { return q.answer("302 Found", "Location: rtsp://Cheese.invalid/\r\n\r\n") }, fleet.ReasonHostNotFound, "Cheese.invalid",
		},
		"redirects in a circle": {
			func(q request) string { return q.answer("302 Found", "Location: "+q.url+"\r\n\r\n") }, fleet.ReasonProtocolError, "redirected more than 3 times",
		},
		"redirects to HTTP": {
			func(q request) string { return q.answer("302 Found", "Location: http://127.0.0.1/\r\n\r\n") }, fleet.ReasonProtocolError, "no rtsp",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cam := runScripted(t, c.answer)
			url := "rtsp://" + cam.addr + "/secret-path?key=secret"
			if strings.HasPrefix(name, "bad control") {
				url, _, _ = strings.Cut(url, "?") // after a query, anything goes
			}
			r := pull(t, Config{
				Profile:     fleet.Profile{URL: url},
				Credentials: fleet.Credentials{Username: "operator", Password: "Cheese"},
				Timeouts:    Timeouts{Request: time.Second},
			})
			status, n := r.waitFailed(t, 0, c.reason)
			if !strings.Contains(status.Message, strings.ReplaceAll(c.want, "Cheese", "[hidden]")) {
				t.Errorf("message %q does not say %q", status.Message, c.want)
			}
			r.waitFailed(t, n, c.reason) // it tries again
			r.stop()
			log := r.log.String()
			if !strings.Contains(log, "camera failed") {
				t.Errorf("the failure is not in the log: %s", log)
			}
			for what, text := range map[string]string{"message": status.Message, "tracks": fmt.Sprint(status.Profiles[0].Tracks), "log": log} {
				text = strings.ToLower(text)
				if strings.Contains(text, "secret") || strings.Contains(text, "chee") {
					t.Errorf("the %s says too much: %s", what, text)
				}
			}
		})
	}
}

func TestHTTPServer(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	r := pull(t, Config{Profile: fleet.Profile{URL: strings.Replace(web.URL, "http:", "rtsp:", 1)}, Timeouts: Timeouts{Request: time.Second}})
	status, _ := r.waitStatus(t, 0, "failed", func(s fleet.CameraStatus) bool { return s.State == fleet.CameraFailed })
	switch status.Reason {
	case fleet.ReasonTimeout, fleet.ReasonConnectionClosed, fleet.ReasonProtocolError:
	default:
		t.Errorf("reason %s", status.Reason)
	}
}

func TestUnusableURLs(t *testing.T) {
	for _, c := range []struct {
		url    string
		reason fleet.Reason
	}{
		{"http://127.0.0.1/", fleet.ReasonProtocolError},
		{"rtsp://", fleet.ReasonProtocolError},
		{"rtsp:///path", fleet.ReasonProtocolError},
		{"rtsp://127.0.0.1:port/", fleet.ReasonProtocolError},
		{"rtsp://camera.invalid/", fleet.ReasonHostNotFound},
		{"rtsp://127.0.0.1:1/", fleet.ReasonConnectionRefused},
	} {
		r := pull(t, Config{Profile: fleet.Profile{URL: c.url}})
		r.waitFailed(t, 0, c.reason)
		r.stop()
	}
}

// The end of the context ends a connection in any phase.
func TestStopWhileWaiting(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	for _, scheme := range []string{"rtsp", "rtsps"} {
		r := pull(t, Config{Profile: fleet.Profile{URL: scheme + "://" + lis.Addr().String() + "/"}, Timeouts: Timeouts{Request: time.Minute}})
		eventually(t, "a connection", func() bool { return r.source.Counters().Connects == 1 })
		start := time.Now()
		r.stop()
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: stopped after %v", scheme, d)
		}
	}
}

func TestRedirect(t *testing.T) {
	creds := fleet.Credentials{Username: "operator", Password: "password"}
	sim, _ := runSim(t, simcam.Config{Username: creds.Username, Password: creds.Password})
	other := runScripted(t, func(q request) string {
		return q.answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n\r\n")
	})
	_, port, err := net.SplitHostPort(other.addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, location string
		networks       string
		reason         fleet.Reason
	}{
		{"same host", sim.URL("cam"), "", ""},
		{"same host, credentials in it", strings.Replace(sim.URL("cam"), "rtsp://", "rtsp://a:b@", 1), "", ""},
		{"another host gets no credentials", "rtsp://127.0.0.2:" + port + "/", "", fleet.ReasonConnectionRefused},
		{"another name gets no credentials", "rtsp://localhost:" + port + "/", "", fleet.ReasonAuthenticationFailed},
		{"forbidden network", "rtsp://127.0.0.2/", "127.0.0.1/32", fleet.ReasonNetworkForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			cam := runScripted(t, func(q request) string { return q.answer("302 Found", "Location: "+c.location+"\r\n\r\n") })
			cfg := Config{Profile: fleet.Profile{URL: "rtsp://" + cam.addr + "/"}, Credentials: creds}
			if c.networks != "" {
				cfg.Networks = []netip.Prefix{netip.MustParsePrefix(c.networks)}
			}
			r := pull(t, cfg)
			if c.reason == "" {
				r.waitLive(t, 0)
				return
			}
			r.waitFailed(t, 0, c.reason)
		})
	}
	if n := other.seen("Authorization"); n != 0 {
		t.Errorf("credentials went to another host %d times", n)
	}
	if other.seen("OPTIONS") == 0 {
		t.Error("the redirect to another name was not followed")
	}
}

func TestNoDowngrade(t *testing.T) {
	from := mustURL(t, "rtsps://camera/")
	if _, f := redirect(from, "rtsp://camera/"); f == nil || f.reason != fleet.ReasonTLSFailed {
		t.Errorf("redirect from rtsps to rtsp: %v", f)
	}
	if to, f := redirect(from, "rtsps://camera:1322/x"); f != nil || to.Host != "camera:1322" {
		t.Errorf("redirect from rtsps to rtsps: %v, %v", to, f)
	}
}

func TestBasicPasswordWithColon(t *testing.T) {
	want := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("operator:a:b@c/d")) + "\r\n"
	cam := runScripted(t, func(q request) string {
		if strings.Contains(q.text, want) {
			return q.answer("404 Not Found", "")
		}
		// With a page, as some cameras do.
		return q.answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\nContent-Type: text/html\r\nContent-Length: 17\r\n\r\n<html>no</html>\r\n")
	})
	r := pull(t, Config{
		Profile: fleet.Profile{URL: "rtsp://" + cam.addr + "/x"}, Credentials: fleet.Credentials{Username: "operator", Password: "a:b@c/d"},
	})
	// OPTIONS may be answered with 404; DESCRIBE says what there is.
	r.waitFailed(t, 0, fleet.ReasonStreamNotFound)
}

// A camera that plays, and sends what is no media.
func TestHostileMedia(t *testing.T) {
	var junk strings.Builder
	for i := range 64 {
		payload := make([]byte, i)
		for j := range payload {
			payload[j] = byte(i*31 + j*7)
		}
		fmt.Fprintf(&junk, "$%c\x00%c%s", byte(i%6), byte(i), payload)
		// A valid RTP header, and a payload that is not H264.
		fmt.Fprintf(&junk, "$\x00\x00%c\x80\x60\x00%c\x00\x00\x00\x00\x00\x00\x00\x01%s", byte(12+i), byte(i), payload)
	}
	cam := runScripted(t, func(q request) string {
		switch q.method {
		case "OPTIONS":
			return q.answer("200 OK", "")
		case "DESCRIBE":
			return q.sdp(sdpHead + "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t\r\n")
		case "SETUP":
			return q.answer("200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n")
		case "PLAY":
			return q.answer("200 OK", "\r\n"+junk.String())
		}
		return ""
	})
	r := pull(t, Config{Profile: fleet.Profile{URL: "rtsp://" + cam.addr + "/", Transport: fleet.TransportTCP}, Timeouts: Timeouts{Media: 500 * time.Millisecond}})
	_, n := r.waitFailed(t, 0, fleet.ReasonNoMedia)
	r.waitFailed(t, n, fleet.ReasonNoMedia)
	if c := r.source.Counters(); c.Malformed == 0 || c.Panics != 0 {
		t.Errorf("%+v, want malformed packets and no panic", c)
	}
}

// Where media comes from is the camera's address, not what it says.
func TestTransportSource(t *testing.T) {
	elsewhere, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Skip("no second loopback address: ", err)
	}
	defer elsewhere.Close()
	_, port, err := net.SplitHostPort(elsewhere.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, networks := range [][]netip.Prefix{nil, {netip.MustParsePrefix("127.0.0.1/32")}} {
		cam := runScripted(t, func(q request) string {
			switch q.method {
			case "OPTIONS", "PLAY":
				return q.answer("200 OK", "")
			case "DESCRIBE":
				return q.sdp(sdpHead + "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n")
			case "SETUP":
				return q.answer("200 OK", fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=1-2;server_port=%s-%s;source=127.0.0.2\r\nSession: 1\r\n\r\n", port, port))
			}
			return ""
		})
		r := pull(t, Config{
			Profile: fleet.Profile{URL: "rtsp://" + cam.addr + "/", Transport: fleet.TransportUDP}, Timeouts: Timeouts{Media: 300 * time.Millisecond},
			Networks: networks,
		})
		r.waitFailed(t, 0, fleet.ReasonNoMedia)
		r.stop()
	}
	if err := elsewhere.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := elsewhere.ReadFrom(make([]byte, 1500)); err == nil {
		t.Errorf("%d bytes from %v at an address that only the camera named", n, from)
	}
}

// What cannot be read, and audio that cannot be set up, do not cost the picture.
func TestOddDescriptions(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{Audio: true})
	for name, change := range map[string]func(string) string{
		"unreadable parameters": func(sdp string) string {
			return sdp + "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 opus/48000\r\na=control:trackID=7\r\n"
		},
		"odd control of the whole": func(sdp string) string {
			return strings.Replace(sdp, "m=video", "a=control:stream\r\nm=video", 1)
		},
		"refused": func(sdp string) string { return strings.Replace(sdp, "trackID=1", "trackID=9", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			proxy := runProxy(t, sim.Addr().String(), change)
			r := pull(t, Config{Profile: fleet.Profile{URL: "rtsp://" + proxy + "/cam", Transport: fleet.TransportTCP}})
			status, _ := r.waitLive(t, 0)
			r.waitPicture(t, 1)
			tracks := status.Profiles[0].Tracks
			if name == "refused" && (len(tracks) != 2 || tracks[1].UnsupportedReason == "") {
				t.Errorf("tracks %+v, want the audio with a reason", tracks)
			}
		})
	}
}

// runProxy passes RTSP on to a camera and changes its descriptions.
func runProxy(t *testing.T, camera string, change func(string) string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			if err := proxy(client, camera, change); err != nil {
				t.Logf("proxy: %v", err)
			}
		}
	}()
	t.Cleanup(func() {
		if err := lis.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return lis.Addr().String()
}

func proxy(client net.Conn, camera string, change func(string) string) error {
	server, err := net.Dial("tcp", camera)
	if err != nil {
		return err
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		_, _ = io.Copy(server, client) // ends with the connection
		_ = server.Close()
	}()
	defer func() {
		_ = client.Close()
		_ = server.Close()
		<-up
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return nil // the camera or the client has ended it
		}
		out := string(buf[:n])
		if head, sdp, ok := strings.Cut(out, "\r\n\r\n"); ok && strings.Contains(head, "application/sdp") {
			sdp = change(sdp)
			lines := strings.Split(head, "\r\n")
			for i, l := range lines {
				if strings.HasPrefix(l, "Content-Length:") {
					lines[i] = fmt.Sprintf("Content-Length: %d", len(sdp))
				}
			}
			out = strings.Join(lines, "\r\n") + "\r\n\r\n" + sdp
		}
		if _, err := io.WriteString(client, out); err != nil {
			return nil
		}
	}
}
