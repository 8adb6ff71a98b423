package signaling

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the TURN REST API's choice, as a MAC
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"fanlight/internal/fleet"
)

// ICEServer is an RTCIceServer (W3C WebRTC §4.2.4) that browsers are told of.
type ICEServer struct {
	// URLs are stun:, stuns:, turn: or turns: (RFC 7064, RFC 7065).
	URLs []string `json:"urls"`
	// Username and Credential are static ones, for TURN. With ICE.TURNSecret
	// leave them empty: they are made for each viewer.
	Username   string `json:"username,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// ICE is which STUN and TURN servers browsers are told of.
type ICE struct {
	// Servers are told in this order. Empty: none.
	Servers []ICEServer
	// TURNSecret is shared with the TURN servers that have no static
	// credentials (draft-uberti-behave-turn-rest-00, as in coturn's
	// use-auth-secret): the user name is "expiry:viewer", the credential its
	// HMAC-SHA1 in base64. Empty: no such credentials.
	TURNSecret []byte
	// TURNLifetime is how long they are good. 0: 12 hours.
	TURNLifetime time.Duration
}

// check refuses what browsers would refuse.
func (c ICE) check() error {
	for _, s := range c.Servers {
		if len(s.URLs) == 0 {
			return fmt.Errorf("an ICE server has no URL: %w", fleet.InvalidArgument)
		}
		for _, u := range s.URLs {
			scheme, rest, _ := strings.Cut(u, ":")
			switch {
			case scheme != "stun" && scheme != "stuns" && scheme != "turn" && scheme != "turns", rest == "", !printable(u), strings.ContainsAny(u, "<>\""):
				return fmt.Errorf("ICE server %q is not stun:host[:port] or turn:host[:port]: %w", clip(u, 128), fleet.InvalidArgument)
			case isTURN(u) && s.Username == "" && len(c.TURNSecret) == 0:
				return fmt.Errorf("TURN server %q has neither credentials nor a secret to make them: %w", clip(u, 128), fleet.InvalidArgument)
			}
		}
	}
	return nil
}

// servers returns the servers with credentials for one viewer.
func (c ICE) servers(viewer string, now time.Time) []ICEServer {
	list := make([]ICEServer, 0, len(c.Servers))
	for _, s := range c.Servers {
		if s.Username == "" && len(c.TURNSecret) > 0 && slices.ContainsFunc(s.URLs, isTURN) {
			s.Username = strconv.FormatInt(now.Add(c.lifetime()).Unix(), 10) + ":" + turnName(viewer)
			mac := hmac.New(sha1.New, c.TURNSecret)
			mac.Write([]byte(s.Username))
			s.Credential = base64.StdEncoding.EncodeToString(mac.Sum(nil))
		}
		list = append(list, s)
	}
	return list
}

func (c ICE) lifetime() time.Duration {
	if c.TURNLifetime <= 0 {
		return 12 * time.Hour
	}
	return c.TURNLifetime
}

func isTURN(u string) bool { return strings.HasPrefix(u, "turn") }

// turnName is a viewer's subject as a part of a TURN user name: without the
// characters that separate or quote.
func turnName(viewer string) string {
	if viewer == "" {
		return "viewer"
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == ':' || r == '"' || r == '\\' {
			return '_'
		}
		return r
	}, viewer)
}

// linkHeader is a server as WHEP's Link header
// (draft-ietf-wish-whep §4.6, RFC 9725 §4.6).
func (s ICEServer) linkHeaders() []string {
	var links []string
	for _, u := range s.URLs {
		link := "<" + u + `>; rel="ice-server"`
		if isTURN(u) {
			link += "; username=" + quote(s.Username) + "; credential=" + quote(s.Credential) + `; credential-type="password"`
		}
		links = append(links, link)
	}
	return links
}
