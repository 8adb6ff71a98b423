// Evaluated in a page whose player of a camera plays: from then on it notes
// when each frame of the picture in front is presented, whatever video element
// or peer connection brings it, what the player says, and what the browser's
// own count of freezes is.
(camera) => {
  const player = document.querySelector(`fanlight-player[camera="${CSS.escape(camera)}"]`);
  const log = { frames: [], pictures: 0, states: [], freezes: {}, slowest: 0 };
  const known = new WeakMap();

  // Every video element of the player, from its first frame.
  const follow = (video) => {
    if (known.has(video)) return;
    const picture = log.pictures++;
    known.set(video, picture);
    const presented = (_now, { presentationTime }) => {
      // The player puts an element in front at its first frame, before this.
      if (video.classList.contains("front")) log.frames.push({ at: presentationTime, picture });
      video.requestVideoFrameCallback(presented);
    };
    video.requestVideoFrameCallback(presented);
  };
  const look = () => player.shadowRoot.querySelectorAll("video").forEach(follow);
  new MutationObserver(look).observe(player.shadowRoot, { childList: true, subtree: true });
  look();

  player.addEventListener("fanlight-state", ({ detail }) => {
    log.states.push({ at: performance.now(), state: detail.state, reason: detail.reason });
  });

  // How long the page itself stood still at worst: the machine's doing.
  let before = performance.now();
  const tick = (now) => {
    log.slowest = Math.max(log.slowest, now - before);
    before = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);

  // By peer connection; from now on, where it was there before.
  const there = window.fanlightConnections.length;
  const first = {};
  const count = async () => {
    for (const [i, pc] of window.fanlightConnections.entries()) {
      if (pc.connectionState === "closed") continue;
      for (const entry of (await pc.getStats()).values()) {
        if (entry.type !== "inbound-rtp" || entry.kind !== "video") continue;
        first[i] ??= i < there ? entry.freezeCount : 0;
        log.freezes[i] = Math.max(log.freezes[i] ?? 0, entry.freezeCount - first[i]);
      }
    }
    setTimeout(count, 100);
  };
  const begun = count();

  window.fanlightFollowed = async () => {
    await begun;
    const gaps = log.frames.slice(1).map(({ at, picture }, i) => ({
      ms: at - log.frames[i].at,
      from: log.frames[i].picture,
      to: picture,
    }));
    return {
      same: player.isConnected && player === document.querySelector(`fanlight-player[camera="${CSS.escape(camera)}"]`),
      frames: log.frames.length,
      pictures: log.pictures,
      worst: gaps.reduce((worst, gap) => (gap.ms > worst.ms ? gap : worst), { ms: 0, from: 0, to: 0 }),
      swaps: gaps.filter(({ from, to }) => from !== to),
      freezes: Object.values(log.freezes),
      states: log.states.map(({ state, reason }) => (reason ? `${state} (${reason})` : state)),
      slowest: log.slowest,
    };
  };
}
