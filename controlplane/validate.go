package controlplane

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// The limits of a camera beside those that its proto messages name.
const (
	maxDisplayName  = 200 // characters
	maxProfiles     = 8
	maxProfileID    = 31
	maxFallbackURLs = 8
	maxCredential   = 255 // bytes, user name and password each
	maxLabels       = 64
	maxLabel        = 63
	maxRequestID    = 64
)

// invalid returns an error that names the field and says what to change. args
// must not be secret, and strings that a caller chose are quoted by %q.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s %s: %w", field, fmt.Sprintf(format, args...), fleet.InvalidArgument)
}

// normalizeCamera checks what operators may set of a camera, but its name, and
// writes it in the one way in which it is stored. hasPassword tells whether the
// camera will have one.
func normalizeCamera(c *controlv1.Camera, hasPassword bool, networks []netip.Prefix) error {
	if n := utf8.RuneCountInString(c.GetDisplayName()); n > maxDisplayName {
		return invalid("display_name", "has %d characters; at most %d are allowed", n, maxDisplayName)
	}
	if hasControl(c.GetDisplayName()) {
		return invalid("display_name", "has control characters; remove them")
	}
	if err := normalizeProfiles(c.GetProfiles(), networks); err != nil {
		return err
	}
	if err := checkCredential("username", c.GetUsername()); err != nil {
		return err
	}
	if err := checkONVIFURL(c.GetOnvifUrl(), networks); err != nil {
		return err
	}
	if hasPassword && c.GetUsername() == "" {
		return invalid("password", "needs a username; give one, or remove the password")
	}
	if err := checkLabels("labels", c.GetLabels()); err != nil {
		return err
	}
	if err := checkLabels("node_selector", c.GetNodeSelector()); err != nil {
		return err
	}
	switch c.GetPullPolicy() {
	case controlv1.Camera_PULL_POLICY_UNSPECIFIED:
		c.PullPolicy = controlv1.Camera_PULL_POLICY_ALWAYS
	case controlv1.Camera_PULL_POLICY_ALWAYS, controlv1.Camera_PULL_POLICY_ON_DEMAND:
	default:
		return invalid("pull_policy", "%d is unknown; use PULL_POLICY_ALWAYS or PULL_POLICY_ON_DEMAND", c.GetPullPolicy())
	}
	if err := checkDuration("idle_timeout", c.GetIdleTimeout()); err != nil {
		return err
	}
	if c.GetMaxSessions() < 0 {
		return invalid("max_sessions", "is %d; use 0 for no limit, or a positive number", c.GetMaxSessions())
	}
	if c.GetExpectedBitrateBps() < 0 {
		return invalid("expected_bitrate_bps", "is %d; use 0 for unknown, or a positive number", c.GetExpectedBitrateBps())
	}
	return nil
}

// checkPasswordStays refuses an update that would send a stored password to
// where it has not been sent before: who may operate could read it there,
// although the API never returns it.
func checkPasswordStays(old, next *controlv1.Camera) error {
	known := make(map[string]bool)
	for i, u := range urlsOf(old) {
		known[endpoint(u.url)] = true
		if i == 0 {
			known[guessedONVIF(u.url)] = true
		}
	}
	for _, u := range urlsOf(next) {
		if !known[endpoint(u.url)] {
			return invalid(u.field, "leads to another scheme, host or port than before, which would get the stored password; "+
				"give the password again in the same update (--password-file), or remove it (--password \"\")")
		}
	}
	return nil
}

// guessedONVIF returns where ONVIF is looked for if the camera has no URL of it.
func guessedONVIF(rtsp string) string {
	u, err := url.Parse(rtsp)
	if err != nil {
		return ""
	}
	return endpoint((&url.URL{Scheme: "http", Host: net.JoinHostPort(u.Hostname(), "80")}).String())
}

// fieldURL is a URL of a camera and the field that has it.
type fieldURL struct{ field, url string }

func urlsOf(c *controlv1.Camera) []fieldURL {
	var urls []fieldURL
	for i, p := range c.GetProfiles() {
		field := fmt.Sprintf("profiles[%d]", i)
		urls = append(urls, fieldURL{field + ".url", p.GetUrl()})
		for j, u := range p.GetFallbackUrls() {
			urls = append(urls, fieldURL{fmt.Sprintf("%s.fallback_urls[%d]", field, j), u})
		}
	}
	if u := c.GetOnvifUrl(); u != "" && u != fleet.ONVIFNone {
		urls = append(urls, fieldURL{"onvif_url", u})
	}
	return urls
}

// checkDuration checks an optional duration that must be more than nothing.
func checkDuration(field string, d *durationpb.Duration) error {
	switch {
	case d == nil:
		return nil
	case d.CheckValid() != nil:
		return invalid(field, "is out of range; use a positive duration")
	case d.AsDuration() <= 0:
		return invalid(field, "is %v; use a positive duration, or leave it out", d.AsDuration())
	}
	return nil
}

func normalizeProfiles(profiles []*controlv1.Profile, networks []netip.Prefix) error {
	switch n := len(profiles); {
	case n == 0:
		return invalid("profiles", "must have one profile at least, with the camera's RTSP URL")
	case n > maxProfiles:
		return invalid("profiles", "has %d profiles; at most %d are allowed", n, maxProfiles)
	}
	seen := make(map[string]bool)
	for i, p := range profiles {
		field := fmt.Sprintf("profiles[%d]", i)
		if i == 0 && p.GetId() == "" {
			p.Id = "main"
		}
		if err := checkProfileID(field+".id", p.GetId()); err != nil {
			return err
		}
		if seen[p.GetId()] {
			return invalid(field+".id", "%q is another profile's too; give each its own", p.GetId())
		}
		seen[p.GetId()] = true
		if err := normalizeProfile(field, p, networks); err != nil {
			return err
		}
	}
	return nil
}

func checkProfileID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "must not be empty; use \"main\", \"sub\" or another of a to z, 0 to 9 and \"-\"")
	case len(id) > maxProfileID:
		return invalid(field, "has %d characters; at most %d are allowed", len(id), maxProfileID)
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return invalid(field, "has %q; use a to z, 0 to 9 and \"-\"", r)
		}
	}
	return nil
}

func normalizeProfile(field string, p *controlv1.Profile, networks []netip.Prefix) error {
	if err := checkURL(field+".url", p.GetUrl(), networks); err != nil {
		return err
	}
	if n := len(p.GetFallbackUrls()); n > maxFallbackURLs {
		return invalid(field+".fallback_urls", "has %d URLs; at most %d are allowed", n, maxFallbackURLs)
	}
	secure := isSecure(p.GetUrl())
	for i, u := range p.GetFallbackUrls() {
		if err := checkURL(fmt.Sprintf("%s.fallback_urls[%d]", field, i), u, networks); err != nil {
			return err
		}
		secure = secure || isSecure(u)
	}
	switch p.GetTransport() {
	case controlv1.Profile_TRANSPORT_UNSPECIFIED:
		p.Transport = controlv1.Profile_TRANSPORT_AUTO
	case controlv1.Profile_TRANSPORT_AUTO, controlv1.Profile_TRANSPORT_TCP,
		controlv1.Profile_TRANSPORT_UDP, controlv1.Profile_TRANSPORT_MULTICAST:
	default:
		return invalid(field+".transport", "%d is unknown; use auto, tcp, udp or multicast", p.GetTransport())
	}
	if p.GetTlsFingerprint() == "" {
		return nil
	}
	if !secure {
		return invalid(field+".tls_fingerprint", "needs an rtsps:// URL; use one, or remove the fingerprint")
	}
	fingerprint, ok := normalizeFingerprint(p.GetTlsFingerprint())
	if !ok {
		return invalid(field+".tls_fingerprint", "must be a SHA-256 fingerprint: 64 hex digits, with or without colons")
	}
	p.TlsFingerprint = fingerprint
	return nil
}

// normalizeFingerprint returns 64 lower-case hex digits.
func normalizeFingerprint(s string) (string, bool) {
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if len(s) != 64 {
		return "", false
	}
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return "", false
		}
	}
	return s, true
}

// checkCredential checks a user name or password, which it never quotes.
func checkCredential(field, s string) error {
	switch {
	case len(s) > maxCredential:
		return invalid(field, "is longer than %d bytes; use a shorter one", maxCredential)
	case hasControl(s):
		return invalid(field, "has control characters; remove them, perhaps a line's end at its end")
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError })
}

func checkLabels(field string, labels map[string]string) error {
	if len(labels) > maxLabels {
		return invalid(field, "has %d labels; at most %d are allowed", len(labels), maxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if k == "" {
			return invalid(field, "has a label without a key; give it one")
		}
		if err := checkLabel(field+" key", k); err != nil {
			return err
		}
		if err := checkLabel(fmt.Sprintf("%s value of %q", field, k), labels[k]); err != nil {
			return err
		}
	}
	return nil
}

func checkLabel(field, s string) error {
	if len(s) > maxLabel {
		return invalid(field, "has %d characters; at most %d are allowed", len(s), maxLabel)
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/", r) {
			return invalid(field, "has %q; use A to Z, a to z, 0 to 9, \".\", \"_\", \"-\" and \"/\"", r)
		}
	}
	return nil
}

func checkRequestID(s string) error {
	if n := utf8.RuneCountInString(s); n > maxRequestID {
		return invalid("request_id", "has %d characters; at most %d are allowed", n, maxRequestID)
	}
	if hasControl(s) {
		return invalid("request_id", "has control characters; remove them")
	}
	return nil
}

// newDesired returns the camera of a request as it is stored: checked, without
// the password and what is output only. The password is returned beside it.
func newDesired(c *controlv1.Camera, networks []netip.Prefix) (fleet.CameraID, *controlv1.Camera, string, error) {
	if c == nil {
		return "", nil, "", invalid("camera", "is missing")
	}
	id, err := fleet.ParseCameraName(c.GetName())
	if err != nil {
		return "", nil, "", err
	}
	password := c.GetPassword()
	if err := checkCredential("password", password); err != nil {
		return "", nil, "", err
	}
	d := proto.CloneOf(c)
	d.Password, d.PasswordSet, d.Etag, d.Status = "", false, "", nil
	d.CreateTime, d.UpdateTime = nil, nil
	if err := normalizeCamera(d, password != "", networks); err != nil {
		return "", nil, "", err
	}
	return id, d, password, nil
}

// mutable are the fields that an update can change, with how.
var mutable = map[string]func(to, from *controlv1.Camera){
	"display_name":         func(to, from *controlv1.Camera) { to.DisplayName = from.GetDisplayName() },
	"profiles":             func(to, from *controlv1.Camera) { to.Profiles = from.GetProfiles() },
	"username":             func(to, from *controlv1.Camera) { to.Username = from.GetUsername() },
	"labels":               func(to, from *controlv1.Camera) { to.Labels = from.GetLabels() },
	"node_selector":        func(to, from *controlv1.Camera) { to.NodeSelector = from.GetNodeSelector() },
	"pull_policy":          func(to, from *controlv1.Camera) { to.PullPolicy = from.GetPullPolicy() },
	"idle_timeout":         func(to, from *controlv1.Camera) { to.IdleTimeout = from.GetIdleTimeout() },
	"disabled":             func(to, from *controlv1.Camera) { to.Disabled = from.GetDisabled() },
	"max_sessions":         func(to, from *controlv1.Camera) { to.MaxSessions = from.GetMaxSessions() },
	"onvif_url":            func(to, from *controlv1.Camera) { to.OnvifUrl = from.GetOnvifUrl() },
	"expected_bitrate_bps": func(to, from *controlv1.Camera) { to.ExpectedBitrateBps = from.GetExpectedBitrateBps() },
}

// passwordPath is the one field of a mask that is not in mutable, for it is not
// stored with the others.
const passwordPath = "password"

// checkMask returns the fields to change, and whether the password is one.
func checkMask(paths []string) (fields []string, password bool, err error) {
	if len(paths) == 0 {
		return slices.Sorted(maps.Keys(mutable)), false, nil
	}
	for _, p := range paths {
		switch _, ok := mutable[p]; {
		case p == passwordPath:
			password = true
		case ok:
			fields = append(fields, p)
		default:
			all := append(slices.Collect(maps.Keys(mutable)), passwordPath)
			slices.Sort(all)
			return nil, false, invalid("update_mask", "names %q, which can't be changed; use %s", clip(p), strings.Join(all, ", "))
		}
	}
	return fields, password, nil
}

// clip keeps what is quoted in an error short.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// isHostPort tells whether s is what can be dialled: a host name or address,
// and a port. Anything else could make a dialler look for it by other means.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return false
	}
	return checkHost("", host, nil) == nil
}
