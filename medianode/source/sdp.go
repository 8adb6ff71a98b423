package source

import (
	"bytes"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/sdpunmarshaler"
)

// repairSDP leaves out of a description what cannot be read, so that an audio
// track with odd parameters does not cost the picture: where the whole cannot be
// read, the parameters (fmtp) of a track, and where that does not do, the track.
// What is beyond repair is returned as it is.
func repairSDP(body []byte) []byte {
	body = withoutOddControl(body)
	if readableSDP(body) {
		return body
	}
	const most = 16 // tracks; a description is read twice for each
	head, sections := splitSDP(body)
	if len(sections) > most {
		sections = sections[:most]
	}
	repaired := bytes.Clone(head)
	for _, section := range sections {
		if readableSDP(join(head, section)) {
			repaired = append(repaired, section...)
		} else if bare := withoutParameters(section); readableSDP(join(head, bare)) {
			repaired = append(repaired, bare...)
		}
	}
	if !readableSDP(repaired) {
		return body
	}
	return repaired
}

func join(a, b []byte) []byte { return append(bytes.Clone(a), b...) }

// readableSDP tells whether gortsplib can read a description.
func readableSDP(body []byte) bool {
	sdp, err := sdpunmarshaler.Unmarshal(body)
	if err != nil {
		return false
	}
	var desc description.Session
	return desc.Unmarshal2(sdp) == nil
}

// splitSDP returns what comes before the first track and each track (RFC 4566
// §5: from "m=" to the next "m=").
func splitSDP(body []byte) (head []byte, sections [][]byte) {
	start := 0
	add := func(part []byte) {
		if head == nil {
			head = part
		} else {
			sections = append(sections, part)
		}
	}
	for i := range body {
		if (i == 0 || body[i-1] == '\n') && bytes.HasPrefix(body[i:], []byte("m=")) {
			add(body[start:i:i])
			start = i
		}
	}
	add(body[start:])
	return head, sections
}

// withoutOddControl leaves out a control attribute of the whole stream that is
// neither "*" nor a URL (RFC 2326 §C.1.1): the URL of the request stands for it.
func withoutOddControl(body []byte) []byte {
	head, _ := splitSDP(body)
	out := make([]byte, 0, len(body))
	for line := range bytes.Lines(head) {
		if value, ok := bytes.CutPrefix(line, []byte("a=control:")); ok {
			control := string(bytes.TrimSpace(value))
			if _, err := base.ParseURL(control); err != nil && control != "*" {
				continue
			}
		}
		out = append(out, line...)
	}
	return append(out, body[len(head):]...)
}

// usableBase tells whether a Content-Base header can be resolved against.
func usableBase(v base.HeaderValue) bool {
	if len(v) != 1 {
		return false
	}
	at := v[0]
	if strings.HasPrefix(at, "/") {
		at = "rtsp://camera" + at // gortsplib reads it as a path at the request's host
	}
	_, err := base.ParseURL(at)
	return err == nil
}

// withoutParameters returns a track's lines but those of its formats' parameters.
func withoutParameters(section []byte) []byte {
	var out []byte
	for line := range bytes.Lines(section) {
		if !bytes.HasPrefix(line, []byte("a=fmtp:")) {
			out = append(out, line...)
		}
	}
	return out
}
