package signaling

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fanlight/internal/fleet"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// Protocol is the websocket's subprotocol. Every message is described in
// docs/signaling.md.
const Protocol = "fanlight.v1"

// tokenProtocol precedes the viewer's token in the list of subprotocols, for a
// browser can add no header to a websocket.
const tokenProtocol = "fanlight.token."

// Bounds of a message's fields.
const (
	maxSessionID = 64        // bytes
	maxOffer     = 64 << 10  // bytes of SDP
	maxCandidate = 1 << 10   // bytes of a candidate-attribute
	maxTag       = 256       // bytes of sdpMid, usernameFragment
	maxCodecs    = 32        //
	maxCodec     = 32        // bytes
	maxPixels    = 1 << 16   // of a viewport's side
	maxFrameTime = 3_600_000 // milliseconds
	maxNamed     = 64        // bytes of a profile's id and a verdict's name, as a node says them
	maxVerdict   = 512       // bytes of a verdict's sentence
)

// inbound is a message from the browser, with the fields of every type. What
// is not part of its type is ignored, as are fields unknown here: a newer
// browser may say more.
type inbound struct {
	Type         string          `json:"type"`
	Session      string          `json:"session"`
	Camera       string          `json:"camera"`
	Offer        string          `json:"offer"`
	Viewport     *viewport       `json:"viewport"`
	Codecs       []string        `json:"codecs"`
	Candidate    json.RawMessage `json:"candidate"`
	Width        int32           `json:"width"`
	Height       int32           `json:"height"`
	Visible      bool            `json:"visible"`
	Token        string          `json:"token"`
	FirstFrameMS float64         `json:"first_frame_ms"`

	// candidate is Candidate, read.
	candidate *mediav1.Candidate
}

// The types of messages from the browser.
const (
	typeWatch     = "watch"
	typeCandidate = "candidate"
	typeRestart   = "restart"
	typeViewport  = "viewport"
	typeLeave     = "leave"
	typeStats     = "stats"
	typeToken     = "token"
)

// The types of messages to the browser, but for candidate.
const (
	typeWelcome   = "welcome"
	typeHeartbeat = "heartbeat"
	typeAnswer    = "answer"
	typeState     = "state"
	typeMove      = "move"
	typeError     = "error"
)

// viewport is how the picture is shown.
type viewport struct {
	Width   int32 `json:"width"`
	Height  int32 `json:"height"`
	Visible bool  `json:"visible"`
}

func (v viewport) proto() *mediav1.Viewport {
	return &mediav1.Viewport{Width: v.Width, Height: v.Height, Visible: v.Visible}
}

// iceCandidate is RTCIceCandidateInit (W3C WebRTC §4.8.1.1).
type iceCandidate struct {
	Candidate        string  `json:"candidate"`
	SDPMid           *string `json:"sdpMid,omitempty"`
	SDPMLineIndex    *uint32 `json:"sdpMLineIndex,omitempty"`
	UsernameFragment *string `json:"usernameFragment,omitempty"`
}

// outbound is a message to the browser.
type outbound struct {
	Type           string        `json:"type"`
	Session        string        `json:"session,omitempty"`
	Protocol       string        `json:"protocol,omitempty"`
	Heartbeat      int64         `json:"heartbeat_ms,omitempty"`
	ICEServers     []ICEServer   `json:"ice_servers,omitempty"`
	SDP            string        `json:"sdp,omitempty"`
	Candidate      *iceCandidate `json:"candidate,omitempty"`
	State          string        `json:"state,omitempty"`
	Reason         string        `json:"reason,omitempty"`
	Message        string        `json:"message,omitempty"`
	RetryAt        string        `json:"retry_at,omitempty"`
	Profile        string        `json:"profile,omitempty"`
	Verdict        string        `json:"verdict,omitempty"`
	VerdictMessage string        `json:"verdict_message,omitempty"`

	err error // of an error: what reason and message were made of
}

// The states of a session, as the browser sees them.
const (
	stateConnecting    = "connecting"
	stateLive          = "live"
	stateCameraOffline = "camera_offline"
	stateMoving        = "moving"
	stateEnded         = "ended"
)

// encode returns the message as JSON.
func (m outbound) encode() []byte {
	data, err := json.Marshal(m)
	if err != nil {
		// Strings and numbers alone: there is nothing that could fail.
		panic(fmt.Sprintf("encode %s: %v", m.Type, err))
	}
	return data
}

// decode reads and checks a message from the browser. The message is returned
// with an error too, as far as it could be read, so that the error can name
// its session.
func decode(data []byte) (inbound, error) {
	var m inbound
	if !utf8.Valid(data) {
		return m, fmt.Errorf("send JSON in UTF-8: %w", fleet.BadMessage)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		m.Session = clipSession(m.Session)
		return m, fmt.Errorf("send one JSON object with the fields of docs/signaling.md (%w): %w", jsonTrouble(err), fleet.BadMessage)
	}
	if len(m.Session) > maxSessionID || !printable(m.Session) {
		m.Session = ""
		return m, fmt.Errorf("a session id is 1 to %d characters of ASCII without spaces: %w", maxSessionID, fleet.BadMessage)
	}
	return m, m.check()
}

// check returns what is wrong with the fields of the message's type.
func (m *inbound) check() error {
	switch m.Type {
	case "":
		return fmt.Errorf("add the field \"type\": %w", fleet.BadMessage)
	case typeToken:
		if m.Token == "" {
			return fmt.Errorf("add the field \"token\": %w", fleet.BadMessage)
		}
		return nil
	case typeWatch, typeCandidate, typeRestart, typeViewport, typeLeave, typeStats:
	default:
		return fmt.Errorf("%q is no type of message in %s: %w", clip(m.Type, 32), Protocol, fleet.UnknownMessage)
	}
	if m.Session == "" {
		return fmt.Errorf("add the field \"session\", an id of your choice for the session: %w", fleet.BadMessage)
	}
	switch m.Type {
	case typeWatch:
		return m.checkWatch()
	case typeRestart:
		return checkOffer(m.Offer)
	case typeViewport:
		return checkViewport(viewport{m.Width, m.Height, m.Visible})
	case typeCandidate:
		var err error
		m.candidate, err = readCandidate(m.Candidate)
		return err
	case typeStats:
		if m.FirstFrameMS < 0 || m.FirstFrameMS > maxFrameTime {
			return fmt.Errorf("first_frame_ms is a time in milliseconds from 0 to %d: %w", maxFrameTime, fleet.BadMessage)
		}
	}
	return nil
}

func (m *inbound) checkWatch() error {
	if _, err := fleet.ParseCameraID(m.Camera); err != nil {
		return err
	}
	if len(m.Codecs) > maxCodecs {
		return fmt.Errorf("%d codecs are too many, name %d at most: %w", len(m.Codecs), maxCodecs, fleet.BadMessage)
	}
	for _, c := range m.Codecs {
		if c == "" || len(c) > maxCodec || !printable(c) {
			return fmt.Errorf("a codec is an RTP encoding name like \"H264\": %w", fleet.BadMessage)
		}
	}
	if m.Viewport != nil {
		if err := checkViewport(*m.Viewport); err != nil {
			return err
		}
	}
	return checkOffer(m.Offer)
}

func checkViewport(v viewport) error {
	if v.Width < 0 || v.Width > maxPixels || v.Height < 0 || v.Height > maxPixels {
		return fmt.Errorf("width and height are from 0 to %d: %w", maxPixels, fleet.BadMessage)
	}
	return nil
}

// checkOffer refuses what no node needs to see; the node does the rest.
func checkOffer(sdp string) error {
	switch {
	case sdp == "":
		return fmt.Errorf("the offer is empty, put the SDP of createOffer in it: %w", fleet.BadOffer)
	case len(sdp) > maxOffer:
		return fmt.Errorf("the offer has %d bytes, at most %d are allowed: %w", len(sdp), maxOffer, fleet.BadOffer)
	case !strings.HasPrefix(sdp, "v=0"):
		return fmt.Errorf("the offer is not SDP, it must begin with \"v=0\" (RFC 8866 §5.1): %w", fleet.BadOffer)
	case !strings.Contains(sdp, "\nm=video "):
		return fmt.Errorf("the offer has no video section, add a transceiver for video that receives: %w", fleet.NoVideoSection)
	}
	return nil
}

// readCandidate reads an RTCIceCandidateInit; null is the end of candidates.
func readCandidate(data json.RawMessage) (*mediav1.Candidate, error) {
	if len(data) == 0 || string(data) == "null" {
		return &mediav1.Candidate{}, nil
	}
	var c iceCandidate
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("a candidate is an RTCIceCandidateInit, the result of candidate.toJSON() (%w): %w", jsonTrouble(err), fleet.BadCandidate)
	}
	return c.proto()
}

func (c iceCandidate) proto() (*mediav1.Candidate, error) {
	switch {
	case len(c.Candidate) > maxCandidate:
		return nil, fmt.Errorf("the candidate has %d bytes, at most %d are allowed: %w", len(c.Candidate), maxCandidate, fleet.BadCandidate)
	case strings.ContainsAny(c.Candidate, "\r\n"):
		return nil, fmt.Errorf("the candidate has more than one line: %w", fleet.BadCandidate)
	case c.Candidate != "" && !strings.HasPrefix(c.Candidate, "candidate:"):
		return nil, fmt.Errorf("the candidate must begin with \"candidate:\" (RFC 8839 §5.1): %w", fleet.BadCandidate)
	case len(value(c.SDPMid)) > maxTag || len(value(c.UsernameFragment)) > maxTag:
		return nil, fmt.Errorf("sdpMid and usernameFragment have at most %d bytes: %w", maxTag, fleet.BadCandidate)
	case value(c.SDPMLineIndex) > 0xffff:
		return nil, fmt.Errorf("sdpMLineIndex is from 0 to 65535: %w", fleet.BadCandidate)
	}
	return &mediav1.Candidate{
		Candidate: c.Candidate, SdpMid: c.SDPMid, SdpMlineIndex: c.SDPMLineIndex, UsernameFragment: c.UsernameFragment,
	}, nil
}

// candidateMessage is a node's candidate for the browser.
func candidateMessage(c *mediav1.Candidate) outbound {
	return outbound{Type: typeCandidate, Candidate: &iceCandidate{
		Candidate: c.GetCandidate(), SDPMid: c.SdpMid, SDPMLineIndex: c.SdpMlineIndex, UsernameFragment: c.UsernameFragment,
	}}
}

// stateMessage is a state for the browser. retry may be zero.
func stateMessage(state string, reason fleet.Reason, message string, retry time.Time) outbound {
	m := outbound{Type: typeState, State: state, Reason: string(reason), Message: message}
	if !retry.IsZero() {
		m.RetryAt = retry.UTC().Format(time.RFC3339Nano)
	}
	return m
}

// errorMessage is an error for the browser.
func errorMessage(session string, err error) outbound {
	return outbound{Type: typeError, Session: session, Reason: wireReason(err), Message: sentence(err), err: err}
}

// value returns what p points to; nothing if it is nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// jsonTrouble is what a JSON decoder says, shortened: it may quote the input.
func jsonTrouble(err error) error { return errors.New(clip(err.Error(), 160)) }

// clip keeps what is quoted short, and whole characters.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

func clipSession(id string) string {
	if len(id) > maxSessionID || !printable(id) {
		return ""
	}
	return id
}

// printable tells whether s is of ASCII characters that can be seen.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// quote makes a header's quoted-string (RFC 9110 §5.6.4) of text that has no
// control characters.
func quote(s string) string { return strconv.Quote(s) }
