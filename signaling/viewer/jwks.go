package viewer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"fanlight/internal/fleet"
)

// asymmetric are the algorithms that a key of a JWK set may be used with; each
// works with keys of its own type alone (RFC 7518 §3.1, RFC 8037 §3.1).
var asymmetric = []string{"EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}

const (
	maxKeySet = 1 << 20 // bytes of a JWK set
	// unknownKeyEvery is how often a token of an unknown key makes the set be
	// fetched out of turn: keys are rotated, and bad tokens are cheap to send.
	unknownKeyEvery = 15 * time.Second
	keySetRetry     = 5 * time.Second // after a fetch that failed
	maxRedirects    = 5
)

// keySet is a JWK set that is fetched again and again, by run alone.
type keySet struct {
	// Static after newKeySet.
	url     string
	client  *http.Client
	refresh time.Duration
	log     *slog.Logger
	wake    chan struct{} // one slot: an unknown key was asked for

	keys atomic.Pointer[keyfunc.Keyfunc] // nil until the first fetch
}

func newKeySet(cfg Config) *keySet {
	client := http.Client{Timeout: 10 * time.Second}
	if cfg.Client != nil {
		client = *cfg.Client
	}
	client.CheckRedirect = checkRedirect
	s := &keySet{url: cfg.JWKSURL, client: &client, refresh: cfg.JWKSRefresh, log: cfg.Log, wake: make(chan struct{}, 1)}
	if s.refresh <= 0 {
		s.refresh = 10 * time.Minute
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// run fetches until ctx ends.
func (s *keySet) run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for ctx.Err() == nil {
		wait := s.refresh
		if err := s.fetch(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("JWK set not fetched", "url", withoutQuery(s.url), "error", err)
			wait = min(keySetRetry, s.refresh)
		}
		fetched := time.Now()
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-s.wake:
			select {
			case <-ctx.Done():
			case <-time.After(min(unknownKeyEvery, s.refresh) - time.Since(fetched)):
			}
		}
	}
}

// fetch replaces the keys, so that one that was taken back no longer works.
// When it fails the keys stay as they are.
func (s *keySet) fetch(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		// The client's error quotes the URL with its query, which may be secret.
		if quoting := (*url.Error)(nil); errors.As(err, &quoting) {
			err = quoting.Err
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return err
	}
	if len(body) > maxKeySet {
		return fmt.Errorf("the set has more than %d bytes", maxKeySet)
	}
	keys, unreadable, err := parseKeySet(ctx, body)
	if err != nil {
		return err
	}
	if unreadable > 0 {
		s.log.Warn("JWK set has keys that cannot be read", "url", withoutQuery(s.url), "keys", unreadable)
	}
	s.keys.Store(&keys)
	return nil
}

// checkRedirect follows redirects to where the set may be fetched from alone.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if err := checkJWKSURL(req.URL.String()); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	return nil
}

// parseKeySet reads a JWK set. Keys of kinds unknown here and symmetric ones
// are left out, and so are those that cannot be read, which are counted: one
// of them must not take the others' tokens away.
func parseKeySet(ctx context.Context, body []byte) (keys keyfunc.Keyfunc, unreadable int, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, 0, fmt.Errorf("not a JWK set: %w", err)
	}
	store := jwkset.NewMemoryStorage()
	n := 0
	for _, raw := range set.Keys {
		var m jwkset.JWKMarshal
		if json.Unmarshal(raw, &m) != nil {
			unreadable++
			continue
		}
		if m.KTY == jwkset.KtyOct || (m.USE != "" && m.USE != jwkset.UseSig) {
			continue
		}
		key, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if errors.Is(err, jwkset.ErrUnsupportedKey) {
			continue
		}
		if err != nil {
			unreadable++
			continue
		}
		if err := store.KeyWrite(ctx, key); err != nil {
			return nil, unreadable, err
		}
		n++
	}
	if n == 0 {
		return nil, unreadable, errors.New("the JWK set has no key that signatures can be verified with")
	}
	keys, err = keyfunc.New(keyfunc.Options{Storage: store})
	return keys, unreadable, err
}

// key returns the key, or the keys, that a token may be signed with.
func (s *keySet) key(ctx context.Context, t *jwt.Token) (any, error) {
	keys := s.keys.Load()
	if keys == nil {
		return nil, fmt.Errorf("JWK set: not fetched yet: %w", fleet.Unavailable)
	}
	key, err := (*keys).KeyfuncCtx(ctx)(t)
	if err != nil {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return key, err
}

// isLoopback tells whether a host is this machine.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
