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
		bitrateText(bitrate), strconv.Itoa(int(st.GetViewers())), reasonText(st),
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

func reasonText(st *controlv1.CameraStatus) string {
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
		fields = append(fields, [2]string{"picture (" + p.GetId() + ")", profileText(p)})
	}
	password := ""
	if cam.GetPasswordSet() {
		password = "(set)"
	}
	return append(fields,
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
	if p.GetPacketsLost() > 0 {
		parts = append(parts, fmt.Sprintf("%d packets lost", p.GetPacketsLost()))
	}
	if t := enumText(p.GetTransport().String(), "TRANSPORT_"); t != "" {
		parts = append(parts, "over "+t)
	}
	return printable(strings.Join(parts, ", "))
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
	if r := reasonText(cam.GetStatus()); r != "" {
		line += " (" + r + ")"
	}
	return printable(line)
}
