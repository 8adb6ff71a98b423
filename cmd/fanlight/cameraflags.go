package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// The ids of the profiles that have flags of their own.
const (
	mainProfile = "main"
	subProfile  = "sub"
)

// maxPassword bounds what is read from a file, in bytes.
const maxPassword = 4 << 10

// cameraFlags are the settings of a camera. Only those that were given are
// applied.
type cameraFlags struct {
	flags *pflag.FlagSet

	displayName      string
	url, subURL      string
	fallbackURLs     []string
	transport        string
	tlsFingerprint   string
	username         string
	password         string
	passwordFile     string
	labels, selector map[string]string
	onDemand         bool
	idleTimeout      time.Duration
	disabled         bool
	maxSessions      int32
	expectedBitrate  int64
	onvifURL         string

	given credentials // set by resolve
}

func (c *cameraFlags) register(flags *pflag.FlagSet) {
	c.flags = flags
	flags.StringVar(&c.url, "url", "", "`rtsp://host[:port]/path` of the best picture, or rtsps://; \"-\": from the standard input, for a URL with a password in it")
	flags.StringVar(&c.subURL, "sub-url", "", "`rtsp://…` of a smaller picture of the same camera")
	flags.StringSliceVar(&c.fallbackURLs, "fallback-url", nil, "`rtsp://…` to try when --url cannot be pulled; several allowed")
	flags.StringVar(&c.transport, "transport", "auto", "`auto|tcp|udp|multicast` for RTP")
	flags.StringVar(&c.tlsFingerprint, "tls-fingerprint", "", "rtsps: accept only the certificate with this SHA-256 (`hex`)")
	flags.StringVar(&c.onvifURL, "onvif-url", "", "`http://host[:port]/path` of the camera's ONVIF device service, by which it is asked for keyframes; \"none\": ONVIF is not used (default: /onvif/device_service at port 80 of the host in --url)")
	flags.StringVar(&c.username, "username", "", "RTSP user `name`")
	flags.StringVar(&c.password, "password", "", "RTSP password (others on this machine can see it: prefer --password-file)")
	flags.StringVar(&c.passwordFile, "password-file", "", "`file` with the RTSP password; \"-\": the standard input")
	flags.StringVar(&c.displayName, "display-name", "", "a `name` for people")
	flags.StringToStringVar(&c.labels, "label", nil, "a label, `key=value`; several allowed")
	flags.StringToStringVar(&c.selector, "node-selector", nil, "a label that the node must have, `key=value`; several allowed")
	flags.BoolVar(&c.onDemand, "on-demand", false, "pull the camera only while somebody watches")
	flags.DurationVar(&c.idleTimeout, "idle-timeout", 0, "how `long` to pull what is pulled on demand, sub profiles too, after the last viewer (default 10s)")
	flags.BoolVar(&c.disabled, "disabled", false, "assign the camera to no node")
	flags.Int32Var(&c.maxSessions, "max-sessions", 0, "RTSP sessions that the camera accepts at once (0: any `number`)")
	flags.Int64Var(&c.expectedBitrate, "expected-bitrate-bps", 0, "expected `bits` per second of all pictures together")
}

// apply sets in cam what was given, and returns the paths of the fields that
// it set. It may be called for one camera after another.
func (c *cameraFlags) apply(cam *controlv1.Camera) (*fieldmaskpb.FieldMask, error) {
	given := c.flags.Changed
	paths := map[string]bool{}
	set := func(flag, path string, f func()) {
		if given(flag) {
			f()
			paths[path] = true
		}
	}
	if c.given.username != nil {
		cam.Username = *c.given.username
		paths["username"] = true
	}
	if c.given.password != nil {
		cam.Password = *c.given.password
		paths["password"] = true
	}
	if err := c.applyProfiles(cam, paths); err != nil {
		return nil, err
	}
	set("display-name", "display_name", func() { cam.DisplayName = c.displayName })
	set("label", "labels", func() { cam.Labels = merged(cam.GetLabels(), c.labels) })
	set("node-selector", "node_selector", func() { cam.NodeSelector = merged(cam.GetNodeSelector(), c.selector) })
	set("on-demand", "pull_policy", func() {
		cam.PullPolicy = controlv1.Camera_PULL_POLICY_ALWAYS
		if c.onDemand {
			cam.PullPolicy = controlv1.Camera_PULL_POLICY_ON_DEMAND
		}
	})
	set("idle-timeout", "idle_timeout", func() { cam.IdleTimeout = durationpb.New(c.idleTimeout) })
	set("disabled", "disabled", func() { cam.Disabled = c.disabled })
	set("max-sessions", "max_sessions", func() { cam.MaxSessions = c.maxSessions })
	set("onvif-url", "onvif_url", func() { cam.OnvifUrl = c.onvifURL })
	set("expected-bitrate-bps", "expected_bitrate_bps", func() { cam.ExpectedBitrateBps = c.expectedBitrate })
	return &fieldmaskpb.FieldMask{Paths: slices.Sorted(maps.Keys(paths))}, nil
}

func merged(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}

// credentials are a user name and password as given, each or neither.
type credentials struct {
	username, password *string
}

// resolve finds user name and password, also those in the URLs, which it takes
// out of them. Call it once, before apply. What it writes to notes has no
// password in it.
func (c *cameraFlags) resolve(stdin io.Reader, notes io.Writer) error {
	if err := c.readURL(stdin); err != nil {
		return err
	}
	if c.flags.Changed("username") {
		c.given.username = &c.username
	}
	if c.flags.Changed("password") {
		c.given.password = &c.password
	}
	if c.flags.Changed("password-file") {
		if c.given.password != nil {
			return usagef("give --password or --password-file, not both")
		}
		password, err := readPassword(c.passwordFile, stdin)
		if err != nil {
			return usagef("--password-file: %w", err)
		}
		c.given.password = &password
	}
	user, err := c.splitURLs()
	if err != nil || user == nil {
		return err
	}
	password, hasPassword := user.Password()
	if c.given.username != nil || c.given.password != nil && hasPassword {
		return usagef("a URL has a user name, and --username or --password is given as well; take it out of the URL")
	}
	username := user.Username()
	c.given.username = &username
	if hasPassword {
		c.given.password = &password
	}
	_, err = fmt.Fprintln(notes, "note: user name and password were taken out of the URL and are stored apart from it, as --username and --password do")
	return err
}

// readURL reads --url from the standard input if it is "-".
func (c *cameraFlags) readURL(stdin io.Reader) error {
	switch {
	case c.url != "-":
		return nil
	case c.passwordFile == "-":
		return usagef("--url and --password-file cannot both be read from the standard input")
	}
	line, err := readLine(stdin)
	if err != nil || line == "" {
		return usagef("--url -: the standard input must have the URL, in one line of at most %d bytes", maxPassword)
	}
	c.url = line
	return nil
}

// splitURLs takes user name and password out of all URLs.
func (c *cameraFlags) splitURLs() (*url.Userinfo, error) {
	urls := []*string{&c.url, &c.subURL, &c.onvifURL}
	for i := range c.fallbackURLs {
		urls = append(urls, &c.fallbackURLs[i])
	}
	var taken *url.Userinfo
	for _, u := range urls {
		user, err := splitURL(u)
		if err != nil {
			return nil, usageError{err}
		}
		if user != nil && taken != nil && taken.String() != user.String() {
			return nil, usagef("the URLs have different user names or passwords; a camera has one of each: give --username and --password-file")
		}
		if user != nil {
			taken = user
		}
	}
	return taken, nil
}

// splitURL takes user name and password out of a URL. Its errors quote nothing
// of the URL: there may be a password in it.
func splitURL(s *string) (*url.Userinfo, error) {
	if *s == "" || *s == fleet.ONVIFNone {
		return nil, nil
	}
	u, err := url.Parse(*s)
	scheme, rest, ok := strings.Cut(*s, "://")
	if err != nil || !ok || scheme != (*s)[:len(u.Scheme)] {
		return nil, errors.New("the URL cannot be read; write rtsp://host[:port]/path, and give user name and password by --username and --password-file (not shown here because it may contain a password)")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	// A password with one of "/?#" in it ends the authority early: what is read
	// as host and port are then the user name and the password's beginning.
	if strings.Contains(rest[len(authority):], "@") {
		return nil, errors.New("the URL has an \"@\" after its host; give user name and password by --username and --password-file, or write %40 for an \"@\" of the path (not shown here because it may contain a password)")
	}
	if u.User == nil {
		return nil, nil
	}
	// The rest stays as it was typed: cameras compare paths byte by byte.
	*s = scheme + "://" + rest[strings.LastIndexByte(authority, '@')+1:]
	return u.User, nil
}

// readPassword reads a password from a file; one line end after it is not part
// of it.
func readPassword(path string, stdin io.Reader) (string, error) {
	r := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer quietClose(f)
		r = f
	}
	password, err := readLine(r)
	if err == nil && password == "" {
		err = errors.New("it is empty; to remove a password give --password \"\"")
	}
	return password, err
}

// readLine reads one line to the end of r.
func readLine(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPassword+1))
	if err != nil {
		return "", err
	}
	data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	switch {
	case len(data) > maxPassword:
		return "", fmt.Errorf("more than %d bytes", maxPassword)
	case bytes.ContainsAny(data, "\r\n"):
		return "", errors.New("it has more than one line")
	}
	return string(data), nil
}

// applyProfiles sets URLs and how they are pulled.
func (c *cameraFlags) applyProfiles(cam *controlv1.Camera, paths map[string]bool) error {
	given := c.flags.Changed
	if !given("url") && !given("sub-url") && !given("fallback-url") && !given("transport") && !given("tls-fingerprint") {
		return nil
	}
	paths["profiles"] = true
	if given("url") {
		c.profile(cam, mainProfile, 0).Url = c.url
	}
	switch {
	case given("sub-url") && c.subURL == "":
		cam.Profiles = slices.DeleteFunc(cam.Profiles, func(p *controlv1.Profile) bool { return p.GetId() == subProfile })
	case given("sub-url"):
		c.profile(cam, subProfile, len(cam.GetProfiles())).Url = c.subURL
	}
	if given("fallback-url") {
		if len(cam.GetProfiles()) == 0 {
			return usagef("--fallback-url needs --url")
		}
		cam.Profiles[0].FallbackUrls = slices.DeleteFunc(slices.Clone(c.fallbackURLs), func(s string) bool { return s == "" })
	}
	for _, p := range cam.GetProfiles() {
		if given("transport") {
			t, ok := controlv1.Profile_Transport_value["TRANSPORT_"+strings.ToUpper(c.transport)]
			if !ok || t == 0 {
				return usagef("--transport %s: must be auto, tcp, udp or multicast", c.transport)
			}
			p.Transport = controlv1.Profile_Transport(t)
		}
		if given("tls-fingerprint") {
			p.TlsFingerprint = c.tlsFingerprint
		}
	}
	return nil
}

// profile returns the camera's profile of that id, which it inserts at i if
// need be. The first profile stands for "main" whatever its id.
func (c *cameraFlags) profile(cam *controlv1.Camera, id string, i int) *controlv1.Profile {
	for j, p := range cam.GetProfiles() {
		if p.GetId() == id || id == mainProfile && j == 0 {
			return p
		}
	}
	p := &controlv1.Profile{Id: id}
	cam.Profiles = slices.Insert(cam.Profiles, i, p)
	return p
}
