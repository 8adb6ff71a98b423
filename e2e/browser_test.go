//go:build e2e

package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

//go:embed testdata/page.js
var pageScript string

// tab is a page in a Chromium of its own.
type tab struct {
	ctx context.Context
}

// open shows a page until the end of the test.
func open(t *testing.T, url string) *tab {
	t.Helper()
	// No flag has to do with WebRTC: the browser is as people have it.
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(),
		append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
			chromedp.ExecPath("chromium"),
			chromedp.NoSandbox,
			chromedp.DisableGPU,
			chromedp.WindowSize(1280, 900),
			chromedp.Flag("disable-quic", true),
			chromedp.Flag("disable-component-update", true),
			chromedp.Flag("mute-audio", true),
			chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		)...)
	ctx, cancel := chromedp.NewContext(alloc)
	tb := &tab{ctx: ctx}
	log, err := os.Create(artifact(t, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			tb.screenshot(t, "failed.png")
		}
		cancel()
		cancelAlloc() // waits for the browser's end
		_ = log.Close()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	// Called one after the other, by the goroutine that reads from the browser.
	if err := chromedp.Listen(ctx, func(ev any) { writeConsole(log, ev) }); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: pageScript}); err != nil {
		t.Fatal(err)
	}
	tb.do(t, "open "+url, chromedp.Navigate(url))
	return tb
}

func writeConsole(log *os.File, ev any) {
	switch ev := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		for _, arg := range ev.Args {
			_, _ = fmt.Fprintf(log, "%s: %s %s\n", ev.Type, arg.Value, arg.Description)
		}
	case *runtime.EventExceptionThrown:
		_, _ = fmt.Fprintf(log, "exception: %s\n", ev.ExceptionDetails.Text)
	}
}

func (tb *tab) do(t *testing.T, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, startPatience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// evaluate runs an expression in the page, and waits for it if it is a promise.
func evaluate[T any](t *testing.T, tb *tab, expression string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, startPatience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("evaluate %s: %v", expression, err)
	}
	return v
}

// screenshot leaves what the page looks like among the artifacts.
func (tb *tab) screenshot(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, startPatience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Errorf("screenshot: %v", err)
		return
	}
	if err := os.WriteFile(artifact(t, name), png, 0o644); err != nil {
		t.Error(err)
	}
}

// sight is what a player shows; see testdata/page.js.
type sight struct {
	Present         bool   `json:"present"`
	State           string `json:"state"`
	Reason          string `json:"reason"`
	Message         string `json:"message"`
	Text            string `json:"text"`
	Width           int    `json:"width"`
	Height          int    `json:"height"`
	Luma            []int  `json:"luma"`
	Connections     int    `json:"connections"` // made by the page, ever
	Connection      int    `json:"connection"`  // which of them brings the picture; -1: none
	ConnectionState string `json:"connectionState"`
	FramesDecoded   int    `json:"framesDecoded"`
	PacketsLost     int    `json:"packetsLost"`
}

func (s sight) String() string {
	return fmt.Sprintf("state %q, reason %q, message %q, %dx%d, peer connection %d of %d %s, %d frames, text %q",
		s.State, s.Reason, s.Message, s.Width, s.Height, s.Connection, s.Connections, s.ConnectionState, s.FramesDecoded, s.Text)
}

// look returns what a camera's player shows now.
func (tb *tab) look(t *testing.T, name string) sight {
	t.Helper()
	arg, err := json.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return evaluate[sight](t, tb, fmt.Sprintf("window.fanlightProbe(%s)", arg))
}

// awaitMoving waits until a camera's picture is live, not blank, and changes
// while frames are being decoded. It returns the last look.
func (tb *tab) awaitMoving(t *testing.T, name string) sight {
	t.Helper()
	var before, now sight
	eventually(t, picturePatience, "a moving picture of "+name, func() (bool, string) {
		now = tb.look(t, name)
		if now.State != "live" || blank(now.Luma) {
			before = sight{}
			return false, now.String()
		}
		if before.Luma == nil || before.Connection != now.Connection {
			before = now
			return false, now.String()
		}
		return now.FramesDecoded >= before.FramesDecoded+10 && differ(before.Luma, now.Luma), now.String()
	})
	return now
}

// awaitState waits until a player is in a state.
func (tb *tab) awaitState(t *testing.T, name, state string) sight {
	t.Helper()
	var now sight
	eventually(t, picturePatience, fmt.Sprintf("the player of %s is %s", name, state), func() (bool, string) {
		now = tb.look(t, name)
		return now.State == state, now.String()
	})
	return now
}

// blank tells whether a picture is one colour, as black is.
func blank(luma []int) bool {
	return len(luma) == 0 || slices.Max(luma)-slices.Min(luma) < 30
}

// differ tells whether some of two pictures' pixels do, by more than noise.
func differ(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	n := 0
	for i := range a {
		if d := a[i] - b[i]; d > 8 || d < -8 {
			n++
		}
	}
	return n >= 2
}
