#!/bin/sh
# Makes the clips that the simulated cameras show, 10 s each, H264 constrained
# baseline in Annex B:
#
#   clip.h264  a keyframe each second
#   long.h264  one keyframe, at the start; a camera with a longer keyframe
#              interval shows as much of it as its interval is long
#   small.h264 a keyframe each second, as a camera's sub profile
#
# The first two are of 640x360 pixels, the last of 320x180. All have a clock that
# runs and parameter sets before each keyframe. Encoding on one thread makes the
# files the same on each run of the same ffmpeg.
#
# Needs ffmpeg with libx264 and drawtext, and DejaVu Sans Mono.
set -eu
cd "$(dirname "$0")"

font=${FONT:-/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf}
clock() { # size
	printf %s "drawtext=fontfile=$font:fontsize=$1:fontcolor=white:box=1:boxcolor=black@0.7:boxborderw=8:x=20:y=20:timecode='00\:00\:00\:00':rate=25"
}

encode() { # file, frames between keyframes, quality, size, size of the clock
	ffmpeg -nostdin -hide_banner -loglevel error -y \
		-f lavfi -i "testsrc2=size=$4:rate=25:duration=10,$(clock "$5")" \
		-an -c:v libx264 -profile:v baseline -level 3.0 -pix_fmt yuv420p -preset slower -threads 1 \
		-bf 0 -refs 1 -g "$2" -keyint_min "$2" -sc_threshold 0 -crf "$3" \
		-x264-params repeat-headers=1:slices=1:aud=0:vbv-maxrate=900:vbv-bufsize=900 \
		-bsf:v filter_units=remove_types=6 \
		-f h264 "$1"
}

encode clip.h264 25 32 640x360 44
encode long.h264 250 34 640x360 44
encode small.h264 25 32 320x180 22
ls -l clip.h264 long.h264 small.h264
