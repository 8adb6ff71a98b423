"""A WHEP player made of aiortc: receives what it can of a camera's video and
sound, decodes both, and counts the frames. Several cameras are played at once.

Prints what came as a line of JSON a camera, also when it was too little, or when
the session was refused; the exit status says whether all was well. Called with
Debian's own Python, which has the package:

    /usr/bin/python3 aiortc_whep.py --video 50 --audio 50 http://…/whep
"""

import argparse
import asyncio
import json
import sys
import urllib.error
import urllib.parse
import urllib.request

import aiortc


class Refused(Exception):
    pass


def ask(method, url, body=None, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=15) as response:
            return response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        raise Refused(f"{method}: {error.code} {error.read().decode()}") from error


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


def wants(endpoint, args):
    """How many frames of each kind are waited for."""
    own = urllib.parse.parse_qs(urllib.parse.urldefrag(endpoint).fragment)
    return {kind: int(own.get(kind, [getattr(args, kind)])[0]) for kind in ("video", "audio")}


async def play(endpoint, args):
    """Plays, and returns what came."""
    counts, wanted, endpoint = {"video": 0, "audio": 0}, wants(endpoint, args), urllib.parse.urldefrag(endpoint).url
    changed, counters = asyncio.Event(), []
    # The only profile that it offers; it has no name for it that can be asked.
    told = {"endpoint": endpoint, "version": "aiortc " + aiortc.__version__, "srtp": "AES_CM_128_HMAC_SHA1_80"}
    pc = aiortc.RTCPeerConnection()
    pc.on("track", lambda track: counters.append(asyncio.ensure_future(count(track, counts, changed))))
    for kind in wanted:
        pc.addTransceiver(kind, direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())  # gathers the candidates
    loop = asyncio.get_running_loop()
    try:
        answer, headers = await loop.run_in_executor(
            None, ask, "POST", endpoint, pc.localDescription.sdp.encode(), {"Content-Type": "application/sdp"}
        )
        await pc.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        try:
            await asyncio.wait_for(enough(counts, wanted, changed), args.seconds)
        except asyncio.TimeoutError:
            told["error"] = "too little came"
        await loop.run_in_executor(None, ask, "DELETE", urllib.parse.urljoin(endpoint, headers["Location"]))
    except Refused as error:
        told["error"] = str(error)
    try:
        await asyncio.wait_for(asyncio.gather(pc.close(), *counters), 5)
    except asyncio.TimeoutError:
        pass  # it waits for a peer that has hung up before they were connected
    return {**told, **counts}


async def play_all(args):
    turn = asyncio.Semaphore(args.at_once)

    async def one(endpoint):
        async with turn:
            return await play(endpoint, args)

    return await asyncio.gather(*map(one, args.endpoints))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoints", nargs="+", help="URLs, with what is to be waited for if it differs: …/whep#video=100&audio=0")
    parser.add_argument("--video", type=int, required=True, help="frames of video to wait for")
    parser.add_argument("--audio", type=int, required=True, help="frames of sound to wait for")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--at-once", type=int, default=8, help="cameras to play at a time")
    results = asyncio.run(play_all(parser.parse_args()))
    for result in results:
        print(json.dumps(result), flush=True)
    if any("error" in result for result in results):
        sys.exit("not all was well")


if __name__ == "__main__":
    main()
