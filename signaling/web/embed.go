// Package web has the browser's side of Fanlight, as built files: the player,
// which is the custom element <fanlight-player> in one ES module that any page
// may embed, and the pages that the gateway serves.
//
//	index.html       the wall: every camera that the viewer may see
//	stats.html       the live figures of every camera
//	player.js        the player; a stable name, needs no other file
//	favicon.svg
//	assets/          what the pages load; the names have a hash of the content,
//	                 so that they may be cached for ever
//
// No page has a script or a style inline, and nothing is loaded from elsewhere,
// so that "default-src 'self'; connect-src 'self' ws: wss:" is policy enough.
//
// The sources are TypeScript beside this file. The built files are committed,
// so that a Go toolchain is all it takes to build Fanlight; "npm ci && npm run
// build" makes them again, byte for byte. The package serves nothing itself.
package web

import (
	"embed"
	"io/fs"
)

//go:embed dist
var dist embed.FS

// Assets returns the built files, "index.html" at its root.
func Assets() fs.FS {
	assets, err := fs.Sub(dist, "dist")
	if err != nil {
		// fs.Sub fails only for a name that is not valid, and this one is.
		panic(err)
	}
	return assets
}
