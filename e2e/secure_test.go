//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

// TestSecureFleet runs the parts as README tells those who have no authority:
// mutual TLS between them, tokens for operators and viewers.
func TestSecureFleet(t *testing.T) {
	dir := t.TempDir()
	pki, operators, viewerKey := filepath.Join(dir, "pki"), filepath.Join(dir, "operators.txt"), viewerKey(t, dir)
	runCLI(t, "certs", "init", "--dir", pki)
	for role, name := range map[string]string{"controlplane": "cp-1", "node": "node-1", "gateway": "gateway-1"} {
		runCLI(t, "certs", "issue", "--dir", pki, "--role", role, "--name", name)
	}
	token := operatorToken(t, operators)
	keys := func(role, name string) []string {
		file := filepath.Join(pki, role+"-"+name)
		return []string{"--tls-ca", filepath.Join(pki, "ca.pem"), "--tls-cert", file + ".pem", "--tls-key", file + "-key.pem"}
	}

	plane := start(t, "controlplane", fanlight(slices.Concat([]string{"controlplane"}, keys("controlplane", "cp-1"), []string{
		"--data", filepath.Join(dir, "data"), "--grpc", "127.0.0.1:0", "--operator-tokens", operators,
	})...))
	s := &system{grpc: plane.announced(t, "api"), processes: []*process{plane}}
	node := start(t, "node", fanlight(slices.Concat([]string{"medianode"}, keys("node", "node-1"), []string{
		"--control-plane", s.grpc, "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--max-cpu", "100",
	})...))
	node.announced(t, "node")
	gateway := start(t, "gateway", fanlight(slices.Concat([]string{"signaling"}, keys("gateway", "gateway-1"), []string{
		"--control-plane", s.grpc, "--http", "127.0.0.1:0", "--viewer-key-file", viewerKey,
	})...))
	url := strings.TrimSuffix(gateway.announced(t, "page"), "/")

	s.flags = []string{"--ca", filepath.Join(pki, "ca.pem"), "--token-file", token}
	s.add(t, "lobby", simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}}), "cam"))
	s.awaitCamera(t, "lobby", "STATE_LIVE", "")
	if got := s.camera(t, "lobby").Status.Node; got != "nodes/node-1" {
		t.Errorf("the camera is on %s, want the node that its certificate names", got)
	}
	s.flags = []string{"--ca", filepath.Join(pki, "ca.pem")}
	if out, err := s.tryCLI(t, "camera", "list"); err == nil {
		t.Errorf("an operator without a token may list cameras:\n%s", out)
	}
	s.flags = nil
	if out, err := s.tryCLI(t, "camera", "list"); err == nil {
		t.Errorf("an operator without TLS may list cameras:\n%s", out)
	}

	client := tlsClient(t, filepath.Join(pki, "ca.pem"))
	for _, tt := range []struct {
		name, token string
		status      int // 0: plays
	}{
		{"no token", "", http.StatusUnauthorized},
		{"garbage", "garbage", http.StatusUnauthorized},
		{"a token for other cameras", viewerToken(t, viewerKey, "plant-*"), http.StatusForbidden},
		{"a token for the camera", viewerToken(t, viewerKey, "lob*"), 0},
	} {
		if err := play(client, url, tt.token); !refusedWith(err, tt.status) {
			t.Errorf("%s: %v, want status %d", tt.name, err, tt.status)
		}
	}
}

// play watches the lobby until there are frames.
func play(client *http.Client, url, token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), picturePatience)
	defer cancel()
	v, err := viewertest.PlayWHEP(ctx, client, url+"/v1/cameras/lobby/whep", token, viewertest.Config{})
	if err != nil {
		return err
	}
	return errors.Join(v.WaitFrames(ctx, 25), v.Delete(ctx), v.Close())
}

// refusedWith tells whether an error is an HTTP status; 0: no error.
func refusedWith(err error, status int) bool {
	if status == 0 {
		return err == nil
	}
	var refused *viewertest.HTTPError
	return errors.As(err, &refused) && refused.Status == status
}

// runCLI runs a command that needs no server, and returns its standard output.
func runCLI(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fanlight %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// operatorToken makes a token as README tells: one file for the operator, one
// for the control planes. It returns the operator's.
func operatorToken(t *testing.T, operators string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	var token, hash strings.Builder
	cmd := exec.CommandContext(ctx, binary, "token", "operator", "--name", "alice")
	cmd.Stdout, cmd.Stderr = &token, &hash
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(operators), "alice.token")
	for name, text := range map[string]string{operators: hash.String(), file: token.String()} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

// viewerKey makes a secret that viewers' tokens are signed with.
func viewerKey(t *testing.T, dir string) string {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	file := filepath.Join(dir, "viewer.key")
	if err := os.WriteFile(file, []byte(hex.EncodeToString(secret)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func viewerToken(t *testing.T, key, camera string) string {
	t.Helper()
	return strings.TrimSpace(runCLI(t, "token", "viewer", "--camera", camera, "--ttl", "10m", "--key-file", key))
}

// tlsClient trusts an authority, and keeps no connection.
func tlsClient(t *testing.T, ca string) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal(fmt.Errorf("no certificate in %s", ca))
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
}
