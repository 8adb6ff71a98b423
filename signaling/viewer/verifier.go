package viewer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"fanlight/internal/fleet"
)

// Bounds of what is accepted.
const (
	// MinSecret is the length of the shortest HS256 secret in bytes: a key as
	// long as the hash (RFC 7518 §3.2).
	MinSecret = 32
	// MaxToken is the length of the longest token in bytes.
	MaxToken = 8 << 10

	maxPatterns = 1000
	maxPattern  = 128 // bytes
	maxSubject  = 256 // bytes
)

// Config says whose tokens are good. At least one kind of key is needed.
type Config struct {
	// Secret signs HS256 tokens; MinSecret bytes or more. Empty: none.
	Secret []byte
	// PublicKeys verify EdDSA tokens; any of them.
	PublicKeys []ed25519.PublicKey
	// JWKSURL is where a JWK set is fetched, https, or http on loopback, without
	// user name and password; where it redirects to as well. Its query is not
	// logged. Empty: none.
	JWKSURL string
	// JWKSRefresh is how often it is fetched. 0: 10 minutes.
	JWKSRefresh time.Duration
	// Client fetches it, with a rule for redirects of its own. nil: a client
	// with a timeout of 10 s.
	Client *http.Client
	// Issuer and Audience must be the token's iss and among its aud. Empty: not
	// checked.
	Issuer, Audience string
	// Leeway is how far the issuer's clock may be off. 0: 5 s; negative: none.
	Leeway time.Duration
	// Log hears when the JWK set cannot be fetched. nil: nobody.
	Log *slog.Logger
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	cfg    Config
	parser *jwt.Parser
	jwks   *keySet // nil: none
}

// New checks the configuration. Nothing is fetched before Run.
func New(cfg Config) (*Verifier, error) {
	var methods []string
	if len(cfg.Secret) > 0 {
		if len(cfg.Secret) < MinSecret {
			return nil, fmt.Errorf("viewer secret has %d bytes, at least %d are needed: %w", len(cfg.Secret), MinSecret, fleet.InvalidArgument)
		}
		methods = append(methods, jwt.SigningMethodHS256.Alg())
	}
	for _, k := range cfg.PublicKeys {
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("viewer public key is not an Ed25519 key: %w", fleet.InvalidArgument)
		}
	}
	if len(cfg.PublicKeys) > 0 {
		methods = append(methods, jwt.SigningMethodEdDSA.Alg())
	}
	v := &Verifier{}
	if cfg.JWKSURL != "" {
		if err := checkJWKSURL(cfg.JWKSURL); err != nil {
			return nil, err
		}
		v.jwks = newKeySet(cfg)
		methods = append(methods, asymmetric...)
	}
	if len(methods) == 0 {
		return nil, fmt.Errorf("viewer keys: none given: %w", fleet.InvalidArgument)
	}
	switch {
	case cfg.Leeway == 0:
		cfg.Leeway = 5 * time.Second
	case cfg.Leeway < 0:
		cfg.Leeway = 0
	}
	opts := []jwt.ParserOption{jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(cfg.Leeway), jwt.WithStrictDecoding()}
	if cfg.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(cfg.Issuer))
	}
	if cfg.Audience != "" {
		opts = append(opts, jwt.WithAudience(cfg.Audience))
	}
	v.cfg, v.parser = cfg, jwt.NewParser(opts...)
	return v, nil
}

// Run keeps the JWK set fresh until ctx ends, and then returns nil. Without a
// JWK set it only waits.
func (v *Verifier) Run(ctx context.Context) error {
	if v.jwks != nil {
		v.jwks.run(ctx)
	}
	<-ctx.Done()
	return nil
}

// Verify returns whom a token speaks for. The error wraps
// [fleet.TokenExpired] if it was good once, [fleet.Unavailable] if the JWK set
// has not been fetched yet, and else [fleet.Unauthenticated]; it quotes
// nothing of the token.
func (v *Verifier) Verify(ctx context.Context, token string) (Viewer, error) {
	if token == "" {
		return Viewer{}, fmt.Errorf("a viewer token is needed: %w", fleet.Unauthenticated)
	}
	if len(token) > MaxToken {
		return Viewer{}, fmt.Errorf("the token has %d bytes, at most %d are allowed: %w", len(token), MaxToken, fleet.Unauthenticated)
	}
	var c claims
	_, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) { return v.key(ctx, t) })
	if err != nil {
		return Viewer{}, refusal(err)
	}
	if err := c.check(); err != nil {
		return Viewer{}, fmt.Errorf("%w: %w", err, fleet.Unauthenticated)
	}
	return Viewer{
		Subject:     c.Subject,
		Cameras:     slices.Clone(c.Cameras),
		MaxSessions: c.MaxSessions,
		Expires:     c.ExpiresAt.Add(v.cfg.Leeway),
	}, nil
}

// key chooses the keys that go with the token's algorithm. The parser has
// refused algorithms of which there is no key.
func (v *Verifier) key(ctx context.Context, t *jwt.Token) (any, error) {
	alg := t.Method.Alg()
	if alg == jwt.SigningMethodHS256.Alg() {
		return v.cfg.Secret, nil
	}
	_, named := t.Header["kid"]
	if alg == jwt.SigningMethodEdDSA.Alg() && len(v.cfg.PublicKeys) > 0 && (v.jwks == nil || !named) {
		set := jwt.VerificationKeySet{}
		for _, k := range v.cfg.PublicKeys {
			set.Keys = append(set.Keys, k)
		}
		return set, nil
	}
	if v.jwks == nil {
		return nil, errors.New("no key of this kind")
	}
	return v.jwks.key(ctx, t)
}

// refusal says what is wrong with a token without quoting it.
func refusal(err error) error {
	switch {
	case errors.Is(err, fleet.Unavailable):
		return fmt.Errorf("the keys that tokens are verified with cannot be fetched: %w", fleet.Unavailable)
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return fmt.Errorf("the token is not signed by a key and algorithm that are known here: %w", fleet.Unauthenticated)
	case errors.Is(err, jwt.ErrTokenExpired):
		return fmt.Errorf("the token has expired, get a new one: %w", fleet.TokenExpired)
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return fmt.Errorf("the token is not valid yet: %w", fleet.Unauthenticated)
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return fmt.Errorf("the token lacks a claim that is required (exp, and iss and aud where configured): %w", fleet.Unauthenticated)
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), errors.Is(err, jwt.ErrTokenInvalidAudience):
		return fmt.Errorf("the token is of another issuer or for another audience: %w", fleet.Unauthenticated)
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return fmt.Errorf("the token is of a key that is not known here: %w", fleet.Unauthenticated)
	}
	return fmt.Errorf("the token is not a JWT that can be read: %w", fleet.Unauthenticated)
}

// checkJWKSURL refuses a URL whose answer anybody on the way could forge, and
// one with a password, which would end up in logs. The error quotes what is no
// secret alone.
func checkJWKSURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return fmt.Errorf("the JWK set URL is not one like https://example.com/jwks.json: %w", fleet.InvalidArgument)
	case u.User != nil:
		return fmt.Errorf("JWK set URL %q has a user name or password, which is not supported; a JWK set is public: %w", withoutQuery(s), fleet.InvalidArgument)
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("JWK set URL %q must be https: %w", withoutQuery(s), fleet.InvalidArgument)
}

// withoutQuery returns a URL's scheme, host and path.
func withoutQuery(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
