package source

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// track is a track that is played.
type track struct {
	media  *description.Media
	format format.Format
	track  stream.Track
}

// chooseTracks picks the video track that most browsers play, and the first audio
// track that a stream can carry. The statuses are of all audio and video tracks,
// the one that the video comes from first. Tracks to the camera (back channels)
// and of metadata are left out.
func chooseTracks(desc *description.Session, creds fleet.Credentials) ([]track, []fleet.TrackStatus, *failure) {
	const most = 16 // tracks that are worth a status
	var video, audio *track
	var statuses []fleet.TrackStatus
	var codecs []string // of video that cannot be carried
	for _, media := range desc.Medias {
		if media.IsBackChannel || len(statuses) == most {
			continue
		}
		switch media.Type {
		case description.MediaTypeVideo:
			t, status := choose(media, stream.Video, creds)
			switch {
			case t == nil:
				codecs = append(codecs, status.Codec)
				status.UnsupportedReason = status.Codec + " cannot be passed on: set the camera's video codec to H264, H265, VP8, VP9 or AV1"
			case video != nil && rank(t.track.Codec) >= rank(video.track.Codec):
				status.UnsupportedReason = onlyOneVideo
			default:
				if video != nil {
					statuses[0].UnsupportedReason = onlyOneVideo
				}
				video = t
				statuses = slices.Insert(statuses, 0, status)
				continue
			}
			statuses = append(statuses, status)
		case description.MediaTypeAudio:
			t, status := choose(media, stream.Audio, creds)
			switch {
			case t == nil:
				status.UnsupportedReason = "no sound: " + knownAs(status.Codec) + " cannot be passed on to browsers: set the camera's audio codec to G.711 (PCMA, PCMU), G.722 or Opus"
			case audio != nil:
				status.UnsupportedReason = "only the first audio track is passed on"
			default:
				audio = t
			}
			statuses = append(statuses, status)
		default: // metadata
		}
	}
	if video == nil && len(codecs) == 0 {
		return nil, statuses, noVideo()
	}
	if video == nil {
		return nil, statuses, failed(fleet.ReasonCodecUnsupported, fmt.Sprintf(
			"the camera sends %s, which cannot be passed on: set its video codec to H264, which most browsers play, or to H265, VP8, VP9 or AV1, or use the URL of a stream that has one of them", strings.Join(codecs, ", ")))
	}
	tracks := []track{*video}
	if audio != nil {
		tracks = append(tracks, *audio)
	}
	return tracks, statuses, nil
}

const onlyOneVideo = "only one video track is passed on: the one whose codec most browsers play, or else the first"

// rank orders codecs by how many browsers play them, those that most do first.
func rank(codec string) int {
	switch codec {
	case "H264":
		return 0
	case "H265": // with hardware that decodes it only
		return 2
	}
	return 1
}

// knownAs returns a codec as operators know it, with its encoding name behind it
// if that is another.
func knownAs(codec string) string {
	switch codec {
	case "MPEG4-GENERIC", "MP4A-LATM": // RFC 3640 §4.1, RFC 6416 §7.3
		return "AAC (" + codec + ")"
	}
	return codec
}

func noVideo() *failure {
	return failed(fleet.ReasonNoVideo, "the camera offers no video at this URL: check the path, and that video is enabled")
}

// choose returns the format of a media that a stream can carry, the first of those
// of video that most browsers play, or nil and the status of the first format. The
// media keeps that format only, so that a camera which names a hundred costs no
// more than one.
func choose(media *description.Media, kind stream.Kind, creds fleet.Credentials) (*track, fleet.TrackStatus) {
	var best *track
	for _, f := range media.Formats {
		t, ok := streamTrack(f, kind)
		if ok && (best == nil || kind == stream.Video && rank(t.Codec) < rank(best.track.Codec)) {
			best = &track{media: media, format: f, track: t}
		}
	}
	if best != nil {
		media.Formats = []format.Format{best.format}
		status := fleet.TrackStatus{Codec: best.track.Codec}
		status.Width, status.Height = pictureSize(best.format)
		return best, status
	}
	status := fleet.TrackStatus{Codec: "unknown"}
	if len(media.Formats) > 0 {
		status.Codec = quote(codecName(media.Formats[0]), creds)
	}
	return nil, status
}

// streamTrack returns what a stream is told of a format, or false if it cannot
// carry it.
func streamTrack(f format.Format, kind stream.Kind) (stream.Track, bool) {
	t := stream.Track{Kind: kind, Codec: codecName(f), ClockRate: uint32(max(f.ClockRate(), 0)), FMTP: fmtp(f)}
	switch f := f.(type) {
	case *format.H264:
		// Only gortsplib's own decoder cares, and it is not used: without this it
		// would refuse UDP to cameras that leave the parameter out.
		f.PacketizationMode = max(f.PacketizationMode, 1)
		if len(f.SPS) > 0 && len(f.PPS) > 0 {
			t.ParameterSets = [][]byte{f.SPS, f.PPS}
		}
	case *format.H265:
		for _, set := range [][]byte{f.VPS, f.SPS, f.PPS} {
			if len(set) > 0 {
				t.ParameterSets = append(t.ParameterSets, set)
			}
		}
	case *format.Opus:
		t.Channels = f.ChannelCount
		if f.ChannelCount > 2 {
			return t, false
		}
	case *format.G711:
		t.Channels = f.ChannelCount
		if f.SampleRate != 8000 || f.ChannelCount != 1 {
			return t, false
		}
	}
	if kind == stream.Video && t.ClockRate != videoClock {
		return t, false
	}
	return t, stream.Supported(kind, t.Codec)
}

// videoClock is the clock of every video payload format that can be passed on, in
// Hz (RFC 6184 §8.2.1, RFC 7798 §7.2.1, RFC 7741 §6.2, RFC 9628 §7, RTP Payload
// Format For AV1 §7.2).
const videoClock = 90_000

// codecName returns the encoding name of a format's RTP payload (RFC 4566 §6,
// rtpmap) in upper case. H265 that is interleaved (RFC 7798 §7.1,
// sprop-max-don-diff) has another: its payloads have numbers in them that nobody
// else expects.
func codecName(f format.Format) string {
	if h, ok := f.(*format.H265); ok && h.MaxDONDiff > 0 {
		return "H265 (interleaved)"
	}
	name, _, _ := strings.Cut(f.RTPMap(), "/")
	if name == "" {
		return fmt.Sprintf("payload type %d", f.PayloadType())
	}
	return strings.ToUpper(name)
}

// fmtp returns a format's parameters as an SDP has them.
func fmtp(f format.Format) string {
	var params []string
	for k, v := range f.FMTP() {
		params = append(params, k+"="+v)
	}
	slices.Sort(params)
	return strings.Join(params, ";")
}

// pictureSize returns the width and height of the picture in pixels, after
// cropping, by the parameter sets of the SDP; zeros where they do not tell.
func pictureSize(f format.Format) (width, height int) {
	switch f := f.(type) {
	case *format.H264:
		var s h264.SPS
		if s.Unmarshal(f.SPS) == nil {
			width, height = s.Width(), s.Height()
		}
	case *format.H265:
		var s h265.SPS
		if s.Unmarshal(f.SPS) == nil {
			width, height = s.Width(), s.Height()
		}
	}
	const most = 16384 // the largest a level allows is 16,384 wide (ITU-T H.264 table A-1, level 6.2)
	if width <= 0 || height <= 0 || width > most || height > most {
		return 0, 0
	}
	return width, height
}
