package fleet

import (
	"log/slog"
	"strings"
	"time"
)

// Camera is a configured camera as the node that pulls it needs it.
type Camera struct {
	ID          CameraID
	Profiles    []Profile // at least one; the best picture first
	Credentials Credentials
	PullPolicy  PullPolicy
	IdleTimeout time.Duration // of what is pulled while somebody watches; never 0
	MaxSessions int           // RTSP sessions the camera accepts; 0: unlimited
	TCPFirst    bool          // RTP came over TCP when the camera was last seen
	ONVIFURL    string        // of the device service, without credentials; empty: guessed from the first profile's; ONVIFNone: not used
	Retry       int64         // grows when an operator wants the camera tried at once
}

// ONVIFNone in place of an ONVIF URL says that ONVIF is not used.
const ONVIFNone = "none"

// Profile is one of a camera's RTSP URLs.
type Profile struct {
	ID             string   // "main", "sub", …
	URL            string   // rtsp or rtsps, without credentials
	FallbackURLs   []string // tried in order when URL cannot be pulled
	Transport      Transport
	TLSFingerprint string // SHA-256 as 64 lower-case hex digits; empty: verify by the host's name
}

// Credentials are a camera's user name and password. They print as a mark
// that they are there, whatever the verb or handler, so that they reach no log.
type Credentials struct {
	Username string
	Password string
}

// IsZero tells whether there are none.
func (c Credentials) IsZero() bool { return c == Credentials{} }

// String hides the credentials.
func (c Credentials) String() string {
	if c.IsZero() {
		return "none"
	}
	return "[hidden]"
}

// GoString hides the credentials.
func (c Credentials) GoString() string { return c.String() }

// LogValue hides the credentials.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText hides the credentials from encoders; they are never encoded but
// in the fields of protobuf messages made for them.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Transport is how RTP comes from the camera.
type Transport int

// The transports. The zero value is the default.
const (
	TransportAuto      Transport = iota // UDP, then TCP
	TransportTCP                        // interleaved in the RTSP connection
	TransportUDP                        // unicast
	TransportMulticast                  // multicast
)

// String returns the name that the command line and the API use.
func (t Transport) String() string {
	switch t {
	case TransportTCP:
		return "tcp"
	case TransportUDP:
		return "udp"
	case TransportMulticast:
		return "multicast"
	default:
		return "auto"
	}
}

// PullPolicy is when a camera is pulled.
type PullPolicy int

// The policies. The zero value is the default.
const (
	PullAlways   PullPolicy = iota // always
	PullOnDemand                   // while there are viewers, and IdleTimeout longer
)

// CameraState is where a camera stands, as its node sees it.
type CameraState int

// The states. Unassigned and disabled are the control plane's to say.
const (
	CameraConnecting CameraState = iota // being connected
	CameraLive                          // media is coming
	CameraFailed                        // cannot be pulled; there is a reason
	CameraIdle                          // on demand, and nobody watches
)

// String returns the state's name in lower case.
func (s CameraState) String() string {
	switch s {
	case CameraLive:
		return "live"
	case CameraFailed:
		return "failed"
	case CameraIdle:
		return "idle"
	default:
		return "connecting"
	}
}

// Reason says why a camera is not live: the control plane's Reason enum, in
// lower case and without its prefix. Empty: nothing is wrong.
type Reason string

// The reasons a node can give. The control plane has more, see
// proto/fanlight/control/v1/camera.proto and docs/errors.md.
const (
	ReasonNone                 Reason = ""
	ReasonStarting             Reason = "starting"
	ReasonIdle                 Reason = "idle"
	ReasonConnectionRefused    Reason = "connection_refused"
	ReasonTimeout              Reason = "timeout"
	ReasonHostNotFound         Reason = "host_not_found"
	ReasonAuthenticationFailed Reason = "authentication_failed"
	ReasonStreamNotFound       Reason = "stream_not_found"
	ReasonCameraBusy           Reason = "camera_busy"
	ReasonTransportUnsupported Reason = "transport_unsupported"
	ReasonTLSFailed            Reason = "tls_failed"
	ReasonProtocolError        Reason = "protocol_error"
	ReasonNoVideo              Reason = "no_video"
	ReasonCodecUnsupported     Reason = "codec_unsupported"
	ReasonNoMedia              Reason = "no_media"
	ReasonConnectionClosed     Reason = "connection_closed"
	ReasonNetworkForbidden     Reason = "network_forbidden"
	ReasonBFrames              Reason = "b_frames"
)

// Enum returns the name of the reason's value in the control plane's enum,
// "REASON_CONNECTION_REFUSED"; for the empty reason, "REASON_UNSPECIFIED".
func (r Reason) Enum() string {
	if r == ReasonNone {
		return "REASON_UNSPECIFIED"
	}
	return "REASON_" + strings.ToUpper(string(r))
}

// CameraStatus is what a node sees of a camera.
type CameraStatus struct {
	State     CameraState
	Reason    Reason
	Message   string    // the reason in a sentence that says what to change; no credentials
	RetryTime time.Time // of the next attempt, when State is CameraFailed
	Since     time.Time // when State last changed
	Profiles  []ProfileStatus
	Viewers   int
	Verdict   Verdict
}

// ProfileStatus is what a node sees of one profile that it pulls.
type ProfileStatus struct {
	ID               string
	State            CameraState
	Reason           Reason
	Message          string
	RetryTime        time.Time
	Tracks           []TrackStatus
	Transport        Transport
	URLIndex         int           // 0: the profile's URL; n: the n-th of its fallback URLs
	BitrateBPS       int64         // of RTP from the camera, bits per second
	FramesPerSecond  float64       // video
	KeyframeInterval time.Duration // between the last two keyframes; 0: unknown
	PacketsLost      int64         // between the camera and the node, since the source connected
	Loss             float64       // the share of packets lost there in the last ten seconds, 0 to 1
	Jitter           time.Duration // of video from the camera (RFC 3550 §6.4.1)
	KeyframeRequest  KeyframeRequest
	BFrames          BFrames
	Viewers          int
}

// TrackStatus is one audio or video component of a profile.
type TrackStatus struct {
	Codec             string // RTP encoding name: "H264", "OPUS", "PCMA"
	Width, Height     int    // video, in pixels; 0: unknown
	UnsupportedReason string // why the track is not passed on; empty: it is
}

// KeyframeRequest is how a camera is asked for a keyframe. The values are those
// of the control plane's enum.
type KeyframeRequest int

// The ways. The zero value: not learnt yet.
const (
	KeyframeRequestUnknown KeyframeRequest = iota
	KeyframeRequestNone                    // it heeds no request
	KeyframeRequestRTCP                    // picture loss indication (RFC 4585 §6.3.1)
	KeyframeRequestONVIF                   // SetSynchronizationPoint
)

// BFrames is whether a profile's video has B-frames. The values are those of the
// control plane's enum.
type BFrames int

// What there can be. The zero value: not known yet, or the codec has none.
const (
	BFramesUnknown    BFrames = iota
	BFramesNone               // none has been seen
	BFramesDropped            // no picture refers to them: they are left out
	BFramesReferenced         // pictures refer to them: browsers cannot play the profile
)

// Verdict says what is to blame for a picture that is not good. The zero value:
// nothing is wrong.
type Verdict struct {
	Cause   Cause
	Message string // what was seen, with figures, and what to change; no credentials, no addresses
}

// Cause is what is to blame. The values are those of the control plane's enum
// Verdict.Cause.
type Cause int

// The causes.
const (
	CauseNone          Cause = iota
	CauseCamera              // the camera, or the network between it and its node
	CauseNode                // the node does not keep up
	CauseViewerNetwork       // the network between the node and the viewer
	CauseCodec               // what the camera sends cannot be played, or only in part
)

// String returns the cause as websocket, page and metrics have it: empty for none.
func (c Cause) String() string {
	switch c {
	case CauseCamera:
		return "camera"
	case CauseNode:
		return "node"
	case CauseViewerNetwork:
		return "viewer_network"
	case CauseCodec:
		return "codec"
	default:
		return ""
	}
}
