package controlplane

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"fanlight/internal/fleet"
)

// maxURL is the length of the longest URL in bytes.
const maxURL = 2048

// badURL returns an error that names the field and says what to change. No
// part of a URL is quoted but its scheme, for the rest may hold a password.
func badURL(field, format string, args ...any) error {
	return fmt.Errorf("%s %s: %w", field, fmt.Sprintf(format, args...), fleet.InvalidURL)
}

// urlKind is a kind of URL.
type urlKind struct {
	plain, secure string // its scheme, and that with TLS
	instead       string // what else may be said, as the end of an error
}

// The kinds.
var (
	rtspURL  = urlKind{plain: "rtsp", secure: "rtsps"} // RFC 2326 §3.2, RFC 7826 §4.2
	onvifURL = urlKind{plain: "http", secure: "https", instead: ", or use \"none\" to do without ONVIF"}
)

// checkONVIFURL checks the URL of a camera's ONVIF device service: none, "none" or
// an HTTP URL.
func checkONVIFURL(s string, networks []netip.Prefix) error {
	if s == "" || s == fleet.ONVIFNone {
		return nil
	}
	return onvifURL.check("onvif_url", s, networks)
}

// checkURL checks an RTSP URL. With networks, a host that is an address must be
// in one of them.
func checkURL(field, s string, networks []netip.Prefix) error {
	return rtspURL.check(field, s, networks)
}

func (k urlKind) check(field, s string, networks []netip.Prefix) error {
	switch {
	case s == "":
		return badURL(field, "must not be empty; use %s://host/path", k.plain)
	case len(s) > maxURL:
		return badURL(field, "has %d bytes; at most %d are allowed", len(s), maxURL)
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar }):
		return badURL(field, "has spaces or control characters; remove them, or write them as %%20 in the path")
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) {
		return badURL(field, "has no scheme; begin it with %s:// or %s://%s", k.plain, k.secure, k.instead)
	}
	if l := strings.ToLower(scheme); l != k.plain && l != k.secure {
		if !strings.HasPrefix(rest, "//") { // "admin:secret@host" has no scheme, but looks so
			return badURL(field, "has another scheme than %s and %s; begin it with %[1]s:// or %[2]s://%[3]s", k.plain, k.secure, k.instead)
		}
		return badURL(field, "has the scheme %q, which is not supported; use %s:// or %s://%s", l, k.plain, k.secure, k.instead)
	}
	rest, ok = strings.CutPrefix(rest, "//")
	if !ok {
		return badURL(field, "has no \"//\" after its scheme; use %s://host/path", strings.ToLower(scheme))
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if strings.Contains(authority, "@") {
		return badURL(field, "has a user name or password; remove them and give them as username and password (--username, --password)")
	}
	// A password with one of "/?#" in it ends the authority early: what is read
	// as host and port are then the user name and the password's beginning.
	if strings.Contains(rest[len(authority):], "@") {
		return badURL(field, "has an \"@\" after its host; give a user name and password as username and password "+
			"(--username, --password), or write %%40 for an \"@\" of the path")
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Opaque != "" {
		// err quotes what it didn't like.
		return badURL(field, "can't be read; use %s://host:port/path, and give a user name and password "+
			"as username and password (--username, --password)", k.plain)
	}
	if u.Fragment != "" || strings.Contains(s, "#") {
		return badURL(field, "has a fragment; remove the \"#\" and what follows")
	}
	if u.Hostname() == "" {
		return badURL(field, "has no host; use %s://host/path", k.plain)
	}
	if err := checkHost(field, u.Hostname(), networks); err != nil {
		return err
	}
	if strings.HasSuffix(u.Host, ":") {
		return badURL(field, "has a \":\" without a port; add the port, or remove the colon")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return badURL(field, "has a port out of range; use 1 to 65535")
		}
	}
	return nil
}

// checkHost checks a URL's host: an address or a DNS name.
func checkHost(field, host string, networks []netip.Prefix) error {
	if host == "" {
		return badURL(field, "has no host; give one")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return checkNetwork(field, addr, networks)
	}
	if strings.Contains(host, ":") || len(host) > 253 {
		return badURL(field, "has a host that is neither an address nor a DNS name; correct it")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notHost) {
			return badURL(field, "has a host that is neither an address nor a DNS name; correct it")
		}
	}
	return nil
}

func checkNetwork(field string, addr netip.Addr, networks []netip.Prefix) error {
	if len(networks) == 0 {
		return nil
	}
	for _, n := range networks {
		if n.Contains(addr.Unmap().WithZone("")) {
			return nil
		}
	}
	return badURL(field, "leads to an address outside the networks that cameras may be in (--camera-networks)")
}

// notHost tells whether a DNS name can't have r. Underscores are no host name's
// (RFC 952), and in use.
func notHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// isScheme tells whether s has the form of a URL's scheme (RFC 3986 §3.1) and
// is short enough to be quoted.
func isScheme(s string) bool {
	if s == "" || len(s) > 16 {
		return false
	}
	for i, r := range s {
		letter := (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z')
		if !letter && (i == 0 || (r < '0' || r > '9') && !strings.ContainsRune("+-.", r)) {
			return false
		}
	}
	return true
}

// isSecure tells whether a URL that has been checked is for RTSP over TLS.
func isSecure(s string) bool {
	return len(s) > 6 && strings.EqualFold(s[:6], "rtsps:")
}

// endpoint returns where a URL that has been checked leads to, in one form for
// all ways to write it: scheme, host and port.
func endpoint(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return s
	}
	port := u.Port()
	switch {
	case port != "":
		port = strings.TrimLeft(port, "0")
	default:
		port = defaultPorts[strings.ToLower(u.Scheme)]
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		host = addr.Unmap().String()
	}
	return strings.ToLower(u.Scheme) + "://" + net.JoinHostPort(host, port)
}

// defaultPorts are those of the schemes (RFC 7826 §20.8.1, RFC 9110 §4.2).
var defaultPorts = map[string]string{"rtsp": "554", "rtsps": "322", "http": "80", "https": "443"}
