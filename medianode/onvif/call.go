package onvif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/icholy/digest"
)

// clockStep is how far a camera's clock may run before it has to be read again:
// cameras take a token for some minutes.
const clockStep = 2 * time.Second

// open calls an operation without credentials.
func (c *Client) open(ctx context.Context, to *url.URL, action, operation string) (*body, error) {
	res, err := c.post(ctx, to, action, envelope("", operation), "")
	if err != nil {
		return nil, err
	}
	return res.read()
}

// maybeOpen calls an operation without credentials, and with them if the camera
// wants some.
func (c *Client) maybeOpen(ctx context.Context, to *url.URL, action, operation string) (*body, error) {
	b, err := c.open(ctx, to, action, operation)
	if errors.Is(err, ErrRefused) && !c.cfg.Credentials.IsZero() {
		return c.authorized(ctx, to, action, operation)
	}
	return b, err
}

// authorized calls an operation with the credentials, if there are any. They are
// refused once before it gives up, or twice if the camera's clock was set
// meanwhile.
func (c *Client) authorized(ctx context.Context, to *url.URL, action, operation string) (*body, error) {
	if c.cfg.Credentials.IsZero() {
		return c.open(ctx, to, action, operation)
	}
	b, err := c.signed(ctx, to, action, operation)
	if errors.Is(err, ErrRefused) && c.challenge == nil {
		before := c.clock
		c.readClock(ctx)
		if (c.clock - before).Abs() > clockStep {
			return c.signed(ctx, to, action, operation)
		}
	}
	return b, err
}

// signed sends a request with a user name token, or with HTTP Digest once the
// camera has asked for it. A camera gets one of them at a time: the two together
// would both have to be right (ONVIF Core Specification §5.9.4).
func (c *Client) signed(ctx context.Context, to *url.URL, action, operation string) (*body, error) {
	for range 3 { // a token, an answer to the challenge, one to another because that was stale
		header, authorization, err := c.sign(to)
		if err != nil {
			return nil, err
		}
		res, err := c.post(ctx, to, action, envelope(header, operation), authorization)
		if err != nil {
			return nil, err
		}
		if res.status != http.StatusUnauthorized || !c.challenged(res.header, authorization != "") {
			if res.status < 300 && authorization != "" {
				c.accepted = true
			}
			return res.read()
		}
	}
	return nil, refused("http digest")
}

// sign returns the SOAP header or the HTTP header that says who asks.
func (c *Client) sign(to *url.URL) (header, authorization string, err error) {
	creds := c.cfg.Credentials
	if c.challenge == nil {
		return usernameToken(creds, c.now().Add(c.clock)), "", nil
	}
	c.answers++
	answer, err := digest.Digest(c.challenge, digest.Options{
		Method: http.MethodPost, URI: to.RequestURI(), Count: c.answers, Username: creds.Username, Password: creds.Password,
	})
	if err != nil { // the error says nothing that is not in the challenge
		return "", "", refused("the camera's kind of http digest is not known")
	}
	return "", answer.String(), nil
}

// challenged takes the challenge of a 401 (RFC 7616 §3.3), and tells whether it is
// to be answered: another one for an answer that was fresh says that the
// credentials are wrong.
func (c *Client) challenged(h http.Header, answered bool) bool {
	challenge, err := digest.FindChallenge(h)
	if err != nil || !digest.CanDigest(challenge) {
		return false
	}
	if answered && !challenge.Stale && !(c.accepted && c.answers > 1) {
		return false
	}
	c.challenge, c.answers, c.accepted = challenge, 0, false
	return true
}

// response is an HTTP response.
type response struct {
	status int
	header http.Header
	text   []byte
}

// post sends one request.
func (c *Client) post(ctx context.Context, to *url.URL, action, text, authorization string) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if host, _, err := net.SplitHostPort(got.Conn.RemoteAddr().String()); err == nil {
			c.remote = host
		}
	}})
	req, err := http.NewRequestWithContext(traced, http.MethodPost, to.String(), strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: a URL that cannot be used", ErrUnsupported)
	}
	// The action is a parameter of the media type (RFC 3902 §5).
	req.Header.Set("Content-Type", `application/soap+xml; charset=utf-8; action="`+action+`"`)
	req.Header.Set("User-Agent", "Fanlight")
	// All operations may be done twice. Not sent: it has http.Transport try again when
	// the camera closes the connection that was kept just as it is used.
	req.Header["Idempotency-Key"] = []string{}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, withoutURL(err))
	}
	defer func() { _ = res.Body.Close() }() // what is left of it is not wanted
	out := &response{status: res.StatusCode, header: res.Header}
	if out.text, err = io.ReadAll(io.LimitReader(res.Body, maxResponse+1)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if len(out.text) > maxResponse {
		return nil, fmt.Errorf("%w: an answer of more than %d bytes", ErrUnsupported, maxResponse)
	}
	return out, nil
}

// withoutURL returns an error of http.Client's without its URL, in which a path
// may be a secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// refused is the error of a camera that wants other credentials.
func refused(how string) error { return fmt.Errorf("%w (%s)", ErrRefused, how) }

// read returns the SOAP body, or what the fault or the HTTP status means.
func (r *response) read() (*body, error) {
	switch s := r.status; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		return nil, refused(fmt.Sprintf("http %d", s))
	case s == http.StatusTooManyRequests, s == http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: http %d", ErrUnavailable, s)
	case s < 200, s >= 300 && s != http.StatusBadRequest && s != http.StatusInternalServerError:
		return nil, fmt.Errorf("%w: http %d", ErrUnsupported, s)
	}
	b, err := parse(r.text)
	switch {
	case err == nil && b.Fault != nil:
		return nil, b.Fault.err()
	case err == nil && r.status < 300:
		return b, nil
	case r.status >= 500:
		return nil, fmt.Errorf("%w: http %d", ErrUnavailable, r.status)
	default:
		return nil, fmt.Errorf("%w: http %d without a soap body", ErrUnsupported, r.status)
	}
}
