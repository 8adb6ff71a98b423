package main

import (
	"log/slog"

	"github.com/spf13/pflag"

	"fanlight/signaling/viewer"
)

// viewerKeys are the keys that viewers' tokens are verified with.
type viewerKeys struct {
	keyFiles []string
	jwksURL  string
	issuer   string
	audience string
}

func (v *viewerKeys) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&v.keyFiles, "viewer-key-file", nil, "`file` with the secret (HS256, 32 bytes or more) or Ed25519 public keys in PEM (EdDSA) that viewers' tokens are verified with; several allowed")
	flags.StringVar(&v.jwksURL, "viewer-jwks-url", "", "`URL` of a JWK set that viewers' tokens are verified with")
	flags.StringVar(&v.issuer, "viewer-issuer", "", "the `iss` claim that viewers' tokens must have")
	flags.StringVar(&v.audience, "viewer-audience", "", "the `aud` claim that viewers' tokens must have")
}

// anyone tells whether viewers need no token.
func (v *viewerKeys) anyone() bool { return len(v.keyFiles) == 0 && v.jwksURL == "" }

// need is met by any key.
func (v *viewerKeys) need() string {
	if v.anyone() {
		return "--viewer-key-file or --viewer-jwks-url"
	}
	return ""
}

// verifier returns what verifies tokens; nil: everyone may view.
func (v *viewerKeys) verifier(log *slog.Logger) (*viewer.Verifier, error) {
	if v.anyone() {
		if v.issuer != "" || v.audience != "" {
			return nil, usagef("--viewer-issuer and --viewer-audience need --viewer-key-file or --viewer-jwks-url")
		}
		return nil, nil
	}
	cfg := viewer.Config{JWKSURL: v.jwksURL, Issuer: v.issuer, Audience: v.audience, Log: log}
	for _, f := range v.keyFiles {
		pem, err := isPEM(f)
		if err != nil {
			return nil, usagef("--viewer-key-file: %w", err)
		}
		if pem {
			keys, err := viewer.ReadPublicKeys(f)
			if err != nil {
				return nil, usagef("--viewer-key-file: %w", err)
			}
			cfg.PublicKeys = append(cfg.PublicKeys, keys...)
			continue
		}
		if cfg.Secret != nil {
			return nil, usagef("--viewer-key-file %s: only one secret is possible", f)
		}
		if cfg.Secret, err = viewer.ReadSecret(f); err != nil {
			return nil, usagef("--viewer-key-file: %w", err)
		}
	}
	ver, err := viewer.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return ver, nil
}
