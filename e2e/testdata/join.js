// Evaluated in a page of the gateway's. window.fanlightJoin adds a player to the
// page that shows nothing, and begins to watch a camera with it as a click would;
// every frame that is presented is noted.
(() => {
  const joins = new Map();

  // Where the players stand, so that all of them are seen.
  const place = (player, index) => {
    Object.assign(player.style, {
      position: "fixed",
      zIndex: 1000,
      bottom: `${190 * Math.floor(index / 3)}px`,
      left: `${330 * (index % 3)}px`,
      width: "320px",
      height: "180px",
    });
  };

  // Begins under a name of the caller's. The player joins the page before, for it
  // is there when somebody clicks.
  window.fanlightJoin = async (name, index, camera) => {
    const player = document.createElement("fanlight-player");
    player.setAttribute("muted", "");
    place(player, index);
    document.body.append(player);
    // It knows its size and that it is seen.
    await new Promise((resolve) => setTimeout(resolve, 300));

    const join = { player, frames: [], reported: 0, states: [] };
    joins.set(name, join);
    const known = new WeakSet();
    const follow = (video) => {
      if (known.has(video)) return;
      known.add(video);
      const presented = (_now, frame) => {
        join.frames.push({
          at: frame.presentationTime - join.began,
          told: performance.now() - join.began,
          rtp: frame.rtpTimestamp ?? 0,
          received: (frame.receiveTime ?? 0) - join.began,
          count: frame.presentedFrames,
        });
        video.requestVideoFrameCallback(presented);
      };
      video.requestVideoFrameCallback(presented);
    };
    new MutationObserver(() => player.shadowRoot.querySelectorAll("video").forEach(follow)).observe(player.shadowRoot, {
      childList: true,
      subtree: true,
    });
    player.addEventListener("fanlight-stats", ({ detail }) => {
      join.reported = detail.firstFrameMs ?? 0;
    });
    player.addEventListener("fanlight-state", ({ detail }) => join.states.push(detail.state));

    join.began = performance.now();
    join.origin = join.began;
    player.camera = camera;
  };

  // What has been seen so far. Times are in milliseconds since the join, origin is
  // that of the page's clock.
  window.fanlightJoined = (name) => {
    const { frames, reported, states, origin } = joins.get(name);
    return { frames, reported, states, origin };
  };

  window.fanlightLeft = (name) => {
    joins.get(name).player.remove();
    joins.delete(name);
  };
})();
