package web_test

import (
	"io/fs"
	"path"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"fanlight/signaling/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	inline = regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|javascript:`)
	script = regexp.MustCompile(`(?is)<script\b([^>]*)>(.*?)</script>`)
	loads  = regexp.MustCompile(`(?i)\s(?:src|href)="([^"]*)"`)
)

func TestPages(t *testing.T) {
	for _, page := range []string{"index.html", "stats.html"} {
		t.Run(page, func(t *testing.T) {
			html := read(t, page)
			if found := inline.FindString(html); found != "" {
				t.Errorf("%q is inline, which the content security policy forbids", found)
			}
			scripts := script.FindAllStringSubmatch(html, -1)
			if len(scripts) == 0 {
				t.Error("no script")
			}
			for _, s := range scripts {
				if strings.TrimSpace(s[2]) != "" || !strings.Contains(s[1], "src=") {
					t.Errorf("script %q is inline, which the content security policy forbids", s[0])
				}
			}
			for _, m := range loads.FindAllStringSubmatch(html, -1) {
				// Relative to the page, so that a proxy may serve it below a path.
				if !strings.HasPrefix(m[1], "./") {
					t.Errorf("%q is not relative to the page", m[1])
				}
				if read(t, path.Clean(m[1])) == "" {
					t.Errorf("%s is empty", m[1])
				}
			}
		})
	}
}

func TestPlayerStandsAlone(t *testing.T) {
	player := read(t, "player.js")
	if found := regexp.MustCompile(`\bimport\s*["{*(]|\bfrom\s*["']`).FindString(player); found != "" {
		t.Errorf("player.js imports another module: %q", found)
	}
	if !strings.Contains(player, "fanlight-player") {
		t.Error("player.js does not define <fanlight-player>")
	}
	if !strings.Contains(read(t, "index.html"), "./player.js") {
		t.Error("index.html does not load player.js by its stable name")
	}
}

func TestNothingFromElsewhere(t *testing.T) {
	elsewhere := regexp.MustCompile(`(?i)(?:src|href)=["'](?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|fetch\(["']https?:`)
	err := fs.WalkDir(web.Assets(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if found := elsewhere.FindString(read(t, name)); found != "" {
			t.Errorf("%s loads from elsewhere: %q", name, found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := fs.ReadFile(web.Assets(), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
