"""An RTSP camera made of gst-rtsp-server: a clock and a moving ball, as H264
unless it is told otherwise, and a tone, as PCMA, for anyone who knows the
password.

Prints "ready" when it listens, and ends on SIGTERM. Called with Debian's own
Python, which has the bindings:

    /usr/bin/python3 gstcam.py --port 8554 --transport udp --auth digest \
        --username viewer --password secret
"""

import argparse
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

TRANSPORTS = {
    "tcp": GstRtsp.RTSPLowerTrans.TCP,
    "udp": GstRtsp.RTSPLowerTrans.UDP,
    "both": GstRtsp.RTSPLowerTrans.TCP | GstRtsp.RTSPLowerTrans.UDP,
}

# One frame in a GOP of 25 is a keyframe. Without format=I420 the encoder would
# get 4:4:4, which baseline does not have. A packet of sound has 20 ms, which is
# all that aiortc decodes.
LAUNCH = """(
  videotestsrc is-live=true pattern=ball
  ! video/x-raw,format=I420,width={width},height={height},framerate=25/1
  ! timeoverlay halignment=left valignment=top font-desc="Sans 24"
  ! {video} name=pay0 pt=96
  audiotestsrc is-live=true freq=440 volume=0.2
  ! {audio} name=pay1
)"""

VIDEO = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} bitrate=800"
    " ! video/x-h264,profile=baseline ! rtph264pay config-interval=-1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} bitrate=800"
    " ! h265parse ! rtph265pay config-interval=-1",
    "vp8": "vp8enc deadline=1 cpu-used=8 keyframe-max-dist={gop} target-bitrate=800000 ! rtpvp8pay picture-id-mode=2",
    "vp9": "vp9enc deadline=1 cpu-used=8 keyframe-max-dist={gop} target-bitrate=800000 ! rtpvp9pay picture-id-mode=2",
}

AUDIO = {
    "pcma": "audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay pt=8 min-ptime=20000000 max-ptime=20000000",
    "opus": "audio/x-raw,rate=48000,channels=2 ! opusenc ! rtpopuspay pt=97",
    "g722": "audio/x-raw,rate=16000,channels=1 ! avenc_g722 ! rtpg722pay pt=9 min-ptime=20000000 max-ptime=20000000",
    "aac": "audio/x-raw,rate=16000,channels=1 ! avenc_aac ! aacparse ! rtpmp4gpay pt=97",
}


def authorize(server, factory, method, username, password):
    """Makes the server ask for a password, by one method alone."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if method == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(username, password, token)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(username, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/cam")
    parser.add_argument("--transport", choices=TRANSPORTS, default="both")
    parser.add_argument("--auth", choices=["none", "basic", "digest"], default="none")
    parser.add_argument("--username", default="")
    parser.add_argument("--password", default="")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--gop", type=int, default=25)
    parser.add_argument("--video", choices=VIDEO, default="h264")
    parser.add_argument("--audio", choices=AUDIO, default="pcma")
    args = parser.parse_args()

    Gst.init(None)
    loop = GLib.MainLoop()
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(args.port))
    factory = GstRtspServer.RTSPMediaFactory()
    video = VIDEO[args.video].format(gop=args.gop)
    factory.set_launch(LAUNCH.format(width=args.width, height=args.height, video=video, audio=AUDIO[args.audio]))
    # Shared media can get stuck in 503 when one client leaves as another comes.
    factory.set_shared(False)
    factory.set_protocols(TRANSPORTS[args.transport])
    if args.auth != "none":
        authorize(server, factory, args.auth, args.username, args.password)
    server.get_mount_points().add_factory(args.path, factory)
    if server.attach(None) == 0:
        sys.exit(f"port {args.port} is in use")
    for number in (signal.SIGTERM, signal.SIGINT):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
