// Runs in a page in Firefox, beside whep.js, and reports to who served the page.
//
// Firefox brings no decoder of H264: Debian's offers VP8, VP9 and AV1. After the
// offer as it is, which must be refused, the page takes the camera's video for
// VP8, by a name in the SDP: the handshakes, the packets with their encryption
// and the sound, which is PCMA in truth, are what they would be, only that no
// picture can be made of it.
(async () => {
  const { endpoint, enough, patience } = JSON.parse(document.getElementById("config").textContent);
  const report = (step, result) =>
    fetch("/report", { method: "POST", body: JSON.stringify({ step, version: navigator.userAgent, ...result }) });
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  // The payload type of VP8, as H264 of whatever profile.
  let payload;
  const offered = (sdp) => {
    payload = /^a=rtpmap:(\d+) VP8\/90000/m.exec(sdp)[1];
    return sdp
      .replace(`a=rtpmap:${payload} VP8/90000`, `a=rtpmap:${payload} H264/90000`)
      .replace(
        new RegExp(`^a=fmtp:${payload} .*$`, "m"),
        `a=fmtp:${payload} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f`,
      );
  };
  const answered = (sdp) =>
    sdp.replace(`a=rtpmap:${payload} H264/90000`, `a=rtpmap:${payload} VP8/90000`).replace(new RegExp(`^a=fmtp:${payload} .*\r\n`, "m"), "");

  const play = async (options) => {
    const whep = await window.fanlightWHEP({ endpoint, ...options });
    const deadline = performance.now() + patience;
    let received = await whep.stats();
    while ((received.video.packetsReceived ?? 0) < enough || (received.audio.packetsReceived ?? 0) < enough) {
      if (performance.now() > deadline) return { error: "too little came", received };
      await pause(100);
      received = await whep.stats();
    }
    await whep.leave();
    return { received };
  };

  const steps = {
    "as it is": {},
    udp: { protocol: "udp", offered, answered },
    tcp: { protocol: "tcp", offered, answered },
  };
  for (const [step, options] of Object.entries(steps)) {
    await report(step, await play(options).catch((error) => ({ error: String(error) })));
  }
})();
