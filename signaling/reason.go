package signaling

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
)

// reasonOf returns why an error came about, as documented in docs/errors.md.
func reasonOf(err error) fleet.Error {
	err = rpc.FromStatus(err)
	var reason fleet.Error
	switch {
	case errors.As(err, &reason):
		return reason
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fleet.Unavailable
	}
	return fleet.Internal
}

// wireReason is the reason on the websocket and over HTTP.
func wireReason(err error) string { return strings.ToLower(string(reasonOf(err))) }

// sentence is what a viewer is told: the whole error where it is about what
// the viewer sent or may do, and no more than the reason where it could tell
// of addresses or of what is inside.
func sentence(err error) string {
	switch reason := reasonOf(err); reason {
	case fleet.Internal, fleet.Unavailable, fleet.NodeUnreachable, fleet.PermissionDenied:
		var said *spoken
		if errors.As(err, &said) {
			return said.text
		}
		return reason.Error()
	default:
		// What happened, without the reason's own words behind it: they stand in
		// the message's reason.
		return strings.TrimSuffix(err.Error(), ": "+reason.Error())
	}
}

// reasonSentence is what a viewer is told of a reason. The messages that come
// with reasons are written for operators: they name hosts, addresses and
// labels, and go no further.
func reasonSentence(r fleet.Reason) string {
	if s := r.Sentence(); s != "" || r == fleet.ReasonNone {
		return s
	}
	return "the camera has no picture at the moment" // of a reason newer than this gateway
}

// spoken is an error whose text is meant for viewers though its reason is one
// that usually hides it.
type spoken struct {
	text   string
	reason fleet.Error
}

func (e *spoken) Error() string { return e.text }
func (e *spoken) Unwrap() error { return e.reason }

// httpStatus is the HTTP status of each reason that the gateway gives over
// HTTP; others are 500.
var httpStatus = map[fleet.Error]int{
	fleet.InvalidArgument:      http.StatusBadRequest,
	fleet.Unauthenticated:      http.StatusUnauthorized,
	fleet.PermissionDenied:     http.StatusForbidden,
	fleet.Unavailable:          http.StatusServiceUnavailable,
	fleet.CameraNotFound:       http.StatusNotFound,
	fleet.InvalidPageToken:     http.StatusBadRequest,
	fleet.BadOffer:             http.StatusBadRequest,
	fleet.NoVideoSection:       http.StatusBadRequest,
	fleet.BadCandidate:         http.StatusBadRequest,
	fleet.CodecUnsupported:     http.StatusNotAcceptable,
	fleet.StaleRoute:           http.StatusServiceUnavailable,
	fleet.NodeFull:             http.StatusServiceUnavailable,
	fleet.CameraMoved:          http.StatusServiceUnavailable,
	fleet.CameraDeleted:        http.StatusNotFound,
	fleet.CameraDisabled:       http.StatusConflict,
	fleet.CameraUnassigned:     http.StatusServiceUnavailable,
	fleet.PeerConnectionFailed: http.StatusBadGateway,
	fleet.NodeStopping:         http.StatusServiceUnavailable,
	fleet.NodeUnreachable:      http.StatusServiceUnavailable,
	fleet.BadMessage:           http.StatusBadRequest,
	fleet.MessageTooLarge:      http.StatusRequestEntityTooLarge,
	fleet.OutOfOrder:           http.StatusConflict,
	fleet.SessionNotFound:      http.StatusNotFound,
	fleet.TooManySessions:      http.StatusTooManyRequests,
	fleet.TooManyConnections:   http.StatusTooManyRequests,
	fleet.RateLimited:          http.StatusTooManyRequests,
	fleet.TokenExpired:         http.StatusUnauthorized,
	fleet.CameraForbidden:      http.StatusForbidden,
	fleet.GatewayStopping:      http.StatusServiceUnavailable,
	fleet.OriginForbidden:      http.StatusForbidden,
	fleet.PathNotFound:         http.StatusNotFound,
	fleet.MethodNotAllowed:     http.StatusMethodNotAllowed,
	fleet.UnsupportedMediaType: http.StatusUnsupportedMediaType,
	fleet.PreconditionFailed:   http.StatusPreconditionFailed,
	fleet.ProtocolUnsupported:  http.StatusBadRequest,
}

// statusOf returns the HTTP status of an error.
func statusOf(err error) int {
	if code, ok := httpStatus[reasonOf(err)]; ok {
		return code
	}
	return http.StatusInternalServerError
}
