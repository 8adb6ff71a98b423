// A WHEP player that is not Fanlight's: window.fanlightWHEP plays a camera by
// fetch and RTCPeerConnection alone, as a page by others would. It is evaluated
// in a page in Chromium, and loaded by one in Firefox.
(() => {
  const lines = (sdp) => sdp.split(/\r?\n/).filter((line) => line !== "");
  const text = (list) => list.map((line) => `${line}\r\n`).join("");

  // Takes away the candidates of every transport but one.
  const only = (protocol, sdp) =>
    text(lines(sdp).filter((line) => !line.startsWith("a=candidate:") || line.split(" ")[2].toLowerCase() === protocol));

  const gathered = (pc) =>
    new Promise((resolve) => {
      const check = () => pc.iceGatheringState === "complete" && resolve();
      pc.addEventListener("icegatheringstatechange", check);
      check();
    });

  // The ICE parameters and candidates of a description, as a fragment (RFC 8840
  // §9). All sections are bundled: the first one's are everybody's.
  const fragment = (sdp) => {
    const all = lines(sdp);
    const value = (name) => all.find((line) => line.startsWith(`a=${name}:`));
    const candidates = [];
    let section = 0;
    for (const line of all) {
      if (line.startsWith("m=")) section++;
      if (section === 1 && line.startsWith("a=candidate:")) candidates.push(line);
    }
    return text([value("ice-ufrag"), value("ice-pwd"), all.find((line) => line.startsWith("m=")), value("mid"), ...candidates]);
  };

  // An answer with the ICE parameters and candidates of a fragment.
  const merged = (answer, frag) => {
    const out = [];
    const fresh = lines(frag);
    const value = (name) => fresh.find((line) => line.startsWith(`a=${name}:`));
    let section = 0;
    for (const line of lines(answer)) {
      if (line.startsWith("m=")) section++;
      if (line.startsWith("a=candidate:") || line === "a=end-of-candidates") continue;
      if (line.startsWith("a=ice-ufrag:")) out.push(value("ice-ufrag"));
      else if (line.startsWith("a=ice-pwd:")) out.push(value("ice-pwd"));
      else out.push(line);
      if (section === 1 && line.startsWith("a=mid:")) out.push(...fresh.filter((l) => l.startsWith("a=candidate:")));
    }
    return text(out);
  };

  const same = (sdp) => sdp;

  // If given, made changes the offer that the browser itself goes by, offered and
  // answered the SDP that goes out and comes in.
  window.fanlightWHEP = async ({ endpoint, protocol, made = same, offered = same, answered = same }) => {
    const out = (sdp) => offered(protocol ? only(protocol, sdp) : sdp);
    const taken = (sdp) => answered(protocol ? only(protocol, sdp) : sdp);
    const pc = new RTCPeerConnection();
    const video = document.createElement("video");
    video.autoplay = true;
    video.srcObject = new MediaStream();
    document.body.append(video);
    pc.addEventListener("track", ({ track }) => video.srcObject.addTrack(track));
    pc.addTransceiver("video", { direction: "recvonly" });
    pc.addTransceiver("audio", { direction: "recvonly" });

    const ask = async (method, url, type, body, headers = {}) => {
      const response = await fetch(url, { method, body, headers: type ? { "Content-Type": type, ...headers } : headers });
      if (!response.ok) throw new Error(`${method}: ${response.status} ${await response.text()}`);
      return response;
    };

    await pc.setLocalDescription({ type: "offer", sdp: made((await pc.createOffer()).sdp) });
    await gathered(pc);
    const created = await ask("POST", endpoint, "application/sdp", out(pc.localDescription.sdp));
    const resource = new URL(created.headers.get("Location"), endpoint).href;
    let etag = created.headers.get("ETag");
    let answer = taken(await created.text());
    await pc.setRemoteDescription({ type: "answer", sdp: answer });

    return {
      stream: video.srcObject,

      // ICE starts anew in the same peer connection (RFC 9725 §4.3.3).
      async restart() {
        await pc.setLocalDescription(await pc.createOffer({ iceRestart: true }));
        await gathered(pc);
        const frag = fragment(out(pc.localDescription.sdp));
        const patched = await ask("PATCH", resource, "application/trickle-ice-sdpfrag", frag, { "If-Match": etag });
        etag = patched.headers.get("ETag");
        answer = merged(answer, taken(await patched.text()));
        await pc.setRemoteDescription({ type: "answer", sdp: answer });
      },

      async leave() {
        await ask("DELETE", resource);
        pc.close();
        video.remove();
      },

      stats: () => window.fanlightStats(pc),
    };
  };

  // What a peer connection receives, in the names of the W3C's
  // Identifiers for WebRTC's Statistics API. What is not known is left out.
  window.fanlightStats = async (pc) => {
    const report = await pc.getStats();
    const all = [...report.values()];
    const transport = all.find(({ type }) => type === "transport");
    const pair =
      report.get(transport?.selectedCandidatePairId) ??
      all.find(({ type, selected, nominated, state }) => type === "candidate-pair" && (selected ?? (nominated && state === "succeeded")));
    const local = report.get(pair?.localCandidateId);
    const remote = report.get(pair?.remoteCandidateId);
    const inbound = (kind) => {
      const entry = all.find((e) => e.type === "inbound-rtp" && e.kind === kind) ?? {};
      return { ...entry, codec: report.get(entry.codecId)?.mimeType };
    };
    return {
      state: pc.connectionState,
      protocol: (remote?.protocol ?? local?.protocol)?.toLowerCase(),
      cipher: transport?.srtpCipher,
      tls: transport?.tlsVersion,
      // Of the picture shown last.
      timestamp: pc.getReceivers().find(({ track }) => track.kind === "video")?.getSynchronizationSources?.()[0]?.rtpTimestamp,
      ufrag: lines(pc.localDescription.sdp).find((line) => line.startsWith("a=ice-ufrag:")),
      remote: remote ? `${remote.address ?? remote.ip}:${remote.port}` : undefined,
      video: inbound("video"),
      audio: inbound("audio"),
    };
  };
})();
