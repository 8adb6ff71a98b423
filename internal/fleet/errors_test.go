package fleet_test

import (
	"os"
	"strings"
	"testing"

	"fanlight/internal/fleet"
)

// TestErrorsAreDocumented makes sure that each error has a row of its own in
// docs/errors.md, in the same order, and a text.
func TestErrorsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rest := string(doc)
	seen := make(map[fleet.Error]bool)
	for _, e := range fleet.Errors() {
		if seen[e] {
			t.Errorf("%s is listed twice", string(e))
		}
		seen[e] = true
		_, after, ok := strings.Cut(rest, "\n| `"+string(e)+"` |")
		if !ok {
			t.Errorf("docs/errors.md has no row for %s, or not in the order of fleet.Errors", string(e))
			continue
		}
		row, _, _ := strings.Cut(after, "\n")
		if cells := strings.Split(strings.Trim(row, " |"), " | "); len(cells) != 4 {
			t.Errorf("the row of %s has %d cells after the name, want code, HTTP status, meaning and what to do", string(e), len(cells))
		}
		rest = after
		if e.Error() == string(e) {
			t.Errorf("%s has no text", string(e))
		}
	}
}

// TestErrorsIsComplete finds constants that Errors leaves out.
func TestErrorsIsComplete(t *testing.T) {
	src, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Count(string(src), " Error = \"")
	if got := len(fleet.Errors()); got != want {
		t.Errorf("Errors() has %d of the %d constants", got, want)
	}
}
