package rpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fanlight/internal/fleet"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "fanlight"

// errorCodes is the one table between the reasons and gRPC's codes. Every
// fleet.Error is in it.
var errorCodes = map[fleet.Error]codes.Code{
	fleet.InvalidArgument:  codes.InvalidArgument,
	fleet.Unauthenticated:  codes.Unauthenticated,
	fleet.PermissionDenied: codes.PermissionDenied,
	fleet.Unavailable:      codes.Unavailable,
	fleet.Internal:         codes.Internal,

	fleet.CameraExists:       codes.AlreadyExists,
	fleet.CameraNotFound:     codes.NotFound,
	fleet.NodeNotFound:       codes.NotFound,
	fleet.InvalidURL:         codes.InvalidArgument,
	fleet.ETagMismatch:       codes.Aborted,
	fleet.ResumeTokenTooOld:  codes.OutOfRange,
	fleet.InvalidPageToken:   codes.InvalidArgument,
	fleet.InvalidResumeToken: codes.InvalidArgument,

	fleet.StoreFull:            codes.ResourceExhausted,
	fleet.MemberExists:         codes.AlreadyExists,
	fleet.MemberNotFound:       codes.NotFound,
	fleet.ClusterChangeRefused: codes.FailedPrecondition,

	fleet.HelloFirst:      codes.FailedPrecondition,
	fleet.NodeIdentity:    codes.PermissionDenied,
	fleet.NodeNameTaken:   codes.AlreadyExists,
	fleet.StaleGeneration: codes.FailedPrecondition,

	fleet.BadOffer:             codes.InvalidArgument,
	fleet.NoVideoSection:       codes.InvalidArgument,
	fleet.BadCandidate:         codes.InvalidArgument,
	fleet.CodecUnsupported:     codes.FailedPrecondition,
	fleet.StaleRoute:           codes.FailedPrecondition,
	fleet.NodeFull:             codes.ResourceExhausted,
	fleet.CameraMoved:          codes.Aborted,
	fleet.CameraDeleted:        codes.Aborted,
	fleet.CameraDisabled:       codes.FailedPrecondition,
	fleet.CameraUnassigned:     codes.Unavailable,
	fleet.PeerConnectionFailed: codes.Unavailable,
	fleet.NodeStopping:         codes.Unavailable,
	fleet.NodeUnreachable:      codes.Unavailable,

	fleet.BadMessage:         codes.InvalidArgument,
	fleet.MessageTooLarge:    codes.ResourceExhausted,
	fleet.UnknownMessage:     codes.InvalidArgument,
	fleet.OutOfOrder:         codes.FailedPrecondition,
	fleet.SessionExists:      codes.AlreadyExists,
	fleet.SessionNotFound:    codes.NotFound,
	fleet.TooManySessions:    codes.ResourceExhausted,
	fleet.TooManyConnections: codes.ResourceExhausted,
	fleet.RateLimited:        codes.ResourceExhausted,
	fleet.TokenExpired:       codes.Unauthenticated,
	fleet.CameraForbidden:    codes.PermissionDenied,
	fleet.SlowReader:         codes.ResourceExhausted,
	fleet.GatewayStopping:    codes.Unavailable,

	fleet.OriginForbidden:      codes.PermissionDenied,
	fleet.PathNotFound:         codes.NotFound,
	fleet.MethodNotAllowed:     codes.Unimplemented,
	fleet.UnsupportedMediaType: codes.InvalidArgument,
	fleet.PreconditionFailed:   codes.FailedPrecondition,
	fleet.ProtocolUnsupported:  codes.InvalidArgument,
}

// Code returns the gRPC code of a reason; Internal for one that is unknown.
func Code(reason fleet.Error) codes.Code {
	if c, ok := errorCodes[reason]; ok {
		return c
	}
	return codes.Internal
}

// Status returns err as a gRPC status error. The servers' interceptors call it
// on whatever a handler returns.
//
//   - An error that wraps a [fleet.Error] gets that reason's code, the whole
//     text, and one ErrorInfo{reason, domain "fanlight"}.
//   - An error of a context becomes CANCELED or DEADLINE_EXCEEDED.
//   - An error that is or wraps a gRPC status stays what it is.
//   - Everything else, and [fleet.Internal], becomes INTERNAL with the text
//     hidden, for it may hold anything.
//
// Status(nil) is nil.
func Status(err error) error {
	if err == nil {
		return nil
	}
	var reason fleet.Error
	if errors.As(err, &reason) && reason != fleet.Internal {
		return newStatus(Code(reason), reason, err.Error())
	}
	switch {
	case reason == fleet.Internal:
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "took longer than the caller allowed")
	default:
		if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
			return st.Err()
		}
	}
	return newStatus(codes.Internal, fleet.Internal, fleet.Internal.Error())
}

func newStatus(code codes.Code, reason fleet.Error, text string) error {
	st := status.New(code, text)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: string(reason), Domain: errorDomain}); err == nil {
		st = detailed
	}
	return st.Err()
}

// FromStatus returns an error received over gRPC as one that wraps its
// [fleet.Error], if it has one, and its context error, if it is one; the text
// is the server's and [status.FromError] still finds the status. An error
// without ErrorInfo whose code is UNAVAILABLE, UNAUTHENTICATED,
// PERMISSION_DENIED or INVALID_ARGUMENT wraps the reason of the same name:
// gRPC itself made it.
//
// The clients' interceptors call it on every error. Errors that are not of
// gRPC are returned as they are.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	var done *remoteError
	if errors.As(err, &done) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	e := &remoteError{status: st}
	switch st.Code() {
	case codes.Canceled:
		e.wrapped = context.Canceled
	case codes.DeadlineExceeded:
		e.wrapped = context.DeadlineExceeded
	case codes.Unavailable:
		e.wrapped = fleet.Unavailable
	case codes.Unauthenticated:
		e.wrapped = fleet.Unauthenticated
	case codes.PermissionDenied:
		e.wrapped = fleet.PermissionDenied
	case codes.InvalidArgument:
		e.wrapped = fleet.InvalidArgument
	case codes.Internal:
		e.wrapped = fleet.Internal
	}
	if reason, ok := reasonOf(st); ok {
		e.wrapped = reason
	}
	return e
}

// Answered tells whether the error of a client's call is what the server's
// handler returned, io.EOF too: the server was there when it came. If not, the
// connection was lost, and the server may be gone for up to [Silence].
func Answered(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	_, ok = reasonOf(st)
	return ok
}

// reasonOf returns the reason in the status' ErrorInfo. A reason that this
// version does not know is returned too: it is still the same one.
func reasonOf(st *status.Status) (fleet.Error, bool) {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain && info.GetReason() != "" {
			return fleet.Error(info.GetReason()), true
		}
	}
	return "", false
}

// remoteError is an error that another process returned.
type remoteError struct {
	status  *status.Status
	wrapped error // nil: the status says all
}

func (e *remoteError) Error() string {
	if e.status.Message() == "" {
		return e.status.Code().String()
	}
	return e.status.Message()
}

// GRPCStatus lets package status find the status.
func (e *remoteError) GRPCStatus() *status.Status { return e.status }

func (e *remoteError) Unwrap() error { return e.wrapped }
