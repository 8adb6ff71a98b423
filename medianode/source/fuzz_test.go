package source

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// FuzzResponse takes what a camera answers: the headers that are acted upon, and
// the description. What is left of them afterwards gortsplib can use, sends no
// media elsewhere, and leads nowhere that it may not.
func FuzzResponse(f *testing.F) {
	sdp := sdpHead + goodVideo + badAudio
	f.Add(200, "rtsp://127.0.0.1/x/", "", "", []byte(sdp))
	f.Add(200, "/relative/", "RTP/AVP;unicast;client_port=5000-5001;server_port=6000-6001;source=127.0.0.1;ssrc=01020304", "", []byte(nil))
	f.Add(200, "", "RTP/AVP/TCP;unicast;interleaved=0-1", "", []byte(sdpHead))
	f.Add(200, "", "RTP/AVP;multicast;destination=224.1.0.1;source=192.0.2.1;port=3456-3457;ttl=127", "", []byte("v=0"))
	f.Add(302, "", "", "rtsp://user:password@192.0.2.1:554/other", []byte(nil))
	f.Add(301, "/%zz", "RTP/AVP;source=[::1%25eth0]", "rtsps://camera/", []byte(nil))
	f.Add(303, "http://x", ";;;=", "http://127.0.0.1/", []byte("m="))
	from, err := base.ParseURL("rtsp://viewer:secret@127.0.0.1:554/x")
	if err != nil {
		f.Fatal(err)
	}
	remote := netip.MustParseAddr("127.0.0.1")
	source := New(Config{
		Camera: "cam", Profile: fleet.Profile{ID: "main", URL: "rtsp://127.0.0.1:554/x"}, Stream: stream.New(stream.Config{}),
		Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
	f.Fuzz(func(t *testing.T, status int, contentBase, transport, location string, body []byte) {
		c := &connection{source: source, target: target{asked: from, url: from, transport: fleet.TransportUDP}, remote: remote}
		res := &base.Response{StatusCode: base.StatusCode(status), Header: base.Header{}, Body: bytes.Clone(body)}
		for name, v := range map[string]string{"Content-Base": contentBase, "Transport": transport, "Location": location} {
			if v != "" {
				res.Header[name] = base.HeaderValue{v}
			}
		}
		c.onResponse(res)
		if v, ok := res.Header["Content-Base"]; ok {
			at := v[0]
			if strings.HasPrefix(at, "/") {
				at = "rtsp://127.0.0.1:554" + at
			}
			if _, err := base.ParseURL(at); err != nil {
				t.Errorf("the base %q was left: %v", v, err)
			}
		}
		var header headers.Transport
		if v, ok := res.Header["Transport"]; ok && header.Unmarshal(v) == nil && header.Source2 != nil {
			if addr, err := netip.ParseAddr(*header.Source2); err != nil || addr.Unmap().WithZone("") != remote {
				t.Errorf("media from %q was left", *header.Source2)
			}
		}
		if len(res.Body) > len(body) {
			t.Errorf("%d bytes became %d", len(body), len(res.Body))
		}
		if _, ok := res.Header["Location"]; ok && status >= 300 && status < 400 {
			t.Error("gortsplib was left to follow a redirect")
		}
		if c.location != "" {
			checkRedirect(t, from, c.location)
		}
	})
}

// checkRedirect makes sure that credentials go along to the same host alone, and
// that encryption is not given up.
func checkRedirect(t *testing.T, from *base.URL, location string) {
	t.Helper()
	for _, scheme := range []string{"rtsp", "rtsps"} {
		at := from.Clone()
		at.Scheme = scheme
		to, problem := redirect(at, location)
		if problem != nil {
			continue
		}
		if to.Hostname() == "" || to.Scheme != "rtsp" && to.Scheme != "rtsps" || scheme == "rtsps" && to.Scheme != "rtsps" {
			t.Errorf("%q leads from %s to %v", location, scheme, to)
		}
		if to.User != nil && to.Hostname() != from.Hostname() {
			t.Errorf("%q takes the credentials along to %s", location, to.Hostname())
		}
	}
}
