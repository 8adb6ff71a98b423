package viewer

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"fanlight/internal/fleet"
)

// Grant is what a token is to allow.
type Grant struct {
	Subject          string        // who watches; empty: nobody in particular
	Cameras          []string      // ids or patterns; at least one
	TTL              time.Duration // from now on; more than 0
	MaxSessions      int           // 0: no limit of the token's own
	Issuer, Audience string        // empty: left out
}

// claims are the token's claims.
type claims struct {
	jwt.RegisteredClaims
	Cameras     []string `json:"cameras,omitempty"`
	MaxSessions int      `json:"max_sessions,omitempty"`
}

// check returns an error that says what is wrong with the claims that are our
// own.
func (c *claims) check() error {
	switch {
	case len(c.Subject) > maxSubject:
		return fmt.Errorf("the token's sub has more than %d bytes", maxSubject)
	case c.MaxSessions < 0:
		return errors.New("the token's max_sessions is negative")
	case len(c.Cameras) > maxPatterns:
		return fmt.Errorf("the token names %d cameras or patterns, at most %d are allowed", len(c.Cameras), maxPatterns)
	}
	for _, p := range c.Cameras {
		if err := checkPattern(p); err != nil {
			return err
		}
	}
	return nil
}

func checkPattern(p string) error {
	if p == "" || len(p) > maxPattern {
		return fmt.Errorf("a camera of the token has %d characters, 1 to %d are allowed", len(p), maxPattern)
	}
	for _, r := range p {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '*' {
			return fmt.Errorf("a camera of the token has %q; use a to z, 0 to 9, \"-\", and \"*\" for any characters", r)
		}
	}
	return nil
}

// SignHMAC returns a token signed with a shared secret by HS256.
func SignHMAC(secret []byte, g Grant) (string, error) {
	if len(secret) < MinSecret {
		return "", fmt.Errorf("sign token: the secret has %d bytes, at least %d are needed: %w", len(secret), MinSecret, fleet.InvalidArgument)
	}
	return sign(jwt.SigningMethodHS256, secret, g)
}

// SignEd25519 returns a token signed with a private key by EdDSA.
func SignEd25519(key ed25519.PrivateKey, g Grant) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", fmt.Errorf("sign token: not an Ed25519 private key: %w", fleet.InvalidArgument)
	}
	return sign(jwt.SigningMethodEdDSA, key, g)
}

func sign(method jwt.SigningMethod, key any, g Grant) (string, error) {
	if len(g.Cameras) == 0 {
		return "", fmt.Errorf("sign token: name at least one camera or pattern: %w", fleet.InvalidArgument)
	}
	if g.TTL <= 0 {
		return "", fmt.Errorf("sign token: the time to live must be more than 0: %w", fleet.InvalidArgument)
	}
	now := time.Now()
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    g.Issuer,
			Subject:   g.Subject,
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(g.TTL)),
		},
		Cameras:     g.Cameras,
		MaxSessions: g.MaxSessions,
	}
	if g.Audience != "" {
		c.Audience = jwt.ClaimStrings{g.Audience}
	}
	if err := c.check(); err != nil {
		return "", fmt.Errorf("sign token: %w: %w", err, fleet.InvalidArgument)
	}
	s, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return s, nil
}

// ReadSecret reads a shared secret from a file; white space around it is not
// part of it.
func ReadSecret(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("viewer secret: %w", err)
	}
	data = bytes.TrimSpace(data)
	if len(data) < MinSecret {
		return nil, fmt.Errorf("viewer secret %s has %d bytes, at least %d are needed: %w", path, len(data), MinSecret, fleet.InvalidArgument)
	}
	return data, nil
}

// ReadPublicKeys reads Ed25519 public keys from a PEM file of one or more
// "PUBLIC KEY" blocks.
func ReadPublicKeys(path string) ([]ed25519.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("viewer public key: %w", err)
	}
	var keys []ed25519.PublicKey
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("viewer public key %s: %w: %w", path, err, fleet.InvalidArgument)
		}
		pub, ok := k.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("viewer public key %s is not an Ed25519 key: %w", path, fleet.InvalidArgument)
		}
		keys = append(keys, pub)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("viewer public key %s has no PEM block: %w", path, fleet.InvalidArgument)
	}
	return keys, nil
}

// ReadPrivateKey reads an Ed25519 private key from a PEM file with a
// "PRIVATE KEY" block (PKCS #8).
func ReadPrivateKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("viewer private key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("viewer private key %s has no PEM block: %w", path, fleet.InvalidArgument)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("viewer private key %s cannot be read: %w", path, fleet.InvalidArgument)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("viewer private key %s is not an Ed25519 key: %w", path, fleet.InvalidArgument)
	}
	return key, nil
}
