package signaling

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"fanlight/internal/fleet"
)

func FuzzDecode(f *testing.F) {
	for _, test := range badMessages {
		if len(test.message) < 1000 {
			f.Add([]byte(test.message))
		}
	}
	f.Add([]byte(`{"type":"watch","session":"s","camera":"lobby","offer":"v=0\nm=video ","viewport":{"width":1,"height":2,"visible":true},"codecs":["H264"]}`))
	f.Add([]byte(`{"type":"candidate","session":"s","candidate":{"candidate":"candidate:1","sdpMid":"0","sdpMLineIndex":0}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if len(m.Session) > maxSessionID || !printable(m.Session) {
			t.Errorf("session %q", m.Session)
		}
		if err != nil {
			var reason fleet.Error
			if !errors.As(err, &reason) || reason == fleet.Internal {
				t.Errorf("error without a reason: %v", err)
			}
			if msg := errorMessage(m.Session, err); !json.Valid(msg.encode()) || len(msg.Message) > 1000 {
				t.Errorf("error message %+v", msg)
			}
			return
		}
		switch m.Type {
		case typeToken:
		case typeCandidate:
			if m.candidate == nil || len(m.candidate.GetCandidate()) > maxCandidate {
				t.Errorf("candidate %+v", m.candidate)
			}
			fallthrough
		default:
			if m.Session == "" {
				t.Error("no session")
			}
		}
	})
}

func FuzzFrag(f *testing.F) {
	f.Add("a=ice-ufrag:abcd\r\na=ice-pwd:efgh\r\nm=video 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:1 1 udp 1 127.0.0.1 1 typ host\r\na=end-of-candidates\r\n")
	f.Add("m=\na=mid:\na=candidate:")
	f.Add("a=ice-ufrag:x\n")
	f.Fuzz(func(t *testing.T, body string) {
		frag, err := parseFrag(body)
		if err != nil {
			if !errors.Is(err, fleet.BadCandidate) {
				t.Errorf("error without a reason: %v", err)
			}
			return
		}
		for _, c := range frag.candidates {
			if _, err := c.proto(); err != nil {
				t.Errorf("candidate %+v: %v", c, err)
			}
		}
		offer, err := restartOffer(testOffer, frag)
		if err != nil {
			return
		}
		if offerUfrag(offer) != frag.ufrag || strings.Contains(offer, "old1") || checkOffer(offer) != nil {
			t.Errorf("offer %q", offer)
		}
		for line := range strings.SplitSeq(offer, "\r\n") {
			if strings.ContainsAny(line, "\r\n") {
				t.Errorf("line %q", line)
			}
		}
	})
}

func TestFragOfTwoSections(t *testing.T) {
	frag, err := parseFrag("a=ice-ufrag:new\na=ice-pwd:pw\nm=audio 9 X 0\na=mid:a\na=candidate:1\nm=video 9 X 0\na=mid:v\na=candidate:2\n")
	if err != nil || len(frag.candidates) != 2 {
		t.Fatalf("%+v, %v", frag, err)
	}
	offer, err := restartOffer("v=0\r\nm=audio 9 X 0\r\na=mid:a\r\na=ice-ufrag:o\r\na=ice-pwd:o\r\na=candidate:old\r\nm=video 9 X 0\r\na=mid:v\r\na=ice-ufrag:o\r\na=ice-pwd:o\r\n", frag)
	want := "v=0\r\nm=audio 9 X 0\r\na=mid:a\r\na=ice-ufrag:new\r\na=ice-pwd:pw\r\na=candidate:1\r\nm=video 9 X 0\r\na=mid:v\r\na=ice-ufrag:new\r\na=ice-pwd:pw\r\na=candidate:2\r\n"
	if err != nil || offer != want {
		t.Errorf("got %q, %v", offer, err)
	}
	if _, err := answerFrag("v=0\r\nm=video 9 X 0\r\na=mid:0\r\n"); err == nil {
		t.Error("an answer without ICE was understood")
	}
}

// TestSentences makes sure that viewers are told what is theirs to know.
func TestSentences(t *testing.T) {
	for _, test := range []struct {
		err  error
		text string
	}{
		{errors.New("dial tcp 10.0.0.1:1: refused"), fleet.Internal.Error()},
		{errors.Join(errors.New("10.0.0.1"), fleet.NodeUnreachable), fleet.NodeUnreachable.Error()},
		{&spoken{reason: fleet.Unavailable, text: "later"}, "later"},
	} {
		if got := sentence(test.err); got != test.text {
			t.Errorf("%v: %q", test.err, got)
		}
	}
}
