//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"testing"
	"time"

	"fanlight/internal/simcam"
)

//go:embed testdata/profiles.js
var profilesScript string

// The widths of the simulated cameras' pictures.
const (
	mainWidth = 640
	subWidth  = 320
)

// TestProfiles watches a camera that has a main and a sub profile in a box that
// is small, then large, then hidden and shown again: the picture fits, does not
// stand still, and comes over one peer connection.
func TestProfiles(t *testing.T) {
	srv := startSimcam(t, simcam.Config{Cameras: []string{"cam"}, Small: []string{"cam-sub"}})
	s := upShipped(t)
	s.add(t, "lobby", simCamera(srv, "cam"), "--sub-url", srv.URL("cam-sub"))
	s.awaitCamera(t, "lobby", "STATE_LIVE", "")
	page := open(t, s.gateways[0]+"/")
	evaluate[any](t, page, profilesScript)
	evaluate[any](t, page, fmt.Sprintf("window.fanlightWatch(%q, %d), null", "lobby", subWidth))
	var w watched
	eventually(t, picturePatience, "a picture", func() (bool, string) {
		w = page.watched(t)
		return len(w.Frames) > 0, w.String()
	})
	for _, f := range w.Frames {
		if f.Width != subWidth {
			t.Fatalf("the picture in a small box is %d wide", f.Width)
		}
	}
	connections := w.Connections
	page.steady(t, 2*time.Second)

	freezes := page.watched(t).Freezes
	for _, width := range []int{mainWidth, subWidth, mainWidth} {
		resized := page.resize(t, width)
		took := page.becomes(t, width, resized)
		t.Logf("a box of %d pixels has a picture of as many after %.0f ms", width, took)
		if width == mainWidth && took > 3000 {
			t.Errorf("after %.0f ms", took)
		}
		page.steady(t, time.Second)
	}
	if w = page.watched(t); w.Freezes != freezes {
		t.Errorf("%d freezes over three switches", w.Freezes-freezes)
	}

	page.resize(t, 0)
	time.Sleep(2 * time.Second)
	before := page.watched(t).Received
	time.Sleep(time.Second)
	if w = page.watched(t); w.Received != before {
		t.Errorf("%d frames were received while nobody could see them", w.Received-before)
	}
	shown := page.resize(t, mainWidth)
	took := page.becomes(t, mainWidth, shown)
	t.Logf("shown again, the picture moves after %.0f ms", took)
	if took > 1000 {
		t.Errorf("after %.0f ms", took)
	}
	page.steady(t, time.Second)
	if w = page.watched(t); w.Connections != connections {
		t.Errorf("the page made %d peer connections more", w.Connections-connections)
	}
	eventually(t, picturePatience, "the sub profile is let go", func() (bool, string) {
		return srv.Sessions("cam-sub") == 0 && srv.Sessions("cam") == 1, fmt.Sprint(srv.Sessions("cam-sub"), srv.Sessions("cam"))
	})
}

// watched is what testdata/profiles.js has seen since the last time. Times in
// milliseconds of the page's clock.
type watched struct {
	State       string  `json:"state"`
	Connections int     `json:"connections"` // made by the page, ever
	Received    int     `json:"received"`    // frames, ever
	Freezes     int     `json:"freezes"`
	Since       float64 `json:"since"` // the frame before the first; 0: none
	Now         float64 `json:"now"`
	Frames      []struct {
		At    float64 `json:"at"`
		Width int     `json:"width"`
	} `json:"frames"`
}

func (w watched) String() string {
	return fmt.Sprintf("%s, %d peer connections, %d frames of %d received, %d freezes", w.State, w.Connections, len(w.Frames), w.Received, w.Freezes)
}

// gap is the longest time between two frames.
func (w watched) gap() (longest float64) {
	last := w.Since
	for _, f := range w.Frames {
		if last > 0 {
			longest = max(longest, f.At-last)
		}
		last = f.At
	}
	return longest
}

// still is how long no picture may be presented.
const still = 500.0 // ms

func (tb *tab) watched(t *testing.T) watched {
	t.Helper()
	return evaluate[watched](t, tb, "window.fanlightWatched()")
}

// resize gives the box a width, and returns when.
func (tb *tab) resize(t *testing.T, width int) float64 {
	t.Helper()
	return evaluate[float64](t, tb, fmt.Sprintf("window.fanlightResize(%d)", width))
}

// becomes waits until the picture has a width, and returns how many milliseconds
// after a time that was. If it has stood before, it does until then.
func (tb *tab) becomes(t *testing.T, width int, after float64) (took float64) {
	t.Helper()
	eventually(t, picturePatience, fmt.Sprintf("a picture %d pixels wide", width), func() (bool, string) {
		w := tb.watched(t)
		if w.Since < after-still { // it was hidden
			w.Since = 0
		}
		if gap := w.gap(); gap > still {
			t.Errorf("the picture stood still for %.0f ms", gap)
		}
		for _, f := range w.Frames {
			if f.At > after && f.Width == width {
				took = f.At - after
				return true, ""
			}
		}
		return false, w.String()
	})
	return took
}

// steady lets the picture play for a while.
func (tb *tab) steady(t *testing.T, d time.Duration) {
	t.Helper()
	tb.watched(t)
	time.Sleep(d)
	w := tb.watched(t)
	if gap := w.gap(); gap > still || len(w.Frames) < int(d.Seconds()*15) {
		t.Errorf("%d frames in %v, of which none for %.0f ms", len(w.Frames), d, gap)
	}
}
