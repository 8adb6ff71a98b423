// Runs in every page before its own scripts: keeps the peer connections that
// the page makes, and looks at what the players show. It knows of the player
// only what its documentation says: <fanlight-player> fires fanlight-state, and
// has the picture as a video that is in front.
(() => {
  const connections = [];
  const Native = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Native {
    constructor(...args) {
      super(...args);
      connections.push(this);
    }
  };

  window.fanlightConnections = connections;

  // What the players said last, by camera.
  const said = new Map();
  window.addEventListener("fanlight-state", ({ detail }) => said.set(detail.camera, detail));

  const canvas = document.createElement("canvas");
  canvas.width = 32;
  canvas.height = 18;
  const context = canvas.getContext("2d", { willReadFrequently: true });

  const shown = (player) => {
    const videos = [...(player.shadowRoot?.querySelectorAll("video") ?? [])].filter((v) => v.videoWidth > 0);
    return videos.find((v) => getComputedStyle(v).visibility !== "hidden" && getComputedStyle(v).opacity !== "0") ?? null;
  };

  const pixels = (video) => {
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const luma = [];
    for (let i = 0; i < data.length; i += 4) {
      luma.push(Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]));
    }
    return luma;
  };

  window.fanlightProbe = async (camera) => {
    const player = document.querySelector(`fanlight-player[camera="${CSS.escape(camera)}"]`);
    const out = { present: player !== null, connections: connections.length, connection: -1 };
    if (!player) return out;
    out.state = player.state;
    out.message = player.message;
    out.reason = said.get(camera)?.reason ?? "";
    // What a person reads on the wall, wherever it is.
    out.text = (player.closest("li") ?? player).innerText;
    const video = shown(player);
    if (!video) return out;
    out.width = video.videoWidth;
    out.height = video.videoHeight;
    out.luma = pixels(video);
    const tracks = new Set(video.srcObject?.getTracks() ?? []);
    out.connection = connections.findIndex((pc) => pc.getReceivers().some(({ track }) => tracks.has(track)));
    if (out.connection < 0) return out;
    const pc = connections[out.connection];
    out.connectionState = pc.connectionState;
    for (const entry of (await pc.getStats()).values()) {
      if (entry.type !== "inbound-rtp" || entry.kind !== "video") continue;
      out.framesDecoded = entry.framesDecoded ?? 0;
      out.packetsLost = entry.packetsLost ?? 0;
    }
    return out;
  };
})();
