import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Connection } from "../src/connection.ts";
import { type Failure, Session } from "../src/session.ts";
import type { StateMessage } from "../src/wire.ts";
import { FakeGateway, FakeMedia, settle } from "./fakes.ts";

let gateway: FakeGateway;
let media: FakeMedia;
let connection: Connection;
let events: {
  streams: number;
  states: StateMessage[];
  moves: number;
  failures: Failure[];
};

async function begin(): Promise<Session> {
  const session = new Session({
    connection,
    camera: "lobby",
    iceServers: [],
    audio: false,
    viewport: { width: 640, height: 360, visible: true },
    media,
    events: {
      stream: () => events.streams++,
      state: (state) => events.states.push(state),
      move: () => events.moves++,
      failed: (failure) => events.failures.push(failure),
    },
  });
  await session.start();
  return session;
}

/** A session whose peer connection is up. */
async function established(): Promise<Session> {
  const session = await begin();
  gateway.last.say({ type: "answer", session: session.id, sdp: "answer" });
  await settle();
  media.last.become("connected");
  return session;
}

beforeEach(async () => {
  vi.useFakeTimers();
  gateway = new FakeGateway();
  media = new FakeMedia();
  events = { streams: 0, states: [], moves: 0, failures: [] };
  connection = new Connection({ gateway: new URL("http://g.example/"), token: "", open: gateway.open });
  connection.join({ connected: () => {}, disconnected: () => {} });
  await settle();
  gateway.last.welcome();
});
afterEach(() => vi.useRealTimers());

describe("Session", () => {
  it("watches with an offer, then sends the candidates that came before it", async () => {
    const session = await begin();
    expect(gateway.last.sent).toEqual([
      {
        type: "watch",
        session: session.id,
        camera: "lobby",
        offer: "offer 1",
        viewport: { width: 640, height: 360, visible: true },
        codecs: ["H264", "VP8", "AV1"],
      },
      { type: "candidate", session: session.id, candidate: { candidate: "candidate:early", sdpMid: "0" } },
    ]);
    media.last.onicecandidate?.({ candidate: null });
    expect(gateway.last.sent.at(-1)).toEqual({ type: "candidate", session: session.id, candidate: null });
  });

  it("keeps the node's candidates until there is an answer, and survives a bad one", async () => {
    const session = await begin();
    const say = (candidate: string) =>
      gateway.last.say({ type: "candidate", session: session.id, candidate: { candidate, sdpMid: "0" } });
    say("candidate:1");
    expect(media.last.added).toEqual([]);
    gateway.last.say({ type: "answer", session: session.id, sdp: "answer" });
    await settle();
    say("candidate:garbage");
    say("candidate:2");
    await settle();
    expect(media.last.added.map(({ candidate }) => candidate)).toEqual([
      "candidate:1",
      "candidate:garbage",
      "candidate:2",
    ]);
    expect(events.failures).toEqual([]);
  });

  it("hands its stream over once, whatever the number of tracks", async () => {
    await established();
    media.last.track();
    media.last.track();
    expect(events.streams).toBe(1);
  });

  it("tells the camera's states and a move, and stays", async () => {
    const session = await established();
    gateway.last.say({ type: "state", session: session.id, state: "camera_offline", reason: "timeout" });
    gateway.last.say({ type: "state", session: session.id, state: "live" });
    gateway.last.say({ type: "move", session: session.id });
    gateway.last.say({ type: "error", session: session.id, reason: "bad_candidate", message: "garbage" });
    expect(events.states.map(({ state }) => state)).toEqual(["camera_offline", "live"]);
    expect(events.moves).toBe(1);
    expect(events.failures).toEqual([]);
    expect(media.last.closed).toBe(false);
  });

  it("ends with the gateway's reason, and leaves nothing that has ended", async () => {
    const session = await begin();
    gateway.last.say({
      type: "error",
      session: session.id,
      reason: "codec_unsupported",
      message: "camera sends H265",
    });
    expect(events.failures).toEqual([]);
    gateway.last.say({
      type: "state",
      session: session.id,
      state: "ended",
      reason: "codec_unsupported",
      message: "camera sends H265",
    });
    expect(events.failures).toEqual([{ reason: "codec_unsupported", message: "camera sends H265" }]);
    expect(media.last.closed).toBe(true);
    expect(gateway.last.of("leave")).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("takes the error's reason where the end has none", async () => {
    const session = await begin();
    gateway.last.say({ type: "error", session: session.id, reason: "node_full", message: "full" });
    gateway.last.say({ type: "state", session: session.id, state: "ended" });
    expect(events.failures).toEqual([{ reason: "node_full", message: "full" }]);
  });

  it("suspects a connection on which nothing comes back", async () => {
    const session = await begin();
    const socket = gateway.last;
    await vi.advanceTimersByTimeAsync(7_999);
    expect(events.failures).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(events.failures).toEqual([{ reason: "no_answer", message: "" }]);
    expect(socket.of("leave")).toEqual([{ type: "leave", session: session.id }]);
    expect(socket.closedByPlayer).toBe(true);
  });

  it("leaves a connection alone on which others are answered", async () => {
    await begin();
    await vi.advanceTimersByTimeAsync(1_000);
    gateway.last.say({ type: "state", session: "another", state: "live" });
    await vi.advanceTimersByTimeAsync(17_000);
    expect(events.failures).toEqual([{ reason: "no_answer", message: "" }]);
    expect(gateway.last.closedByPlayer).toBe(false);
  });

  it("waits for the answer as long as the gateway says why", async () => {
    const session = await begin();
    gateway.last.say({ type: "state", session: session.id, state: "camera_offline", reason: "no_node" });
    await vi.advanceTimersByTimeAsync(600_000);
    expect(events.failures).toEqual([]);
    expect(gateway.last.closedByPlayer).toBe(false);
    gateway.last.say({ type: "answer", session: session.id, sdp: "answer" });
    await settle();
    expect(media.last.remote).toEqual(["answer"]);
  });

  it("gives up on an answer that cannot be used", async () => {
    const session = await begin();
    media.last.refuseAnswer = true;
    gateway.last.say({ type: "answer", session: session.id, sdp: "nonsense" });
    await settle();
    expect(events.failures).toEqual([{ reason: "bad_answer", message: "cannot be parsed" }]);
    expect(gateway.last.of("leave")).toHaveLength(1);
  });

  it("gives up on a peer connection that does not come up", async () => {
    const session = await begin();
    gateway.last.say({ type: "answer", session: session.id, sdp: "answer" });
    await settle();
    await vi.advanceTimersByTimeAsync(15_000);
    expect(events.failures).toEqual([{ reason: "peer_connection_failed", message: "" }]);
  });

  it("lets a short disconnect pass", async () => {
    await established();
    media.last.become("disconnected");
    await vi.advanceTimersByTimeAsync(1_000);
    media.last.become("connected");
    await vi.advanceTimersByTimeAsync(60_000);
    expect(gateway.last.of("restart")).toEqual([]);
    expect(events.failures).toEqual([]);
  });

  it("restarts ICE after a longer one, and goes on in the same peer connection", async () => {
    const session = await established();
    media.last.become("disconnected");
    await vi.advanceTimersByTimeAsync(1_500);
    expect(gateway.last.of("restart")).toEqual([{ type: "restart", session: session.id, offer: "offer 2" }]);
    expect(media.last.offers[1]).toEqual({ iceRestart: true });
    gateway.last.say({ type: "answer", session: session.id, sdp: "answer 2" });
    await settle();
    media.last.become("connected");
    await vi.advanceTimersByTimeAsync(60_000);
    expect(media.last.remote).toEqual(["answer", "answer 2"]);
    expect(events.failures).toEqual([]);
    expect(media.peers).toHaveLength(1);
  });

  it.each([
    [
      "is refused",
      (session: Session) => gateway.last.say({ type: "error", session: session.id, reason: "out_of_order" }),
    ],
    ["fails", () => media.last.become("failed")],
    ["is not answered", () => vi.advanceTimersByTime(6_000)],
  ])("ends when an ICE restart %s", async (_name, happens) => {
    const session = await established();
    media.last.become("failed");
    await settle();
    expect(gateway.last.of("restart")).toHaveLength(1);
    happens(session);
    expect(events.failures).toEqual([{ reason: "peer_connection_failed", message: "" }]);
    expect(media.last.closed).toBe(true);
  });

  it("ends at once when the node says farewell", async () => {
    await established();
    media.last.farewell();
    expect(events.failures).toEqual([{ reason: "peer_connection_failed", message: "" }]);
  });

  it("tells a changed viewport, and no other", async () => {
    const session = await established();
    session.setViewport({ width: 640, height: 360, visible: true });
    session.setViewport({ width: 640, height: 360, visible: false });
    session.setViewport({ width: 640, height: 360, visible: false });
    expect(gateway.last.of("viewport")).toEqual([
      { type: "viewport", session: session.id, width: 640, height: 360, visible: false },
    ]);
  });

  it("leaves when it is closed, once, and is silent from then on", async () => {
    const session = await established();
    const peer = media.last;
    session.close();
    session.close();
    peer.farewell();
    peer.become("failed");
    gateway.last.say({ type: "state", session: session.id, state: "ended", reason: "camera_moved" });
    expect(gateway.last.of("leave")).toEqual([{ type: "leave", session: session.id }]);
    expect(peer.closed).toBe(true);
    expect(events.failures).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("says nothing on a websocket that is not its own", async () => {
    const session = await established();
    session.detach();
    session.setViewport({ width: 1, height: 1, visible: true });
    session.report({ first_frame_ms: 1 });
    media.last.become("failed");
    await settle();
    expect(gateway.last.sent.map(({ type }) => type)).toEqual(["watch", "candidate"]);
    expect(events.failures).toEqual([{ reason: "peer_connection_failed", message: "" }]);
  });
});
