// Package fanlight_test is the law of the tree: which package may import which.
//
// Components (controlplane, medianode, signaling) meet only in proto/, imports
// point only downward, and every giant dependency has one owner whose package
// border its types do not cross. The test parses the imports itself: the go
// command would answer from its cache.
package fanlight_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "fanlight"

// layer says what the package at a path, and those below it that have no layer
// of their own, may import of this module. A path ending in "/..." stands for a
// whole subtree.
type layer struct {
	path  string
	may   []string
	tests []string // what test files may import besides
}

// testParts are the parts that any component's tests may be built from. None
// of them reaches another component.
var testParts = []string{"internal/simcam", "internal/viewertest", "internal/certs", "internal/service", "internal/rpc"}

var layers = []layer{
	// The nouns and what every process has.
	{path: "internal/fleet"},
	{path: "internal/metrics"},
	{path: "internal/certs", may: []string{"internal/fleet", "internal/rpc"}},
	{path: "internal/rpc", may: []string{"internal/fleet", "proto/..."}, tests: []string{"internal/certs"}},
	{path: "internal/service", may: []string{"internal/fleet", "internal/rpc"}, tests: []string{"internal/certs"}},
	{path: "proto", may: []string{"proto/..."}},

	// Parts of tests and demonstrations.
	{path: "internal/simcam", may: []string{"internal/fleet"}},
	{path: "internal/viewertest", may: []string{"internal/fleet"}, tests: testParts},
	{path: "internal/fleettest", may: []string{"proto/fanlight/control/...", "internal/rpc", "internal/simcam", "internal/viewertest"}},

	// The control plane.
	{path: "controlplane", may: []string{"controlplane/...", "proto/fanlight/control/...", "internal/fleet", "internal/metrics", "internal/rpc", "internal/service"}, tests: testParts},
	{path: "controlplane/placement", may: []string{"internal/fleet"}},
	{path: "controlplane/store", may: []string{"controlplane/store/...", "proto/fanlight/control/...", "proto/fanlight/store/...", "internal/fleet"}, tests: testParts},

	// The media node: source → stream ← session → transport → udp.
	{path: "medianode", may: []string{"medianode/...", "proto/...", "internal/fleet", "internal/metrics", "internal/rpc", "internal/service"}, tests: testParts},
	{path: "medianode/stream", may: []string{"internal/fleet"}},
	{path: "medianode/source", may: []string{"medianode/stream", "medianode/onvif", "internal/fleet"}, tests: append([]string{"medianode/onvif/onviftest"}, testParts...)},
	{path: "medianode/onvif", may: []string{"internal/fleet"}, tests: []string{"medianode/onvif/onviftest"}},
	{path: "medianode/onvif/onviftest"},
	{path: "medianode/session", may: []string{"medianode/stream", "medianode/transport", "medianode/udp", "internal/fleet"}, tests: testParts},
	{path: "medianode/transport", may: []string{"medianode/udp"}, tests: testParts},
	{path: "medianode/udp"},

	// The signaling gateway.
	{path: "signaling", may: []string{"signaling/...", "proto/...", "internal/fleet", "internal/metrics", "internal/rpc", "internal/service"}, tests: testParts},
	{path: "signaling/route", may: []string{"proto/fanlight/control/...", "internal/fleet", "internal/rpc"}, tests: testParts},
	{path: "signaling/web"},

	// What puts them together.
	{path: "cmd", may: []string{"cmd/...", "bench/...", "controlplane/...", "medianode/...", "signaling/...", "proto/...", "internal/..."}},
	{path: "bench/fleet", may: []string{"controlplane/placement", "proto/fanlight/control/...", "internal/..."}},
	{path: "bench/fanout", may: []string{"proto/fanlight/control/...", "internal/fleettest", "internal/rpc", "internal/simcam"}},
	{path: "bench/join", may: []string{"proto/fanlight/control/...", "internal/fleettest", "internal/rpc", "internal/simcam", "internal/viewertest"}},
	{path: "bench/soak", may: []string{"proto/fanlight/control/...", "internal/fleettest", "internal/rpc", "internal/simcam", "internal/viewertest"}},
	{path: "bench/failover", may: []string{"proto/fanlight/control/...", "internal/..."}},
	{path: "deploy/prometheus"},
	{path: "e2e", may: []string{"bench/...", "proto/...", "internal/..."}},
}

// owner says who may import a module of others, and all below it.
type owner struct {
	module string
	by     []string // packages, or subtrees ending in "/..."
	tests  []string // whose test files may besides
}

var owners = []owner{
	// The giants: one owner each, and what plays the other side in tests.
	{module: "go.etcd.io", by: []string{"controlplane/store"}},
	{module: "github.com/bluenviron", by: []string{"medianode/source", "internal/simcam"}},
	{module: "github.com/bluenviron/mediacommon/v2/pkg/codecs", by: []string{"medianode/source", "medianode/stream", "internal/simcam"}},
	// Sessions, and viewers for tests and measurements: bench/fanout's have no peer
	// connection, for they must cost less than what they measure.
	{module: "github.com/pion", by: []string{"medianode/session", "medianode/transport", "internal/viewertest", "bench/fanout"}},
	{module: "github.com/pion/webrtc", by: []string{"internal/viewertest"}},
	{module: "github.com/pion/interceptor", by: []string{"internal/viewertest"}},
	{module: "github.com/pion/rtp", by: []string{"medianode/session", "medianode/stream", "medianode/source", "internal/simcam", "internal/viewertest", "bench/fanout"}, tests: []string{"medianode/..."}},
	{module: "github.com/pion/rtcp", by: []string{"medianode/session", "medianode/source", "internal/simcam", "internal/viewertest", "bench/fanout"}},
	{module: "github.com/gorilla/websocket", by: []string{"signaling", "internal/viewertest"}, tests: []string{"signaling/...", "cmd/...", "e2e"}},
	{module: "github.com/chromedp", by: []string{"e2e"}},
	{module: "github.com/spf13/cobra", by: []string{"cmd/..."}},
	{module: "github.com/spf13/pflag", by: []string{"cmd/...", "internal/service"}},

	{module: "github.com/icholy/digest", by: []string{"medianode/onvif"}}, // HTTP Digest

	// gRPC stays out of the packages that carry media and out of pure ones.
	{module: "google.golang.org/grpc", by: []string{"cmd/...", "controlplane", "medianode", "signaling", "signaling/route", "proto/...", "internal/rpc", "internal/service", "internal/fleettest", "bench/..."}, tests: []string{"e2e"}},
	{module: "google.golang.org/protobuf", by: []string{"cmd/...", "controlplane", "controlplane/store", "medianode", "signaling", "signaling/route", "proto/...", "internal/rpc"}, tests: []string{"e2e"}},
	{module: "google.golang.org/genproto", by: []string{"internal/rpc"}},

	// Small ones.
	{module: "github.com/golang-jwt/jwt", by: []string{"signaling/...", "cmd/..."}},
	{module: "github.com/MicahParks", by: []string{"signaling/..."}},
	{module: "github.com/google/uuid", by: []string{"cmd/...", "controlplane/...", "medianode", "signaling"}},
	{module: "github.com/prometheus", by: []string{"internal/metrics", "internal/rpc"}, tests: []string{"cmd/..."}},
	{module: "github.com/grpc-ecosystem", by: []string{"internal/rpc"}},
	{module: "go.uber.org/zap", by: []string{"controlplane/store"}},
	{module: "gopkg.in/yaml.v3", by: []string{"internal/service", "cmd/..."}, tests: []string{"deploy/prometheus"}},
	{module: "golang.org/x", by: []string{"..."}},

	// Of tests alone.
	{module: "github.com/google/go-cmp", tests: []string{"..."}},
	{module: "go.uber.org/goleak", by: []string{"internal/viewertest"}, tests: []string{"..."}},
	{module: "github.com/florianl/go-nfqueue", tests: []string{"e2e"}}, // networks that lose and delay packets
	{module: "github.com/mdlayher/netlink", tests: []string{"e2e"}},    // its sockets
	{module: "github.com/rogpeppe/go-internal", tests: []string{"cmd/..."}},
}

// source is one Go file's package and imports.
type source struct {
	file    string // relative to the root, with slashes
	imports []string
	blank   []string // those imported for their effects
}

func (s source) pkg() string  { return path.Dir(s.file) }
func (s source) isTest() bool { return strings.HasSuffix(s.file, "_test.go") }

func TestLayering(t *testing.T) {
	sources, err := parse(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 10 {
		t.Fatalf("only %d Go files found: not run at the root?", len(sources))
	}
	for _, v := range check(sources) {
		t.Error(v)
	}
}

// A rule about a package that is not there is a slip of the pen, or left over.
func TestRulesNameWhatExists(t *testing.T) {
	var paths []string
	for _, l := range layers {
		paths = append(append(append(paths, l.path), l.may...), l.tests...)
	}
	for _, o := range owners {
		paths = append(append(paths, o.by...), o.tests...)
	}
	for _, p := range paths {
		dir := strings.TrimSuffix(strings.TrimSuffix(p, "..."), "/")
		if dir == "" {
			continue
		}
		if _, err := os.Stat(filepath.FromSlash(dir)); err != nil {
			t.Errorf("rule about %s: %v", p, err)
		}
	}
}

// TestCheck shows that the checker finds what it is there to find.
func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		file string
		imp  string
		want string // part of the violation; empty: none
	}{
		{"downward", "medianode/reconcile.go", "fanlight/medianode/stream", ""},
		{"proto", "signaling/gateway.go", "fanlight/proto/fanlight/media/v1", ""},
		{"std", "medianode/stream/stream.go", "net/netip", ""},
		{"owner", "medianode/source/dial.go", "github.com/bluenviron/gortsplib/v5", ""},
		{"deep in an owner's module", "internal/viewertest/sdp.go", "github.com/pion/webrtc/v4/pkg/media", ""},
		{"test part", "medianode/node_test.go", "fanlight/internal/simcam", ""},
		{"test part of the packet path", "medianode/source/source_test.go", "fanlight/internal/simcam", ""},
		{"test module in a test", "medianode/udp/udp_test.go", "go.uber.org/goleak", ""},
		{"nested package without a layer of its own", "controlplane/audit/audit.go", "fanlight/internal/fleet", ""},
		{"the longest module rule counts", "medianode/stream/stream.go", "github.com/pion/rtp", ""},

		{"component to component", "signaling/gateway.go", "fanlight/medianode/session", "signaling may not import medianode/session"},
		{"component to component in a test", "signaling/gateway_test.go", "fanlight/controlplane", "signaling may not import controlplane"},
		{"upward", "medianode/stream/stream.go", "fanlight/medianode", "medianode/stream may not import medianode"},
		{"sideways", "medianode/stream/stream.go", "fanlight/medianode/session", "medianode/stream may not import medianode/session"},
		{"fleet imports nothing", "internal/fleet/id.go", "fanlight/internal/rpc", "internal/fleet may not import internal/rpc"},
		{"test part outside a test", "medianode/node.go", "fanlight/internal/simcam", "medianode may not import internal/simcam"},
		{"somebody else's giant", "controlplane/server.go", "go.etcd.io/etcd/client/v3", "controlplane may not import go.etcd.io"},
		{"pion outside session", "medianode/node.go", "github.com/pion/srtp/v3", "medianode may not import github.com/pion"},
		{"peer connections in the node", "medianode/session/session.go", "github.com/pion/webrtc/v4", "medianode/session may not import github.com/pion/webrtc"},
		{"a prefix is not a module", "medianode/stream/stream.go", "github.com/pion/rtpx", "medianode/stream may not import github.com/pion/rtpx"},
		{"gRPC on the packet path", "medianode/session/session.go", "google.golang.org/grpc", "medianode/session may not import google.golang.org/grpc"},
		{"test module outside a test", "medianode/node.go", "github.com/google/go-cmp/cmp", "medianode may not import github.com/google/go-cmp/cmp"},
		{"new module", "medianode/node.go", "example.com/left/pad", "nobody owns example.com/left/pad"},
		{"new package", "helpers/strings.go", "fmt", "helpers has no layer"},
		{"cgo", "medianode/udp/gso.go", "C", "cgo"},
		{"testing outside tests", "medianode/node.go", "testing", "testing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := check([]source{{file: tt.file, imports: []string{tt.imp}}})
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("refused: %v", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("got %q, want one with %q", got, tt.want)
			}
		})
	}
	if got := check([]source{{file: "medianode/node.go", imports: []string{"net/http/pprof"}, blank: []string{"net/http/pprof"}}}); len(got) != 1 {
		t.Errorf("a blank import: got %q, want one violation", got)
	}
}

// TestParse shows that the parser sees every kind of import.
func TestParse(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a/a.go", "package a\nimport (\n\tx \"one\"\n\t. \"two\"\n\t_ \"three\"\n)\n")
	write("a/a_windows.go", "//go:build windows\n\npackage a\nimport \"four\"\n")
	write("a/testdata/b.go", "package b\nimport \"five\"\n")
	write("node_modules/c/c.go", "package c\nimport \"six\"\n")
	write("tools/go.mod", "module other\n")
	write("tools/d.go", "package d\nimport \"seven\"\n")
	sources, err := parse(root)
	if err != nil {
		t.Fatal(err)
	}
	var got, blank []string
	for _, s := range sources {
		got, blank = append(got, s.imports...), append(blank, s.blank...)
	}
	if want := []string{"one", "two", "three", "four"}; !slices.Equal(got, want) {
		t.Errorf("imports %q, want %q", got, want)
	}
	if want := []string{"three"}; !slices.Equal(blank, want) {
		t.Errorf("blank imports %q, want %q", blank, want)
	}
}

// parse reads the imports of every Go file of the module, whatever its build
// constraints.
func parse(root string) ([]source, error) {
	var out []source
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(root, file, d.Name())
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return fmt.Errorf("parse imports: %w", err)
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return fmt.Errorf("parse imports: %w", err)
		}
		s := source{file: filepath.ToSlash(rel)}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("parse imports of %s: %w", file, err)
			}
			s.imports = append(s.imports, imp)
			if spec.Name != nil && spec.Name.Name == "_" {
				s.blank = append(s.blank, imp)
			}
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	return out, nil
}

// skip leaves out directories that the go command leaves out, and other
// modules.
func skip(root, dir, name string) error {
	if dir == root {
		return nil
	}
	if name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// check returns what breaks the rules, a sentence each.
func check(sources []source) []string {
	var out []string
	for _, s := range sources {
		if s.pkg() == "." {
			continue // this test
		}
		l := layerOf(s.pkg())
		if l == nil {
			out = append(out, fmt.Sprintf("%s: package %s has no layer: say in layering_test.go what it may import", s.file, s.pkg()))
			continue
		}
		for _, imp := range s.imports {
			if v := judge(s, *l, imp); v != "" {
				out = append(out, s.file+": "+v)
			}
		}
		for _, imp := range s.blank {
			if imp != "embed" && !strings.HasPrefix(s.file, "proto/") {
				out = append(out, fmt.Sprintf("%s: %s is imported for its effects: nothing happens before Run", s.file, imp))
			}
		}
	}
	return out
}

// judge says what is wrong with one import; empty: nothing.
func judge(s source, l layer, imp string) string {
	switch rel, ours := strings.CutPrefix(imp, module+"/"); {
	case imp == "C":
		return "cgo is not used: the binary must run anywhere"
	case imp == "testing" && !s.isTest() && !strings.HasSuffix(s.pkg(), "test") && s.pkg() != "e2e":
		return "testing is imported outside tests"
	case ours:
		if rel == s.pkg() || slices.ContainsFunc(l.may, covers(rel)) || s.isTest() && slices.ContainsFunc(l.tests, covers(rel)) {
			return ""
		}
		return fmt.Sprintf("%s may not import %s", s.pkg(), rel)
	case !strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
		return "" // the standard library
	}
	o := ownerOf(imp)
	if o == nil {
		return fmt.Sprintf("nobody owns %s: say in layering_test.go who may import it", imp)
	}
	if slices.ContainsFunc(o.by, covers(s.pkg())) || s.isTest() && slices.ContainsFunc(o.tests, covers(s.pkg())) {
		return ""
	}
	return fmt.Sprintf("%s may not import %s, which belongs to %s", s.pkg(), imp, strings.Join(o.by, ", "))
}

// layerOf returns the layer with the longest path that is the package's or
// above it.
func layerOf(pkg string) *layer {
	var best *layer
	for i := range layers {
		if l := &layers[i]; within(l.path, pkg) && (best == nil || len(l.path) > len(best.path)) {
			best = l
		}
	}
	return best
}

// ownerOf returns the rule with the longest module that is the import's or
// above it.
func ownerOf(imp string) *owner {
	var best *owner
	for i := range owners {
		if o := &owners[i]; within(o.module, imp) && (best == nil || len(o.module) > len(best.module)) {
			best = o
		}
	}
	return best
}

// covers returns whether a rule's path covers a package.
func covers(pkg string) func(string) bool {
	return func(rule string) bool {
		if rule == "..." {
			return true
		}
		if tree, ok := strings.CutSuffix(rule, "/..."); ok {
			return within(tree, pkg)
		}
		return rule == pkg
	}
}

// within tells whether p is a path or below it.
func within(tree, p string) bool { return p == tree || strings.HasPrefix(p, tree+"/") }
