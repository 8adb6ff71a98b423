package simcam

import (
	"bytes"
	_ "embed" // the clips
	"errors"
	"fmt"
	"time"
)

// The clips are made by ffmpeg, which go generate needs; they are not the same
// bytes with every version of it.
//
//go:generate clip/make.sh

//go:embed clip/clip.h264
var clipData []byte

//go:embed clip/long.h264
var longData []byte

//go:embed clip/small.h264
var smallData []byte

const (
	frameRate   = 25
	framePeriod = time.Second / frameRate
	clockRate   = 90000 // RTP, video (RFC 6184 §8.2.1)
)

// H264 NAL unit types (ITU-T H.264 table 7-1).
const (
	nalSlice = 1
	nalIDR   = 5
	nalSEI   = 6
	nalSPS   = 7
	nalPPS   = 8
	nalFill  = 12
)

// clip is a video that can start over after its last unit: the first is a keyframe.
type clip struct {
	units    []unit
	sps, pps []byte
}

// unit is an access unit, one picture.
type unit struct {
	nals     [][]byte // parameter sets, then one slice; without start codes
	keyframe bool
}

// loadClip returns the clip for an interval between keyframes.
func loadClip(interval time.Duration) (*clip, error) {
	if interval == 0 {
		interval = time.Second
	}
	if interval%time.Second != 0 || interval < time.Second || interval > 10*time.Second {
		return nil, fmt.Errorf("keyframe interval %v: must be whole seconds from 1 to 10", interval)
	}
	if interval == time.Second {
		return parseClip(clipData)
	}
	c, err := parseClip(longData)
	if err != nil {
		return nil, err
	}
	c.units = c.units[:min(len(c.units), int(interval/framePeriod))]
	return c, nil
}

// parseClip reads Annex B (ITU-T H.264 annex B) with one slice a picture.
func parseClip(data []byte) (*clip, error) {
	c := &clip{}
	var u unit
	for _, nal := range splitAnnexB(data) {
		u.nals = append(u.nals, nal)
		switch nal[0] & 0x1f {
		case nalSPS:
			c.sps = nal
		case nalPPS:
			c.pps = nal
		case nalSlice, nalIDR:
			u.keyframe = nal[0]&0x1f == nalIDR
			c.units = append(c.units, u)
			u = unit{}
		}
	}
	if c.sps == nil || c.pps == nil || len(c.units) == 0 || !c.units[0].keyframe {
		return nil, errors.New("the clip does not begin with a keyframe")
	}
	return c, nil
}

// splitAnnexB returns the NAL units between start codes. They have no trailing
// zeros: a NAL unit ends with its stop bit.
func splitAnnexB(data []byte) [][]byte {
	var nals [][]byte
	startCode := []byte{0, 0, 1}
	i := bytes.Index(data, startCode)
	for i >= 0 {
		data = data[i+len(startCode):]
		i = bytes.Index(data, startCode)
		nal := data
		if i >= 0 {
			nal = data[:i]
		}
		if nal = bytes.TrimRight(nal, "\x00"); len(nal) > 0 {
			nals = append(nals, nal)
		}
	}
	return nals
}
