//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

// TestBadInput sends what no player would, while somebody watches: each message
// gets its reason, and the picture goes on in the same peer connection.
func TestBadInput(t *testing.T) {
	s := up(t)
	srv := startSimcam(t, simcam.Config{Cameras: []string{"cam"}})
	s.add(t, "lobby", simCamera(srv, "cam"))
	page := open(t, s.gateways[0]+"/")
	before := page.awaitMoving(t, "lobby")

	t.Run("websocket", func(t *testing.T) { badMessages(t, s) })
	t.Run("whep", func(t *testing.T) { badRequests(t, s) })
	t.Run("cli", func(t *testing.T) { badCommands(t, s) })

	after := page.awaitMoving(t, "lobby")
	if after.Connection != before.Connection || after.Connections != before.Connections || after.FramesDecoded <= before.FramesDecoded {
		t.Errorf("the picture was disturbed: before %v, after %v", before, after)
	}
	if plays := srv.Plays("cam"); plays != 1 {
		t.Errorf("the camera was asked to play %d times", plays)
	}
}

const badOffer = "v=0\r\no=- one two\r\nm=video of nothing\r\n"

// noVideoOffer is an offer that a browser would make for sound alone.
const noVideoOffer = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n" +
	"m=audio 9 UDP/TLS/RTP/SAVPF 8\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:8 PCMA/8000\r\n" +
	"a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=setup:actpass\r\n" +
	"a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n"

func badMessages(t *testing.T, s *system) {
	goodOffer, vp8Offer := offer(t, viewertest.Config{}), offer(t, viewertest.Config{NoH264: true})
	watch := func(camera, offer string) string {
		return marshal(t, map[string]any{"type": "watch", "session": "s1", "camera": camera, "offer": offer})
	}
	tests := []struct {
		name    string
		kind    int
		message string
		want    string
	}{
		{"not JSON", websocket.TextMessage, "hello", "bad_message"},
		{"half a message", websocket.TextMessage, `{"type":"watch"`, "bad_message"},
		{"not an object", websocket.TextMessage, `["watch"]`, "bad_message"},
		{"binary", websocket.BinaryMessage, "\x00\x01\x02", "bad_message"},
		{"too large", websocket.TextMessage, `{"type":"watch","offer":"` + strings.Repeat("x", 4<<20) + `"}`, "message_too_large"},
		{"unknown type", websocket.TextMessage, `{"type":"dance"}`, "unknown_message"},
		{"a candidate before its watch", websocket.TextMessage, `{"type":"candidate","session":"s7","candidate":{"candidate":""}}`, "out_of_order"},
		{"unknown camera", websocket.TextMessage, watch("no-such-camera", goodOffer), "camera_not_found"},
		{"an offer that is no SDP", websocket.TextMessage, watch("lobby", "hello"), "bad_offer"},
		{"an offer that is bad SDP", websocket.TextMessage, watch("lobby", badOffer), "bad_offer"},
		{"an offer without video", websocket.TextMessage, watch("lobby", noVideoOffer), "no_video_section"},
		{"no codec in common", websocket.TextMessage, watch("lobby", vp8Offer), "codec_unsupported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := dial(t, s.gateways[0])
			if err := conn.WriteMessage(tt.kind, []byte(tt.message)); err != nil {
				t.Fatal(err)
			}
			reason, message := awaitError(t, conn)
			if reason != tt.want || message == "" {
				t.Errorf("got reason %q (%s), want %q", reason, message, tt.want)
			}
		})
	}
	t.Run("a candidate that is garbage", func(t *testing.T) {
		conn := dial(t, s.gateways[0])
		for _, m := range []string{watch("lobby", goodOffer), `{"type":"candidate","session":"s1","candidate":{"candidate":"candidate:of nothing"}}`} {
			if err := conn.WriteMessage(websocket.TextMessage, []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if reason, message := awaitError(t, conn); reason != "bad_candidate" {
			t.Errorf("got reason %q (%s), want bad_candidate", reason, message)
		}
	})
}

func badRequests(t *testing.T, s *system) {
	goodOffer := offer(t, viewertest.Config{})
	tests := []struct {
		name, camera, contentType, body string
		status                          int
		reason                          string
	}{
		{"an offer that is no SDP", "lobby", "application/sdp", badOffer, http.StatusBadRequest, "bad_offer"},
		{"an offer without video", "lobby", "application/sdp", noVideoOffer, http.StatusBadRequest, "no_video_section"},
		{"unknown camera", "no-such-camera", "application/sdp", goodOffer, http.StatusNotFound, "camera_not_found"},
		{"not an offer at all", "lobby", "application/json", "{}", http.StatusUnsupportedMediaType, ""},
		{"too large", "lobby", "application/sdp", strings.Repeat("v", 4<<20), http.StatusRequestEntityTooLarge, "message_too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := request(t, http.MethodPost, fmt.Sprintf("%s/v1/cameras/%s/whep", s.gateways[0], tt.camera), tt.contentType, []byte(tt.body))
			if status != tt.status || !strings.Contains(string(body), tt.reason) {
				t.Errorf("got %d %s, want %d %s", status, body, tt.status, tt.reason)
			}
		})
	}
	if status, _ := request(t, http.MethodDelete, s.gateways[0]+"/v1/cameras/lobby/whep/no-such-session", "", nil); status != http.StatusNotFound {
		t.Errorf("DELETE of a session that is not there: %d", status)
	}
}

func badCommands(t *testing.T, s *system) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"scheme", []string{"camera", "add", "door", "--url", "http://127.0.0.1/cam"}, "rtsp"},
		{"a name that exists", []string{"camera", "add", "lobby", "--url", "rtsp://127.0.0.1/cam"}, "exists"},
		{"a name that is none", []string{"camera", "add", "The Lobby", "--url", "rtsp://127.0.0.1/cam"}, "The Lobby"},
		{"unknown camera", []string{"camera", "get", "no-such-camera"}, "no-such-camera"},
		{"an etag out of date", []string{"camera", "update", "lobby", "--display-name", "Lobby", "--etag", "old"}, "etag"},
		{"unknown node", []string{"node", "get", "no-such-node"}, "no-such-node"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := s.tryCLI(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q; printed %q", err, tt.want, out)
			}
		})
	}
}

// offer returns the offer of a viewer that never takes an answer.
func offer(t *testing.T, cfg viewertest.Config) string {
	t.Helper()
	v, err := viewertest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("close a viewer: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	sdp, err := v.Offer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return sdp
}

// dial opens a websocket as the player does, and reads the welcome.
func dial(t *testing.T, gateway string) *websocket.Conn {
	t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{"fanlight.v1"}, HandshakeTimeout: startPatience}
	conn, resp, err := dialer.Dial(strings.Replace(gateway, "http", "ws", 1)+"/v1/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(startPatience)); err != nil {
		t.Fatal(err)
	}
	var m struct {
		Type string `json:"type"`
	}
	if err := conn.ReadJSON(&m); err != nil || m.Type != "welcome" {
		t.Fatalf("the first message is %+v, %v; want a welcome", m, err)
	}
	return conn
}

// awaitError reads until there is an error, and returns its reason and message.
// The error that ends the connection is in the close frame.
func awaitError(t *testing.T, conn *websocket.Conn) (reason, message string) {
	t.Helper()
	for {
		var m struct {
			Type    string `json:"type"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
		}
		err := conn.ReadJSON(&m)
		if closed := (*websocket.CloseError)(nil); errors.As(err, &closed) {
			reason, message, _ := strings.Cut(closed.Text, ": ")
			return reason, message
		}
		if err != nil {
			t.Fatalf("no error message: %v", err)
		}
		if m.Type == "error" {
			return m.Reason, m.Message
		}
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
