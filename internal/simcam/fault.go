package simcam

import (
	"fmt"
	"time"
)

// Fault is what is wrong with a camera. One at a time is.
type Fault int

// The faults.
const (
	None          Fault = iota // nothing is wrong; undoes any other fault
	Stop                       // connections are closed and new ones closed at their first request
	Freeze                     // connected, but no media
	Drop                       // connections are closed once; the camera is well afterwards
	Unauthorized               // 401, whatever the password; those who watch go on
	NotFound                   // 404
	Busy                       // 453 Not Enough Bandwidth
	TimestampJump              // RTP timestamps are 3.3 hours ahead, until undone
	SequenceJump               // timestamps as above and RTP sequence numbers half a round ahead
	FreezeVideo                // sound, and no picture
	Lossy                      // one RTP packet of ten never leaves
)

var faultNames = [...]string{
	None: "none", Stop: "stop", Freeze: "freeze", Drop: "drop", Unauthorized: "unauthorized",
	NotFound: "not_found", Busy: "busy", TimestampJump: "timestamp_jump", SequenceJump: "sequence_jump",
	FreezeVideo: "freeze_video", Lossy: "lossy",
}

// String returns the fault's name: "timestamp_jump".
func (f Fault) String() string {
	if f < 0 || int(f) >= len(faultNames) {
		return fmt.Sprintf("fault %d", int(f))
	}
	return faultNames[f]
}

// ParseFault returns the fault of that name.
func ParseFault(name string) (Fault, error) {
	for f, n := range faultNames {
		if n == name {
			return Fault(f), nil
		}
	}
	return None, fmt.Errorf("no fault is named %q; there are %v", name, faultNames)
}

// The jumps: large enough for any receiver to notice, and not a multiple of
// anything.
const (
	timestampJump = 0x40000123 // 3.3 hours of 90 kHz
	sequenceJump  = 0x7f01
)

// SetFault sets what is wrong with a camera until the next call, None to undo
// it. It tells whether there is such a camera.
func (s *Server) SetFault(camera string, f Fault) bool { return s.SetFaultFor(camera, f, 0) }

// SetFaultFor is SetFault with a fault that goes away by itself after d; 0: it
// stays.
func (s *Server) SetFaultFor(camera string, f Fault, d time.Duration) bool {
	cam, ok := s.camera(camera)
	if !ok {
		return false
	}
	s.log.Info("fault set", "camera", camera, "fault", f.String(), "for", d)
	cam.setFault(f, d)
	return true
}

// Plays returns how many PLAY requests a camera has accepted, ever.
func (s *Server) Plays(camera string) int {
	return s.status(camera).Plays
}

// Sessions returns how many RTSP sessions play a camera now.
func (s *Server) Sessions(camera string) int {
	return s.status(camera).Sessions
}

// Peak returns the most RTSP sessions that ever played a camera at once.
func (s *Server) Peak(camera string) int {
	return s.status(camera).Peak
}

// Keyframe has a camera skip to the next keyframe of the clip, as one does that is
// asked over ONVIF. It tells whether there is such a camera.
func (s *Server) Keyframe(camera string) bool {
	cam, ok := s.camera(camera)
	if !ok {
		return false
	}
	cam.mu.Lock()
	defer cam.mu.Unlock()
	cam.keyframeWanted = true
	return true
}

// KeyframeRequests returns how many picture loss indications (RTCP PLI) a camera
// has got, ever.
func (s *Server) KeyframeRequests(camera string) int {
	return s.status(camera).KeyframeRequests
}

// Status is where a camera stands.
type Status struct {
	Camera           string `json:"camera"`
	URL              string `json:"url"`
	Plays            int    `json:"plays"`             // PLAY requests accepted, ever
	Sessions         int    `json:"sessions"`          // that play now
	Peak             int    `json:"peak"`              // the most sessions that ever played at once
	KeyframeRequests int    `json:"keyframe_requests"` // RTCP PLI, ever
	Fault            string `json:"fault"`
}

func (s *Server) status(name string) Status {
	if cam, ok := s.camera(name); ok {
		return cam.status(s.URL(name))
	}
	return Status{}
}

func (s *Server) camera(name string) (*camera, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	cam, ok := s.byName[name]
	return cam, ok
}
