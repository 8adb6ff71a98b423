package fleet

// Sentence returns the reason as a viewer is told it, without a full stop;
// empty for the empty reason and for those that are unknown here. The messages
// that nodes and placement write for operators name hosts, addresses and
// labels, which are no viewer's business: what goes to viewers is made of the
// reason alone.
func (r Reason) Sentence() string { return reasonText[r] }

var reasonText = map[Reason]string{
	"no_node":                  "no media node is ready for the camera",
	"no_matching_node":         "no media node fits the camera",
	"no_capacity":              "every media node is full",
	ReasonStarting:             "the camera is being connected",
	"disabled":                 "the camera is disabled",
	ReasonIdle:                 "nobody watches the camera",
	ReasonConnectionRefused:    "the camera refuses the connection",
	ReasonTimeout:              "the camera does not answer",
	ReasonHostNotFound:         "the camera's host name is not known",
	ReasonAuthenticationFailed: "the camera refuses the user name or password it was configured with",
	ReasonStreamNotFound:       "the camera has no stream at the path it was configured with",
	ReasonCameraBusy:           "the camera takes no more connections",
	ReasonTransportUnsupported: "the camera refuses the transport it was configured with",
	ReasonTLSFailed:            "the camera's certificate is not the one expected",
	ReasonProtocolError:        "the camera does not speak RTSP as expected",
	ReasonNoVideo:              "the camera offers no video",
	ReasonCodecUnsupported:     "the camera's video codec is not supported",
	ReasonNoMedia:              "the camera is connected and sends no picture",
	ReasonConnectionClosed:     "the camera closed the connection",
	ReasonBFrames:              "the camera sends B-frames, which browsers cannot play",
	ReasonNetworkForbidden:     "the camera's address is not one that may be connected",
	"camera_deleted":           "the camera was deleted",
	"moving":                   "the camera is moving to another media node",
}
