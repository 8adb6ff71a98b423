// Package prometheus_test checks the rules in this directory and the dashboard
// in ../grafana: that they ask for metrics that docs/metrics.md has, which
// another test keeps as what is exported, and say what to do.
package prometheus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	rulesFile     = "fanlight.rules.yaml"
	rulesTests    = "fanlight.rules.test.yaml"
	dashboardFile = "../grafana/fanlight.json"
	metricsDoc    = "../../docs/metrics.md"
	operationsDoc = "../../docs/operations.md"
)

type rule struct {
	Record      string            `yaml:"record"`
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	data := read(t, rulesFile)
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	var out []rule
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) < 20 {
		t.Fatalf("%d rules", len(out))
	}
	return out
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// metric is a row of docs/metrics.md.
type metric struct {
	kind   string
	labels []string
}

var (
	rows   = regexp.MustCompile("(?m)^\\| `([a-z0-9_*]+)` \\| (counter|gauge|histogram|–) \\|([^|]*)\\|")
	quoted = regexp.MustCompile("`([^`]+)`")
)

func documented(t *testing.T) map[string]metric {
	t.Helper()
	out := map[string]metric{}
	for _, m := range rows.FindAllStringSubmatch(string(read(t, metricsDoc)), -1) {
		d := metric{kind: m[2]}
		for _, l := range quoted.FindAllStringSubmatch(m[3], -1) {
			d.labels = append(d.labels, l[1])
		}
		out[m[1]] = d
	}
	if len(out) < 80 {
		t.Fatalf("%d metrics are documented", len(out))
	}
	return out
}

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct{ H, W, X, Y int }
	Targets []struct {
		RefID string `json:"refId"`
		Expr  string `json:"expr"`
	} `json:"targets"`
}

type dashboard struct {
	Title         string  `json:"title"`
	UID           string  `json:"uid"`
	SchemaVersion int     `json:"schemaVersion"`
	Panels        []panel `json:"panels"`
	Annotations   struct {
		List []struct {
			Expr string `json:"expr"`
		} `json:"list"`
	} `json:"annotations"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Type       string `json:"type"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal(read(t, dashboardFile), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// queries returns every query of the dashboard as PromQL, by where it is.
func (d dashboard) queries() map[string]string {
	out := map[string]string{}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			out[fmt.Sprintf("panel %q, %s", p.Title, q.RefID)] = q.Expr
		}
	}
	for i, a := range d.Annotations.List {
		out[fmt.Sprintf("annotation %d", i)] = a.Expr
	}
	values := regexp.MustCompile(`^label_values\((.+), \w+\)$`)
	for _, v := range d.Templating.List {
		if m := values.FindStringSubmatch(v.Definition); m != nil {
			out["variable "+v.Name] = m[1]
		}
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$node", ".*", "$camera", ".*")
	for k, q := range out {
		out[k] = variables.Replace(q)
	}
	return out
}

var (
	names    = regexp.MustCompile(`\b((?:fanlight|etcd|grpc|process|go|promhttp)_[a-z0-9_]+)\b(?:\{([^}]*)\})?`)
	recorded = regexp.MustCompile(`\b([a-z]+:[a-z0-9_]+:[a-z0-9_]+)\b`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\([^)]*\)`)
	matchers = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*["']`)
)

// faults looks for metrics and labels that there are not.
func faults(query string, doc map[string]metric, records []string) (out []string) {
	found, whole := 0, query
	for _, m := range recorded.FindAllStringSubmatch(query, -1) {
		found++
		if !slices.Contains(records, m[1]) {
			out = append(out, "nothing records "+m[1])
		}
	}
	query = grouping.ReplaceAllString(recorded.ReplaceAllString(query, ""), "")
	for _, m := range names.FindAllStringSubmatch(query, -1) {
		found++
		name := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && doc[base].kind == "histogram" {
				name = base
			}
		}
		d, ok := doc[name]
		if prefix, _, _ := strings.Cut(name, "_"); !ok && doc[prefix+"_*"].kind != "" {
			continue
		}
		if !ok {
			out = append(out, "there is no metric "+m[1])
			continue
		}
		if d.kind == "histogram" && name == m[1] {
			out = append(out, name+" is a histogram, which has _bucket, _sum and _count")
		}
		for _, l := range matchers.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(append([]string{"job", "instance", "le"}, d.labels...), l[1]) {
				out = append(out, name+" has no label "+l[1])
			}
		}
	}
	if found == 0 && !strings.HasPrefix(whole, "up{") && !strings.HasPrefix(whole, "count(ALERTS") {
		out = append(out, "asks for no metric: "+whole)
	}
	return out
}

func records(rules []rule) []string {
	var out []string
	for _, r := range rules {
		if r.Record != "" {
			out = append(out, r.Record)
		}
	}
	return out
}

func TestQueriesAskForWhatThereIs(t *testing.T) {
	doc, rules := documented(t), readRules(t)
	check := func(where, query string) {
		for _, f := range faults(query, doc, records(rules)) {
			t.Errorf("%s: %s", where, f)
		}
	}
	for _, r := range rules {
		check("rule "+r.Alert+r.Record, r.Expr)
		for _, a := range r.Annotations {
			for _, m := range names.FindAllString(a, -1) {
				check("annotation of "+r.Alert, m)
			}
		}
	}
	for where, q := range readDashboard(t).queries() {
		check(where, q)
	}
}

// TestFaults shows that the check finds what it is there to find.
func TestFaults(t *testing.T) {
	doc := map[string]metric{"fanlight_a_total": {"counter", []string{"node"}}, "fanlight_b_seconds": {"histogram", nil}, "go_*": {"–", nil}}
	for query, faulty := range map[string]bool{
		`rate(fanlight_a_total{node="x",job=~"y"}[5m])`: false, `fanlight_b_seconds_bucket{le="1"}`: false, `go_goroutines`: false, `a:b:c > 1`: false,
		`fanlight_c_total`: true, `fanlight_a_total{camera="x"}`: true, `fanlight_b_seconds`: true, `a:b:d`: true, `vector(1)`: true,
	} {
		if got := faults(query, doc, []string{"a:b:c"}); len(got) > 0 != faulty {
			t.Errorf("%s: the faults are %q, want any: %v", query, got, faulty)
		}
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	tests := string(read(t, rulesTests))
	sections := anchors(t)
	seen := map[string]bool{}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Fanlight") {
			t.Errorf("%s: twice, or not named as Fanlight's", r.Alert)
		}
		seen[r.Alert] = true
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || len(r.Annotations["description"]) < 40 {
			t.Errorf("%s: says too little: %v", r.Alert, r.Annotations)
		}
		section, ok := strings.CutPrefix(r.Annotations["runbook"], "docs/operations.md#")
		if !ok || sections != nil && !sections[section] {
			t.Errorf("%s: the runbook %q is no section", r.Alert, r.Annotations["runbook"])
		}
		if !strings.Contains(tests, `alertname="`+r.Alert+`"`) {
			t.Errorf("%s: %s has no case in which it fires", r.Alert, rulesTests)
		}
	}
}

// anchors returns the sections of docs/operations.md, as they are linked to; nil:
// there is none yet.
func anchors(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile(operationsDoc)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	drop := regexp.MustCompile(`[^a-z0-9 _-]`)
	out := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(data), -1) {
		out[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return out
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 30 {
		t.Errorf("title %q, uid %q, schema %d", d.Title, d.UID, d.SchemaVersion)
	}
	variables := map[string]bool{}
	for _, v := range d.Templating.List {
		variables[v.Name] = true
	}
	used := regexp.MustCompile(`\$\{?([a-z_]+)`)
	for _, m := range used.FindAllStringSubmatch(string(read(t, dashboardFile)), -1) {
		if !variables[m[1]] && !strings.HasPrefix(m[1], "__") {
			t.Errorf("there is no variable %s", m[1])
		}
	}
	ids, cells := map[int]string{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] != "" || p.Title == "" {
			t.Errorf("panel %q has the id %d, as %q", p.Title, p.ID, ids[p.ID])
		}
		ids[p.ID] = p.Title
		if !slices.Contains([]string{"row", "stat", "timeseries", "table"}, p.Type) || (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %q is a %q with %d queries", p.Title, p.Type, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.RefID == "" || refs[q.RefID] || q.Expr == "" {
				t.Errorf("panel %q: query %q is empty or twice", p.Title, q.RefID)
			}
			refs[q.RefID] = true
		}
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("panel %q is at %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if cells[[2]int{x, y}] != "" {
					t.Fatalf("panel %q covers %q", p.Title, cells[[2]int{x, y}])
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
}

// TestDashboardQueriesParse has promtool read the dashboard's queries, as rules.
func TestDashboardQueriesParse(t *testing.T) {
	promtool := os.Getenv("PROMTOOL")
	if promtool == "" {
		t.Skip("PROMTOOL is not set; internal/tools/promtool.sh sets it")
	}
	queries := readDashboard(t).queries()
	type record struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var list []record
	for i, where := range slices.Sorted(maps.Keys(queries)) {
		list = append(list, record{fmt.Sprintf("dashboard:query:%d", i), queries[where]})
	}
	check := func(list []record) (string, error) {
		data, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": list}}})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "dashboard.yaml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput()
		return string(out), err
	}
	if out, err := check(list); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := check([]record{{"a:b:c", "sum by (x (y)"}}); err == nil {
		t.Errorf("promtool accepts what is no query:\n%s", out)
	}
}
