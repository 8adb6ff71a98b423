package rpc_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fanlight/internal/rpc"
)

func TestBackoffGrowsToMaxAndResets(t *testing.T) {
	b := rpc.Backoff{Min: 10 * time.Millisecond, Max: 75 * time.Millisecond}
	for round := range 2 {
		for i, bound := range []int{10, 20, 40, 75, 75} {
			if d := b.Next(); d <= 0 || d > time.Duration(bound)*time.Millisecond {
				t.Errorf("round %d: wait %d is %v, want at most %d ms", round, i, d, bound)
			}
		}
		b.Reset()
	}
	var zero rpc.Backoff
	seen := map[time.Duration]bool{}
	for range 100 {
		d := zero.Next()
		if d <= 0 || d > 5*time.Second {
			t.Fatalf("wait of the zero value is %v", d)
		}
		seen[d] = true
	}
	if len(seen) < 90 {
		t.Errorf("%d different waits of 100: no jitter", len(seen))
	}
	huge := rpc.Backoff{Min: 1, Max: 1<<63 - 1}
	for range 200 {
		if d := huge.Next(); d <= 0 {
			t.Fatalf("overflow: %v", d)
		}
	}
}

func TestBackoffSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := rpc.Backoff{Min: time.Second, Max: time.Second}
		start := time.Now()
		if err := b.Sleep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d <= 0 || d > time.Second {
			t.Errorf("slept %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Sleep(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	alice, bob := rpc.NewToken(), rpc.NewToken()
	if alice == bob || len(alice) < 40 {
		t.Fatalf("tokens %q and %q", alice, bob)
	}
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := func(name, token string) string {
		l, err := rpc.TokenLine(name, token)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(l, token) {
			t.Fatal("the line has the token in it")
		}
		return l
	}
	write("# operators", "", line("alice", alice))
	f, err := rpc.OpenTokenFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if name, ok := f.Lookup(alice); !ok || name != "alice" {
		t.Errorf("alice's token is of %q, %v", name, ok)
	}
	for _, bad := range []string{"", bob, alice + "x", alice[:len(alice)-1]} {
		if name, ok := f.Lookup(bad); ok {
			t.Errorf("token %q is %q's", bad, name)
		}
	}
	write(line("bob", bob), line("carol", rpc.NewToken()))
	eventually(t, func() bool { _, a := f.Lookup(alice); name, b := f.Lookup(bob); return !a && b && name == "bob" })
	write("malformed")
	time.Sleep(1100 * time.Millisecond) // until the file is looked at again
	if _, ok := f.Lookup(bob); !ok {
		t.Error("a malformed file lost the tokens")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	if _, ok := f.Lookup(bob); !ok {
		t.Error("a file that went lost the tokens")
	}
	write(line("dave", alice))
	eventually(t, func() bool { name, _ := f.Lookup(alice); _, b := f.Lookup(bob); return name == "dave" && !b })
}

func TestTokenFileErrors(t *testing.T) {
	good, err := rpc.TokenLine("a", "token")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a token in clear": "alice fl_secret-token",
		"one word":         "fl_secret-token",
		"short hash":       "alice sha256:abcd",
		"not hex":          "alice sha256:" + strings.Repeat("zz", 32),
		"another hash":     "alice md5:" + strings.Repeat("00", 32),
		"three words":      good + " x",
		"twice":            good + "\n" + good,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := rpc.OpenTokenFile(path, nil)
			if err == nil || !strings.Contains(err.Error(), "line ") || strings.Contains(err.Error(), "secret-token") {
				t.Errorf("error is %v, want one that names the line and quotes no token", err)
			}
		})
	}
	if _, err := rpc.OpenTokenFile(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error of a missing file is %v", err)
	}
	for _, name := range []string{"", "a b", "a\n", "#a"} {
		if _, err := rpc.TokenLine(name, "token"); err == nil {
			t.Errorf("the name %q was accepted", name)
		}
	}
}

func TestCertificateIdentity(t *testing.T) {
	for _, tt := range []struct {
		uris []string
		want string // empty: an error
	}{
		{[]string{"fanlight://node/node-1"}, "node/node-1"},
		{[]string{"https://example.com/", "fanlight://operator/alice"}, "operator/alice"},
		{[]string{"fanlight://gateway/g", "fanlight://node/n"}, ""},
		{[]string{"fanlight://root/x"}, ""},
		{[]string{"fanlight://node/"}, ""},
		{[]string{"fanlight://node"}, ""},
		{[]string{"fanlight://node/a/b"}, ""},
		{[]string{"fanlight://node/a?role=operator"}, ""},
		{[]string{"fanlight://user@node/a"}, ""},
		{[]string{"spiffe://node/a"}, ""},
		{nil, ""},
	} {
		cert := &x509.Certificate{}
		for _, u := range tt.uris {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, parsed)
		}
		id, err := rpc.CertificateIdentity(cert)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%v is %v", tt.uris, id)
			}
		} else if err != nil || id.String() != tt.want || id.Any {
			t.Errorf("%v is %v, %v; want %s", tt.uris, id, err, tt.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	node := rpc.Identity{Role: rpc.RoleNode, Name: "node-1"}
	if !node.Is(rpc.RoleNode) || node.Is(rpc.RoleOperator) || !node.MaySpeakFor(rpc.RoleNode, "node-1") || node.MaySpeakFor(rpc.RoleNode, "node-2") || node.MaySpeakFor(rpc.RoleGateway, "node-1") {
		t.Error("a node is more or less than itself")
	}
	all := rpc.Identity{Any: true}
	if !all.Is(rpc.RoleOperator) || !all.MaySpeakFor(rpc.RoleNode, "x") {
		t.Error("any is not any")
	}
	if none := rpc.IdentityFrom(context.Background()); none.Is(rpc.RoleOperator) || none.String() != "none" {
		t.Errorf("the identity of no call is %v", none)
	}
}

func TestIsLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "LOCALHOST:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "192.0.2.1:1": false, "example.com:1": false, "127.0.0.1": false, "localhost.example.com:1": false,
	} {
		if got := rpc.IsLoopback(addr); got != want {
			t.Errorf("IsLoopback(%q) is %v", addr, got)
		}
	}
}

// eventually waits for what another goroutine or a file does.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so after 20 s")
		}
	}
}
