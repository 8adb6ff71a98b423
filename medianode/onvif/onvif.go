// Package onvif asks a camera for a keyframe over ONVIF: by the operation
// SetSynchronizationPoint of its media service, ver10 (ONVIF Media Service
// Specification §5.14.1) or ver20 (Media2 Service Specification §5.11.1).
//
// A [Client] finds the media service by the device service's address, and the
// media profile by the RTSP URL that the camera is pulled from; both are kept
// until the camera no longer knows them. Nothing else of ONVIF is used: no
// discovery, no configuration, nothing that changes the camera.
//
// It is SOAP 1.2 over HTTP with WS-Security user name tokens (the password
// digested with the camera's own time, which is asked for first) or with HTTP
// Digest, where the camera asks for that. The password itself is never sent, and
// Basic is not answered.
//
// What it trusts: the operator's URL alone. Every request goes to the host of the
// device service, whatever host the camera names for its media service, and
// through the dialler that it was given; redirects are not followed. Answers are
// read up to 256 KiB, and have 5 s each. What a camera says appears in no error.
package onvif

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/icholy/digest"

	"fanlight/internal/fleet"
)

// The outcomes, besides success and the context's error. Each error of a Client
// is one of them.
var (
	// ErrUnsupported: there is no ONVIF at the address, or no such operation.
	// Asking again is of no use until the camera is another one.
	ErrUnsupported = errors.New("keyframes cannot be asked for over ONVIF")
	// ErrRefused: the camera wants other credentials. Asking again may lock the
	// account.
	ErrRefused = errors.New("the camera refused the user name or password over ONVIF")
	// ErrUnavailable: the camera was not reached, or had a fault of its own.
	ErrUnavailable = errors.New("the camera cannot be asked over ONVIF now")
)

const (
	requestTimeout = 5 * time.Second
	maxResponse    = 256 << 10 // bytes
	maxProfiles    = 16        // whose stream URI is asked for
	idleTimeout    = 30 * time.Second
)

// Config says which camera to ask. DeviceURL and StreamURL are needed.
type Config struct {
	Log         *slog.Logger // nil: nothing is logged
	DeviceURL   string       // of the device service: http or https; credentials in it are not used
	StreamURL   string       // that the camera is pulled from: rtsp or rtsps
	Credentials fleet.Credentials

	// Dial opens TCP connections, and DialTLS those for https with the handshake
	// done, as in http.Transport: they decide which addresses are allowed, and what
	// certificate. nil: net.Dialer's, and the system's authorities.
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	DialTLS func(ctx context.Context, network, address string) (net.Conn, error)
}

// Picture is what is known of the profile's video, to tell profiles apart whose
// URLs don't. The zero values: unknown.
type Picture struct {
	Codec         string // RTP encoding name, like "H264"
	Width, Height int    // in pixels
}

// Client asks one camera for keyframes of one profile. Its methods have one caller
// at a time.
type Client struct {
	// Static after New.
	log    *slog.Logger
	cfg    Config
	device *url.URL
	http   *http.Client
	now    func() time.Time

	dials   sync.WaitGroup
	closing chan struct{} // closed by Close

	// Of the camera.
	remote   string        // the address that was dialled last
	clock    time.Duration // the camera's time less ours
	services []service     // that may have the operation, the best first
	token    string        // of the profile, at services[0]; empty: not found yet

	challenge *digest.Challenge // the camera's last; nil: it has not asked for HTTP Digest
	answers   int               // to it
	accepted  bool              // it has taken one
}

// service is a media service.
type service struct {
	url       *url.URL
	namespace string
}

// New returns a client that has asked nothing yet. The error says what is wrong
// with DeviceURL.
func New(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	device, err := url.Parse(cfg.DeviceURL)
	if err != nil || device.Hostname() == "" || device.Scheme != "http" && device.Scheme != "https" {
		// The error would quote the URL.
		return nil, errors.New("the ONVIF URL cannot be used: it must be like http://host/onvif/device_service")
	}
	device.User, device.Fragment = nil, ""
	if device.Path == "" {
		device.Path = "/onvif/device_service"
	}
	c := &Client{log: cfg.Log, cfg: cfg, device: device, now: time.Now, closing: make(chan struct{})}
	dial := cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:            c.owned(dial),
			DialTLSContext:         c.owned(cfg.DialTLS),
			DisableCompression:     true,
			MaxConnsPerHost:        1,
			MaxResponseHeaderBytes: 16 << 10,
			IdleConnTimeout:        idleTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// dialler is a DialContext.
type dialler = func(ctx context.Context, network, address string) (net.Conn, error)

// owned returns a dialler whose calls Close ends and waits for: those of an
// http.Transport may outlive the request that they are for.
func (c *Client) owned(dial dialler) dialler {
	if dial == nil {
		return nil
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		done := make(chan struct{})
		defer close(done)
		c.dials.Go(func() {
			select {
			case <-c.closing:
				cancel()
			case <-done:
			}
		})
		return dial(ctx, network, address)
	}
}

// Close closes the connection that is kept for the next request. It is called
// once, and nothing after it.
func (c *Client) Close() {
	close(c.closing)
	c.dials.Wait()
	c.http.CloseIdleConnections()
}

// Find finds the media service and the profile, if they are not known: some
// requests, and none when they are.
func (c *Client) Find(ctx context.Context, p Picture) error {
	if c.token != "" {
		return nil
	}
	if c.services == nil {
		c.readClock(ctx)
		services, err := c.findServices(ctx)
		if err != nil {
			return err
		}
		c.services = services
	}
	for len(c.services) > 0 {
		token, err := c.findProfile(ctx, c.services[0], p)
		if err == nil {
			c.token = token
			return nil
		}
		if !errors.Is(err, ErrUnsupported) {
			return err
		}
		c.services = c.services[1:]
	}
	c.services = nil
	return fmt.Errorf("find the media profile: %w", ErrUnsupported)
}

// RequestKeyframe asks for a keyframe of the profile, after Find where that is
// needed. That the camera says yes does not mean that one comes.
func (c *Client) RequestKeyframe(ctx context.Context, p Picture) error {
	var err error
	// Once for each service, and once more if the profile was known before.
	for range 3 {
		if err = c.Find(ctx, p); err != nil {
			return err
		}
		s := c.services[0]
		_, err = c.authorized(ctx, s.url, s.namespace+"/SetSynchronizationPoint", setSynchronizationPoint(s.namespace, c.token))
		switch {
		case errors.Is(err, errNoProfile): // profiles were made anew
			c.token, c.services = "", nil
		case errors.Is(err, ErrUnsupported):
			c.token, c.services = "", c.services[1:]
			if len(c.services) == 0 {
				c.services = nil
				return fmt.Errorf("set synchronization point: %w", err)
			}
		case err != nil:
			return fmt.Errorf("set synchronization point: %w", err)
		default:
			return nil
		}
	}
	return fmt.Errorf("set synchronization point: %w", err)
}

// readClock reads the camera's time, which needs no credentials. Without, the
// camera is taken to have ours.
func (c *Client) readClock(ctx context.Context) {
	body, err := c.open(ctx, c.device, deviceNamespace+"/GetSystemDateAndTime", getSystemDateAndTime)
	if err != nil {
		return
	}
	if t, ok := body.DateAndTime.time(); ok {
		c.clock = t.Sub(c.now())
	}
}

// findServices asks the device service where the media services are. Both
// operations need no credentials (ONVIF Core Specification §5.9.4.3), which not
// every camera knows.
func (c *Client) findServices(ctx context.Context) ([]service, error) {
	body, err := c.maybeOpen(ctx, c.device, deviceNamespace+"/GetServices", getServices)
	var out []service
	if err == nil {
		for _, namespace := range []string{media2Namespace, mediaNamespace} {
			for _, s := range body.Services {
				if strings.TrimSpace(s.Namespace) == namespace {
					out = append(out, service{c.address(s.XAddr), namespace})
					break
				}
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	} else if !errors.Is(err, ErrUnsupported) {
		return nil, fmt.Errorf("get services: %w", err)
	}
	body, err = c.maybeOpen(ctx, c.device, deviceNamespace+"/GetCapabilities", getCapabilities)
	if err != nil {
		return nil, fmt.Errorf("get capabilities: %w", err)
	}
	if body.MediaXAddr == "" {
		return nil, fmt.Errorf("get capabilities: no media service: %w", ErrUnsupported)
	}
	return []service{{c.address(body.MediaXAddr), mediaNamespace}}, nil
}

// address returns where a service is: at the device service's host, for cameras
// name addresses that they have behind address translation, or had once, and
// credentials go nowhere else. The port is the service's own only where it names
// the host that was reached.
func (c *Client) address(xaddr string) *url.URL {
	out := *c.device
	u, err := url.Parse(strings.TrimSpace(xaddr))
	if err != nil || u.Path == "" {
		return &out
	}
	out.Path, out.RawPath, out.RawQuery = u.Path, u.RawPath, u.RawQuery
	sameHost := strings.EqualFold(u.Hostname(), c.device.Hostname()) || u.Hostname() == c.remote
	if sameHost && (u.Scheme == c.device.Scheme || u.Scheme == "https") {
		out.Scheme, out.Host = u.Scheme, c.device.Hostname()
		if strings.Contains(out.Host, ":") {
			out.Host = "[" + out.Host + "]"
		}
		if port := u.Port(); port != "" {
			out.Host = net.JoinHostPort(c.device.Hostname(), port)
		}
	}
	return &out
}
