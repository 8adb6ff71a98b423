"""A WHEP player made of GStreamer's webrtcbin: receives H264 and PCMA, decodes
both, and counts the pictures and the buffers of sound.

Prints what came as a line of JSON, also when it was too little; the exit status
says which. Called with Debian's own Python, which has the bindings:

    /usr/bin/python3 webrtcbin.py --video 50 --audio 50 http://…/whep
"""

import argparse
import json
import sys
import threading
import time
import urllib.parse
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstSdp, GstWebRTC  # noqa: E402

CAPS = {
    "video": "application/x-rtp,media=video,encoding-name=H264,payload=96,clock-rate=90000,"
    "packetization-mode=(string)1,profile-level-id=(string)42e01f,level-asymmetry-allowed=(string)1,"
    "rtcp-fb-nack=(boolean)true,rtcp-fb-nack-pli=(boolean)true",
    "audio": "application/x-rtp,media=audio,encoding-name=PCMA,payload=8,clock-rate=8000",
}
DECODERS = {
    "video": "rtph264depay ! h264parse ! openh264dec ! fakesink name=sink sync=false signal-handoffs=true",
    "audio": "rtppcmadepay ! alawdec ! fakesink name=sink sync=false signal-handoffs=true",
}


class Player:
    def __init__(self):
        self.lock = threading.Lock()  # guards counts: a thread of GStreamer's for each kind
        self.counts = {"video": 0, "audio": 0}
        self.pipeline = Gst.Pipeline.new()
        self.webrtc = Gst.ElementFactory.make("webrtcbin")
        self.webrtc.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
        self.pipeline.add(self.webrtc)
        self.webrtc.connect("pad-added", self.decode)
        self.pipeline.set_state(Gst.State.PLAYING)
        for caps in CAPS.values():
            self.webrtc.emit(
                "add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, Gst.Caps.from_string(caps)
            )

    def decode(self, _webrtc, pad):
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        kind = pad.get_current_caps().get_structure(0).get_string("media")
        decoder = Gst.parse_bin_from_description(DECODERS[kind], True)
        decoder.get_by_name("sink").connect("handoff", self.count, kind)
        self.pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def count(self, _sink, _buffer, _pad, kind):
        with self.lock:
            self.counts[kind] += 1

    def counted(self):
        with self.lock:
            return dict(self.counts)

    def play(self, endpoint, deadline):
        """Makes the session, and returns its URL."""
        promise = Gst.Promise.new()
        self.webrtc.emit("create-offer", None, promise)
        promise.wait()
        reply = promise.get_reply()  # owns the offer
        self.webrtc.emit("set-local-description", reply.get_value("offer"), None)
        while self.webrtc.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            if time.monotonic() > deadline:
                sys.exit("candidates were not gathered in time")
            time.sleep(0.02)
        offer = self.webrtc.get_property("local-description").sdp.as_text()
        request = urllib.request.Request(endpoint, offer.encode(), {"Content-Type": "application/sdp"})
        with urllib.request.urlopen(request, timeout=15) as response:
            answer, resource = response.read(), urllib.parse.urljoin(endpoint, response.headers["Location"])
        _, sdp = GstSdp.SDPMessage.new_from_text(answer.decode())
        description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, sdp)
        self.webrtc.emit("set-remote-description", description, None)
        return resource

    def srtp(self):
        """The cipher and the authentication that DTLS has agreed on."""
        elements = self.webrtc.iterate_recurse()
        while True:
            result, element = elements.next()
            if result != Gst.IteratorResult.OK:
                return None
            factory = element.get_factory()  # internal elements have none
            if factory and factory.get_name() == "dtlsdec":
                caps = [element.get_property(name) for name in ("srtp-cipher", "srtp-auth")]
                # GstDtlsSrtpCipher, GstDtlsSrtpAuth
                names = {(1, 1): "AES_CM_128_HMAC_SHA1_32", (1, 2): "AES_CM_128_HMAC_SHA1_80"}
                return names.get(tuple(map(int, caps)), f"srtp-cipher {caps[0]}, srtp-auth {caps[1]}")

    def close(self):
        self.pipeline.set_state(Gst.State.NULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--video", type=int, required=True, help="pictures to wait for")
    parser.add_argument("--audio", type=int, required=True, help="buffers of sound to wait for")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    Gst.init(None)
    deadline = time.monotonic() + args.seconds
    player = Player()
    resource = player.play(args.endpoint, deadline)
    counts, wanted = player.counted(), {"video": args.video, "audio": args.audio}
    while any(counts[kind] < wanted[kind] for kind in wanted) and time.monotonic() < deadline:
        time.sleep(0.05)
        counts = player.counted()
    print(json.dumps({"version": Gst.version_string(), "srtp": player.srtp(), **counts}), flush=True)
    with urllib.request.urlopen(urllib.request.Request(resource, method="DELETE"), timeout=15):
        pass
    player.close()
    if any(counts[kind] < wanted[kind] for kind in wanted):
        sys.exit("too little came")


if __name__ == "__main__":
    main()
