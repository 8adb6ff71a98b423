package signaling

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"fanlight/internal/fleet"
)

// policy is what the pages may load: nothing from elsewhere, and nothing
// inline (CSP Level 3). A browser that does not take 'self' to mean websockets
// too needs them named.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; " +
	"connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

// hashed are the names that change with the content: they may be kept for ever.
var hashed = regexp.MustCompile(`^assets/.*-[A-Za-z0-9_-]{8,}\.[a-z0-9]+$`)

// contentTypes are set here so that no file on the machine changes them.
var contentTypes = map[string]string{
	".html":  "text/html; charset=utf-8",
	".js":    "text/javascript; charset=utf-8",
	".css":   "text/css; charset=utf-8",
	".svg":   "image/svg+xml",
	".png":   "image/png",
	".ico":   "image/x-icon",
	".json":  "application/json",
	".map":   "application/json",
	".txt":   "text/plain; charset=utf-8",
	".woff2": "font/woff2",
}

// assets are the pages' files, all in memory.
type assets struct{ files map[string]asset }

type asset struct {
	body        []byte
	contentType string
	etag        string
	cache       string
}

func newAssets(files fs.FS) (*assets, error) {
	a := &assets{files: make(map[string]asset)}
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		f := asset{body: body, etag: `"` + hex.EncodeToString(sum[:12]) + `"`, cache: "no-cache", contentType: contentTypes[path.Ext(name)]}
		if f.contentType == "" {
			f.contentType = "application/octet-stream"
		}
		if hashed.MatchString(name) {
			f.cache = "public, max-age=31536000, immutable"
		}
		a.files[name] = f
		return nil
	})
	return a, err
}

// serveAsset serves the pages and what they load.
func (g *Gateway) serveAsset(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "" {
		name = "index.html"
	}
	g.serveFile(w, r, name)
}

func (g *Gateway) serveFile(w http.ResponseWriter, r *http.Request, name string) {
	f, ok := g.assets.files[name]
	if !ok {
		g.problem(w, r, fmt.Errorf("%q: %w", clip(r.URL.Path, 128), fleet.PathNotFound))
		return
	}
	h := w.Header()
	h.Set("Content-Type", f.contentType)
	h.Set("ETag", f.etag)
	h.Set("Cache-Control", f.cache)
	h.Set("Content-Security-Policy", policy)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin") // the player is for other pages
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(f.body))
}
