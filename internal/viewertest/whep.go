package viewertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// WHEP is a viewer that plays over WHEP (draft-ietf-wish-whep).
type WHEP struct {
	*Viewer
	client   *http.Client
	endpoint string
	token    string
	offer    string

	// Of the last Play.
	resource       string
	sent, answered time.Time
}

// PlayWHEP posts an offer to url, with the token as bearer if there is one, and
// takes the answer. An HTTP error comes as an *HTTPError. client may be nil.
func PlayWHEP(ctx context.Context, client *http.Client, endpoint, token string, cfg Config) (*WHEP, error) {
	w, err := PrepareWHEP(ctx, client, endpoint, token, cfg)
	if err != nil {
		return nil, err
	}
	if err := w.Play(ctx); err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

// PrepareWHEP makes the viewer and its offer, and asks nobody for anything
// before Play.
func PrepareWHEP(ctx context.Context, client *http.Client, endpoint, token string, cfg Config) (*WHEP, error) {
	if client == nil {
		client = http.DefaultClient
	}
	cfg.Trickle = false
	v, err := New(cfg)
	if err != nil {
		return nil, err
	}
	w := &WHEP{Viewer: v, client: client, endpoint: endpoint, token: token}
	if w.offer, err = w.Offer(ctx); err != nil {
		_ = v.Close()
		return nil, fmt.Errorf("play %s: %w", endpoint, err)
	}
	return w, nil
}

// Play posts the offer and takes the answer. It is called once, after
// PrepareWHEP.
func (w *WHEP) Play(ctx context.Context) error {
	if err := w.play(ctx); err != nil {
		return fmt.Errorf("play %s: %w", w.endpoint, err)
	}
	return nil
}

func (w *WHEP) play(ctx context.Context) error {
	w.sent = time.Now()
	answer, header, err := w.do(ctx, http.MethodPost, w.endpoint, "application/sdp", w.offer, http.StatusCreated)
	if err != nil {
		return err
	}
	w.answered = time.Now()
	if w.resource, err = resolve(w.endpoint, header.Get("Location")); err != nil {
		return err
	}
	if got := header.Get("Content-Type"); !strings.HasPrefix(got, "application/sdp") {
		return fmt.Errorf("the answer is %q, want application/sdp", got)
	}
	return w.Answer(answer)
}

// Times returns when the offer was sent and when the answer had come.
func (w *WHEP) Times() (sent, answered time.Time) { return w.sent, w.answered }

// Resource returns the session's URL.
func (w *WHEP) Resource() string { return w.resource }

// Delete ends the session at the server, and closes the viewer.
func (w *WHEP) Delete(ctx context.Context) error {
	_, _, err := w.do(ctx, http.MethodDelete, w.resource, "", "", http.StatusOK)
	return errors.Join(err, w.Close())
}

// do makes a request and returns the response's body and header.
func (w *WHEP) do(ctx context.Context, method, target, contentType, body string, want int) (string, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return "", nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode != want {
		return "", nil, &HTTPError{Status: resp.StatusCode, Body: string(b)}
	}
	return string(b), resp.Header, nil
}

func resolve(endpoint, location string) (string, error) {
	if location == "" {
		return "", errors.New("the response has no Location")
	}
	base, err := url.Parse(endpoint)
	if err != nil {
		return "", err
	}
	ref, err := base.Parse(location)
	if err != nil {
		return "", err
	}
	return ref.String(), nil
}

// HTTPError is a response with a status that was not wanted.
type HTTPError struct {
	Status int
	Body   string
}

// Error returns status and body.
func (e *HTTPError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Body) }
