package controlplane

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func validCamera() *controlv1.Camera {
	return &controlv1.Camera{Name: "cameras/lobby", Profiles: []*controlv1.Profile{{Url: "rtsp://192.0.2.1:554/main"}}}
}

// cameraFaults are what may be wrong with a camera, with what the error must say.
var cameraFaults = []struct {
	name  string
	spoil func(*controlv1.Camera)
	want  fleet.Error
	says  []string
}{
	{"no name", func(c *controlv1.Camera) { c.Name = "" }, fleet.InvalidArgument, []string{"cameras/"}},
	{"bare id", func(c *controlv1.Camera) { c.Name = "lobby" }, fleet.InvalidArgument, []string{"lobby", "cameras/"}},
	{"upper case", func(c *controlv1.Camera) { c.Name = "cameras/Lobby" }, fleet.InvalidArgument, []string{"'L'", "a to z"}},
	{"nested", func(c *controlv1.Camera) { c.Name = "cameras/a/b" }, fleet.InvalidArgument, []string{"'/'"}},
	{"long display name", func(c *controlv1.Camera) { c.DisplayName = strings.Repeat("ü", 201) }, fleet.InvalidArgument, []string{"display_name", "200"}},
	{"control in display name", func(c *controlv1.Camera) { c.DisplayName = "a\x1b[2J" }, fleet.InvalidArgument, []string{"display_name", "control"}},
	{"no profiles", func(c *controlv1.Camera) { c.Profiles = nil }, fleet.InvalidArgument, []string{"profiles", "RTSP URL"}},
	{"nine profiles", func(c *controlv1.Camera) { c.Profiles = make([]*controlv1.Profile, 9) }, fleet.InvalidArgument, []string{"profiles", "8"}},
	{"same profile id", func(c *controlv1.Camera) {
		c.Profiles = append(c.Profiles, &controlv1.Profile{Id: "main", Url: "rtsp://h/"})
	}, fleet.InvalidArgument, []string{"profiles[1].id", `"main"`}},
	{"second profile without id", func(c *controlv1.Camera) {
		c.Profiles = append(c.Profiles, &controlv1.Profile{Url: "rtsp://h/"})
	}, fleet.InvalidArgument, []string{"profiles[1].id", "empty"}},
	{"profile id", func(c *controlv1.Camera) { c.Profiles[0].Id = "Main" }, fleet.InvalidArgument, []string{"profiles[0].id", "'M'"}},
	{"long profile id", func(c *controlv1.Camera) { c.Profiles[0].Id = strings.Repeat("a", 32) }, fleet.InvalidArgument, []string{"profiles[0].id", "31"}},
	{"transport", func(c *controlv1.Camera) { c.Profiles[0].Transport = 99 }, fleet.InvalidArgument, []string{"profiles[0].transport", "99"}},
	{"fallback", func(c *controlv1.Camera) { c.Profiles[0].FallbackUrls = []string{"rtsp://h/", "http://h/"} }, fleet.InvalidURL, []string{"profiles[0].fallback_urls[1]", "http"}},
	{"fallbacks", func(c *controlv1.Camera) { c.Profiles[0].FallbackUrls = make([]string, 9) }, fleet.InvalidArgument, []string{"profiles[0].fallback_urls", "8"}},
	{"fingerprint without TLS", func(c *controlv1.Camera) { c.Profiles[0].TlsFingerprint = strings.Repeat("ab", 32) }, fleet.InvalidArgument, []string{"tls_fingerprint", "rtsps"}},
	{"short fingerprint", func(c *controlv1.Camera) {
		c.Profiles[0].Url, c.Profiles[0].TlsFingerprint = "rtsps://h/", "abcd"
	}, fleet.InvalidArgument, []string{"tls_fingerprint", "64"}},
	{"fingerprint not hex", func(c *controlv1.Camera) {
		c.Profiles[0].Url, c.Profiles[0].TlsFingerprint = "rtsps://h/", strings.Repeat("xy", 32)
	}, fleet.InvalidArgument, []string{"tls_fingerprint", "hex"}},
	{"control in username", func(c *controlv1.Camera) { c.Username = "admin\r\nX-Evil: 1" }, fleet.InvalidArgument, []string{"username", "control"}},
	{"long password", func(c *controlv1.Camera) { c.Username, c.Password = "a", strings.Repeat("hunter2", 50) }, fleet.InvalidArgument, []string{"password", "255"}},
	{"control in password", func(c *controlv1.Camera) { c.Username, c.Password = "a", "hunter2\n" }, fleet.InvalidArgument, []string{"password", "control"}},
	{"password without username", func(c *controlv1.Camera) { c.Password = "hunter2" }, fleet.InvalidArgument, []string{"password", "username"}},
	{"label key", func(c *controlv1.Camera) { c.Labels = map[string]string{"a b": ""} }, fleet.InvalidArgument, []string{"labels", "' '"}},
	{"empty label key", func(c *controlv1.Camera) { c.Labels = map[string]string{"": "x"} }, fleet.InvalidArgument, []string{"labels", "key"}},
	{"label value", func(c *controlv1.Camera) { c.Labels = map[string]string{"site": "é"} }, fleet.InvalidArgument, []string{"labels", `"site"`}},
	{"long label", func(c *controlv1.Camera) { c.Labels = map[string]string{"site": strings.Repeat("a", 64)} }, fleet.InvalidArgument, []string{"labels", "63"}},
	{"labels", func(c *controlv1.Camera) {
		c.Labels = make(map[string]string)
		for i := range 65 {
			c.Labels[strings.Repeat("a", i+1)[:min(i+1, 63)]+strings.Repeat("b", i/63)] = ""
		}
	}, fleet.InvalidArgument, []string{"labels", "64"}},
	{"selector", func(c *controlv1.Camera) { c.NodeSelector = map[string]string{"=": ""} }, fleet.InvalidArgument, []string{"node_selector"}},
	{"pull policy", func(c *controlv1.Camera) { c.PullPolicy = 9 }, fleet.InvalidArgument, []string{"pull_policy", "9"}},
	{"idle timeout", func(c *controlv1.Camera) { c.IdleTimeout = durationpb.New(0) }, fleet.InvalidArgument, []string{"idle_timeout", "positive"}},
	{"idle timeout range", func(c *controlv1.Camera) { c.IdleTimeout = &durationpb.Duration{Seconds: math.MaxInt64} }, fleet.InvalidArgument, []string{"idle_timeout", "range"}},
	{"max sessions", func(c *controlv1.Camera) { c.MaxSessions = -1 }, fleet.InvalidArgument, []string{"max_sessions", "-1"}},
	{"bitrate", func(c *controlv1.Camera) { c.ExpectedBitrateBps = -5 }, fleet.InvalidArgument, []string{"expected_bitrate_bps", "-5"}},
}

func TestCameraFaults(t *testing.T) {
	if _, _, _, err := newDesired(validCamera(), nil); err != nil {
		t.Fatalf("the camera to spoil is not valid: %v", err)
	}
	if _, _, _, err := newDesired(nil, nil); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("no camera: %v", err)
	}
	for _, tt := range cameraFaults {
		t.Run(tt.name, func(t *testing.T) {
			c := validCamera()
			tt.spoil(c)
			_, _, _, err := newDesired(c, nil)
			checkFault(t, err, tt.want, tt.says)
		})
	}
}

func checkFault(t *testing.T, err error, want fleet.Error, says []string) {
	t.Helper()
	var got fleet.Error
	if !errors.As(err, &got) || got != want {
		t.Fatalf("got %v, want %s", err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the password is in %q", err)
	}
}

// urls are what operators may try. An empty says: the URL is fine.
var urls = []struct {
	url  string
	says string
}{
	{"rtsp://192.0.2.1/", ""},
	{"rtsp://192.0.2.1", ""},
	{"rtsp://192.0.2.1:8554/a/b?channel=1&subtype=0", ""},
	{"rtsps://camera_1.example.org./x", ""},
	{"RTSP://Camera/x%40y?z=%40", ""},
	{"rtsp://[2001:db8::1]:554/", ""},
	{"rtsp://localhost:1/", ""},
	{"rtsp://h:65535/", ""},
	{"", "empty"},
	{"192.0.2.1", "scheme"},
	{"/dev/video0", "scheme"},
	{"camera:554/x", "scheme"},
	{"http://192.0.2.1/", `"http"`},
	{"https://192.0.2.1/", `"https"`},
	{"rtmp://h/", `"rtmp"`},
	{"file:///etc/passwd", `"file"`},
	{"exec:rm -rf /", "spaces"},
	{"exec:reboot", "another scheme"},
	{"ffmpeg:rtsp://h/", "another scheme"},
	{"javascript:alert(1)", "another scheme"},
	{"admin:hunter2@192.0.2.1/", "another scheme"},
	{"rtsp:192.0.2.1/", `"//"`},
	{"rtsp:/192.0.2.1/", `"//"`},
	{"rtsp://", "no host"},
	{"rtsp:///path", "no host"},
	{"rtsp://:554/", "no host"},
	{"rtsp://admin:hunter2@192.0.2.1/", "--username"},
	{"rtsp://admin@192.0.2.1/", "--username"},
	{"rtsp://@192.0.2.1/", "--username"},
	{"rtsp://admin:hun@hunter2@192.0.2.1/", "--username"},
	{"rtsp://admin:hunter2/x@192.0.2.1/", "--username"},
	{"rtsp://admin:hunter2%zz@192.0.2.1/", "--username"},
	{"rtsp://admin:12345/hunter2@192.0.2.1/", "%40"},
	{"rtsp://admin:1234?hunter2@192.0.2.1/", "%40"},
	{"rtsp://admin:1234#hunter2@192.0.2.1/", "--username"},
	{"rtsp://h/x@y", "%40"},
	{"rtsp://h/%zz-hunter2", "can't be read"},
	{"rtsp://h:/x", "port"},
	{"rtsp://h:0/", "port"},
	{"rtsp://h:65536/", "port"},
	{"rtsp://h:-1/", "can't be read"},
	{"rtsp://h:rtsp/", "can't be read"},
	{"rtsp://h/#hunter2", "fragment"},
	{"rtsp://h/ x", "spaces"},
	{"rtsp://h/\r\nhunter2", "control"},
	{"rtsp://h/\x00", "control"},
	{"rtsp://h/\xff", "control"},
	{"rtsp://exa mple/", "spaces"},
	{"rtsp://a..b/", "DNS name"},
	{"rtsp://a,b/", "DNS name"},
	{"rtsp://[::1/", "can't be read"},
	{"rtsp://" + strings.Repeat("a", 64) + "/", "DNS name"},
	{"rtsp://h/" + strings.Repeat("hunter2", 300), "2048"},
}

func TestURLs(t *testing.T) {
	for _, tt := range urls {
		t.Run(tt.url[:min(len(tt.url), 40)], func(t *testing.T) {
			err := checkURL("url", tt.url, nil)
			if tt.says == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			checkFault(t, err, fleet.InvalidURL, []string{"url", tt.says})
		})
	}
}

func TestONVIFURLs(t *testing.T) {
	for _, tt := range []struct{ url, says string }{
		{"", ""},
		{"none", ""},
		{"http://192.0.2.1", ""},
		{"https://camera.example:8443/onvif/device_service?x=1", ""},
		{"HTTP://h/", ""},
		{"None", `"none"`},
		{"192.0.2.1/onvif", `"none"`},
		{"rtsp://h/", "use http:// or https://"},
		{"http://", "no host"},
		{"http://admin:hunter2@h/", "--username"},
		{"http://admin:hunter2/x@h/", "--username"},
		{"http://h/x y", "spaces"},
		{"http://h:0/", "port"},
		{"http://h/#hunter2", "fragment"},
		{"http://h/" + strings.Repeat("hunter2", 300), "2048"},
	} {
		c := validCamera()
		c.OnvifUrl = tt.url
		_, d, _, err := newDesired(c, nil)
		if tt.says != "" {
			checkFault(t, err, fleet.InvalidURL, []string{"onvif_url", tt.says})
		} else if err != nil || d.GetOnvifUrl() != tt.url {
			t.Errorf("%q: %v, stored as %q", tt.url, err, d.GetOnvifUrl())
		}
	}
	c := validCamera()
	c.OnvifUrl = "http://192.0.2.1/"
	_, _, _, err := newDesired(c, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	checkFault(t, err, fleet.InvalidURL, []string{"--camera-networks"})
}

func FuzzURL(f *testing.F) {
	for _, tt := range urls {
		f.Add(tt.url)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := checkURL("url", s, nil)
		if err == nil && !strings.HasPrefix(strings.ToLower(s), "rtsp") {
			t.Errorf("%q was taken", s)
		}
		if err != nil && !errors.Is(err, fleet.InvalidURL) {
			t.Errorf("%q: %v", s, err)
		}
		// Nothing of the URL is quoted, but a short scheme.
		if rest := strings.SplitN(s, "//", 2); err != nil && len(rest) == 2 && len(rest[1]) > 12 && strings.Contains(err.Error(), rest[1]) {
			t.Errorf("%q is quoted in %v", s, err)
		}
	})
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"rtsp://h/a": "rtsp://h:554", "RTSP://H.:0554/b?c": "rtsp://h:554", "rtsps://h/": "rtsps://h:322", "rtsp://h:322": "rtsp://h:322",
		"http://h/": "http://h:80", "https://h": "https://h:443",
		"rtsp://[2001:DB8:0::1]/": "rtsp://[2001:db8::1]:554", "rtsp://[::ffff:192.0.2.1]/": "rtsp://192.0.2.1:554",
	} {
		if got := endpoint(in); got != want {
			t.Errorf("%s leads to %s, want %s", in, got, want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[string]bool{
		"192.0.2.1:9091": true, "[2001:db8::1]:9091": true, "node-1.example:1": true, "a:65535": true,
		"": false, "a": false, "a:": false, ":9091": false, "a:0": false, "a:65536": false, "a:http": false, "[::1]": false,
		"unix:///run/x": false, "dns:///a:1": false, "passthrough:///a:1": false, "a/b:1": false, "u@a:1": false, "a:1:2": false, "a:-1": false,
	} {
		if got := isHostPort(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestNetworks(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for url, ok := range map[string]bool{
		"rtsp://10.1.2.3/": true, "rtsp://[fd00::1]/": true, "rtsp://camera.example/": true, "rtsp://[::ffff:10.0.0.1]/": true,
		"rtsp://127.0.0.1/": false, "rtsp://[::1]/": false, "rtsp://169.254.169.254/": false,
	} {
		if err := checkURL("url", url, networks); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestNormalized(t *testing.T) {
	c := validCamera()
	c.Etag, c.PasswordSet, c.Status = "x", true, &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_LIVE}
	c.Username, c.Password = "admin", "hunter2"
	c.Profiles[0].Url = "rtsps://h/"
	c.Profiles[0].TlsFingerprint = strings.TrimSuffix(strings.Repeat("AB:", 32), ":")
	id, d, password, err := newDesired(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := d.GetProfiles()[0]
	if id != "lobby" || password != "hunter2" || p.GetId() != "main" || p.GetTransport() != controlv1.Profile_TRANSPORT_AUTO ||
		p.GetTlsFingerprint() != strings.Repeat("ab", 32) || d.GetPullPolicy() != controlv1.Camera_PULL_POLICY_ALWAYS {
		t.Errorf("got %v", d)
	}
	if d.GetPassword() != "" || d.GetPasswordSet() || d.GetEtag() != "" || d.GetStatus() != nil {
		t.Errorf("output and secret are stored: %v", d)
	}
	if c.GetPassword() != "hunter2" || c.GetProfiles()[0].GetId() != "" {
		t.Error("the request was changed")
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, id string
		want        bool
	}{
		{"lobby", "lobby", true},
		{"lobby", "lobby2", false},
		{"*", "x", true},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"plant-*", "plant-1", true},
		{"plant-*", "plant-", true},
		{"plant-*", "plan", false},
		{"*-door", "back-door", true},
		{"*-door", "back-doors", false},
		{"a*b*c", "axbxc", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"**", "x", true},
		{"a**c", "abc", true},
		{"*a*", "bab", true},
		{"*a*", "bb", false},
	} {
		if got := matchPattern(tt.pattern, tt.id); got != tt.want {
			t.Errorf("%q matches %q: %v", tt.pattern, tt.id, got)
		}
	}
}

func TestTokens(t *testing.T) {
	for _, bad := range []string{"x", "!!", "AAAA", resumeToken(1, 5) + "AA", strings.Repeat("_", 22)} {
		if _, err := resumeRevision(bad, 1); !errors.Is(err, fleet.InvalidResumeToken) {
			t.Errorf("resume token %q: %v", bad, err)
		}
		if _, err := afterToken(bad, []byte("q")); !errors.Is(err, fleet.InvalidPageToken) {
			t.Errorf("page token %q: %v", bad, err)
		}
	}
	if rev, err := resumeRevision(resumeToken(7, 5), 7); rev != 5 || err != nil {
		t.Errorf("got %d, %v", rev, err)
	}
	if _, err := resumeRevision(resumeToken(7, 5), 8); !errors.Is(err, fleet.InvalidResumeToken) {
		t.Errorf("another cluster's: %v", err)
	}
	if id, err := afterToken(pageToken([]byte("q"), "lobby"), []byte("q")); id != "lobby" || err != nil {
		t.Errorf("got %q, %v", id, err)
	}
	if _, err := afterToken(pageToken([]byte("q"), "lobby"), []byte("r")); !errors.Is(err, fleet.InvalidPageToken) {
		t.Errorf("another query's: %v", err)
	}
}
