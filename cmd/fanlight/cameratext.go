package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

func cameraHeader() []string {
	return []string{"NAME", "STATE", "NODE", "VIDEO", "BITRATE", "VIEWERS", "REASON"}
}

func cameraRow(cam *controlv1.Camera) []string {
	st := cam.GetStatus()
	bitrate := int64(0)
	for _, p := range st.GetProfiles() {
		bitrate += p.GetBitrateBps()
	}
	return []string{
		shortName(cam.GetName()), stateText(st), shortName(st.GetNode()), videoText(st),
		bitrateText(bitrate), strconv.Itoa(int(st.GetViewers())), whyText(st),
	}
}

// shortName returns the id in "cameras/lobby" or "nodes/node-1".
func shortName(name string) string {
	_, id, ok := strings.Cut(name, "/")
	if !ok {
		return name
	}
	return id
}

func stateText(st *controlv1.CameraStatus) string {
	return enumText(st.GetState().String(), "STATE_")
}

// whyText returns why a camera is not live, or why its picture is not good.
func whyText(st *controlv1.CameraStatus) string {
	if s := reasonText(st); s != "" {
		return s
	}
	return verdictText(st.GetVerdict())
}

// verdictText returns "viewer_network: 12 % of the packets are lost…".
func verdictText(v *controlv1.Verdict) string {
	cause := enumText(v.GetCause().String(), "CAUSE_")
	if cause == "" || v.GetMessage() == "" {
		return cause
	}
	return cause + ": " + v.GetMessage()
}

// reason is what a camera's status and a profile's have alike.
type reason interface {
	GetReason() controlv1.Reason
	GetMessage() string
}

func reasonText(st reason) string {
	reason := enumText(st.GetReason().String(), "REASON_")
	switch {
	case st.GetMessage() == "":
		return reason
	case reason == "":
		return st.GetMessage()
	default:
		return reason + ": " + st.GetMessage()
	}
}

// videoText returns "H264 1280x720 25 fps" of the first profile with video.
func videoText(st *controlv1.CameraStatus) string {
	for _, p := range st.GetProfiles() {
		for _, t := range p.GetTracks() {
			if t.GetWidth() == 0 && !slices.Contains([]string{"H264", "H265", "VP8", "VP9", "AV1"}, t.GetCodec()) {
				continue
			}
			s := t.GetCodec()
			if t.GetWidth() > 0 {
				s += fmt.Sprintf(" %dx%d", t.GetWidth(), t.GetHeight())
			}
			if fps := p.GetFramesPerSecond(); fps > 0 {
				s += fmt.Sprintf(" %.0f fps", fps)
			}
			return s
		}
	}
	return ""
}

// cameraFields returns all there is to say of a camera to people.
func cameraFields(cam *controlv1.Camera) [][2]string {
	st := cam.GetStatus()
	fields := [][2]string{
		{"name", shortName(cam.GetName())},
		{"display name", printable(cam.GetDisplayName())},
		{"state", stateText(st)},
		{"reason", printable(reasonText(st))},
		{"verdict", printable(verdictText(st.GetVerdict()))},
		{"next try", timeText(st.GetRetryTime())},
		{"since", timeText(st.GetStateTime())},
		{"node", shortName(st.GetNode())},
		{"viewers", strconv.Itoa(int(st.GetViewers()))},
	}
	for _, p := range cam.GetProfiles() {
		fields = append(fields, [2]string{"url (" + p.GetId() + ")", printable(p.GetUrl())})
		for _, u := range p.GetFallbackUrls() {
			fields = append(fields, [2]string{"fallback url (" + p.GetId() + ")", printable(u)})
		}
		fields = append(fields, [2]string{"transport (" + p.GetId() + ")", enumText(p.GetTransport().String(), "TRANSPORT_")})
	}
	for _, p := range st.GetProfiles() {
		fields = append(fields, [2]string{"state (" + p.GetId() + ")", profileStateText(p)})
		fields = append(fields, [2]string{"picture (" + p.GetId() + ")", profileText(p)})
	}
	password := ""
	if cam.GetPasswordSet() {
		password = "(set)"
	}
	return append(fields,
		[2]string{"onvif url", printable(cam.GetOnvifUrl())},
		[2]string{"username", printable(cam.GetUsername())},
		[2]string{"password", password},
		[2]string{"labels", labelText(cam.GetLabels())},
		[2]string{"node selector", labelText(cam.GetNodeSelector())},
		[2]string{"pull policy", enumText(cam.GetPullPolicy().String(), "PULL_POLICY_")},
		[2]string{"disabled", flagText(cam.GetDisabled())},
		[2]string{"max sessions", countText(int64(cam.GetMaxSessions()))},
		[2]string{"created", timeText(cam.GetCreateTime())},
		[2]string{"updated", timeText(cam.GetUpdateTime())},
		[2]string{"etag", printable(cam.GetEtag())},
	)
}

// profileStateText returns "live on fallback url 1", or "failed (timeout: …), next
// try 2026-01-02T03:04:05Z".
func profileStateText(p *controlv1.ProfileStatus) string {
	s := enumText(p.GetState().String(), "STATE_")
	if i := p.GetUrlIndex(); i > 0 {
		s += fmt.Sprintf(" on fallback url %d", i)
	}
	if r := reasonText(p); r != "" {
		s += " (" + r + ")"
	}
	if t := timeText(p.GetRetryTime()); t != "" {
		s += ", next try " + t
	}
	return printable(s)
}

func profileText(p *controlv1.ProfileStatus) string {
	var parts []string
	for _, t := range p.GetTracks() {
		s := t.GetCodec()
		if t.GetWidth() > 0 {
			s += fmt.Sprintf(" %dx%d", t.GetWidth(), t.GetHeight())
		}
		if t.GetUnsupportedReason() != "" {
			s += " (not passed on: " + t.GetUnsupportedReason() + ")"
		}
		parts = append(parts, s)
	}
	if p.GetFramesPerSecond() > 0 {
		parts = append(parts, fmt.Sprintf("%.1f fps", p.GetFramesPerSecond()))
	}
	if p.GetBitrateBps() > 0 {
		parts = append(parts, bitrateText(p.GetBitrateBps()))
	}
	if d := p.GetKeyframeInterval().AsDuration(); d > 0 {
		parts = append(parts, fmt.Sprintf("keyframe every %v", d.Round(time.Millisecond)))
	}
	if by := keyframeRequestText[p.GetKeyframeRequest()]; by != "" {
		parts = append(parts, by)
	}
	if b := bFramesText[p.GetBFrames()]; b != "" {
		parts = append(parts, b)
	}
	if p.GetPacketsLost() > 0 {
		parts = append(parts, fmt.Sprintf("%d packets lost", p.GetPacketsLost()))
	}
	if p.GetLoss() > 0 {
		parts = append(parts, fmt.Sprintf("%.2f %% lost lately", 100*p.GetLoss()))
	}
	if d := p.GetJitter().AsDuration(); d > 0 {
		parts = append(parts, fmt.Sprintf("jitter %v", d.Round(100*time.Microsecond)))
	}
	if t := enumText(p.GetTransport().String(), "TRANSPORT_"); t != "" {
		parts = append(parts, "over "+t)
	}
	return printable(strings.Join(parts, ", "))
}

var keyframeRequestText = map[controlv1.ProfileStatus_KeyframeRequest]string{
	controlv1.ProfileStatus_KEYFRAME_REQUEST_NONE:  "no keyframes on request",
	controlv1.ProfileStatus_KEYFRAME_REQUEST_RTCP:  "keyframes on request by rtcp",
	controlv1.ProfileStatus_KEYFRAME_REQUEST_ONVIF: "keyframes on request by onvif",
}

var bFramesText = map[controlv1.ProfileStatus_BFrames]string{
	controlv1.ProfileStatus_B_FRAMES_DROPPED:    "B-frames left out",
	controlv1.ProfileStatus_B_FRAMES_REFERENCED: "B-frames that browsers cannot play",
}

// timeText returns a time in the local zone.
func timeText(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() || t.AsTime().Unix() == 0 {
		return ""
	}
	return t.AsTime().Local().Format(time.RFC3339)
}

// flagText returns "yes", or nothing.
func flagText(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// countText returns a number, or nothing for 0.
func countText(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// cameraEventText returns one line of a watch.
func cameraEventText(e *controlv1.CameraEvent) string {
	cam := e.GetCamera()
	name := shortName(cam.GetName())
	if e.GetType() == controlv1.CameraEvent_TYPE_DELETED {
		return name + " deleted"
	}
	line := name + " " + orDash(stateText(cam.GetStatus()))
	if n := shortName(cam.GetStatus().GetNode()); n != "" {
		line += " on " + n
	}
	if r := whyText(cam.GetStatus()); r != "" {
		line += " (" + r + ")"
	}
	return printable(line)
}
