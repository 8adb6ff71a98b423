import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Connection } from "../src/connection.ts";
import { Playback, type PlaybackStatus } from "../src/playback.ts";
import type { Stats } from "../src/stats.ts";
import { FakeGateway, FakeMedia, type FakePeer, FakeScreen, settle } from "./fakes.ts";

let gateway: FakeGateway;
let media: FakeMedia;
let screen: FakeScreen;
let connection: Connection;
let playback: Playback;
let statuses: PlaybackStatus[];
let stats: Stats[];

const now = () => statuses.at(-1);

/** The websocket's session ids, in the order in which they were watched. */
const watched = () =>
  gateway.sockets.flatMap((socket) => socket.of("watch").map(({ session }) => String(session)));
const last = () => watched().at(-1) ?? "";
const say = (message: Record<string, unknown>) => gateway.last.say({ session: last(), ...message });

function make(): Playback {
  return new Playback({
    connection,
    camera: "lobby",
    audio: false,
    viewport: { width: 640, height: 360, visible: true },
    media,
    screen,
    onStatus: (status) => statuses.push(status),
    onStats: (measured) => stats.push(measured),
    random: () => 0.5,
  });
}

async function start(): Promise<void> {
  playback.start();
  await settle();
  gateway.last.welcome();
  await settle();
}

/** Answers the newest watch, and brings its media, but no frame yet. */
async function answer(): Promise<FakePeer> {
  say({ type: "answer", sdp: "answer" });
  await settle();
  media.last.become("connected");
  media.last.track();
  say({ type: "state", state: "live" });
  return media.last;
}

/** As answer, and shows the first frame. */
async function live(): Promise<FakePeer> {
  const peer = await answer();
  screen.pictures.at(-1)?.firstFrame();
  return peer;
}

/** From now on every report of the peer connection has more frames. */
function flowing(peer: FakePeer): () => void {
  let frames = 0;
  const original = peer.getStats.bind(peer);
  let stopped = false;
  peer.getStats = async () => {
    if (!stopped) frames += 25;
    peer.report = [
      [
        "V",
        {
          id: "V",
          type: "inbound-rtp",
          kind: "video",
          timestamp: Date.now(),
          bytesReceived: frames * 10_000,
          packetsReceived: frames * 10,
          framesReceived: frames,
          framesDecoded: frames,
        },
      ],
    ];
    return original();
  };
  return () => {
    stopped = true;
  };
}

beforeEach(() => {
  vi.useFakeTimers();
  gateway = new FakeGateway();
  media = new FakeMedia();
  screen = new FakeScreen();
  statuses = [];
  stats = [];
  connection = new Connection({
    gateway: new URL("http://g.example/"),
    token: "",
    open: gateway.open,
    probe: async () => "gateway_unreachable",
    random: () => 0.5,
  });
  playback = make();
});
afterEach(() => vi.useRealTimers());

describe("Playback", () => {
  it("is live with its first frame, and says how long that took", async () => {
    playback.start();
    await settle();
    expect(now()?.state).toBe("connecting");
    gateway.last.welcome();
    await settle();
    vi.advanceTimersByTime(120);
    await answer();
    expect(now()?.state).toBe("connecting");
    screen.pictures[0]?.firstFrame();
    expect(now()).toEqual({ state: "live", reason: "", message: "", retryAt: undefined });
    expect(screen.pictures[0]?.shown).toBe(true);
    expect(gateway.last.of("stats")).toEqual([{ type: "stats", session: last(), first_frame_ms: 120 }]);
  });

  it("says which profile is shown and what is to blame, while the picture moves", async () => {
    await start();
    await live();
    say({ type: "state", state: "live", profile: "main" });
    expect(now()).toMatchObject({ state: "live", quality: { profile: "main", verdict: "", message: "" } });
    const verdict = { verdict: "viewer_network", verdict_message: "this viewer loses 8.0 % of its packets" };
    say({ type: "state", state: "live", profile: "sub", ...verdict });
    expect(now()?.quality).toEqual({
      profile: "sub",
      verdict: "viewer_network",
      message: "this viewer loses 8.0 % of its packets",
    });
    say({ type: "state", state: "camera_offline", reason: "timeout", verdict: "camera" });
    expect(now()).toMatchObject({ state: "camera_offline", reason: "timeout" });
    expect(now()?.quality).toBeUndefined();
    say({ type: "state", state: "live" });
    expect(now()).toEqual({ state: "live", reason: "", message: "", retryAt: undefined });
  });

  it("says why the camera is offline and when it is tried again, and goes on in the same session", async () => {
    await start();
    const peer = await live();
    say({
      type: "state",
      state: "camera_offline",
      reason: "connection_refused",
      message: "refused",
      retry_at: "2030-01-01T00:00:00Z",
    });
    expect(now()).toEqual({
      state: "camera_offline",
      reason: "connection_refused",
      message: "refused",
      retryAt: Date.UTC(2030, 0, 1),
    });
    await vi.advanceTimersByTimeAsync(60_000);
    say({ type: "state", state: "live" });
    expect(now()?.state).toBe("live");
    expect(media.peers).toEqual([peer]);
    expect(screen.present).toHaveLength(1);
  });

  it("moves without a gap: the old session ends with the new one's first frame", async () => {
    await start();
    const old = await live();
    const oldSession = last();
    say({ type: "state", state: "moving", reason: "moving" });
    say({ type: "move" });
    await settle();
    expect(watched()).toHaveLength(2);
    expect(now()?.state).toBe("moving");
    await answer();
    expect(old.closed).toBe(false);
    expect(screen.present).toHaveLength(2);
    expect(gateway.last.of("leave")).toEqual([]);
    screen.pictures[1]?.firstFrame();
    expect(old.closed).toBe(true);
    expect(screen.present).toEqual([screen.pictures[1]]);
    expect(gateway.last.of("leave")).toEqual([{ type: "leave", session: oldSession }]);
    expect(now()?.state).toBe("live");
  });

  it("keeps the old picture when the new session fails, and tries again", async () => {
    await start();
    const old = await live();
    say({ type: "move" });
    await settle();
    say({ type: "state", state: "ended", reason: "node_unreachable" });
    expect(old.closed).toBe(false);
    expect(screen.present).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(250);
    expect(watched()).toHaveLength(3);
    await live();
    expect(old.closed).toBe(true);
    expect(now()?.state).toBe("live");
  });

  it("watches anew after a lost websocket, and keeps the last frame until then", async () => {
    await start();
    const old = await live();
    gateway.last.lose();
    expect(now()?.state).toBe("live");
    await vi.advanceTimersByTimeAsync(250);
    gateway.last.lose();
    await vi.advanceTimersByTimeAsync(3_000);
    expect(now()).toMatchObject({ state: "reconnecting", reason: "gateway_unreachable" });
    expect(screen.present).toEqual([screen.pictures[0]]);
    gateway.last.welcome();
    await settle();
    await live();
    expect(now()?.state).toBe("live");
    expect(old.closed).toBe(true);
    expect(screen.present).toEqual([screen.pictures[1]]);
    // The old session was of the old websocket: there is nothing to leave on the new one.
    expect(gateway.last.of("leave")).toEqual([]);
  });

  it("goes on through another gateway without a word, frame after frame", async () => {
    await start();
    const old = await live();
    flowing(old);
    await vi.advanceTimersByTimeAsync(6_000);
    const told = statuses.length;
    gateway.last.lose(1012, "gateway_stopping: connect again");
    await vi.advanceTimersByTimeAsync(0);
    expect(gateway.sockets).toHaveLength(2);
    gateway.last.welcome();
    await settle();
    expect(watched()).toHaveLength(2);
    await answer();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(old.closed).toBe(false);
    expect(screen.present).toHaveLength(2);
    screen.pictures[1]?.firstFrame();
    expect(old.closed).toBe(true);
    expect(screen.present).toEqual([screen.pictures[1]]);
    expect(gateway.last.of("leave")).toEqual([]);
    expect(statuses).toHaveLength(told);
  });

  it("stays live while a moving picture's websocket is lost", async () => {
    await start();
    flowing(await live());
    await vi.advanceTimersByTimeAsync(6_000);
    say({ type: "state", state: "moving", reason: "moving" });
    gateway.last.lose();
    await settle();
    expect(now()?.state).toBe("live");
  });

  it("does not let an old refusal keep an orphan waiting", async () => {
    await start();
    flowing(await live());
    await vi.advanceTimersByTimeAsync(6_000);
    say({ type: "move" });
    await settle();
    say({ type: "state", state: "ended", reason: "node_full" });
    expect(watched()).toHaveLength(2);
    gateway.last.lose();
    await vi.advanceTimersByTimeAsync(0);
    gateway.last.welcome();
    await settle();
    expect(watched()).toHaveLength(3);
  });

  it("shows what stands in the way when a picture that is to move has stopped", async () => {
    await start();
    const stop = flowing(await live());
    await vi.advanceTimersByTimeAsync(3_000);
    stop();
    say({ type: "state", state: "moving", reason: "node_unreachable", message: "the node is away" });
    await vi.advanceTimersByTimeAsync(5_000);
    expect(now()?.state).toBe("live");
    await vi.advanceTimersByTimeAsync(3_000);
    expect(now()).toMatchObject({
      state: "connecting",
      reason: "node_unreachable",
      message: "the node is away",
    });
    say({ type: "move" });
    await settle();
    expect(watched()).toHaveLength(2);
  });

  it("replaces no more than eight moving pictures at a time, and those that have stopped at once", async () => {
    const wall = Array.from({ length: 10 }, make);
    for (const one of wall) one.start();
    await settle();
    gateway.last.welcome();
    await settle();
    expect(watched()).toHaveLength(10);
    const first = watched();
    for (const [i, session] of first.entries()) {
      gateway.last.say({ type: "answer", session, sdp: "answer" });
      await settle();
      media.peers[i]?.become("connected");
      media.peers[i]?.track();
      gateway.last.say({ type: "state", session, state: "live" });
    }
    for (const picture of screen.pictures) picture.firstFrame();
    for (const session of first) gateway.last.say({ type: "move", session });
    await settle();
    expect(watched()).toHaveLength(18);
    // Said once more: no second place.
    gateway.last.say({ type: "move", session: first[9] });
    await settle();
    expect(watched()).toHaveLength(18);
    // One of the two that wait has nothing to lose any more.
    media.peers[8]?.farewell();
    await settle();
    expect(watched()).toHaveLength(19);
    // The first to be replaced makes room for the last.
    const session = watched()[10];
    gateway.last.say({ type: "answer", session, sdp: "answer" });
    await settle();
    media.peers[10]?.track();
    screen.pictures.at(-1)?.firstFrame();
    await settle();
    expect(watched()).toHaveLength(20);
    for (const one of wall) one.stop();
    await vi.advanceTimersByTimeAsync(3_000);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("replaces an eighth of a large wall at a time", async () => {
    const wall = Array.from({ length: 80 }, make);
    for (const one of wall) one.start();
    await settle();
    gateway.last.welcome();
    await settle();
    for (const [i, session] of watched().entries()) {
      gateway.last.say({ type: "answer", session, sdp: "answer" });
      await settle();
      media.peers[i]?.track();
    }
    for (const picture of screen.pictures) picture.firstFrame();
    gateway.last.lose();
    await vi.advanceTimersByTimeAsync(500);
    gateway.last.welcome();
    await settle();
    expect(watched()).toHaveLength(90);
    await vi.advanceTimersByTimeAsync(7_000);
    expect(watched()).toHaveLength(160);
    for (const one of wall) one.stop();
  });

  it("replaces the pictures of a lost node at once, however many, and those in its way", async () => {
    const wall = Array.from({ length: 20 }, make);
    for (const one of wall) one.start();
    await settle();
    gateway.last.welcome();
    await settle();
    const first = watched();
    for (const [i, session] of first.entries()) {
      gateway.last.say({ type: "answer", session, sdp: "answer" });
      await settle();
      media.peers[i]?.track();
      gateway.last.say({ type: "state", session, state: "live" });
    }
    for (const picture of screen.pictures) picture.firstFrame();
    // Sound is wanted of some, two of which wait for their turn.
    for (const one of wall.slice(0, 10)) one.wantAudio();
    await settle();
    expect(watched()).toHaveLength(28);
    for (const session of first) {
      gateway.last.say({ type: "state", session, state: "moving", reason: "node_unreachable" });
      gateway.last.say({ type: "move", session });
    }
    await settle();
    expect(watched()).toHaveLength(40);
    for (const one of wall) one.stop();
    await vi.advanceTimersByTimeAsync(3_000);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("is live without a websocket as long as frames arrive", async () => {
    await start();
    const stop = flowing(await live());
    await vi.advanceTimersByTimeAsync(3_000);
    gateway.last.lose();
    for (let tries = 0; tries < 4; tries++) {
      await vi.advanceTimersByTimeAsync(5_000);
      gateway.last.lose();
      expect(now()?.state).toBe("live");
    }
    stop();
    await vi.advanceTimersByTimeAsync(4_000);
    expect(now()?.state).toBe("reconnecting");
  });

  it("replaces a failed peer connection, with growing waits while that fails too", async () => {
    await start();
    const old = await live();
    old.farewell();
    expect(now()).toMatchObject({
      state: "reconnecting",
      reason: "peer_connection_failed",
      retryAt: Date.now() + 250,
    });
    expect(screen.present).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(250);
    say({ type: "state", state: "ended", reason: "node_unreachable", message: "gone" });
    expect(now()).toMatchObject({ reason: "node_unreachable", message: "gone", retryAt: Date.now() + 500 });
    await vi.advanceTimersByTimeAsync(500);
    await live();
    expect(now()?.state).toBe("live");
    expect(watched()).toHaveLength(3);
  });

  it("tries seldom what will hardly pass, and at once when asked to", async () => {
    await start();
    say({ type: "state", state: "ended", reason: "codec_unsupported", message: "camera sends H265" });
    expect(now()).toEqual({
      state: "ended",
      reason: "codec_unsupported",
      message: "camera sends H265",
      retryAt: Date.now() + 37_500,
    });
    await vi.advanceTimersByTimeAsync(37_000);
    expect(watched()).toHaveLength(1);
    playback.retryNow();
    await settle();
    expect(watched()).toHaveLength(2);
    expect(now()?.state).toBe("connecting");
  });

  it("takes a picture off the screen that may no longer be seen", async () => {
    await start();
    await live();
    say({ type: "state", state: "ended", reason: "camera_forbidden" });
    expect(screen.present).toEqual([]);
    expect(now()).toMatchObject({ state: "ended", reason: "camera_forbidden" });
  });

  it("takes a new connection when the token has expired", async () => {
    await start();
    const socket = gateway.last;
    await live();
    say({ type: "state", state: "ended", reason: "token_expired" });
    expect(socket.closedByPlayer).toBe(true);
    expect(now()).toMatchObject({ state: "ended", reason: "token_expired" });
    await vi.advanceTimersByTimeAsync(30_000);
    gateway.last.welcome();
    await settle();
    await live();
    expect(now()?.state).toBe("live");
  });

  it("says that a picture has stopped, and begins a new session", async () => {
    await start();
    const stop = flowing(await live());
    await vi.advanceTimersByTimeAsync(5_000);
    stop();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(now()?.state).toBe("live");
    await vi.advanceTimersByTimeAsync(2_500);
    expect(now()).toMatchObject({ state: "connecting", reason: "no_frames" });
    expect(watched()).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(watched()).toHaveLength(2);
  });

  it("does not expect frames that nobody can see, nor from a camera that is offline", async () => {
    await start();
    await live();
    playback.setViewport({ width: 640, height: 360, visible: false });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(now()?.state).toBe("live");
    playback.setViewport({ width: 640, height: 360, visible: true });
    await vi.advanceTimersByTimeAsync(3_000);
    expect(now()?.state).toBe("live");
    say({ type: "state", state: "camera_offline", reason: "timeout" });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(watched()).toHaveLength(1);
  });

  it("measures once a second", async () => {
    await start();
    flowing(await live());
    await vi.advanceTimersByTimeAsync(4_500);
    expect(stats).toHaveLength(3);
    expect(stats.at(-1)).toMatchObject({ bitrateBps: 2_000_000, packetsPerSecond: 250, framesPerSecond: 25 });
  });

  it("takes a new session to get sound, beside the one that is shown", async () => {
    await start();
    const silent = await live();
    playback.wantAudio();
    playback.wantAudio();
    await settle();
    expect(watched()).toHaveLength(2);
    expect(media.last.transceivers.map(({ kind }) => kind)).toEqual(["video", "audio"]);
    expect(silent.closed).toBe(false);
  });

  it("says so when the browser has no WebRTC", () => {
    media.available = false;
    playback.start();
    expect(now()).toMatchObject({ state: "ended", reason: "webrtc_unsupported" });
    expect(gateway.sockets).toHaveLength(0);
  });

  it("shares one websocket with others", async () => {
    await start();
    const other = make();
    other.start();
    await settle();
    expect(gateway.sockets).toHaveLength(1);
    expect(new Set(watched()).size).toBe(2);
    playback.stop();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(gateway.last.closedByPlayer).toBe(false);
    other.stop();
  });

  it("leaves nothing behind: no timer, no peer connection, no picture, no word", async () => {
    await start();
    await live();
    say({ type: "move" });
    await settle();
    await answer();
    const told = statuses.length;
    playback.stop();
    await vi.advanceTimersByTimeAsync(3_000);
    expect(media.peers.map(({ closed }) => closed)).toEqual([true, true]);
    expect(screen.present).toEqual([]);
    expect(gateway.last.of("leave")).toHaveLength(2);
    expect(gateway.last.closedByPlayer).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
    expect(statuses).toHaveLength(told);
  });

  it("leaves nothing behind when it is stopped while it waits", async () => {
    await start();
    say({ type: "state", state: "ended", reason: "node_unreachable" });
    playback.stop();
    await vi.advanceTimersByTimeAsync(3_000);
    expect(vi.getTimerCount()).toBe(0);
    expect(watched()).toHaveLength(1);
  });
});
