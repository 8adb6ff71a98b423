package onviftest

import (
	"crypto/md5"  //nolint:gosec // what RFC 2617 has
	"crypto/sha1" //nolint:gosec // what WS-Security has
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// maxAge is how far the time of a user name token may be off.
const maxAge = 30 * time.Second

const realm = "camera"

// admit tells whether a request has the right credentials, or refuses it.
func (c *Camera) admit(w http.ResponseWriter, r *http.Request, q *request) bool {
	if q.Token != nil && r.Header.Get("Authorization") != "" {
		c.t.Error("a user name token and HTTP Digest at once")
	}
	if c.cfg.Auth == AuthToken {
		if c.tokenIsRight(q) {
			return true
		}
		c.Fault(w, http.StatusBadRequest, "s:Sender", "ter:NotAuthorized")
		return false
	}
	stale, ok := c.digestIsRight(r)
	if ok {
		return true
	}
	c.mu.Lock()
	algorithm := "MD5"
	if c.cfg.Auth == AuthSHA256 {
		algorithm = "SHA-256"
	}
	challenge := fmt.Sprintf(`Digest realm="%s", qop="auth", nonce="%s", algorithm=%s, stale=%v`, realm, c.fresh, algorithm, stale)
	c.count = 0
	c.mu.Unlock()
	w.Header().Add("WWW-Authenticate", `Basic realm="camera"`)
	w.Header().Add("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// tokenIsRight computes a token's digest anew.
func (c *Camera) tokenIsRight(q *request) bool {
	if q.Token == nil {
		return false
	}
	nonce, err := base64.StdEncoding.DecodeString(q.Token.Nonce)
	if err != nil || len(nonce) < 16 {
		c.t.Errorf("nonce %q", q.Token.Nonce)
		return false
	}
	created, err := time.Parse(time.RFC3339, q.Token.Created)
	if err != nil || !strings.HasSuffix(q.Token.Created, "Z") {
		c.t.Errorf("created %q: %v", q.Token.Created, err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nonces[q.Token.Nonce] {
		c.t.Error("a nonce comes twice")
	}
	c.nonces[q.Token.Nonce] = true
	if created.Sub(time.Now().Add(c.clock)).Abs() > maxAge {
		return false
	}
	sum := sha1.Sum([]byte(string(nonce) + q.Token.Created + c.cfg.Password)) //nolint:gosec // see above
	return q.Token.Username == c.cfg.Username && q.Token.Password == base64.StdEncoding.EncodeToString(sum[:])
}

// digestIsRight computes the response of HTTP Digest anew (RFC 7616 §3.4.1).
func (c *Camera) digestIsRight(r *http.Request) (stale, ok bool) {
	text, isDigest := strings.CutPrefix(r.Header.Get("Authorization"), "Digest ")
	if !isDigest {
		return false, false
	}
	p := make(map[string]string)
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		p[key] = strings.Trim(value, `"`)
	}
	hash := func(s string) string {
		if c.cfg.Auth == AuthSHA256 {
			sum := sha256.Sum256([]byte(s))
			return hex.EncodeToString(sum[:])
		}
		sum := md5.Sum([]byte(s)) //nolint:gosec // see above
		return hex.EncodeToString(sum[:])
	}
	a1 := hash(c.cfg.Username + ":" + realm + ":" + c.cfg.Password)
	want := hash(strings.Join([]string{a1, p["nonce"], p["nc"], p["cnonce"], "auth", hash(r.Method + ":" + r.URL.RequestURI())}, ":"))
	if p["response"] != want || p["username"] != c.cfg.Username || p["uri"] != r.URL.RequestURI() {
		return false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p["nonce"] != c.fresh {
		return true, false
	}
	c.count++
	if want := fmt.Sprintf("%08x", c.count); p["nc"] != want {
		c.t.Errorf("nonce count %s, want %s", p["nc"], want)
	}
	return false, true
}
