import { describe, expect, it } from "vitest";
import { parseServerMessage, protocols, websocketURL } from "../src/wire.ts";

const parse = (message: unknown) => parseServerMessage(JSON.stringify(message));

describe("parseServerMessage", () => {
  it("reads welcome, and of ICE servers only what browsers accept", () => {
    const servers = [
      { urls: ["turn:turn.example:3478", "http://evil.example"], username: "u", credential: "c" },
      { urls: "stun:stun.example" },
      { urls: [] },
      "nonsense",
    ];
    expect(parse({ type: "welcome", protocol: "fanlight.v1", ice_servers: servers })).toEqual({
      type: "welcome",
      protocol: "fanlight.v1",
      heartbeat: 0,
      iceServers: [
        { urls: ["turn:turn.example:3478"], username: "u", credential: "c" },
        { urls: ["stun:stun.example"] },
      ],
    });
    expect(parse({ type: "welcome", protocol: "fanlight.v1" })).toMatchObject({ iceServers: [] });
    for (const [said, read] of [
      [4000, 4000],
      [0, 0],
      [-1, 0],
      ["4000", 0],
      [1e9, 0],
    ]) {
      const welcome = { type: "welcome", protocol: "fanlight.v1", heartbeat_ms: said };
      expect(parse(welcome)).toMatchObject({ heartbeat: read });
    }
  });

  it("reads a state with the time of the next try", () => {
    const message = parse({
      type: "state",
      session: "s1",
      state: "camera_offline",
      reason: "timeout",
      message: "no answer",
      retry_at: "2026-01-02T03:04:05.5Z",
      profile: "sub",
      verdict: "camera",
      verdict_message: "the camera does not answer",
    });
    expect(message).toEqual({
      type: "state",
      session: "s1",
      state: "camera_offline",
      reason: "timeout",
      message: "no answer",
      retryAt: Date.UTC(2026, 0, 2, 3, 4, 5, 500),
      profile: "sub",
      verdict: "camera",
      verdictMessage: "the camera does not answer",
    });
  });

  it.each([["0001-01-01T00:00:00Z"], ["soon"], [17], [undefined]])(
    "knows no next try from %s",
    (retry_at) => {
      expect(parse({ type: "state", session: "s1", state: "live", retry_at })).toMatchObject({
        retryAt: undefined,
      });
    },
  );

  it("tells an error of a session from one of the connection", () => {
    expect(parse({ type: "error", session: "s1", reason: "bad_candidate" })).toMatchObject({ session: "s1" });
    expect(parse({ type: "error", reason: "rate_limited", message: "slow down" })).toEqual({
      type: "error",
      session: undefined,
      reason: "rate_limited",
      message: "slow down",
    });
  });

  it("gives a candidate a place, for browsers refuse one without", () => {
    expect(
      parse({ type: "candidate", session: "s1", candidate: { candidate: "candidate:1" } }),
    ).toMatchObject({
      candidate: { candidate: "candidate:1", sdpMLineIndex: 0 },
    });
    expect(
      parse({
        type: "candidate",
        session: "s1",
        candidate: { candidate: "candidate:1", sdpMid: "0", usernameFragment: "" },
      }),
    ).toEqual({ type: "candidate", session: "s1", candidate: { candidate: "candidate:1", sdpMid: "0" } });
  });

  it("takes null for the end of candidates", () => {
    expect(parse({ type: "candidate", session: "s1", candidate: null })).toMatchObject({
      candidate: { candidate: "" },
    });
  });

  it.each([
    ["not JSON", "{"],
    ["not text", new ArrayBuffer(2)],
    ["no object", "[]"],
    ["null", "null"],
    ["unknown type", '{"type":"future","session":"s1"}'],
    ["answer without session", '{"type":"answer","sdp":"v=0"}'],
    ["answer without SDP", '{"type":"answer","session":"s1","sdp":7}'],
    ["unknown state", '{"type":"state","session":"s1","state":"dancing"}'],
    ["candidate of text", '{"type":"candidate","session":"s1","candidate":"candidate:1"}'],
    ["move without session", '{"type":"move"}'],
  ])("ignores what it does not know: %s", (_name, data) => {
    expect(parseServerMessage(data)).toBeUndefined();
  });
});

describe("protocols", () => {
  it("offers the token as a second subprotocol", () => {
    expect(protocols("")).toEqual(["fanlight.v1"]);
    expect(protocols("eyJ.a-b_c.d")).toEqual(["fanlight.v1", "fanlight.token.eyJ.a-b_c.d"]);
  });

  it.each(["two words", "comma,", "line\n", "ü"])("refuses %j, which no header can carry", (token) => {
    expect(() => protocols(token)).toThrow(TypeError);
  });
});

describe("websocketURL", () => {
  it.each([
    ["http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/ws"],
    ["https://cameras.example/", "wss://cameras.example/v1/ws"],
    ["https://example.com/cameras/", "wss://example.com/cameras/v1/ws"],
  ])("of %s is %s", (gateway, websocket) => {
    expect(websocketURL(new URL(gateway)).href).toBe(websocket);
  });
});
