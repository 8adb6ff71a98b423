package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/certs"
	"fanlight/internal/metrics"
	"fanlight/internal/rpc"
	"fanlight/internal/viewertest"
	"fanlight/medianode"
	"fanlight/signaling"
)

var update = flag.Bool("update", false, "write the tables of docs/metrics.md")

const metricsDoc = "../../docs/metrics.md"

// definitions returns the metrics of every component, in the order of the
// document.
func definitions(t *testing.T) map[string][]metrics.Definition {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { quietClose(st) })
	plane, err := controlplane.New(controlplane.Config{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := (&rpc.Dialer{}).Dial("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { quietClose(cc) })
	node, err := medianode.New(medianode.Config{Node: "n", ControlPlane: cc, SessionAddress: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := signaling.New(signaling.Config{ControlPlane: cc, DialNode: func(addr string) (*grpc.ClientConn, error) { return (&rpc.Dialer{}).Dial(addr) }})
	if err != nil {
		t.Fatal(err)
	}
	process := append([]metrics.Definition{metrics.BuildInfo()}, certificates(slog.New(slog.DiscardHandler), nil).Definitions()...)
	return map[string][]metrics.Definition{
		"process": process, "controlplane": plane.Metrics().Definitions(), "medianode": node.Metrics().Definitions(), "signaling": gateway.Metrics().Definitions(),
	}
}

// table writes definitions as the document has them.
func table(defs []metrics.Definition) string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, d := range defs {
		labels := "–"
		if len(d.Labels) > 0 {
			labels = "`" + strings.Join(d.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Kind, labels, d.Help)
	}
	return b.String()
}

// TestMetricsAreDocumented keeps the tables of docs/metrics.md as what the
// components define. With -update it writes them.
func TestMetricsAreDocumented(t *testing.T) {
	data, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, defs := range definitions(t) {
		begin, end := "<!-- metrics of "+name+" -->\n", "<!-- end -->"
		before, rest, ok := strings.Cut(text, begin)
		have, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no table of %s", metricsDoc, name)
		}
		want := table(defs)
		if have != want {
			if !*update {
				t.Errorf("the table of %s is\n%s\nwant\n%s\n(go test -run %s -update ./cmd/fanlight)", name, have, want, t.Name())
			}
			text = before + begin + want + end + after
		}
	}
	if *update {
		if err := os.WriteFile(metricsDoc, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMetricDefinitions keeps to what Prometheus' users expect of names.
func TestMetricDefinitions(t *testing.T) {
	seen := map[string]bool{}
	name := regexp.MustCompile(`^fanlight_[a-z0-9]+(_[a-z0-9]+)*$`)
	for component, defs := range definitions(t) {
		for _, d := range defs {
			switch {
			case seen[d.Name]:
				t.Errorf("%s: %s is there twice", component, d.Name)
			case !name.MatchString(d.Name):
				t.Errorf("%s: %s is no name", component, d.Name)
			case (d.Kind == metrics.KindCounter) != strings.HasSuffix(d.Name, "_total"):
				t.Errorf("%s: %s is a %s", component, d.Name, d.Kind)
			case d.Kind == metrics.KindHistogram && !strings.HasSuffix(d.Name, "_seconds"):
				t.Errorf("%s: the histogram %s has no unit", component, d.Name)
			case !strings.HasSuffix(d.Help, "."):
				t.Errorf("%s: the meaning of %s is no sentence: %q", component, d.Name, d.Help)
			}
			for _, l := range d.Labels {
				if slices.Contains([]string{"session", "viewer", "subject", "token", "url", "remote", "remote_address", "address"}, l) {
					t.Errorf("%s: %s has a series for each %s", component, d.Name, l)
				}
			}
			seen[d.Name] = true
		}
	}
}

// running is a process of the test's own.
type running struct {
	out, err lockedBuffer
	end      context.CancelFunc
	done     chan int
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex // guards the rest
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// runs runs a command line until the end of the test.
func runs(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{done: make(chan int, 1)}
	var ctx context.Context
	ctx, r.end = context.WithCancel(context.Background())
	root := newRoot(&app{stdin: strings.NewReader(""), stdout: &r.out, stderr: &r.err})
	root.SetArgs(args)
	go func() {
		code := exitOK
		if err := root.ExecuteContext(ctx); err != nil {
			fmt.Fprintln(&r.err, err)
			code = exitFailure
		}
		r.done <- code
	}()
	t.Cleanup(func() {
		r.end()
		select {
		case code := <-r.done:
			if code != exitOK {
				t.Errorf("fanlight %s ended with %d", strings.Join(args, " "), code)
			}
		case <-time.After(patience):
			t.Errorf("fanlight %s does not end", strings.Join(args, " "))
		}
		if t.Failed() {
			t.Logf("fanlight %s:\n%s", strings.Join(args, " "), r.err.String())
		}
	})
	return r
}

// await waits for a pattern and returns its first group.
func await(t *testing.T, b *lockedBuffer, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if m := re.FindStringSubmatch(b.String()); m != nil {
			return m[1]
		}
	}
	t.Fatalf("%s did not come:\n%s", pattern, b.String())
	return ""
}

// scrape reads metrics as Prometheus does.
func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %d %v %s", url, resp.StatusCode, err, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return families
}

// value returns the value of the series with these labels, given as pairs.
func value(f *dto.MetricFamily, labels ...string) (float64, bool) {
	for _, m := range f.GetMetric() {
		has := 0
		for _, l := range m.GetLabel() {
			for i := 0; i+1 < len(labels); i += 2 {
				if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
					has++
				}
			}
		}
		if has == len(labels)/2 {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
		}
	}
	return 0, false
}

// awaitValue scrapes until a series has a value.
func awaitValue(t *testing.T, url string, want float64, name string, labels ...string) map[string]*dto.MetricFamily {
	t.Helper()
	var got float64
	var ok bool
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		families := scrape(t, url)
		if got, ok = value(families[name], labels...); ok && got == want {
			return families
		}
	}
	t.Fatalf("%s %v is %v (there: %v), want %v", name, labels, got, ok, want)
	return nil
}

// series returns all series but those of the runtime, as text.
func series(families map[string]*dto.MetricFamily) []string {
	var out []string
	for name, f := range families {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		for _, m := range f.GetMetric() {
			s := name
			for _, l := range m.GetLabel() {
				s += fmt.Sprintf(" %s=%q", l.GetName(), l.GetValue())
			}
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// documented returns the types of the metrics in docs/metrics.md, by name; a
// name may end in "*".
func documented(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_*]+)` \\| (counter|gauge|histogram|–) \\|").FindAllStringSubmatch(string(data), -1) {
		out[m[1]] = m[2]
	}
	return out
}

// TestMetricsOfARunningFleet scrapes a process that has everything, under
// viewers: what it exports is what the document says, and more viewers make no
// more series.
func TestMetricsOfARunningFleet(t *testing.T) {
	r := runs(t, "up", "--demo", "2", "--data", filepath.Join(t.TempDir(), "data"),
		"--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
		"--max-cpu", "100") // the tests' own load must refuse nobody
	page := await(t, &r.out, `page (http://\S+)/`)
	url := await(t, &r.err, `msg=metrics address=(http://\S+)`)
	awaitValue(t, url, 2, "fanlight_controlplane_cameras", "state", "live")
	awaitValue(t, url, 1, "fanlight_camera_up", "camera", "demo-0", "node", "local")

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var viewers []*viewertest.WHEP
	t.Cleanup(func() {
		for _, v := range viewers {
			_ = v.Close()
		}
	})
	watch := func(n int) map[string]*dto.MetricFamily {
		t.Helper()
		for len(viewers) < n {
			v, err := viewertest.PlayWHEP(t.Context(), client, page+"/v1/cameras/demo-0/whep", "", viewertest.Config{})
			if err != nil {
				t.Fatal(err)
			}
			viewers = append(viewers, v)
			if err := v.WaitFrames(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		return awaitValue(t, url, float64(n), "fanlight_camera_viewers", "camera", "demo-0")
	}
	one := watch(1)
	five := watch(5)
	if d := cmp.Diff(series(one), series(five)); d != "" {
		t.Errorf("five viewers have other series than one (-one +five):\n%s", d)
	}
	for _, want := range []struct {
		value  float64
		name   string
		labels []string
	}{
		{5, "fanlight_node_sessions", []string{"node", "local"}},
		{5, "fanlight_node_session_opens_total", []string{"result", "ok"}},
		{5, "fanlight_gateway_sessions", []string{"via", "whep"}},
		{5, "fanlight_gateway_watches_total", []string{"via", "whep", "result", "answered"}},
		{5, "fanlight_gateway_answer_duration_seconds", []string{"via", "whep"}},
		{5, "fanlight_gateway_http_requests_total", []string{"path", "/v1/cameras/{camera}/whep", "method", "POST", "code", "201"}},
		{1, "fanlight_gateway_control_connected", nil},
		{1, "fanlight_controlplane_leader", nil},
		{1, "fanlight_controlplane_store_connected", nil},
		{1, "fanlight_controlplane_agents", nil},
		{2, "fanlight_controlplane_node_cameras", []string{"node", "local"}},
		{2, "fanlight_controlplane_assignments_total", []string{"cause", "new"}},
		{1, "fanlight_node_control_connected", []string{"node", "local"}},
		{1, "etcd_server_has_leader", nil},
		{5, "grpc_server_started_total", []string{"grpc_method", "OpenSession", "grpc_type", "bidi_stream"}},
	} {
		if got, ok := value(five[want.name], want.labels...); !ok || got != want.value {
			t.Errorf("%s %v is %v (there: %v), want %v", want.name, want.labels, got, ok, want.value)
		}
	}
	for _, m := range five["grpc_server_handling_seconds"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "grpc_type" && l.GetValue() != "unary" {
				t.Errorf("the histogram has a stream: %v", m)
			}
		}
	}
	if egress, _ := value(five["fanlight_node_egress_packets_total"]); egress < 5 {
		t.Errorf("%v packets to viewers", egress)
	}
	for _, v := range viewers {
		if err := v.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	after := awaitValue(t, url, 0, "fanlight_node_sessions", "node", "local")
	if egress, was := after["fanlight_node_egress_packets_total"], five["fanlight_node_egress_packets_total"]; egress.GetMetric()[0].GetCounter().GetValue() < was.GetMetric()[0].GetCounter().GetValue() {
		t.Errorf("packets to viewers were %v, and are %v when they have left", was, egress)
	}
	checkDocumented(t, after)
}

// checkDocumented looks for what is scraped and not in the document, and for
// what is there as another kind.
func checkDocumented(t *testing.T, families map[string]*dto.MetricFamily) {
	t.Helper()
	doc := documented(t)
	for _, name := range slices.Sorted(maps.Keys(families)) {
		kind, ok := doc[name]
		if prefix, _, _ := strings.Cut(name, "_"); !ok && doc[prefix+"_*"] != "" {
			continue
		}
		if got := strings.ToLower(families[name].GetType().String()); !ok || kind != got {
			t.Errorf("%s is a %s, and in %s %q (there: %v)", name, got, metricsDoc, kind, ok)
		}
	}
}

// TestMetricsListener tries the rules about where metrics are served.
func TestMetricsListener(t *testing.T) {
	node := []string{"medianode", "--node", "n", "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--control-plane", "127.0.0.1:1"}
	taken, err := net.Listen("tcp", nodeMetrics)
	if err == nil { // else another process has it, which is as good
		t.Cleanup(func() { quietClose(taken) })
	}
	t.Run("default taken", func(t *testing.T) {
		r := runs(t, node...)
		url := await(t, &r.err, `msg=metrics address=(http://127\.0\.0\.1:\S+/metrics)`)
		if strings.Contains(url, nodeMetrics) {
			t.Errorf("metrics at %s, which is taken", url)
		}
		await(t, &r.err, `level=WARN (msg="the port of the metrics is in use)`)
		checkDocumented(t, scrape(t, url))
		base := strings.TrimSuffix(url, "/metrics")
		for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/other": 404} {
			if got := status(t, base+path, ""); got != want {
				t.Errorf("GET %s: %d, want %d", path, got, want)
			}
		}
		if got := status(t, url, "pages.example"); got != http.StatusForbidden {
			t.Errorf("asked under a foreign name: %d", got)
		}
	})
	t.Run("given and taken", func(t *testing.T) {
		if code, text := ends(append(node, "--metrics", nodeMetrics)); code != exitFailure || !strings.Contains(text, "in use") {
			t.Errorf("%d %s", code, text)
		}
	})
	t.Run("off", func(t *testing.T) {
		r := runs(t, append(node, "--metrics=")...)
		await(t, &r.err, `(media node started)`)
		if strings.Contains(r.err.String(), "msg=metrics") {
			t.Error("there are metrics")
		}
	})
	t.Run("other machines", func(t *testing.T) {
		for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
			if code, text := ends(append(node, "--metrics", addr)); code != exitUsage || !strings.Contains(text, "--metrics-open") {
				t.Errorf("%s: %d %s", addr, code, text)
			}
		}
		if code, text := ends(append(node, "--metrics", "nonsense")); code != exitUsage {
			t.Errorf("%d %s", code, text)
		}
	})
	t.Run("open to other machines", func(t *testing.T) {
		r := runs(t, append(node, "--metrics", "0.0.0.0:0", "--metrics-open")...)
		_, port, err := net.SplitHostPort(await(t, &r.err, `msg=metrics address=http://(\S+)/metrics`))
		if err != nil {
			t.Fatal(err)
		}
		base := "http://127.0.0.1:" + port
		scrape(t, base+"/metrics")
		if got := status(t, base+"/debug/pprof/", ""); got != http.StatusNotFound {
			t.Errorf("profiles: %d", got)
		}
	})
}

// TestMetricsForOtherMachines serves them by TLS to what has a certificate of
// the fleet's authority, which is exported itself.
func TestMetricsForOtherMachines(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"init"}, {"issue", "--role", "node", "--name", "n"}, {"issue", "--role", "monitor", "--name", "prometheus"},
	} {
		if code, text := ends(append([]string{"certs", args[0], "--dir", dir}, args[1:]...)); code != exitOK {
			t.Fatalf("certs %v: %s", args, text)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	ca := file(certs.CAFile)
	r := runs(t, "medianode", "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--control-plane", "127.0.0.1:1",
		"--tls-cert", file("node-n.pem"), "--tls-key", file("node-n-key.pem"), "--tls-ca", ca, "--metrics", "0.0.0.0:0")
	_, port, err := net.SplitHostPort(await(t, &r.err, `msg=metrics address=https://(\S+)/metrics profiles=false`))
	if err != nil {
		t.Fatal(err)
	}
	get := func(files certs.Files) (string, error) {
		cfg, err := files.ClientTLS(nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		resp, err := client.Get("https://127.0.0.1:" + port + "/metrics")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	text, err := get(certs.Files{CA: ca, Cert: file("monitor-prometheus.pem"), Key: file("monitor-prometheus-key.pem")})
	if err != nil || !strings.Contains(text, `fanlight_certificate_expiry_timestamp_seconds{certificate="tls"} `) {
		t.Errorf("with a certificate: %v %.200s", err, text)
	}
	if text, err := get(certs.Files{CA: ca}); err == nil {
		t.Errorf("without a certificate: %.200s", text)
	}
}

// status returns the status of a GET; host is what the Host header has, if it
// is not empty.
func status(t *testing.T, url, host string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// ends runs a command line that ends by itself.
func ends(args []string) (int, string) {
	var out lockedBuffer
	return run(args, &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out}), out.String()
}
