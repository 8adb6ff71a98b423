package signaling

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	"fanlight/signaling/route"
)

// TestReasonsAreDocumented makes sure that each Reason has a row in
// docs/errors.md, in the enum's order.
func TestReasonsAreDocumented(t *testing.T) {
	rest := readDoc(t, "errors.md")
	for n := range int32(len(controlv1.Reason_name)) {
		name := controlv1.Reason(n).String()
		_, after, ok := strings.Cut(rest, "\n| `"+name+"` |")
		if !ok {
			t.Errorf("docs/errors.md has no row for %s, or not in the enum's order", name)
			continue
		}
		row, _, _ := strings.Cut(after, "\n")
		if cells := strings.Split(strings.Trim(row, " |"), " | "); len(cells) != 2 {
			t.Errorf("the row of %s has %d cells after the name, want meaning and what to do", name, len(cells))
		}
		rest = after
	}
}

// TestReasonsHaveSentences makes sure that viewers are told something of each
// Reason.
func TestReasonsHaveSentences(t *testing.T) {
	for n := range int32(len(controlv1.Reason_name)) {
		reason := route.Reason(controlv1.Reason(n))
		if (reason.Sentence() == "") != (reason == fleet.ReasonNone) {
			t.Errorf("%q: sentence %q", reason, reason.Sentence())
		}
	}
	if s := reasonSentence("of_next_year"); s == "" {
		t.Error("nothing is said of an unknown reason")
	}
}

// TestStatusesAreDocumented compares the HTTP statuses of docs/errors.md with
// those that are sent.
func TestStatusesAreDocumented(t *testing.T) {
	doc := readDoc(t, "errors.md")
	for _, e := range fleet.Errors() {
		_, row, ok := strings.Cut(doc, "\n| `"+string(e)+"` | ")
		if !ok {
			t.Errorf("no row for %s", string(e))
			continue
		}
		cells := strings.SplitN(row, " | ", 3)
		documented, _, _ := strings.Cut(cells[1], ",")
		sent, sends := httpStatus[e]
		switch {
		case !sends && e == fleet.Internal:
			sent = 500
		case !sends:
			if documented != "–" {
				t.Errorf("%s: documented as %s, but has no status", string(e), documented)
			}
			continue
		}
		if documented != strconv.Itoa(sent) {
			t.Errorf("%s: documented as %s, sent as %d", string(e), documented, sent)
		}
	}
}

// TestMessagesAreDocumented makes sure that each type of message has a row in
// docs/signaling.md.
func TestMessagesAreDocumented(t *testing.T) {
	doc := readDoc(t, "signaling.md")
	for _, typ := range []string{
		typeWatch, typeCandidate, typeRestart, typeViewport, typeLeave, typeStats, typeToken,
		typeWelcome, typeAnswer, typeState, typeMove, typeError,
	} {
		if !strings.Contains(doc, "\n| `"+typ+"` |") {
			t.Errorf("docs/signaling.md has no row for %s", typ)
		}
	}
	for _, state := range []string{stateConnecting, stateLive, stateCameraOffline, stateMoving, stateEnded} {
		if !strings.Contains(doc, "`"+state+"`: ") {
			t.Errorf("docs/signaling.md does not explain the state %s", state)
		}
	}
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile("../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}
