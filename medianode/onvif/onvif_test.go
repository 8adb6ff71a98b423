package onvif

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fanlight/internal/fleet"
	"fanlight/medianode/onvif/onviftest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var secret = fleet.Credentials{Username: "admin", Password: "s3cret&<"}

// two are the profiles of a camera with a main and a sub stream.
func two() []onviftest.Profile {
	return []onviftest.Profile{
		{Token: "main", URL: "rtsp://10.0.0.9/stream?channel=1&subtype=0&unicast=true", Width: 1920, Height: 1080},
		{Token: "sub", URL: "rtsp://10.0.0.9/stream?channel=1&subtype=1&unicast=true", Width: 640, Height: 360},
	}
}

// newClient returns a client that is closed when the test ends.
func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.StreamURL == "" {
		cfg.StreamURL = "rtsp://cam/stream?subtype=1&channel=1"
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// ask asks twice, and wants the camera to have been told of the same profile both
// times, without looking for it again.
func ask(t *testing.T, cfg onviftest.Config, token string) *onviftest.Camera {
	t.Helper()
	var tokens []string
	cfg.OnKeyframe = func(token string) { tokens = append(tokens, token) }
	if cfg.Profiles == nil {
		cfg.Profiles = two()
	}
	cam := onviftest.Run(t, cfg)
	client := newClient(t, Config{DeviceURL: cam.URL(), Credentials: fleet.Credentials{Username: cfg.Username, Password: cfg.Password}})
	if err := client.RequestKeyframe(t.Context(), Picture{}); err != nil {
		t.Fatal(err)
	}
	calls := cam.Calls("")
	if err := client.RequestKeyframe(t.Context(), Picture{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{token, token}, tokens); diff != "" {
		t.Errorf("profiles asked (-want +got):\n%s", diff)
	}
	if n := cam.Calls("") - calls; n != 1 {
		t.Errorf("%d requests for a keyframe of a profile that is known, want 1", n)
	}
	return cam
}

func TestCameras(t *testing.T) {
	withPassword := onviftest.Config{Username: secret.Username, Password: secret.Password}
	for name, change := range map[string]func(*onviftest.Config){
		"token":               func(*onviftest.Config) {},
		"clock behind":        func(c *onviftest.Config) { c.Clock = -26 * time.Hour },
		"clock ahead":         func(c *onviftest.Config) { c.Clock = 31 * 24 * time.Hour },
		"digest":              func(c *onviftest.Config) { c.Auth = onviftest.AuthDigest },
		"digest with SHA-256": func(c *onviftest.Config) { c.Auth = onviftest.AuthSHA256 },
		"no password":         func(c *onviftest.Config) { c.Username, c.Password = "", "" },
		"media2 alone":        func(c *onviftest.Config) { c.Services = []string{onviftest.Media2} },
		"both":                func(c *onviftest.Config) { c.Services = []string{onviftest.Media, onviftest.Media2} },
		"no GetServices":      func(c *onviftest.Config) { c.NoServices = true },
		"another path":        func(c *onviftest.Config) { c.Media = "http://192.0.2.7:1/onvif/media?service=1" },
		"one profile":         func(c *onviftest.Config) { c.Profiles = []onviftest.Profile{{Token: "sub", URL: "rtsp://elsewhere/"}} },
		"tokens to be escaped": func(c *onviftest.Config) {
			c.Profiles = []onviftest.Profile{{Token: "sub & <\"1\">", URL: "rtsp://elsewhere/"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := withPassword
			change(&cfg)
			token := "sub"
			if len(cfg.Profiles) > 0 {
				token = cfg.Profiles[0].Token
			}
			ask(t, cfg, token)
		})
	}
}

// Media2 comes first, for it alone has profiles of H265; a camera whose Media2
// lacks the operation is asked by the other.
func TestServices(t *testing.T) {
	cam := ask(t, onviftest.Config{Services: []string{onviftest.Media, onviftest.Media2}}, "sub")
	if n := cam.Calls("ver20 SetSynchronizationPoint"); n != 2 {
		t.Errorf("%d requests to Media2, want 2", n)
	}
	var half *onviftest.Camera
	half = onviftest.Run(t, onviftest.Config{
		Services: []string{onviftest.Media, onviftest.Media2}, Profiles: two(),
		Override: func(w http.ResponseWriter, _ *http.Request, op string) bool {
			if op != "SetSynchronizationPoint" || half.Calls("SetSynchronizationPoint") > 0 {
				return false
			}
			half.Fault(w, http.StatusInternalServerError, "s:Receiver", "ter:ActionNotSupported", "ter:OptionalActionNotImplemented")
			return true
		},
	})
	if err := newClient(t, Config{DeviceURL: half.URL()}).RequestKeyframe(t.Context(), Picture{}); err != nil {
		t.Errorf("a camera whose Media2 has no SetSynchronizationPoint: %v", err)
	}
}

// A media service at another port of the same host is asked there; the port of
// another host means nothing.
func TestPort(t *testing.T) {
	cfg := onviftest.Config{Profiles: two()}
	media := onviftest.Run(t, cfg)
	cfg.Media = "http://" + media.Host() + "/onvif/media"
	device := onviftest.Run(t, cfg)
	if err := newClient(t, Config{DeviceURL: device.URL()}).RequestKeyframe(t.Context(), Picture{}); err != nil {
		t.Fatal(err)
	}
	if n := media.Calls("SetSynchronizationPoint"); n != 1 {
		t.Errorf("%d requests at the media service's port, want 1", n)
	}
}

func TestProfiles(t *testing.T) {
	for _, tt := range []struct {
		name, pulled string
		picture      Picture
		want         string
	}{
		{"parameters in another order, and fewer", "rtsp://cam/stream?subtype=1&channel=1", Picture{}, "sub"},
		{"the path's case, port and slash", "rtsp://cam:8554/Stream/?channel=1&subtype=1", Picture{}, "sub"},
		{"no parameters: the first that could be", "rtsp://cam/stream", Picture{}, "main"},
		{"none: by its picture", "rtsp://cam/other", Picture{"H264", 640, 360}, "sub"},
		{"none, and another codec: the first", "rtsp://cam/other", Picture{"H265", 640, 360}, "main"},
		{"none, and nothing known: the first", "rtsp://cam/other", Picture{}, "main"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			cam := onviftest.Run(t, onviftest.Config{Profiles: two(), OnKeyframe: func(token string) { got = token }})
			client := newClient(t, Config{DeviceURL: cam.URL(), StreamURL: tt.pulled})
			if err := client.RequestKeyframe(t.Context(), tt.picture); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("asked for %s, want %s", got, tt.want)
			}
		})
	}
}

// Profiles that are made anew, a clock that is set and a challenge that is
// spent are found out with the next request.
func TestChanges(t *testing.T) {
	profiles := two()
	cam := onviftest.Run(t, onviftest.Config{Username: secret.Username, Password: secret.Password, Profiles: profiles})
	client := newClient(t, Config{DeviceURL: cam.URL(), Credentials: secret})
	request := func(what string) {
		t.Helper()
		if err := client.RequestKeyframe(t.Context(), Picture{}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	request("first")
	profiles[1].Token = "sub-2"
	request("profiles made anew")
	cam.SetClock(time.Hour)
	request("clock set")

	cam = onviftest.Run(t, onviftest.Config{Username: secret.Username, Password: secret.Password, Auth: onviftest.AuthDigest, Profiles: profiles})
	client = newClient(t, Config{DeviceURL: cam.URL(), Credentials: secret})
	request("first, by digest")
	cam.Expire()
	request("challenge spent")

	// One that is spent before it was ever taken says so itself.
	var late *onviftest.Camera
	var once sync.Once
	late = onviftest.Run(t, onviftest.Config{
		Username: secret.Username, Password: secret.Password, Auth: onviftest.AuthDigest, Profiles: profiles,
		Override: func(_ http.ResponseWriter, r *http.Request, _ string) bool {
			if r.Header.Get("Authorization") != "" {
				once.Do(late.Expire)
			}
			return false
		},
	})
	client = newClient(t, Config{DeviceURL: late.URL(), Credentials: secret})
	request("challenge spent at once")
}

// An answer that is too large is not read to its end.
func TestHuge(t *testing.T) {
	written := make(chan int, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, envelope("", "<GetSystemDateAndTimeResponse/>"))
		n := 0
		for chunk := strings.Repeat(" ", 64<<10); n < 64<<20; {
			m, err := io.WriteString(w, chunk)
			if n += m; err != nil {
				break
			}
		}
		written <- n
	}))
	defer server.Close()
	client := newClient(t, Config{DeviceURL: server.URL})
	_, err := client.open(t.Context(), client.device, deviceNamespace+"/GetSystemDateAndTime", getSystemDateAndTime)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	if n := <-written; n >= 64<<20 {
		t.Errorf("all of %d bytes were taken", n)
	}
}

// Credentials that are refused are tried once for each way of giving them.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		auth  onviftest.Auth
		creds fleet.Credentials
		tries int
	}{
		{"token", onviftest.AuthToken, fleet.Credentials{Username: "admin", Password: "wrong-password"}, 1},
		{"digest", onviftest.AuthDigest, fleet.Credentials{Username: "admin", Password: "wrong-password"}, 2},
		{"none", onviftest.AuthToken, fleet.Credentials{}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cam := onviftest.Run(t, onviftest.Config{Username: "admin", Password: "right-password", Auth: tt.auth, Profiles: two()})
			err := newClient(t, Config{DeviceURL: cam.URL(), Credentials: tt.creds}).RequestKeyframe(t.Context(), Picture{})
			if !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "-password") {
				t.Errorf("got %v", err)
			}
			if n := cam.Calls("GetProfiles"); n != tt.tries {
				t.Errorf("%d requests that need credentials, want %d", n, tt.tries)
			}
		})
	}
}

// What cameras answer instead, and what it means.
func TestAnswers(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	text := func(code int, s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, s)
		}
	}
	const begin = `<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>`
	const end = `</e:Body></e:Envelope>`
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   error
	}{
		{"not found", status(404), ErrUnsupported},
		{"method not allowed", status(405), ErrUnsupported},
		{"not implemented", status(501), ErrUnsupported},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusMovedPermanently)
		}, ErrUnsupported},
		{"web page", text(200, "<!DOCTYPE html><html><body>Login</body></html>"), ErrUnsupported},
		{"empty", status(200), ErrUnsupported},
		{"nothing of ours", text(200, begin+"<hello/>"+end), ErrUnsupported},
		{"cut short", text(200, begin+"<GetServicesResponse>"), ErrUnsupported},
		{"bytes", text(200, "\x00\xff\xfe\x01"), ErrUnsupported},
		{"entities", text(200, `<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>`+begin+"&b;"+end), ErrUnsupported},
		{"huge", text(200, begin+strings.Repeat(" ", maxResponse)+end), ErrUnsupported},
		{"bad request", status(400), ErrUnsupported},
		{"server error", status(500), ErrUnavailable},
		{"busy", status(503), ErrUnavailable},
		{"too many", status(429), ErrUnavailable},
		{"unauthorized", status(401), ErrRefused},
		{"forbidden", status(403), ErrRefused},
		{"fault of SOAP 1.1", text(500, begin+"<e:Fault><faultcode>e:Client</faultcode><faultstring>method not known</faultstring></e:Fault>"+end), ErrUnsupported},
		{"fault of its own", text(500, begin+"<e:Fault><faultcode>e:Server</faultcode></e:Fault>"+end), ErrUnavailable},
		{"wsse fault", text(400, begin+"<e:Fault><faultcode>wsse:FailedAuthentication</faultcode></e:Fault>"+end), ErrRefused},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(tt.answer)
			defer server.Close()
			client := newClient(t, Config{DeviceURL: server.URL, Credentials: secret})
			err := client.RequestKeyframe(t.Context(), Picture{})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if s := err.Error(); strings.Contains(s, secret.Password) || strings.Contains(s, server.URL) {
				t.Errorf("error %q says too much", s)
			}
			client.http.CloseIdleConnections()
		})
	}
}

// A camera that does not answer is given up with the context, and Close waits for
// nothing else.
func TestSlow(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	client := newClient(t, Config{DeviceURL: server.URL})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := client.RequestKeyframe(ctx, Picture{}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}

	dialling := make(chan struct{}, 8)
	stuck, err := New(Config{DeviceURL: "http://192.0.2.1/", StreamURL: "rtsp://192.0.2.1/", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialling <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		<-dialling
		cancel()
	}()
	if err := stuck.RequestKeyframe(ctx, Picture{}); err == nil {
		t.Error("a dialler that is stuck gives an answer")
	}
	stuck.Close()
}

// A camera that closes the connection that is kept when it is used again is asked
// on another.
func TestKeptConnectionCloses(t *testing.T) {
	cam := onviftest.Run(t, onviftest.Config{Profiles: two()})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer lis.Close()
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(conn)
			if req, err := http.ReadRequest(in); err == nil {
				w := httptest.NewRecorder()
				cam.Handler().ServeHTTP(w, req)
				res := w.Result()
				res.ContentLength = int64(w.Body.Len())
				_ = res.Write(conn)
				_, _ = in.ReadByte() // of the next request
			}
			_ = conn.Close()
		}
	})
	client := newClient(t, Config{DeviceURL: "http://" + lis.Addr().String()})
	for range 2 {
		if err := client.RequestKeyframe(t.Context(), Picture{}); err != nil {
			t.Error(err)
		}
	}
	client.http.CloseIdleConnections()
}

// Every address goes through the dialler, and nowhere but to the device's host.
func TestDialler(t *testing.T) {
	cam := onviftest.Run(t, onviftest.Config{Profiles: two(), Media: "http://192.0.2.99:81/onvif/media"})
	var dialled []string
	client := newClient(t, Config{DeviceURL: "http://camera.test/onvif/device_service", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		return new(net.Dialer).DialContext(ctx, network, cam.Host())
	}})
	if err := client.RequestKeyframe(t.Context(), Picture{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"camera.test:80"}, dialled); diff != "" {
		t.Errorf("dialled (-want +got):\n%s", diff)
	}
}

func TestAddress(t *testing.T) {
	for _, tt := range []struct{ device, remote, xaddr, want string }{
		{"http://cam/d", "10.0.0.9", "http://10.0.0.9:8899/m", "http://cam:8899/m"},
		{"http://cam:8080/d", "10.0.0.9", "http://192.168.1.2/m?x=1", "http://cam:8080/m?x=1"},
		{"http://cam/d", "10.0.0.9", "https://cam/m", "https://cam/m"},
		{"https://cam/d", "10.0.0.9", "http://cam:80/m", "https://cam/m"},
		{"http://[fe80::1]:81/d", "fe80::1", "http://[fe80::1]/m", "http://[fe80::1]/m"},
		{"http://cam/d", "10.0.0.9", "file:///etc/passwd", "http://cam/etc/passwd"},
		{"http://cam/d", "10.0.0.9", "", "http://cam/d"},
		{"http://cam/d", "10.0.0.9", "%zz", "http://cam/d"},
	} {
		c := newClient(t, Config{DeviceURL: tt.device})
		c.remote = tt.remote
		if got := c.address(tt.xaddr).String(); got != tt.want {
			t.Errorf("media service %s of %s is at %s, want %s", tt.xaddr, tt.device, got, tt.want)
		}
	}
}

func TestURL(t *testing.T) {
	for _, bad := range []string{"", "none", "rtsp://cam/", "http://", "http://cam:x/", "//cam/"} {
		if _, err := New(Config{DeviceURL: bad}); err == nil {
			t.Errorf("%q is taken for a URL", bad)
		}
	}
	c := newClient(t, Config{DeviceURL: "http://user:" + "word@cam"})
	if got := c.device.String(); got != "http://cam/onvif/device_service" {
		t.Errorf("device service at %s", got)
	}
}

// TestRequestsAsGenerated compares requests with those that code generated from
// the official WSDL makes (testdata/wsdl.pl).
func TestRequestsAsGenerated(t *testing.T) {
	text, err := os.ReadFile("testdata/wsdl.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		action, body, _ := strings.Cut(line, "\t")
		want[action] = body
	}
	const token = "Profile_1 & <main>"
	got := map[string]string{
		mediaNamespace + "/GetProfiles":             getProfiles(mediaNamespace),
		mediaNamespace + "/GetStreamUri":            getStreamURI(mediaNamespace, token),
		mediaNamespace + "/SetSynchronizationPoint": setSynchronizationPoint(mediaNamespace, token),
		deviceNamespace + "/GetSystemDateAndTime":   getSystemDateAndTime,
		deviceNamespace + "/GetServices":            getServices,
		deviceNamespace + "/GetCapabilities":        getCapabilities,
	}
	if len(got) != len(want) {
		t.Errorf("%d requests are made, %d were generated", len(got), len(want))
	}
	for action, body := range got {
		if diff := cmp.Diff(tree(t, want[action]), tree(t, body)); diff != "" {
			t.Errorf("%s (-generated +ours):\n%s", action, diff)
		}
	}
}

// element is an XML element without its prefixes.
type element struct {
	XMLName  xml.Name
	Text     string    `xml:",chardata"`
	Children []element `xml:",any"`
}

func tree(t *testing.T, text string) element {
	t.Helper()
	var e element
	if err := xml.Unmarshal([]byte(text), &e); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return e
}

// The schema is one that refuses what is wrong.
func TestSchema(t *testing.T) {
	if !onviftest.HasXMLLint(t) {
		t.Skip("xmllint is missing: install libxml2-utils")
	}
	token := usernameToken(secret, time.Now())
	for name, text := range map[string]string{
		"order of elements": envelope("", strings.Replace(getStreamURI(media2Namespace, "t"), "<m:Protocol>RTSP</m:Protocol>", "", 1)),
		"namespace":         envelope("", setSynchronizationPoint("http://www.onvif.org/ver30/media/wsdl", "t")),
		"no token":          envelope("", `<m:SetSynchronizationPoint xmlns:m="`+mediaNamespace+`"/>`),
		"long token":        envelope("", setSynchronizationPoint(mediaNamespace, strings.Repeat("t", 65))),
		"kind of password":  envelope(strings.Replace(token, "#PasswordDigest", "#PasswordText", 1), getProfiles(mediaNamespace)),
		"no nonce":          envelope(strings.Replace(token, "Nonce", "Once", 2), getProfiles(mediaNamespace)),
		"soap 1.1":          strings.Replace(envelope("", getProfiles(mediaNamespace)), soapNamespace, "http://schemas.xmlsoap.org/soap/envelope/", 1),
	} {
		if err := onviftest.Validate(t.TempDir(), []string{text}); err == nil {
			t.Errorf("%s: the schema takes %s", name, text)
		}
	}
	if err := onviftest.Validate(t.TempDir(), []string{envelope(token, getStreamURI(mediaNamespace, "t"))}); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(envelope("", `<GetServicesResponse><Service><Namespace>`+mediaNamespace+`</Namespace><XAddr>http://cam/m</XAddr></Service></GetServicesResponse>`)))
	f.Add([]byte(envelope("", `<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Code></s:Fault>`)))
	f.Add([]byte(envelope("", `<GetSystemDateAndTimeResponse><SystemDateAndTime><UTCDateTime><Time><Hour>1</Hour></Time><Date><Year>2026</Year></Date></UTCDateTime></SystemDateAndTime></GetSystemDateAndTimeResponse>`)))
	f.Add([]byte(`<?xml version="1.0" encoding="GB2312"?>` + "<Envelope><Body><x>\xc4\xe3</x></Body></Envelope>"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parse(text)
		if err != nil {
			return
		}
		if b.Fault != nil {
			if err := b.Fault.err(); !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrUnavailable) {
				t.Errorf("fault without a meaning: %v", err)
			}
		}
		c, err := New(Config{DeviceURL: "http://cam/d"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, s := range b.Services {
			if u := c.address(s.XAddr); u.Hostname() != "cam" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
				t.Errorf("service at %q is asked at %v", s.XAddr, u)
			}
		}
		_ = similarity("rtsp://cam/a?b=c", b.StreamURI)
		b.DateAndTime.time()
	})
}
