"""A WHEP player made of aiortc: receives H264 and PCMA, decodes both, and counts
the frames.

Prints what came as a line of JSON, also when it was too little; the exit status
says which. Called with Debian's own Python, which has the package:

    /usr/bin/python3 aiortc_whep.py --video 50 --audio 50 http://…/whep
"""

import argparse
import asyncio
import json
import sys
import urllib.parse
import urllib.request

import aiortc


def ask(method, url, body=None, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method=method)
    with urllib.request.urlopen(request, timeout=15) as response:
        return response.read().decode(), response.headers


async def count(track, counts, changed):
    while True:
        try:
            await track.recv()
        except aiortc.mediastreams.MediaStreamError:
            return
        counts[track.kind] += 1
        changed.set()


async def enough(counts, wanted, changed):
    while any(counts[kind] < wanted[kind] for kind in wanted):
        changed.clear()
        await changed.wait()


async def play(args):
    counts, wanted = {"video": 0, "audio": 0}, {"video": args.video, "audio": args.audio}
    changed, counters = asyncio.Event(), []
    pc = aiortc.RTCPeerConnection()
    pc.on("track", lambda track: counters.append(asyncio.ensure_future(count(track, counts, changed))))
    for kind in wanted:
        pc.addTransceiver(kind, direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())  # gathers the candidates
    loop = asyncio.get_running_loop()
    answer, headers = await loop.run_in_executor(
        None, ask, "POST", args.endpoint, pc.localDescription.sdp.encode(), {"Content-Type": "application/sdp"}
    )
    await pc.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
    came = True
    try:
        await asyncio.wait_for(enough(counts, wanted, changed), args.seconds)
    except asyncio.TimeoutError:
        came = False
    # The only profile that it offers; it has no name for it that can be asked.
    print(json.dumps({"version": "aiortc " + aiortc.__version__, "srtp": "AES_CM_128_HMAC_SHA1_80", **counts}), flush=True)
    await loop.run_in_executor(None, ask, "DELETE", urllib.parse.urljoin(args.endpoint, headers["Location"]))
    await pc.close()
    await asyncio.gather(*counters)
    return came


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--video", type=int, required=True, help="frames of video to wait for")
    parser.add_argument("--audio", type=int, required=True, help="frames of sound to wait for")
    parser.add_argument("--seconds", type=float, default=20)
    if not asyncio.run(play(parser.parse_args())):
        sys.exit("too little came")


if __name__ == "__main__":
    main()
