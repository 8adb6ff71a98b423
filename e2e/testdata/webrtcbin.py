"""A WHEP player made of GStreamer's webrtcbin: receives what it can of a
camera's video and sound, decodes both, and counts the pictures and the buffers
of sound. Several cameras are played at once.

Prints what came as a line of JSON a camera, also when it was too little, or when
the session was refused; the exit status says whether all was well. Called with
Debian's own Python, which has the bindings:

    /usr/bin/python3 webrtcbin.py --video 50 --audio 50 http://…/whep
"""

import argparse
import concurrent.futures
import json
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstSdp, GstWebRTC  # noqa: E402

FEEDBACK = "rtcp-fb-nack=(boolean)true,rtcp-fb-nack-pli=(boolean)true"
CAPS = {
    "video": [
        "encoding-name=H264,payload=96,clock-rate=90000,packetization-mode=(string)1,"
        "profile-level-id=(string)42e01f,level-asymmetry-allowed=(string)1," + FEEDBACK,
        "encoding-name=H265,payload=98,clock-rate=90000," + FEEDBACK,
        "encoding-name=VP8,payload=100,clock-rate=90000," + FEEDBACK,
        "encoding-name=VP9,payload=102,clock-rate=90000," + FEEDBACK,
    ],
    "audio": [
        "encoding-name=PCMA,payload=8,clock-rate=8000",
        "encoding-name=PCMU,payload=0,clock-rate=8000",
        "encoding-name=OPUS,payload=104,clock-rate=48000,encoding-params=(string)2",
    ],
}
DECODERS = {
    # As avc: of several slices in a byte stream, openh264dec makes no picture.
    "H264": "rtph264depay ! video/x-h264,stream-format=avc ! h264parse ! openh264dec",
    "H265": "rtph265depay ! h265parse ! libde265dec",
    "VP8": "rtpvp8depay ! vp8dec",
    "VP9": "rtpvp9depay ! vp9dec",
    "PCMA": "rtppcmadepay ! alawdec",
    "PCMU": "rtppcmudepay ! mulawdec",
    "OPUS": "rtpopusdepay ! opusdec",
}


class Refused(Exception):
    pass


def ask(method, url, body=None, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=15) as response:
            return response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        raise Refused(f"{method}: {error.code} {error.read().decode()}") from error


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
        for kind, codecs in CAPS.items():
            caps = Gst.Caps.from_string(";".join(f"application/x-rtp,media={kind},{codec}" for codec in codecs))
            self.webrtc.emit("add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, caps)

    def decode(self, _webrtc, pad):
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        stream = pad.get_current_caps().get_structure(0)
        sink = "fakesink name=sink sync=false signal-handoffs=true"
        decoder = Gst.parse_bin_from_description(f"{DECODERS[stream.get_string('encoding-name')]} ! {sink}", True)
        decoder.get_by_name("sink").connect("handoff", self.count, stream.get_string("media"))
        self.pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def count(self, _sink, _buffer, _pad, kind):
        with self.lock:
            self.counts[kind] += 1

    def counted(self):
        with self.lock:
            return dict(self.counts)

    def join(self, endpoint, deadline):
        """Makes the session, and returns its URL."""
        promise = Gst.Promise.new()
        self.webrtc.emit("create-offer", None, promise)
        promise.wait()
        reply = promise.get_reply()  # owns the offer
        self.webrtc.emit("set-local-description", reply.get_value("offer"), None)
        while self.webrtc.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            if time.monotonic() > deadline:
                raise Refused("candidates were not gathered in time")
            time.sleep(0.02)
        offer = self.webrtc.get_property("local-description").sdp.as_text()
        answer, headers = ask("POST", endpoint, offer.encode(), {"Content-Type": "application/sdp"})
        _, sdp = GstSdp.SDPMessage.new_from_text(answer)
        description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, sdp)
        self.webrtc.emit("set-remote-description", description, None)
        return urllib.parse.urljoin(endpoint, headers["Location"])

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


def wants(endpoint, args):
    """How many frames of each kind are waited for."""
    own = urllib.parse.parse_qs(urllib.parse.urldefrag(endpoint).fragment)
    return {kind: int(own.get(kind, [getattr(args, kind)])[0]) for kind in ("video", "audio")}


def play(endpoint, args):
    """Plays, and returns what came."""
    deadline = time.monotonic() + args.seconds
    wanted, endpoint = wants(endpoint, args), urllib.parse.urldefrag(endpoint).url
    told = {"endpoint": endpoint, "version": Gst.version_string()}
    player = Player()
    try:
        resource = player.join(endpoint, deadline)
        while any(player.counted()[kind] < wanted[kind] for kind in wanted):
            if time.monotonic() > deadline:
                told["error"] = "too little came"
                break
            time.sleep(0.05)
        told["srtp"] = player.srtp()
        ask("DELETE", resource)
    except Refused as error:
        told["error"] = str(error)
    player.close()
    return {**told, **player.counted()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoints", nargs="+", help="URLs, with what is to be waited for if it differs: …/whep#video=100&audio=0")
    parser.add_argument("--video", type=int, required=True, help="pictures to wait for")
    parser.add_argument("--audio", type=int, required=True, help="buffers of sound to wait for")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--at-once", type=int, default=8, help="cameras to play at a time")
    args = parser.parse_args()
    Gst.init(None)
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        results = list(pool.map(lambda endpoint: play(endpoint, args), args.endpoints))
    for result in results:
        print(json.dumps(result), flush=True)
    if any("error" in result for result in results):
        sys.exit("not all was well")


if __name__ == "__main__":
    main()
