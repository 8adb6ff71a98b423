package signaling

import (
	"errors"
	"fmt"
	"strings"

	"fanlight/internal/fleet"
)

// maxFragLines bounds a fragment: more than any browser has candidates.
const maxFragLines = 512

// sdpfrag is an SDP fragment of ICE parameters and candidates (RFC 8840 §9).
type sdpfrag struct {
	ufrag, pwd string // empty: none given
	candidates []iceCandidate
	end        bool // a=end-of-candidates
}

// parseFrag reads a fragment. Lines that say nothing of ICE are ignored.
func parseFrag(body string) (sdpfrag, error) {
	var f sdpfrag
	lines := sdpLines(body)
	if len(lines) > maxFragLines {
		return f, fmt.Errorf("the fragment has more than %d lines: %w", maxFragLines, fleet.BadCandidate)
	}
	var mid string
	section := -1 // index of the m= line
	ufrag := ""   // of the section, or of all
	for _, line := range lines {
		if len(line) < 2 || line[1] != '=' {
			return f, fmt.Errorf("line %q is not SDP: %w", clip(line, 64), fleet.BadCandidate)
		}
		name, rest, _ := strings.Cut(line, ":")
		switch {
		case strings.HasPrefix(line, "m="):
			section++
			mid = ""
		case name == "a=mid":
			mid = rest
		case name == "a=ice-ufrag":
			ufrag = rest
			if f.ufrag == "" {
				f.ufrag = rest
			}
		case name == "a=ice-pwd" && f.pwd == "":
			f.pwd = rest
		case name == "a=end-of-candidates":
			f.end = true
		case name == "a=candidate":
			c := iceCandidate{Candidate: "candidate:" + rest}
			if mid != "" {
				m := mid
				c.SDPMid = &m
			}
			index := uint32(max(section, 0))
			c.SDPMLineIndex = &index
			if ufrag != "" {
				u := ufrag
				c.UsernameFragment = &u
			}
			if _, err := c.proto(); err != nil {
				return f, err
			}
			f.candidates = append(f.candidates, c)
		}
	}
	if (f.ufrag == "") != (f.pwd == "") {
		return f, fmt.Errorf("ice-ufrag and ice-pwd come together (RFC 8839 §5.4): %w", fleet.BadCandidate)
	}
	if len(f.ufrag) > maxTag || len(f.pwd) > maxTag || !printable(f.ufrag) || !printable(f.pwd) {
		return f, fmt.Errorf("ice-ufrag and ice-pwd are of 4 to 256 letters, digits, \"+\" and \"/\" (RFC 8839 §5.4): %w", fleet.BadCandidate)
	}
	return f, nil
}

// restartOffer is an offer with the ICE parameters and candidates of a
// fragment in place of its own: the offer that the player would have made for
// the same ICE restart.
func restartOffer(offer string, f sdpfrag) (string, error) {
	if f.ufrag == "" {
		return "", fmt.Errorf("an ICE restart needs a new ice-ufrag and ice-pwd: %w", fleet.BadCandidate)
	}
	var b strings.Builder
	section, mid := -1, ""
	flush := func() {
		for _, c := range f.candidates {
			if section < 0 || (c.SDPMid != nil && *c.SDPMid != mid) || (c.SDPMid == nil && int(value(c.SDPMLineIndex)) != section) {
				continue
			}
			b.WriteString("a=" + c.Candidate + "\r\n")
		}
	}
	for _, line := range sdpLines(offer) {
		name, rest, _ := strings.Cut(line, ":")
		switch {
		case strings.HasPrefix(line, "m="):
			flush()
			section++
			mid = ""
		case name == "a=mid":
			mid = rest
		case name == "a=ice-ufrag":
			line = name + ":" + f.ufrag
		case name == "a=ice-pwd":
			line = name + ":" + f.pwd
		case name == "a=candidate", name == "a=end-of-candidates":
			continue
		}
		b.WriteString(line + "\r\n")
	}
	flush()
	return b.String(), nil
}

// answerFrag is the fragment of an answer's ICE parameters and candidates, for
// the response to an ICE restart (RFC 9725 §4.3.3).
func answerFrag(answer string) (string, error) {
	var head, body strings.Builder
	ufrag, pwd, mline := "", "", ""
	sections := 0
	for _, line := range sdpLines(answer) {
		name, rest, _ := strings.Cut(line, ":")
		switch {
		case strings.HasPrefix(line, "m="):
			sections++
			mline = line
		case name == "a=ice-ufrag" && ufrag == "":
			ufrag = rest
		case name == "a=ice-pwd" && pwd == "":
			pwd = rest
		case name == "a=group", name == "a=ice-lite", name == "a=ice-options":
			if sections == 0 {
				head.WriteString(line + "\r\n")
			}
		// All sections are bundled: the first one's candidates are everybody's.
		case sections == 1 && name == "a=mid":
			body.WriteString(mline + "\r\n" + line + "\r\n")
		}
	}
	if ufrag == "" || pwd == "" || body.Len() == 0 {
		return "", errors.New("the answer has no ICE parameters")
	}
	section := 0
	for _, line := range sdpLines(answer) {
		name, _, _ := strings.Cut(line, ":")
		if strings.HasPrefix(line, "m=") {
			section++
		}
		if section == 1 && (name == "a=candidate" || name == "a=end-of-candidates") {
			body.WriteString(line + "\r\n")
		}
	}
	return head.String() + "a=ice-ufrag:" + ufrag + "\r\na=ice-pwd:" + pwd + "\r\n" + body.String(), nil
}

// offerUfrag returns an offer's first ICE user name fragment; empty: none.
func offerUfrag(offer string) string {
	for _, line := range sdpLines(offer) {
		if u, ok := strings.CutPrefix(line, "a=ice-ufrag:"); ok {
			return u
		}
	}
	return ""
}

// sdpLines are the lines of SDP without their ends; CRLF and LF are taken.
func sdpLines(sdp string) []string {
	var lines []string
	for line := range strings.SplitSeq(sdp, "\n") {
		if line = strings.TrimSuffix(line, "\r"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
