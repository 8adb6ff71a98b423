// Package e2e tests Fanlight from the outside: the real binary as processes,
// cameras written by others, and browsers and other WebRTC clients.
//
// The tests need programs from Debian (ffmpeg, gst-rtsp-server, VLC, Chromium,
// Firefox, webrtcbin, aiortc), which "make deps" installs; without them they
// fail rather than skip. They run with
//
//	make e2e
//	go test -tags e2e -run TestUp ./e2e
//
// Everything listens on free ports of 127.0.0.1, but for the media of TestClients,
// which Firefox takes from another address only. The log of each process and
// what browsers showed are left in e2e/artifacts, in a folder a test. A test
// that ends leaves no process behind, and fails if one did not stop in time.
package e2e
