//go:build e2e

package e2e

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

//go:embed testdata/firefox.js
var firefoxScript string

// firefoxPrefs make a profile one that asks nobody anything. The plugin that
// Firefox would fetch to decode H264 is off: it comes at its own time, if at all.
const firefoxPrefs = `
user_pref("media.autoplay.default", 0);
user_pref("media.gmp-manager.updateEnabled", false);
user_pref("media.gmp-manager.url", "");
user_pref("media.gmp-gmpopenh264.enabled", false);
user_pref("app.normandy.enabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.safebrowsing.downloads.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("services.settings.server", "data:,");
user_pref("toolkit.telemetry.enabled", false);
`

// compatReport has a page with testdata/compat.js report what it returns.
const compatReport = `
const config = JSON.parse(document.getElementById("config").textContent);
const send = (result) => fetch("/report", { method: "POST", body: JSON.stringify({ step: "compat", version: navigator.userAgent, ...result }) });
window.fanlightCompat(config).then((compat) => send({ compat }), (error) => send({ error: String(error) }));
`

// site serves a page that plays a camera by itself, for a browser that nobody
// drives, and takes what the page reports.
type site struct {
	*httptest.Server
	camera  chan string // one slot: what the next page is to play
	reports chan report
}

// report is how one attempt of the page to play went; see testdata/firefox.js.
type report struct {
	Step     string   `json:"step"`
	Version  string   `json:"version"` // user agent
	Error    string   `json:"error"`
	Received received `json:"received"`
	Compat   []cameTo `json:"compat"` // of the page that plays many cameras
}

// newSite starts a site, whose address is that of the pages.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{camera: make(chan string, 1), reports: make(chan report, 10)}
	mux := http.NewServeMux()
	for path, script := range map[string]string{"/{$}": firefoxScript, "/compat": compatScript + compatReport} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			var camera string
			select {
			case camera = <-s.camera:
			case <-r.Context().Done():
				return
			}
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = fmt.Fprintf(w, `<!doctype html><title>A player by others</title><body>
<script type="application/json" id="config">%s</script><script>%s</script><script>%s</script>`, camera, whepScript, script)
		})
	}
	mux.HandleFunc("POST /report", func(_ http.ResponseWriter, r *http.Request) {
		var got report
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			got.Error = err.Error()
		}
		s.reports <- got
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// next waits for the page's next report.
func (s *site) next(t *testing.T, step string) report {
	t.Helper()
	select {
	case got := <-s.reports:
		if got.Step != step {
			t.Fatalf("the page reports %+v, want %q", got, step)
		}
		return got
	case <-time.After(startPatience):
		t.Fatalf("the page reported nothing of %q", step)
	}
	return report{}
}

// startFirefox runs Firefox, which is not driven, on a page of a site.
func startFirefox(t *testing.T, site *site, path string) *process {
	t.Helper()
	profile := t.TempDir()
	if err := os.WriteFile(filepath.Join(profile, "user.js"), []byte(firefoxPrefs), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("firefox-esr", "--headless", "--new-instance", "--profile", profile, site.URL+path)
	cmd.Env = append(os.Environ(), "HOME="+profile, "MOZ_CRASHREPORTER_DISABLE=1")
	return start(t, "firefox", cmd)
}

// firefoxPlays plays in Firefox, which is not driven: the page does it all.
func firefoxPlays(t *testing.T, s *system, site *site) {
	site.camera <- marshal(t, map[string]any{"endpoint": s.whep("lobby"), "enough": enough, "patience": picturePatience.Milliseconds()})
	p := startFirefox(t, site, "/")
	defer p.kill(t)

	// A camera of which it can take no picture: the reason names what is sent
	// and what could be taken.
	got := site.next(t, "as it is")
	t.Logf("Firefox's own offer: %s", got.Error)
	for _, want := range []string{"codec_unsupported", "camera sends H264", "browser offers VP8, VP9"} {
		if !strings.Contains(got.Error, want) {
			t.Errorf("Firefox's own offer was answered by %q, want %q in it", got.Error, want)
		}
	}
	for _, protocol := range []string{"udp", "tcp"} {
		got := site.next(t, protocol)
		r := got.Received
		client{"Firefox", regexp.MustCompile(`Firefox/\S+`).FindString(got.Version), r.Protocol, r.Cipher, r.String()}.print(t)
		if got.Error != "" || !strings.HasSuffix(r.Cipher, gcm) || r.State != "connected" || r.Protocol != protocol || r.Audio.Codec != mimePCMA || r.Audio.Samples <= r.Audio.Concealed || r.Video.Lost > 0 || r.Audio.Lost > 0 {
			t.Errorf("over %s: %s; plays %v", protocol, got.Error, r)
		}
	}
}
