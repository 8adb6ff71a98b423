package signaling

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"fanlight/internal/fleet"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const (
	sdpType  = "application/sdp"
	fragType = "application/trickle-ice-sdpfrag"
	// unassignedWait is how long a POST waits for a node to be given the
	// camera: as long as it takes where one is ready.
	unassignedWait = 2 * time.Second
)

// whep is a session by WHEP (draft-ietf-wish-whep, which follows RFC 9725).
type whep struct {
	// Static.
	id      string
	camera  fleet.CameraID
	subject string // of the viewer who made it
	session *session
	cancel  context.CancelCauseFunc
	answers chan string   // one slot: the last answer that nobody has taken
	refused chan error    // one slot: why the node refused a restart
	offline chan outbound // one slot: why there is no node
	done    chan struct{} // closed when the session has ended
	why     error         // read after done

	turn chan struct{} // one slot: whoever holds it may use the rest
	// Owned by whoever holds turn.
	offer string // the last
	etag  string // of the ICE session
	count int    // of ICE sessions
}

// deliver takes the session's messages.
func (p *whep) deliver(m outbound) {
	switch m.Type {
	case typeAnswer:
		replace(p.answers, m.SDP)
	case typeError:
		replace(p.refused, m.err)
	case typeState:
		if m.State == stateCameraOffline {
			replace(p.offline, m)
		}
	}
}

// replace puts a value into a channel of one slot in place of what is in it.
// It is called by the session alone.
func replace[T any](slot chan T, v T) {
	empty(slot)
	slot <- v
}

// empty takes what is in a channel of one slot, if there is anything.
func empty[T any](slot chan T) {
	select {
	case <-slot:
	default:
	}
}

// optionsWHEP tells a player what it may send and, if it may view, the ICE
// servers (RFC 9725 §4.6).
func (g *Gateway) optionsWHEP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Accept-Post", sdpType)
	if v, err := g.bearer(r); err == nil {
		g.linkICE(w, v.Subject)
	}
}

func (g *Gateway) linkICE(w http.ResponseWriter, subject string) {
	for _, s := range g.ice.servers(subject, time.Now()) {
		for _, link := range s.linkHeaders() {
			w.Header().Add("Link", link)
		}
	}
}

// postWHEP begins a session.
func (g *Gateway) postWHEP(w http.ResponseWriter, r *http.Request) {
	p, err := g.newWHEP(w, r)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	answer, err := g.awaitAnswer(r.Context(), p)
	if err != nil {
		p.cancel(errLeft)
		<-p.done
		g.problem(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", sdpType)
	h.Set("Location", "/v1/cameras/"+string(p.camera)+"/whep/"+p.id)
	h.Set("ETag", p.etag)
	h.Set("Accept-Patch", fragType)
	g.linkICE(w, p.subject)
	<-p.turn // from now on PATCH may use it
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, answer)
}

// newWHEP checks the request and starts the session; its turn is held.
func (g *Gateway) newWHEP(w http.ResponseWriter, r *http.Request) (*whep, error) {
	v, err := g.bearer(r)
	if err != nil {
		return nil, err
	}
	offer, err := readBody(w, r, sdpType, maxOffer)
	if err != nil {
		return nil, err
	}
	camera, err := fleet.ParseCameraID(r.PathValue("camera"))
	if err != nil {
		return nil, err
	}
	if err := checkOffer(offer); err != nil {
		return nil, err
	}
	p := &whep{
		id: g.tag + "-" + rand.Text(), camera: camera, subject: v.Subject, offer: offer,
		answers: make(chan string, 1), refused: make(chan error, 1), offline: make(chan outbound, 1),
		done: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	p.turn <- struct{}{}
	p.newETag()
	remote := g.remote(r)
	p.session, err = g.newSession(sessionConfig{
		camera: camera, creds: newCredentials(v), remote: remote, via: "whep", send: p.deliver,
		open: &mediav1.Open{Offer: offer, RemoteAddress: remote},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	p.cancel = cancel
	if err := g.begin(); err != nil {
		cancel(nil)
		p.session.release()
		return nil, err
	}
	g.mu.Lock()
	g.wheps[p.id] = p
	g.mu.Unlock()
	go g.runWHEP(ctx, p)
	return p, nil
}

// runWHEP runs the session until it ends or the gateway stops. It is owned by
// Run.
func (g *Gateway) runWHEP(ctx context.Context, p *whep) {
	defer g.work.Done()
	defer p.cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.why = g.runSession(ctx, p.session)
	}()
	select {
	case <-ended:
	case <-g.stopping:
		p.cancel(errLost)
		<-ended
	}
	switch {
	case errors.Is(p.why, errLeft):
		p.why = fmt.Errorf("the session has ended: %w", fleet.SessionNotFound)
	case errors.Is(p.why, errLost):
		p.why = fmt.Errorf("make a new session at another gateway: %w", fleet.GatewayStopping)
	}
	g.mu.Lock()
	delete(g.wheps, p.id)
	g.mu.Unlock()
	close(p.done)
}

// awaitAnswer waits for the node's answer to the offer.
func (g *Gateway) awaitAnswer(ctx context.Context, p *whep) (string, error) {
	timeout := time.NewTimer(g.limits.AnswerTimeout)
	defer timeout.Stop()
	unassigned := time.NewTimer(g.limits.AnswerTimeout + unassignedWait) // not before timeout, until there is cause
	defer unassigned.Stop()
	var reason outbound
	for {
		select {
		case answer := <-p.answers:
			return answer, nil
		case <-p.done:
			return "", p.why
		case m := <-p.offline:
			if reason.State == "" {
				unassigned.Reset(unassignedWait)
			}
			reason = m
		case <-unassigned.C:
			return "", fmt.Errorf("no node has camera %q (%s): %w", p.camera, orElse(reason.Message, reason.Reason), fleet.CameraUnassigned)
		case <-timeout.C:
			return "", &spoken{reason: fleet.NodeUnreachable, text: "the camera's node did not answer in time"}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// whep returns the session that a request is about, which is its viewer's
// alone.
func (g *Gateway) whep(r *http.Request) (*whep, error) {
	v, err := g.bearer(r)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	g.mu.Lock()
	p := g.wheps[id]
	g.mu.Unlock()
	if tag, _, ok := strings.Cut(id, "-"); ok && tag != g.tag {
		return nil, fmt.Errorf("another gateway made the session, or this one before it was started anew: send the request there, or close the peer connection and make a new session: %w", fleet.SessionNotFound)
	}
	if p == nil || string(p.camera) != r.PathValue("camera") || p.subject != v.Subject {
		return nil, fmt.Errorf("the session has ended or never was, make a new one: %w", fleet.SessionNotFound)
	}
	return p, nil
}

// deleteWHEP ends a session. It answers when the session has ended.
func (g *Gateway) deleteWHEP(w http.ResponseWriter, r *http.Request) {
	p, err := g.whep(r)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	p.cancel(errLeft)
	<-p.done
	w.WriteHeader(http.StatusOK)
}

// patchWHEP takes the player's candidates, or an ICE restart.
func (g *Gateway) patchWHEP(w http.ResponseWriter, r *http.Request) {
	p, err := g.whep(r)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	body, err := readBody(w, r, fragType, maxOffer)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	frag, err := parseFrag(body)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), g.limits.AnswerTimeout)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-p.done:
		g.problem(w, r, p.why)
		return
	case <-ctx.Done():
		g.problem(w, r, ctx.Err())
		return
	}
	match := r.Header.Get("If-Match")
	restart := match == "*" || (frag.ufrag != "" && frag.ufrag != offerUfrag(p.offer))
	switch {
	case match == "":
		// RFC 6585 §3: another status than a tag that does not match.
		w.Header().Set("ETag", p.etag)
		g.problemStatus(w, http.StatusPreconditionRequired, fmt.Errorf("send If-Match with the session's ETag, or \"*\" for an ICE restart: %w", fleet.PreconditionFailed))
	case match != "*" && match != p.etag:
		w.Header().Set("ETag", p.etag)
		g.problem(w, r, fmt.Errorf("If-Match is not the session's current ETag, an ICE restart has changed it: %w", fleet.PreconditionFailed))
	case restart:
		g.restartWHEP(ctx, w, r, p, frag)
	default:
		if err := p.trickle(ctx, frag); err != nil {
			g.problem(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// trickle passes candidates on.
func (p *whep) trickle(ctx context.Context, f sdpfrag) error {
	if f.end {
		f.candidates = append(f.candidates, iceCandidate{})
	}
	for _, c := range f.candidates {
		m, err := c.proto()
		if err != nil {
			return err
		}
		if err := p.request(ctx, &mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Candidate{Candidate: m}}); err != nil {
			return err
		}
	}
	return nil
}

// request gives the session a message for the node.
func (p *whep) request(ctx context.Context, req *mediav1.OpenSessionRequest) error {
	select {
	case p.session.requests <- req:
		return nil
	case <-p.done:
		return p.why
	case <-ctx.Done():
		return ctx.Err()
	}
}

// restartWHEP restarts ICE and answers with the node's new parameters and
// candidates.
func (g *Gateway) restartWHEP(ctx context.Context, w http.ResponseWriter, r *http.Request, p *whep, f sdpfrag) {
	answer, err := p.restart(ctx, f)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	body, err := answerFrag(answer)
	if err != nil {
		g.log.Warn("answer to an ICE restart not understood", "camera", p.camera, "error", err)
		g.problem(w, r, fleet.Internal)
		return
	}
	w.Header().Set("Content-Type", fragType)
	w.Header().Set("ETag", p.etag)
	_, _ = io.WriteString(w, body)
}

// restart sends the node the offer with other ICE parameters.
func (p *whep) restart(ctx context.Context, f sdpfrag) (answer string, err error) {
	offer, err := restartOffer(p.offer, f)
	if err != nil {
		return "", err
	}
	// What an earlier restart left that nobody waited for.
	empty(p.answers)
	empty(p.refused)
	req := &mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Restart{Restart: &mediav1.Restart{Offer: offer}}}
	if err := p.request(ctx, req); err != nil {
		return "", err
	}
	for {
		select {
		case answer = <-p.answers:
			p.offer = offer
			p.newETag()
			return answer, nil
		case err = <-p.refused:
			if reasonOf(err) != fleet.BadCandidate { // which an earlier PATCH brought
				return "", err
			}
		case <-p.done:
			return "", p.why
		case <-ctx.Done():
			return "", &spoken{reason: fleet.NodeUnreachable, text: "the camera's node did not answer in time"}
		}
	}
}

// newETag names the next ICE session.
func (p *whep) newETag() {
	p.count++
	p.etag = `"` + strconv.Itoa(p.count) + "-" + rand.Text()[:10] + `"`
}

// maxRefused is how many bytes of a body that is refused are read all the same.
// A connection that is closed with bytes unread is reset, and the answer that
// says why may be lost with it (RFC 9112 §9.6).
const maxRefused = 8 << 20

// readBody reads a request's body of the given type, bounded.
func readBody(w http.ResponseWriter, r *http.Request, contentType string, most int) (string, error) {
	got, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !strings.EqualFold(got, contentType) {
		discard(r)
		return "", fmt.Errorf("send Content-Type %s: %w", contentType, fleet.UnsupportedMediaType)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(most)))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			discard(r)
			return "", fmt.Errorf("the body has more than %d bytes: %w", most, fleet.MessageTooLarge)
		}
		return "", fmt.Errorf("the body cannot be read: %w", fleet.BadMessage)
	}
	return string(body), nil
}

// discard reads what is left of a body, bounded in bytes here and in time by
// the server. An error ends it; the answer is the same.
func discard(r *http.Request) { _, _ = io.CopyN(io.Discard, r.Body, maxRefused) }
