package signaling

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"fanlight/internal/fleet"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/viewer"
)

// unreachable is a control plane that is not there.
type unreachable struct{}

func (unreachable) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return fmt.Errorf("dial 10.0.0.1:1: %w", fleet.Unavailable)
}

func (unreachable) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, fmt.Errorf("dial 10.0.0.1:1: %w", fleet.Unavailable)
}

func TestCamerasAndStats(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.control.assign("yard", n, 1)

	resp, body := h.do("GET", "/v1/cameras", "", "")
	var list cameraPage
	if err := json.Unmarshal([]byte(body), &list); err != nil || resp.StatusCode != http.StatusOK || len(list.Cameras) != 2 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for _, c := range list.Cameras {
		if c.DisplayName == "" || c.State != "failed" || c.Reason != "timeout" || c.Message != "the camera does not answer" || c.Labels["site"] != "a" {
			t.Errorf("camera %+v", c)
		}
	}
	if strings.Contains(body, "192.0.2.7") {
		t.Errorf("the list tells of addresses: %s", body)
	}
	if cc := resp.Header.Get("Cache-Control"); cc != "no-store" {
		t.Errorf("Cache-Control %q", cc)
	}

	// Many ask at once; the node is asked once a second.
	var wg sync.WaitGroup
	began := time.Now()
	for range 20 {
		wg.Go(func() {
			_, body := h.do("GET", "/stats", "", "")
			var p figuresPage
			if err := json.Unmarshal([]byte(body), &p); err != nil || len(p.Cameras) != 2 {
				t.Errorf("stats %s", body)
				return
			}
			for _, c := range p.Cameras {
				switch {
				case c.Camera == "lobby" && (c.State != "live" || c.BitrateBPS != 2_000_000 || c.Node != "n1" || c.Viewers != 3 || c.Width != 640 || c.PacketsLost != 1 || c.PacketsPerSecond != 236 ||
					c.Loss != 0.125 || c.JitterMS != 7.5 || c.PacketsDropped != 4 || c.Verdict != "camera" || c.VerdictMessage != "the camera lost 12.5 % of its packets"):
					t.Errorf("lobby %+v", c)
				case c.Camera == "yard" && (c.State != "failed" || c.BitrateBPS != 0):
					t.Errorf("yard %+v", c)
				}
			}
		})
	}
	wg.Wait()
	most := 1 + int(time.Since(began)/figuresFresh)
	n.mu.Lock()
	if n.stats > most {
		t.Errorf("the node was asked %d times, want %d at most", n.stats, most)
	}
	n.mu.Unlock()
	h.control.mu.Lock()
	if h.control.browses > 1+most {
		t.Errorf("the control plane was asked %d times", h.control.browses)
	}
	h.control.mu.Unlock()

	for path, reason := range map[string]string{
		"/v1/cameras?page_size=x": "invalid_argument", "/stats?page_size=-1": "invalid_argument", "/v1/cameras?page_token=wrong": "invalid_page_token",
	} {
		resp, body := h.do("GET", path, "", "")
		h.wantProblem(resp, body, http.StatusBadRequest, reason)
	}

	// The list is told on while the control plane is away.
	h.control.stop()
	time.Sleep(figuresFresh)
	if resp, body := h.do("GET", "/stats", "", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"bitrate_bps":2000000`) {
		t.Errorf("stats without control plane: %d %s", resp.StatusCode, body)
	}
	resp, body = h.do("GET", "/v1/cameras", "", "")
	h.wantProblem(resp, body, http.StatusServiceUnavailable, "unavailable")
	if strings.Contains(body, "127.0.0.1") {
		t.Errorf("the answer tells of addresses: %s", body)
	}
}

// TestStatsOfOthers asks with page tokens that read like another viewer's list.
func TestStatsOfOthers(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	h.control.assign("vault", n, 1)
	h.control.assign("lobby", n, 1)
	all := "Bearer " + mint(t, viewer.Grant{Cameras: []string{"vault", "lobby"}})
	one := "Bearer " + mint(t, viewer.Grant{Cameras: []string{"lobby"}})
	if resp, body := h.do("GET", "/stats", "", "", "Authorization", all); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"vault"`) {
		t.Fatalf("stats: %d %s", resp.StatusCode, body)
	}
	for _, fresh := range []bool{true, false} {
		if !fresh {
			time.Sleep(figuresFresh)
		}
		for _, token := range []string{"\nvault", "\nvault\n", "vault", "\x05vault"} {
			for _, auth := range []string{one, all} {
				resp, body := h.do("GET", "/stats?page_token="+url.QueryEscape(token), "", "", "Authorization", auth)
				h.wantProblem(resp, body, http.StatusBadRequest, "invalid_page_token")
			}
		}
	}
	h.gateway.stats.mu.Lock()
	if kept := len(h.gateway.stats.lists); kept != 1 {
		t.Errorf("%d lists are kept, want that of the page that there is", kept)
	}
	h.gateway.stats.mu.Unlock()
	// The first viewer's list of before is no answer to a request that is refused.
	h.control.mu.Lock()
	h.control.refuse = fleet.InvalidPageToken
	h.control.mu.Unlock()
	resp, body := h.do("GET", "/stats", "", "", "Authorization", all)
	h.wantProblem(resp, body, http.StatusBadRequest, "invalid_page_token")
}

func TestListKeys(t *testing.T) {
	seen := make(map[listKey]string)
	for _, test := range []struct {
		cameras []string
		p       page
	}{
		{[]string{"a", "b"}, page{size: 1}},
		{[]string{"a\nb"}, page{size: 1}},
		{[]string{"ab"}, page{size: 1}},
		{[]string{"a", "b"}, page{size: 2}},
		{[]string{"b"}, page{size: 1, token: "a"}},
		{[]string{"a"}, page{size: 1, token: "\nb"}},
		{[]string{"a\x01b"}, page{size: 1}},
		{nil, page{size: 1}},
		{[]string{""}, page{size: 1}},
	} {
		name := fmt.Sprintf("%q %+v", test.cameras, test.p)
		key := newListKey(viewer.Viewer{Cameras: test.cameras}, test.p)
		if other, ok := seen[key]; ok {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[key] = name
	}
}

// TestImpossibleFigures has a node that divides by zero.
func TestImpossibleFigures(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1} {
		h := newHarness(t, nil)
		n := h.node("n1")
		n.rate = bad
		h.control.assign("lobby", n, 1)
		resp, body := h.do("GET", "/stats", "", "")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"packets_per_second":0,`) || !strings.Contains(body, `"bitrate_bps":2000000,`) {
			t.Errorf("%v: %d %s", bad, resp.StatusCode, body)
		}
	}
	s := &mediav1.CameraStats{
		BitrateBps: -1, FramesPerSecond: math.NaN(), Width: -1, Height: -1, Viewers: -1, Packets: -1, Bytes: -1, PacketsLost: -1,
		Loss: math.Inf(1), JitterMs: math.NaN(), PacketsDropped: -1,
	}
	if bound(s); !proto.Equal(s, &mediav1.CameraStats{}) {
		t.Errorf("bound: %v", s)
	}
}

func TestHealth(t *testing.T) {
	h := newHarness(t, nil)
	for _, path := range []string{"/healthz", "/readyz"} {
		if resp, body := h.do("GET", path, "", ""); resp.StatusCode != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

// TestHosts asks by names that anybody could have made lead to the gateway.
func TestHosts(t *testing.T) {
	open := newHarness(t, func(c *Config) { c.AllowedOrigins = []string{"http://wall.example.com:8080"} })
	closed := newHarness(t, withAuth(t))
	token := "Bearer " + mint(t, viewer.Grant{Cameras: []string{"*"}})
	for host, ok := range map[string]bool{
		"rebound.example.com": false, "rebound.example.com:80": false, "": false, "localhost": true, "app.localhost:8080": true,
		"192.168.1.7:8080": true, "[2001:db8::7]:8080": true, "[::1]": true, "wall.example.com": true, "WALL.example.com:8080": true,
		"localhost.example.com": false, "192.168.1.7.example.com": false,
	} {
		// Whatever address the request came to.
		for _, local := range []string{"127.0.0.1:8080", "192.168.1.7:8080"} {
			addr, err := net.ResolveTCPAddr("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			r := (&http.Request{Host: host, Header: http.Header{}, URL: &url.URL{Path: "/v1/cameras"}}).WithContext(
				context.WithValue(t.Context(), http.LocalAddrContextKey, addr))
			err = open.gateway.checkHost(r)
			if (err == nil) != ok {
				t.Errorf("%q at %s: %v", host, local, err)
			}
			if err != nil && host != "" && !strings.Contains(err.Error(), "--allowed-origin http://"+hostOf(host)) {
				t.Errorf("%q: the error does not say what to do: %v", host, err)
			}
		}
		if resp, body := closed.do("GET", "/v1/cameras", "", "", "Host", host, "Authorization", token); resp.StatusCode != http.StatusOK {
			t.Errorf("%q with a token: %d %s", host, resp.StatusCode, body)
		}
	}
	for path, status := range map[string]int{"/v1/cameras": 403, "/stats": 403, "/healthz": 200} {
		if resp, body := open.do("GET", path, "", "", "Host", "rebound.example.com"); resp.StatusCode != status {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

func TestAssets(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.Assets = fstest.MapFS{
			"index.html":              {Data: []byte("<!doctype html>index")},
			"stats.html":              {Data: []byte("<!doctype html>stats")},
			"player.js":               {Data: []byte("export {}")},
			"assets/wall-Ab12Cd34.js": {Data: []byte("1")},
			"favicon.svg":             {Data: []byte("<svg/>")},
		}
	})
	for _, test := range []struct{ path, accept, contentType, cache, body string }{
		{"/", "text/html", "text/html; charset=utf-8", "no-cache", "<!doctype html>index"},
		{"/player.js", "", "text/javascript; charset=utf-8", "no-cache", "export {}"},
		{"/assets/wall-Ab12Cd34.js", "", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable", "1"},
		{"/favicon.svg", "", "image/svg+xml", "no-cache", "<svg/>"},
		{"/stats", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8", "no-cache", "<!doctype html>stats"},
		{"/stats", "*/*", "application/json", "no-store", `{"cameras":[],"next_page_token":""}`},
		{"/stats", "application/json, text/html;q=0.5", "application/json", "no-store", `{"cameras":[],"next_page_token":""}`},
	} {
		resp, body := h.do("GET", test.path, "", "", "Accept", test.accept, "Origin", h.http.URL)
		hd := resp.Header
		if resp.StatusCode != http.StatusOK || body != test.body || hd.Get("Content-Type") != test.contentType || hd.Get("Cache-Control") != test.cache || hd.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s for %q: %d %v %s", test.path, test.accept, resp.StatusCode, hd, body)
		}
		if strings.HasPrefix(test.contentType, "text/html") && !strings.Contains(hd.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: no policy", test.path)
		}
		if etag := hd.Get("ETag"); etag != "" {
			if resp, _ := h.do("GET", test.path, "", "", "Accept", test.accept, "If-None-Match", etag); resp.StatusCode != http.StatusNotModified {
				t.Errorf("%s: with its ETag: %d", test.path, resp.StatusCode)
			}
		}
	}
	// Pages of others embed the player.
	if resp, _ := h.do("GET", "/player.js", "", "", "Origin", "https://other.example.com"); resp.StatusCode != http.StatusOK || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("player for another origin: %d %v", resp.StatusCode, resp.Header)
	}
	for _, path := range []string{"/nothing", "/assets/", "/v1/nothing"} {
		resp, body := h.do("GET", path, "", "")
		h.wantProblem(resp, body, http.StatusNotFound, "path_not_found")
	}
	resp, body := h.do("POST", "/", "", "")
	h.wantProblem(resp, body, http.StatusMethodNotAllowed, "method_not_allowed")
}

func TestRemote(t *testing.T) {
	g := &Gateway{admission: admission{proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	for _, test := range []struct {
		addr      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:5", nil, "192.0.2.1"},
		{"192.0.2.1:5", []string{"198.51.100.9"}, "192.0.2.1"}, // not a proxy: may say anything
		{"10.1.2.3:5", []string{"198.51.100.9"}, "198.51.100.9"},
		{"10.1.2.3:5", []string{"203.0.113.1, 198.51.100.9, 10.9.9.9"}, "198.51.100.9"},
		{"10.1.2.3:5", []string{"203.0.113.1", "198.51.100.9"}, "198.51.100.9"},
		{"10.1.2.3:5", []string{"garbage"}, "10.1.2.3"},
		{"10.1.2.3:5", nil, "10.1.2.3"},
		{"[::ffff:192.0.2.1]:5", nil, "192.0.2.1"},
		{"[fe80::1%eth0]:5", nil, "fe80::1"},
	} {
		r := &http.Request{RemoteAddr: test.addr, Header: http.Header{"X-Forwarded-For": test.forwarded}}
		if got := g.remote(r); got != test.want {
			t.Errorf("%s %v: got %s, want %s", test.addr, test.forwarded, got, test.want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	dial := func(string) (*grpc.ClientConn, error) { return nil, nil }
	for name, cfg := range map[string]Config{
		"nothing":     {},
		"origin":      {ControlPlane: unreachable{}, DialNode: dial, AllowedOrigins: []string{"example.com"}},
		"origin path": {ControlPlane: unreachable{}, DialNode: dial, AllowedOrigins: []string{"https://example.com/x"}},
		"ice":         {ControlPlane: unreachable{}, DialNode: dial, ICE: ICE{Servers: []ICEServer{{URLs: []string{"http://x"}}}}},
		"turn":        {ControlPlane: unreachable{}, DialNode: dial, ICE: ICE{Servers: []ICEServer{{URLs: []string{"turn:x"}}}}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestTURN checks credentials against values computed by
// printf '1700003600:anna' | openssl dgst -sha1 -hmac north -binary | base64.
func TestTURN(t *testing.T) {
	ice := ICE{
		Servers:    []ICEServer{{URLs: []string{"turn:t:3478"}}, {URLs: []string{"turn:fixed"}, Username: "u", Credential: "c"}, {URLs: []string{"stun:s"}}},
		TURNSecret: []byte("north"), TURNLifetime: time.Hour,
	}
	got := ice.servers("anna", time.Unix(1_700_000_000, 0))
	if got[0].Username != "1700003600:anna" || got[0].Credential != turnCredential {
		t.Errorf("made %+v", got[0])
	}
	if got[1].Username != "u" || got[1].Credential != "c" || got[2].Username != "" {
		t.Errorf("static %+v", got[1:])
	}
	if ice.Servers[0].Username != "" {
		t.Error("the configuration was changed")
	}
	if u := ice.servers("a:b\"c", time.Unix(0, 0))[0].Username; u != "3600:a_b_c" {
		t.Errorf("username %q", u)
	}
}

const turnCredential = "+MLxLOEoYnWwCOD+2dzOXWFtASg="
