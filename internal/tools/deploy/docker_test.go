package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

var envVariable = regexp.MustCompile(`\$\{([A-Z_]+)`)

// lintDockerfile returns the stages, and what BuildKit's linter finds.
func lintDockerfile(text []byte) ([]instructions.Stage, []string, error) {
	var found []string
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	for _, w := range ast.Warnings {
		found = append(found, w.Short)
	}
	lint := linter.New(&linter.Config{
		Warn: func(rule, _, _, msg string, _ []parser.Range) {
			found = append(found, fmt.Sprintf("%s: %s", rule, msg))
		},
	})
	stages, _, err := instructions.Parse(ast.AST, lint)
	return stages, found, err
}

func dockerfile(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDockerfile(t *testing.T) {
	text := dockerfile(t)
	stages, found, err := lintDockerfile(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
	names := map[string]instructions.Stage{}
	for _, s := range stages {
		names[s.Name] = s
	}
	last := stages[len(stages)-1]
	if last.BaseName != "scratch" || last.Name != "fanlight" {
		t.Errorf("the image is of %s from %s", last.Name, last.BaseName)
	}
	var user, entry, copies []string
	for _, c := range last.Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			user = append(user, c.User)
		case *instructions.EntrypointCommand:
			entry = c.CmdLine
		case *instructions.CopyCommand:
			copies = append(copies, c.DestPath)
			if _, ok := names[c.From]; !ok {
				t.Errorf("COPY --from=%s is of no stage", c.From)
			}
		case *instructions.RunCommand:
			t.Error("nothing can run in an empty root")
		}
	}
	if !slices.Equal(user, []string{"65532:65532"}) || !slices.Equal(entry, []string{"/fanlight"}) {
		t.Errorf("USER %q, ENTRYPOINT %q", user, entry)
	}
	if !slices.Contains(copies, "/etc/ssl/certs/ca-certificates.crt") {
		t.Errorf("no authorities among %q", copies)
	}
	for _, need := range []string{"CGO_ENABLED=0", "GOOS=${TARGETOS}", "GOARCH=${TARGETARCH}", "main.version=${VERSION}", "--platform=${BUILDPLATFORM}"} {
		if !bytes.Contains(text, []byte(need)) {
			t.Errorf("no %s", need)
		}
	}
	// The version of Go is the one that go.mod wants.
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	if m == nil || !strings.HasPrefix(names["build"].BaseName, "golang:"+string(m[1])+"-") {
		t.Errorf("built with %s, and go.mod wants %s", names["build"].BaseName, m)
	}
}

// What the build copies is in the context, and every package of the binary is.
func TestDockerContext(t *testing.T) {
	ignore, err := os.ReadFile(filepath.Join(root, "deploy", "Dockerfile.dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(ignore), "\n")
	for _, s := range must(lintDockerfile(dockerfile(t))) {
		for _, c := range s.Commands {
			cp, ok := c.(*instructions.CopyCommand)
			if !ok || cp.From != "" {
				continue
			}
			for _, src := range cp.SourcePaths {
				if !slices.Contains(lines, "!"+src) {
					t.Errorf("%s is copied, and left out of the context", src)
				}
				if _, err := os.Stat(filepath.Join(root, src)); err != nil && src != "bin/image" {
					t.Error(err)
				}
			}
		}
	}
	for _, dir := range []string{"cmd", "controlplane", "internal", "medianode", "proto", "signaling"} {
		if !slices.Contains(lines, "!"+dir) {
			t.Errorf("%s is left out of the context", dir)
		}
	}
}

func must(stages []instructions.Stage, _ []string, err error) []instructions.Stage {
	if err != nil {
		panic(err)
	}
	return stages
}

func TestDockerfileLinterFinds(t *testing.T) {
	for text, want := range map[string]string{
		"FROM scratch as x\nCOPY a /\n":     "FromAsCasing",
		"FROM scratch AS Final\nCOPY a /\n": "StageNameCasing",
		"FROM scratch\nMAINTAINER me\n":     "MaintainerDeprecated",
	} {
		_, found, err := lintDockerfile([]byte(text))
		if err != nil || !strings.Contains(strings.Join(found, "\n"), want) {
			t.Errorf("%q: %q, %v; want %s", text, found, err, want)
		}
	}
	if _, _, err := lintDockerfile([]byte("FORM scratch\n")); err == nil {
		t.Error("an instruction that does not exist")
	}
}
