"""RTSP cameras made of gst-rtsp-server that play clips, each in a loop of its
own, and each with something the matter, as a file of JSON says:

    [{"name": "lobby", "clip": "/…/h264.mkv", "transport": "tcp"}]

What a camera may have besides, in the words of Camera below. The clips are
Matroska with one track of video, and at most one of audio.

Prints "ready" when it listens, and ends on SIGTERM. Called with Debian's own
Python, which has the bindings:

    /usr/bin/python3 gstclips.py --port 8554 cameras.json
"""

import argparse
import dataclasses
import json
import signal
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402, F401

TRANSPORTS = {"tcp": GstRtsp.RTSPLowerTrans.TCP, "udp": GstRtsp.RTSPLowerTrans.UDP}

# Payloaders by the demuxer's media type. aiortc decodes no packets of sound but
# those of 20 ms.
G711 = "min-ptime=20000000 max-ptime=20000000"
PAYLOADERS = {
    "video/x-h264": "rtph264pay config-interval={sets} mtu={mtu}",
    "video/x-h265": "rtph265pay config-interval={sets} mtu={mtu}",
    "video/x-vp8": "rtpvp8pay picture-id-mode=15-bit mtu={mtu}",
    "video/x-vp9": "rtpvp9pay picture-id-mode=15-bit mtu={mtu}",
    "video/x-av1": "identity",  # av1_packets makes them
    "audio/x-alaw": "rtppcmapay " + G711,
    "audio/x-mulaw": "rtppcmupay " + G711,
    "audio/x-opus": "rtpopuspay",
    "audio/mpeg": "rtpmp4gpay",
}
AV1_CAPS = "application/x-rtp,media=video,clock-rate=90000,encoding-name=AV1,payload=96"
BARE_CAPS = "application/x-rtp,media=video,clock-rate=90000,encoding-name=H264,payload=96,packetization-mode=(string)1"

# What a camera's clock makes of a timestamp, 90,000 to the second.
HOUR = 3600 * 90_000
LEAP = 5 * 90_000  # how often a clock leaps
CLOCKS = {
    "good": None,
    "leaps": lambda t: t + HOUR * (t // LEAP % 2),  # an hour forth, an hour back
    "slow": lambda t: t // 2,
    "still": lambda t: 0,
}


@dataclasses.dataclass
class Camera:
    name: str
    clip: str
    transport: str
    mtu: int = 1400
    loss: float = 0  # the share of video packets that are not sent
    clock: str = "good"  # one of CLOCKS
    ntp: bool = True  # sender reports have the time of day; else one that began with 1900
    sets_in_sdp: bool = True
    sets_in_band: bool = True

    def launch(self, tracks):
        lines = []
        for i, track in enumerate(tracks):
            line = PAYLOADERS[track.media_type].format(mtu=self.mtu, sets=-1 if self.sets_in_band else 0)
            if track.media_type != "video/x-av1":
                line += f" pt={track.payload_type}"
            if track.video and self.loss:
                line += f" ! identity drop-probability={self.loss}"
            if track.video and not self.sets_in_sdp:
                line += f' ! capssetter join=false replace=true caps="{BARE_CAPS}"'
            if track.video and CLOCKS[self.clock]:
                line += " ! appsink name=packets sync=false emit-signals=true appsrc is-live=true format=time"
            lines.append(f"appsrc name=source{i} is-live=true format=time ! {line} name=pay{i}")
        return "( " + " ".join(lines) + " )"


@dataclasses.dataclass
class Unit:
    data: bytes
    at: int  # when it is sent, in ns from the clip's beginning
    pts: int


class Track:
    def __init__(self, caps):
        self.media_type = caps.get_structure(0).get_name()
        self.caps = caps
        self.video = self.media_type.startswith("video/")
        self.payload_type = 96 if self.video else {"audio/x-alaw": 8, "audio/x-mulaw": 0}.get(self.media_type, 97)
        self.units = []

    def add(self, buffer):
        self.units.append(Unit(buffer.extract_dup(0, buffer.get_size()), 0, buffer.pts))

    def finish(self):
        # In the order of decoding, which is that of sending.
        for unit, at in zip(self.units, sorted(u.pts for u in self.units)):
            unit.at = at
        step = self.units[-1].at - self.units[-2].at
        self.duration = self.units[-1].at + step


def read(clip):
    """The tracks of a clip, video first."""
    pipeline = Gst.parse_launch(f'filesrc location="{clip}" ! matroskademux name=demux')
    tracks = []

    def added(_demux, pad):
        track = Track(pad.get_current_caps())
        sink = Gst.ElementFactory.make("appsink")
        sink.set_property("async", False)  # else each would wait for the other
        sink.set_property("sync", False)
        sink.set_property("emit-signals", True)
        sink.connect("new-sample", taken, track)
        pipeline.add(sink)
        pad.link(sink.get_static_pad("sink"))
        sink.sync_state_with_parent()
        tracks.append(track)

    def taken(sink, track):
        track.add(sink.emit("pull-sample").get_buffer())
        return Gst.FlowReturn.OK

    pipeline.get_by_name("demux").connect("pad-added", added)
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    pipeline.set_state(Gst.State.NULL)
    if message is None or message.type == Gst.MessageType.ERROR:
        sys.exit(f"{clip}: {message and message.parse_error()}")
    for track in tracks:
        track.finish()
    return sorted(tracks, key=lambda track: not track.video)


def leb128(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def obus(unit):
    """The OBUs of a temporal unit without their sizes, and without delimiters
    (AV1 §5.3; RTP Payload Format for AV1 §5)."""
    at = 0
    while at < len(unit):
        head = unit[at]
        kind, extended = head >> 3 & 15, head >> 2 & 1
        size, begin = leb128(unit, at + 1 + extended)
        if kind not in (2, 8, 15):  # delimiter, tile list, padding
            yield kind, bytes([head & ~2]) + unit[at + 1 : at + 1 + extended] + unit[begin : begin + size]
        at = begin + size


def av1_packets(unit, mtu):
    """Payloads with an element each (RTP Payload Format for AV1 §4.4)."""
    packets, first = [], True
    for kind, obu in obus(unit):
        pieces = [obu[i : i + mtu - 13] for i in range(0, len(obu), mtu - 13)]
        for i, piece in enumerate(pieces):
            begins = first and kind == 1  # a sequence header begins a coded video sequence
            packets.append(bytes([(i > 0) << 7 | (i < len(pieces) - 1) << 6 | 1 << 4 | begins << 3]) + piece)
            first = False
    return packets


class Feeder:
    """Feeds one track to one client. Used by the main loop alone."""

    def __init__(self, camera, track, source):
        self.camera, self.track, self.source = camera, track, source
        self.next, self.offset, self.began = 0, 0, None
        self.sequence = 0
        source.set_property("caps", Gst.Caps.from_string(AV1_CAPS) if track.media_type == "video/x-av1" else track.caps)

    def due(self, now):
        if self.source.get_state(0)[1] != Gst.State.PLAYING:
            return
        if self.began is None:
            self.began = now
        unit = self.track.units[self.next]
        while self.began + self.offset + unit.at <= now:
            # What a client has not taken holds the clip up: it is not made up for.
            late = now - self.began - self.offset - unit.at
            if late > 500 * Gst.MSECOND or self.source.get_property("current-level-bytes") > 0:
                self.began = now - self.offset - unit.at + 10 * Gst.MSECOND
                return
            self.push(unit)
            self.next += 1
            if self.next == len(self.track.units):
                self.next, self.offset = 0, self.offset + self.track.duration
            unit = self.track.units[self.next]

    def push(self, unit):
        pts = self.offset + unit.pts
        if self.track.media_type != "video/x-av1":
            self.push_buffer(unit.data, pts)
            return
        packets = av1_packets(unit.data, self.camera.mtu)
        timestamp = pts * 9 // 100_000 & 0xFFFFFFFF
        for i, payload in enumerate(packets):
            head = bytes([0x80, 96 | (i == len(packets) - 1) << 7])
            head += self.sequence.to_bytes(2, "big") + timestamp.to_bytes(4, "big") + b"av1!"
            self.sequence = self.sequence + 1 & 0xFFFF
            self.push_buffer(head + payload, pts)

    def push_buffer(self, data, pts):
        buffer = Gst.Buffer.new_wrapped(data)
        buffer.pts = pts
        self.source.emit("push-buffer", buffer)


class Server:
    def __init__(self, port):
        self.rtsp = GstRtspServer.RTSPServer()
        self.rtsp.set_address("127.0.0.1")
        self.rtsp.set_service(str(port))
        self.feeders = {}  # by media

    def add(self, camera):
        tracks = read(camera.clip)
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(camera.launch(tracks))
        # Shared media can get stuck in 503 when one client leaves as another comes.
        factory.set_shared(False)
        factory.set_protocols(TRANSPORTS[camera.transport])
        factory.connect("media-configure", self.configure, camera, tracks)
        self.rtsp.get_mount_points().add_factory("/" + camera.name, factory)

    def configure(self, _factory, media, camera, tracks):
        """Called by a thread of the server's."""
        element = media.get_element()
        feeders = [Feeder(camera, track, element.get_by_name(f"source{i}")) for i, track in enumerate(tracks)]
        if not camera.ntp:
            element.get_parent().connect("deep-element-added", self.without_ntp)
        if CLOCKS[camera.clock]:
            element.get_by_name("packets").connect("new-sample", self.rewrite, CLOCKS[camera.clock], element.get_by_name("pay0"))
        GLib.idle_add(self.begin, media, feeders)
        media.connect("unprepared", lambda media: GLib.idle_add(self.end, media))

    @staticmethod
    def rewrite(packets, clock, out):
        """Gives a packet another timestamp."""
        sample = packets.emit("pull-sample")
        buffer = sample.get_buffer()
        data = bytearray(buffer.extract_dup(0, buffer.get_size()))
        data[4:8] = (clock(int.from_bytes(data[4:8], "big")) & 0xFFFFFFFF).to_bytes(4, "big")
        changed = Gst.Buffer.new_wrapped(bytes(data))
        changed.pts = buffer.pts
        out.set_property("caps", sample.get_caps())
        return out.emit("push-buffer", changed)

    @staticmethod
    def without_ntp(_bin, _parent, element):
        if element.get_factory().get_name() == "rtpbin":
            element.set_property("ntp-time-source", "running-time")

    def begin(self, media, feeders):
        self.feeders[media] = feeders

    def end(self, media):
        self.feeders.pop(media, None)

    def feed(self):
        now = time.monotonic_ns()
        for feeders in list(self.feeders.values()):
            for feeder in feeders:
                feeder.due(now)
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("cameras", help="file of JSON")
    args = parser.parse_args()
    Gst.init(None)
    loop = GLib.MainLoop()
    server = Server(args.port)
    with open(args.cameras, encoding="utf-8") as file:
        for camera in json.load(file):
            server.add(Camera(**camera))
    if server.rtsp.attach(None) == 0:
        sys.exit(f"port {args.port} is in use")
    GLib.timeout_add(5, server.feed)
    for number in (signal.SIGTERM, signal.SIGINT):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
