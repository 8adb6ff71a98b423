// Package fleet has the nouns that every part of Fanlight shares: cameras,
// nodes, their ids, the reasons a camera can be in a state for, and the errors
// that cross process borders.
//
// It performs no I/O and knows neither gRPC nor any protocol.
package fleet

import (
	"fmt"
	"strings"
)

// CameraID is the operator's name for a camera: the {camera} of
// "cameras/{camera}".
type CameraID string

// NodeID is the name of a media node: the {node} of "nodes/{node}".
type NodeID string

// SessionID names one viewer's session on one node.
type SessionID string

// maxID is the length of the longest id in bytes: a DNS label's (RFC 1035
// §2.3.4), so that an id can be a host name.
const maxID = 63

// Name returns the resource name, "cameras/{camera}".
func (id CameraID) Name() string { return "cameras/" + string(id) }

// Name returns the resource name, "nodes/{node}".
func (id NodeID) Name() string { return "nodes/" + string(id) }

// ParseCameraID checks an id that stands alone, "lobby".
func ParseCameraID(s string) (CameraID, error) {
	if err := checkID(s); err != nil {
		return "", fmt.Errorf("camera id %q %w", clip(s), err)
	}
	return CameraID(s), nil
}

// ParseCameraName returns the id of a resource name, "cameras/lobby".
func ParseCameraName(name string) (CameraID, error) {
	s, ok := strings.CutPrefix(name, "cameras/")
	if !ok {
		return "", fmt.Errorf("camera name %q must begin with \"cameras/\": %w", clip(name), InvalidArgument)
	}
	return ParseCameraID(s)
}

// ParseNodeID checks an id that stands alone, "node-1".
func ParseNodeID(s string) (NodeID, error) {
	if err := checkID(s); err != nil {
		return "", fmt.Errorf("node id %q %w", clip(s), err)
	}
	return NodeID(s), nil
}

// ParseNodeName returns the id of a resource name, "nodes/node-1".
func ParseNodeName(name string) (NodeID, error) {
	s, ok := strings.CutPrefix(name, "nodes/")
	if !ok {
		return "", fmt.Errorf("node name %q must begin with \"nodes/\": %w", clip(name), InvalidArgument)
	}
	return ParseNodeID(s)
}

// checkID returns an error that completes a sentence which names the id.
func checkID(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("must not be empty: %w", InvalidArgument)
	case len(s) > maxID:
		return fmt.Errorf("has %d characters, at most %d are allowed: %w", len(s), maxID, InvalidArgument)
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("must begin and end with a letter or digit: %w", InvalidArgument)
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("has %q; use a to z, 0 to 9 and \"-\": %w", r, InvalidArgument)
		}
	}
	return nil
}

// clip keeps what is quoted in an error short.
func clip(s string) string {
	if len(s) > maxID+1 {
		return s[:maxID+1] + "…"
	}
	return s
}
