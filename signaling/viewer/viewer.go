// Package viewer says who may watch which camera.
//
// A viewer shows a JWT (RFC 7519) that names the cameras it may watch. The
// gateway verifies it for each session, with a [Verifier]; operators and tests
// mint tokens with [SignHMAC] and [SignEd25519].
//
// # Claims
//
//	exp           required: when the token, and every session under it, ends
//	nbf           optional: not before
//	iss, aud      checked where the configuration names them
//	sub           who watches: for the audit line and for limits per viewer
//	cameras       list of camera ids, or patterns in which "*" stands for any
//	              characters: ["lobby", "plant-*"]; absent: no camera
//	max_sessions  optional: how many sessions the viewer may have at once on
//	              one gateway
//
// # Keys
//
// Every key works with the algorithms of its own kind alone, whatever the
// token's header says: the shared secret with HS256, an Ed25519 public key
// with EdDSA, a key of the JWK set (RFC 7517) with the asymmetric algorithms
// of its type. "none" never works, and a JWK set's symmetric keys are ignored,
// for what is published is no secret.
//
// The package holds no list of revoked tokens: give tokens a short life and
// renew them. It never logs a token or a part of one.
package viewer

import (
	"strings"
	"time"

	"fanlight/internal/fleet"
)

// Viewer is the person or program that a token speaks for.
type Viewer struct {
	// Subject is the token's sub. Empty: the token has none.
	Subject string
	// Cameras are ids, or patterns in which "*" stands for any characters.
	Cameras []string
	// MaxSessions is how many sessions the viewer may have at once. 0: as many
	// as the gateway allows.
	MaxSessions int
	// Expires is when the viewer may watch no longer. Zero: never.
	Expires time.Time
}

// Anyone is the viewer where no keys are configured: it may watch everything.
func Anyone() Viewer { return Viewer{Cameras: []string{"*"}} }

// MayWatch tells whether the viewer may watch a camera.
func (v Viewer) MayWatch(id fleet.CameraID) bool {
	for _, p := range v.Cameras {
		if Match(p, string(id)) {
			return true
		}
	}
	return false
}

// Expired tells whether the viewer may watch no longer.
func (v Viewer) Expired(now time.Time) bool {
	return !v.Expires.IsZero() && !now.Before(v.Expires)
}

// Match tells whether s matches a pattern, in which "*" stands for any number
// of any characters, and everything else for itself. It takes time in
// proportion to the product of the lengths at most.
func Match(pattern, s string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}
