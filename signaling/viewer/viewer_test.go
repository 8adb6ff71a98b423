package viewer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"fanlight/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var secret = []byte("0123456789abcdef0123456789abcdef")

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"lobby", "lobby", true},
		{"lobby", "lobby2", false},
		{"*", "", true},
		{"*", "anything", true},
		{"plant-*", "plant-", true},
		{"plant-*", "plant-7", true},
		{"plant-*", "plan", false},
		{"*-door", "front-door", true},
		{"*-door", "front-doors", false},
		{"a*b*c", "abc", true},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "acb", false},
		{"a*b*c", "abcb", false},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"**", "x", true},
		{"", "", true},
		{"", "x", false},
		{"*a*", "bab", true},
		{"*ab*ab", "ab", false},
		{"*ab*ab", "abab", true},
	} {
		if got := Match(test.pattern, test.s); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.s, got)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a*b", "aXb")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 40 || len(s) > 40 {
			return
		}
		if got, want := Match(pattern, s), slowMatch(pattern, s); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", pattern, s, got, want)
		}
	})
}

// slowMatch is Match by the book.
func slowMatch(pattern, s string) bool {
	row := make([]bool, len(s)+1)
	row[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(s)+1)
		if pattern[i] == '*' {
			next[0] = row[0]
		}
		for j := range len(s) {
			if pattern[i] == '*' {
				next[j+1] = row[j+1] || next[j]
			} else {
				next[j+1] = row[j] && pattern[i] == s[j]
			}
		}
		row = next
	}
	return row[len(s)]
}

// keys are one of each kind.
type keys struct {
	ed  ed25519.PrivateKey
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey
}

func newKeys(t *testing.T) keys {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return keys{ed, ec, r}
}

// public is the Ed25519 key's public half.
func (k keys) public(t *testing.T) ed25519.PublicKey {
	t.Helper()
	pub, ok := k.ed.Public().(ed25519.PublicKey)
	if !ok {
		t.Fatal("not an Ed25519 key")
	}
	return pub
}

func good() jwt.MapClaims {
	return jwt.MapClaims{"sub": "anna", "exp": time.Now().Add(time.Hour).Unix(), "cameras": []string{"lobby", "plant-*"}, "max_sessions": 3, "iss": "us", "aud": "wall"}
}

func signed(t *testing.T, m jwt.SigningMethod, key any, c jwt.MapClaims, kid string) string {
	t.Helper()
	token := jwt.NewWithClaims(m, c)
	if kid != "" {
		token.Header["kid"] = kid
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func with(change func(jwt.MapClaims)) jwt.MapClaims {
	c := good()
	change(c)
	return c
}

func TestVerify(t *testing.T) {
	k, stranger := newKeys(t), newKeys(t)
	pub := k.public(t)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	pubPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	v, err := New(Config{Secret: secret, PublicKeys: []ed25519.PublicKey{pub}, Issuer: "us", Audience: "wall"})
	if err != nil {
		t.Fatal(err)
	}
	onlyKey, err := New(Config{PublicKeys: []ed25519.PublicKey{pub}})
	if err != nil {
		t.Fatal(err)
	}
	hs, ed := jwt.SigningMethodHS256, jwt.SigningMethodEdDSA
	whole := signed(t, hs, secret, good(), "")
	parts := strings.Split(whole, ".")
	for _, test := range []struct {
		name   string
		v      *Verifier
		token  string
		reason fleet.Error
	}{
		{"HS256", v, whole, ""},
		{"EdDSA", v, signed(t, ed, k.ed, good(), ""), ""},
		{"EdDSA with a kid", v, signed(t, ed, k.ed, good(), "any"), ""},
		{"expired within the leeway", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-2 * time.Second).Unix() }), ""), ""},
		{"empty", v, "", fleet.Unauthenticated},
		{"garbage", v, "garbage", fleet.Unauthenticated},
		{"too long", v, strings.Repeat("x", MaxToken+1), fleet.Unauthenticated},
		{"wrong secret", v, signed(t, hs, []byte("another secret of enough bytes !!"), good(), ""), fleet.Unauthenticated},
		{"wrong key", v, signed(t, ed, stranger.ed, good(), ""), fleet.Unauthenticated},
		{"HS384 with the secret", v, signed(t, jwt.SigningMethodHS384, secret, good(), ""), fleet.Unauthenticated},
		{"none", v, signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good(), ""), fleet.Unauthenticated},
		{"the public key as secret", onlyKey, signed(t, hs, []byte(pub), good(), ""), fleet.Unauthenticated},
		{"the public key's PEM as secret", onlyKey, signed(t, hs, pubPEM, good(), ""), fleet.Unauthenticated},
		{"RS256 without such a key", v, signed(t, jwt.SigningMethodRS256, k.rsa, good(), ""), fleet.Unauthenticated},
		{"no signature", v, parts[0] + "." + parts[1] + ".", fleet.Unauthenticated},
		{"other claims under the signature", v, parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":9999999999,"cameras":["*"],"iss":"us","aud":"wall"}`)) + "." + parts[2], fleet.Unauthenticated},
		{"expired", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() }), ""), fleet.TokenExpired},
		{"expired and forged", v, signed(t, ed, stranger.ed, with(func(c jwt.MapClaims) { c["exp"] = 1 }), ""), fleet.Unauthenticated},
		{"no exp", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { delete(c, "exp") }), ""), fleet.Unauthenticated},
		{"not yet", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Minute).Unix() }), ""), fleet.Unauthenticated},
		{"other issuer", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["iss"] = "them" }), ""), fleet.Unauthenticated},
		{"other audience", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["aud"] = []string{"x"} }), ""), fleet.Unauthenticated},
		{"no audience", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { delete(c, "aud") }), ""), fleet.Unauthenticated},
		{"cameras of another form", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["cameras"] = "lobby" }), ""), fleet.Unauthenticated},
		{"a camera that is none", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["cameras"] = []string{"a/b"} }), ""), fleet.Unauthenticated},
		{"negative max_sessions", v, signed(t, hs, secret, with(func(c jwt.MapClaims) { c["max_sessions"] = -1 }), ""), fleet.Unauthenticated},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.v.Verify(t.Context(), test.token)
			if test.reason != "" {
				if !errors.Is(err, test.reason) {
					t.Errorf("got %v, want %s", err, string(test.reason))
				}
				if len(test.token) > 20 && err != nil && strings.Contains(err.Error(), test.token[:20]) {
					t.Errorf("the error quotes the token: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Subject != "anna" || got.MaxSessions != 3 || !got.MayWatch("lobby") || !got.MayWatch("plant-9") || got.MayWatch("vault") || got.Expires.IsZero() {
				t.Errorf("got %+v", got)
			}
		})
	}
	// A token that names no camera allows none.
	got, err := v.Verify(t.Context(), signed(t, hs, secret, with(func(c jwt.MapClaims) { delete(c, "cameras") }), ""))
	if err != nil || got.MayWatch("lobby") {
		t.Errorf("no cameras: %+v, %v", got, err)
	}
}

// jwks is a server of a JWK set that the test changes.
type jwks struct {
	*httptest.Server
	body  atomic.Pointer[string]
	count atomic.Int64
}

func newJWKS(t *testing.T, body string) *jwks {
	t.Helper()
	s := &jwks{}
	s.body.Store(&body)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.count.Add(1)
		if body := *s.body.Load(); body != "" {
			_, _ = w.Write([]byte(body))
			return
		}
		http.Error(w, "away", http.StatusServiceUnavailable)
	}))
	t.Cleanup(s.Close)
	return s
}

func jwkSet(t *testing.T, byKid map[string]any) string {
	t.Helper()
	var set jwkset.JWKSMarshal
	for kid, key := range byKid {
		k, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{
			Marshal:  jwkset.JWKMarshalOptions{Private: true},
			Metadata: jwkset.JWKMetadataOptions{KID: kid},
		})
		if err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, k.Marshal())
	}
	body, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestJWKS(t *testing.T) {
	k, second := newKeys(t), newKeys(t)
	srv := newJWKS(t, "")
	v, err := New(Config{JWKSURL: srv.URL, JWKSRefresh: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if srv.count.Load() != 0 {
		t.Error("New fetched the set")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	ed := signed(t, jwt.SigningMethodEdDSA, k.ed, good(), "ed")
	if _, err := v.Verify(ctx, ed); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("before the set was fetched: %v", err)
	}

	set := jwkSet(t, map[string]any{"ed": k.ed.Public(), "ec": k.ec.Public(), "rsa": k.rsa.Public(), "hmac": secret})
	srv.body.Store(&set)
	eventually(t, "the set is there", func() bool { _, err := v.Verify(ctx, ed); return err == nil })
	for name, test := range map[string]struct {
		token string
		ok    bool
	}{
		"ES256":                  {signed(t, jwt.SigningMethodES256, k.ec, good(), "ec"), true},
		"RS256":                  {signed(t, jwt.SigningMethodRS256, k.rsa, good(), "rsa"), true},
		"without a kid":          {signed(t, jwt.SigningMethodEdDSA, k.ed, good(), ""), true},
		"the kid of another key": {signed(t, jwt.SigningMethodEdDSA, k.ed, good(), "ec"), false},
		"an unknown kid":         {signed(t, jwt.SigningMethodEdDSA, k.ed, good(), "x"), false},
		"a key that is not in":   {signed(t, jwt.SigningMethodEdDSA, second.ed, good(), "ed"), false},
		"a published secret":     {signed(t, jwt.SigningMethodHS256, secret, good(), "hmac"), false},
		"HS256 with a public key": {
			signed(t, jwt.SigningMethodHS256, []byte(k.public(t)), good(), "ed"), false,
		},
	} {
		if _, err := v.Verify(ctx, test.token); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}

	// While the set cannot be fetched its keys go on working.
	away := ""
	before := srv.count.Load()
	srv.body.Store(&away)
	eventually(t, "two more attempts", func() bool { return srv.count.Load() >= before+2 })
	if _, err := v.Verify(ctx, ed); err != nil {
		t.Errorf("while the set is away: %v", err)
	}
	// Rotation: the old key no longer works.
	set = jwkSet(t, map[string]any{"ed": second.ed.Public()})
	srv.body.Store(&set)
	eventually(t, "the old key is gone", func() bool { _, err := v.Verify(ctx, ed); return errors.Is(err, fleet.Unauthenticated) })
	if _, err := v.Verify(ctx, signed(t, jwt.SigningMethodEdDSA, second.ed, good(), "ed")); err != nil {
		t.Errorf("the new key: %v", err)
	}
}

func TestBadKeySets(t *testing.T) {
	for name, body := range map[string]string{
		"garbage":        "garbage",
		"empty":          `{"keys":[]}`,
		"secrets alone":  jwkSet(t, map[string]any{"hmac": secret}),
		"unknown kind":   `{"keys":[{"kty":"other"}]}`,
		"for encryption": `{"keys":[{"kty":"OKP","crv":"Ed25519","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
	} {
		if _, _, err := parseKeySet(t.Context(), []byte(body)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// What cannot be read takes nothing from what can.
	for name, bad := range map[string]string{
		"not an object": `7`, "kind is no text": `{"kty":7}`, "bad base64": `{"kty":"OKP","crv":"Ed25519","kid":"b","x":"%"}`,
		"too short": `{"kty":"OKP","crv":"Ed25519","kid":"b","x":"AA"}`, "no coordinates": `{"kty":"EC","crv":"P-256","kid":"b"}`,
	} {
		body := `{"keys":[` + bad + `,{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
		keys, unreadable, err := parseKeySet(t.Context(), []byte(body))
		if err != nil || unreadable != 1 {
			t.Errorf("%s: %d unreadable, %v", name, unreadable, err)
			continue
		}
		if key, err := keys.Storage().KeyRead(t.Context(), "a"); err != nil || key.Key() == nil {
			t.Errorf("%s: the good key: %v", name, err)
		}
	}
}

// TestKeySetRedirects redirects to where a set may be fetched from, and to
// where not.
func TestKeySetRedirects(t *testing.T) {
	target := newJWKS(t, jwkSet(t, map[string]any{"ed": newKeys(t).ed.Public()}))
	var to string
	from := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }))
	defer from.Close()
	// Whatever is dialed is the target: a redirect that is followed succeeds.
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != from.Listener.Addr().String() {
			addr = target.Listener.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	s := newKeySet(Config{JWKSURL: from.URL + "/?key=hunter2", Client: &http.Client{Transport: transport}})
	defer transport.CloseIdleConnections()
	for url, ok := range map[string]bool{
		target.URL:                             true,
		"http://localhost/":                    true,
		"http://keys.example.com/?key=hunter2": false,
		"http://192.0.2.7/":                    false,
		"ftp://127.0.0.1/":                     false,
		"http://anna:hunter2@" + target.URL[len("http://"):]: false,
		from.URL: false, // for ever
	} {
		to = url
		err := s.fetch(t.Context())
		if (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells a secret: %v", url, err)
		}
	}
}

func TestKeySetURLIsNotLogged(t *testing.T) {
	srv := newJWKS(t, "")
	var logs bytes.Buffer
	v, err := New(Config{JWKSURL: srv.URL + "/keys?key=hunter2", Log: slog.New(slog.NewTextHandler(&logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for _, away := range []bool{false, true} {
		if away {
			srv.Close()
		}
		before := srv.count.Load()
		logs.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = v.Run(ctx) }()
		if away {
			time.Sleep(100 * time.Millisecond)
		} else {
			eventually(t, "fetched", func() bool { return srv.count.Load() > before })
			time.Sleep(50 * time.Millisecond)
		}
		cancel()
		<-done
		if out := logs.String(); !strings.Contains(out, srv.URL+"/keys") || strings.Contains(out, "hunter2") {
			t.Errorf("log %q", out)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nothing":      {},
		"short secret": {Secret: []byte("short")},
		"bad key":      {PublicKeys: []ed25519.PublicKey{{1}}},
		"plain http":   {JWKSURL: "http://example.com/jwks"},
		"no URL":       {JWKSURL: "example.com"},
		"bad URL":      {JWKSURL: "https://anna:hunter2@%/"},
		"password":     {JWKSURL: "https://anna:hunter2@example.com/jwks?key=hunter2"},
		"user":         {JWKSURL: "https://hunter2@example.com/jwks"},
		"http, query":  {JWKSURL: "http://example.com/jwks?key=hunter2"},
	} {
		if _, err := New(cfg); !errors.Is(err, fleet.InvalidArgument) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSign(t *testing.T) {
	k := newKeys(t)
	v, err := New(Config{Secret: secret, PublicKeys: []ed25519.PublicKey{k.public(t)}, Issuer: "us", Audience: "wall"})
	if err != nil {
		t.Fatal(err)
	}
	g := Grant{Subject: "anna", Cameras: []string{"lobby", "plant-*"}, TTL: time.Hour, MaxSessions: 3, Issuer: "us", Audience: "wall"}
	for name, mint := range map[string]func(Grant) (string, error){
		"HS256": func(g Grant) (string, error) { return SignHMAC(secret, g) },
		"EdDSA": func(g Grant) (string, error) { return SignEd25519(k.ed, g) },
	} {
		token, err := mint(g)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Verify(t.Context(), token)
		if err != nil || got.Subject != "anna" || got.MaxSessions != 3 || !got.MayWatch("plant-1") || got.Expired(time.Now()) || !got.Expired(time.Now().Add(2*time.Hour)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for what, bad := range map[string]Grant{
			"no camera":  {TTL: time.Hour},
			"no time":    {Cameras: []string{"*"}},
			"bad camera": {Cameras: []string{"UP"}, TTL: time.Hour},
			"sessions":   {Cameras: []string{"*"}, TTL: time.Hour, MaxSessions: -1},
		} {
			if _, err := mint(bad); !errors.Is(err, fleet.InvalidArgument) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	if _, err := SignHMAC([]byte("short"), g); err == nil {
		t.Error("a short secret signs")
	}
	if _, err := SignEd25519(nil, g); err == nil {
		t.Error("no key signs")
	}
}

func TestKeyFiles(t *testing.T) {
	k := newKeys(t)
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		var data []byte
		for _, b := range blocks {
			data = append(data, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	public := func(key any) *pem.Block {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: "PUBLIC KEY", Bytes: der}
	}
	private := func(key any) *pem.Block {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	}
	pub, err := ReadPublicKeys(write("pub", public(k.ed.Public()), public(newKeys(t).ed.Public())))
	if err != nil || len(pub) != 2 || !pub[0].Equal(k.ed.Public()) {
		t.Errorf("public keys %v, %v", pub, err)
	}
	priv, err := ReadPrivateKey(write("priv", private(k.ed)))
	if err != nil || !priv.Equal(k.ed) {
		t.Errorf("private key: %v", err)
	}
	for name, path := range map[string]string{
		"empty": write("empty"), "other kind": write("ec", public(k.ec.Public())), "private": write("p", private(k.ed)), "none": filepath.Join(dir, "none"),
	} {
		if _, err := ReadPublicKeys(path); err == nil {
			t.Errorf("public key %s: accepted", name)
		}
	}
	for name, path := range map[string]string{"empty": write("empty"), "other kind": write("ecp", private(k.ec)), "public": write("pp", public(k.ed.Public()))} {
		if _, err := ReadPrivateKey(path); err == nil {
			t.Errorf("private key %s: accepted", name)
		}
	}
	path := filepath.Join(dir, "secret")
	if err := os.WriteFile(path, append(secret, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadSecret(path); err != nil || string(s) != string(secret) {
		t.Errorf("secret %q, %v", s, err)
	}
	if _, err := ReadSecret(write("empty")); err == nil {
		t.Error("an empty secret was accepted")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}
