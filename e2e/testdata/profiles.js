// Evaluated in a page of the gateway's. window.fanlightWatch takes the page's own
// players away and adds one that shows a camera in a box of a size;
// fanlightResize gives the box another, or hides it.
(() => {
  let player;
  let frames = []; // presented since the last look: when, and how wide
  let since = 0; // the last frame before that

  const follow = (video, known) => {
    if (known.has(video)) return;
    known.add(video);
    const presented = (_now, frame) => {
      frames.push({ at: frame.presentationTime, width: frame.width });
      video.requestVideoFrameCallback(presented);
    };
    video.requestVideoFrameCallback(presented);
  };

  window.fanlightResize = (width) => {
    player.style.display = width === 0 ? "none" : "block";
    if (width !== 0) Object.assign(player.style, { width: `${width}px`, height: `${(width * 9) / 16}px` });
    return performance.now();
  };

  window.fanlightWatch = (camera, width) => {
    document.body.replaceChildren();
    player = document.createElement("fanlight-player");
    player.setAttribute("muted", "");
    Object.assign(player.style, { position: "fixed", left: "0", top: "0" });
    window.fanlightResize(width);
    document.body.append(player);
    const known = new WeakSet();
    const all = () => {
      for (const video of player.shadowRoot.querySelectorAll("video")) follow(video, known);
    };
    new MutationObserver(all).observe(player.shadowRoot, { childList: true, subtree: true });
    all();
    player.camera = camera;
  };

  // What was presented since the last look, and what the peer connections have had
  // of video, all together.
  window.fanlightWatched = async () => {
    const out = { state: player.state, connections: window.fanlightConnections.length, received: 0, freezes: 0, ratio: devicePixelRatio };
    for (const pc of window.fanlightConnections) {
      if (pc.connectionState === "closed") continue;
      for (const entry of (await pc.getStats()).values()) {
        if (entry.type !== "inbound-rtp" || entry.kind !== "video") continue;
        out.received += entry.framesReceived ?? 0;
        out.freezes += entry.freezeCount ?? 0;
      }
    }
    out.frames = frames;
    out.since = since;
    out.now = performance.now();
    since = frames.at(-1)?.at ?? since;
    frames = [];
    return out;
  };
})();
