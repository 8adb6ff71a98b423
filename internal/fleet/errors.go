package fleet

// Error is the reason of an error that crosses a process border. It is itself
// an error, so that it is wrapped with %w and found with errors.Is:
//
//	return fmt.Errorf("get camera %q: %w", id, fleet.CameraNotFound)
//
// Its value is the ErrorInfo reason in gRPC, and in lower case the reason on
// the websocket and over HTTP. Each one is explained in docs/errors.md.
type Error string

// Error returns the reason in words.
func (e Error) Error() string {
	if s, ok := errorText[e]; ok {
		return s
	}
	return string(e)
}

// The errors.
const (
	// Any caller.
	InvalidArgument  Error = "INVALID_ARGUMENT"
	Unauthenticated  Error = "UNAUTHENTICATED"
	PermissionDenied Error = "PERMISSION_DENIED"
	Unavailable      Error = "UNAVAILABLE"
	Internal         Error = "INTERNAL"

	// Operators.
	CameraExists       Error = "CAMERA_EXISTS"
	CameraNotFound     Error = "CAMERA_NOT_FOUND"
	NodeNotFound       Error = "NODE_NOT_FOUND"
	InvalidURL         Error = "INVALID_URL"
	ETagMismatch       Error = "ETAG_MISMATCH"
	ResumeTokenTooOld  Error = "RESUME_TOKEN_TOO_OLD"
	InvalidPageToken   Error = "INVALID_PAGE_TOKEN"
	InvalidResumeToken Error = "INVALID_RESUME_TOKEN"

	// The control plane's store and its replicas.
	StoreFull            Error = "STORE_FULL"
	MemberExists         Error = "MEMBER_EXISTS"
	MemberNotFound       Error = "MEMBER_NOT_FOUND"
	ClusterChangeRefused Error = "CLUSTER_CHANGE_REFUSED"

	// Nodes.
	HelloFirst      Error = "HELLO_FIRST"
	NodeIdentity    Error = "NODE_IDENTITY"
	NodeNameTaken   Error = "NODE_NAME_TAKEN"
	StaleGeneration Error = "STALE_GENERATION"

	// Sessions.
	BadOffer             Error = "BAD_OFFER"
	NoVideoSection       Error = "NO_VIDEO_SECTION"
	BadCandidate         Error = "BAD_CANDIDATE"
	CodecUnsupported     Error = "CODEC_UNSUPPORTED"
	StaleRoute           Error = "STALE_ROUTE"
	NodeFull             Error = "NODE_FULL"
	CameraMoved          Error = "CAMERA_MOVED"
	CameraDeleted        Error = "CAMERA_DELETED"
	CameraDisabled       Error = "CAMERA_DISABLED"
	CameraUnassigned     Error = "CAMERA_UNASSIGNED"
	PeerConnectionFailed Error = "PEER_CONNECTION_FAILED"
	NodeStopping         Error = "NODE_STOPPING"
	NodeUnreachable      Error = "NODE_UNREACHABLE"

	// The websocket and WHEP.
	BadMessage         Error = "BAD_MESSAGE"
	MessageTooLarge    Error = "MESSAGE_TOO_LARGE"
	UnknownMessage     Error = "UNKNOWN_MESSAGE"
	OutOfOrder         Error = "OUT_OF_ORDER"
	SessionExists      Error = "SESSION_EXISTS"
	SessionNotFound    Error = "SESSION_NOT_FOUND"
	TooManySessions    Error = "TOO_MANY_SESSIONS"
	TooManyConnections Error = "TOO_MANY_CONNECTIONS"
	RateLimited        Error = "RATE_LIMITED"
	TokenExpired       Error = "TOKEN_EXPIRED"
	CameraForbidden    Error = "CAMERA_FORBIDDEN"
	SlowReader         Error = "SLOW_READER"
	GatewayStopping    Error = "GATEWAY_STOPPING"

	// The gateway's HTTP.
	OriginForbidden      Error = "ORIGIN_FORBIDDEN"
	PathNotFound         Error = "PATH_NOT_FOUND"
	MethodNotAllowed     Error = "METHOD_NOT_ALLOWED"
	UnsupportedMediaType Error = "UNSUPPORTED_MEDIA_TYPE"
	PreconditionFailed   Error = "PRECONDITION_FAILED"
	ProtocolUnsupported  Error = "PROTOCOL_UNSUPPORTED"
)

// Errors lists every Error, in the order of docs/errors.md.
func Errors() []Error {
	return []Error{
		InvalidArgument, Unauthenticated, PermissionDenied, Unavailable, Internal,
		CameraExists, CameraNotFound, NodeNotFound, InvalidURL, ETagMismatch, ResumeTokenTooOld, InvalidPageToken, InvalidResumeToken,
		StoreFull, MemberExists, MemberNotFound, ClusterChangeRefused,
		HelloFirst, NodeIdentity, NodeNameTaken, StaleGeneration,
		BadOffer, NoVideoSection, BadCandidate, CodecUnsupported, StaleRoute, NodeFull, CameraMoved, CameraDeleted, CameraDisabled,
		CameraUnassigned, PeerConnectionFailed, NodeStopping, NodeUnreachable,
		BadMessage, MessageTooLarge, UnknownMessage, OutOfOrder, SessionExists, SessionNotFound, TooManySessions, TooManyConnections,
		RateLimited, TokenExpired, CameraForbidden, SlowReader, GatewayStopping,
		OriginForbidden, PathNotFound, MethodNotAllowed, UnsupportedMediaType, PreconditionFailed, ProtocolUnsupported,
	}
}

var errorText = map[Error]string{
	InvalidArgument:      "invalid argument",
	Unauthenticated:      "no valid credentials",
	PermissionDenied:     "not allowed",
	Unavailable:          "not available at the moment",
	Internal:             "internal error",
	CameraExists:         "a camera of that name exists",
	CameraNotFound:       "no such camera",
	NodeNotFound:         "no such node",
	InvalidURL:           "not a usable RTSP URL",
	ETagMismatch:         "the camera was changed since the etag was read; read it again",
	ResumeTokenTooOld:    "the resume token is too old; start the watch over without it",
	InvalidPageToken:     "the page token is not one that a list returned",
	InvalidResumeToken:   "the resume token is not one that a watch returned",
	StoreFull:            "the control plane's store is full",
	MemberExists:         "a replica of that name or address is a member already",
	MemberNotFound:       "no such replica",
	ClusterChangeRefused: "the replicas cannot be changed in this way now",
	HelloFirst:           "the first message must be hello",
	NodeIdentity:         "a node may speak only for itself",
	NodeNameTaken:        "another process of this name is connected",
	StaleGeneration:      "the assignment has been superseded",
	BadOffer:             "the SDP offer cannot be used",
	NoVideoSection:       "the SDP offer has no video section that receives",
	BadCandidate:         "the ICE candidate cannot be used",
	CodecUnsupported:     "the browser cannot play what the camera sends",
	StaleRoute:           "the camera has moved since the route was read",
	NodeFull:             "the node takes no more sessions",
	CameraMoved:          "the camera has moved to another node",
	CameraDeleted:        "the camera was deleted",
	CameraDisabled:       "the camera is disabled",
	CameraUnassigned:     "no node has the camera",
	PeerConnectionFailed: "the peer connection failed",
	NodeStopping:         "the node is stopping",
	NodeUnreachable:      "the camera's node cannot be reached",
	BadMessage:           "the message cannot be read",
	MessageTooLarge:      "the message is too large",
	UnknownMessage:       "the message's type is unknown",
	OutOfOrder:           "the message is not expected now",
	SessionExists:        "a session of that id exists on this connection",
	SessionNotFound:      "no session of that id",
	TooManySessions:      "too many sessions",
	TooManyConnections:   "too many connections",
	RateLimited:          "too many messages",
	TokenExpired:         "the token has expired",
	CameraForbidden:      "the token does not allow this camera",
	SlowReader:           "messages are not read fast enough",
	GatewayStopping:      "the gateway is stopping",
	OriginForbidden:      "the page's origin is not allowed",
	PathNotFound:         "nothing is at this path",
	MethodNotAllowed:     "the method is not allowed here",
	UnsupportedMediaType: "the content type is not the one expected",
	PreconditionFailed:   "the entity tag is not the session's current one",
	ProtocolUnsupported:  "the websocket subprotocol is not supported",
}
