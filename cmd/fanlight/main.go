// Command fanlight brings RTSP cameras to browsers over WebRTC.
//
//	fanlight up --demo 2
//	fanlight camera add lobby --url rtsp://192.0.2.7/main --username viewer --password-file -
//
// "fanlight up" runs everything in one process; "fanlight controlplane",
// "medianode" and "signaling" run the parts of a fleet, which find each other
// over gRPC. The other commands talk to a running control plane, or make keys.
//
// # Configuration
//
// Every setting is a flag (--log-level), an environment variable
// (FANLIGHT_LOG_LEVEL) and a key in the YAML file named by --config
// (log-level); a flag wins over the variable, the variable over the file. See
// [fanlight/internal/service.Config]. Two secrets are environment variables or
// files but never flags, for others can read a command line: FANLIGHT_TOKEN
// and the contents of the key files.
//
// # Safety
//
// Everything listens on loopback unless told otherwise. An address that other
// machines can reach is refused without TLS and something to know callers by,
// unless --insecure is given. On loopback with no keys everyone may operate
// and view, which is logged once as a warning.
//
// # Output
//
// Commands print tables for people and, with -o json, JSON for programs:
// messages as in the .proto files, with their field names, enums by name,
// 64-bit integers as strings, times as RFC 3339 and durations as "1.5s"; every
// scalar field is there, also at its zero value. "get", "add" and "update"
// print one resource; "list" prints {"cameras": […]} or {"nodes": […]};
// "watch" prints one event a line, and {"snapshot_complete": true} when all
// that existed has been sent. Passwords are never printed.
//
// The exit code is 0 on success, 1 on failure, and 2 if the command line or
// the configuration is wrong. SIGTERM and SIGINT stop a server within five
// seconds with code 0; a second one ends it at once with code 1.
package main

import (
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], &app{environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}))
}
