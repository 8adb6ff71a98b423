import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Backoff } from "../src/backoff.ts";
import * as format from "../src/format.ts";
import { blame, countdown, isLasting, isTokenReason, sentence } from "../src/messages.ts";
import { codecNames, hasH264, preferH264, receiver } from "../src/peer.ts";
import { expiry, refreshIn } from "../src/token.ts";
import { Turns } from "../src/turns.ts";
import { heard, viewport } from "../src/visibility.ts";
import { FakeMedia } from "./fakes.ts";

describe("Turns", () => {
  beforeEach(() => vi.useFakeTimers());
  afterEach(() => vi.useRealTimers());

  it("lets a few go at a time, in order", () => {
    const turns = new Turns(() => 2, 1_000);
    const started: number[] = [];
    const all = [0, 1, 2, 3, 4].map((i) => turns.turn(() => started.push(i)));
    for (const turn of all) turn.take();
    expect(started).toEqual([0, 1]);
    all[1]?.giveBack();
    all[1]?.giveBack();
    expect(started).toEqual([0, 1, 2]);
    all[3]?.giveBack(); // which it does not have yet
    all[0]?.giveBack();
    expect(started).toEqual([0, 1, 2, 4]);
    all[2]?.giveBack();
    all[4]?.giveBack();
    expect(vi.getTimerCount()).toBe(0);
  });

  it("takes a turn back from who does not give it", () => {
    const turns = new Turns(() => 1, 1_000);
    const started: number[] = [];
    const all = [0, 1, 2].map((i) => turns.turn(() => started.push(i)));
    for (const turn of all) turn.take();
    vi.advanceTimersByTime(1_000);
    expect(started).toEqual([0, 1]);
    all[0]?.giveBack(); // too late to count
    expect(started).toEqual([0, 1]);
    vi.advanceTimersByTime(1_000);
    expect(started).toEqual([0, 1, 2]);
  });

  it("gives a turn back that was over as soon as it began", () => {
    const turns = new Turns(() => 1, 1_000);
    const started: number[] = [];
    const hasty = turns.turn(() => hasty.giveBack());
    hasty.take();
    turns.turn(() => started.push(1)).take();
    expect(started).toEqual([1]);
  });
});

describe("Backoff", () => {
  it("doubles the ceiling up to the longest wait, and begins again after a reset", () => {
    const backoff = new Backoff({ min: 100, max: 1000, random: () => 1 });
    expect([1, 2, 3, 4, 5, 6].map(() => backoff.next())).toEqual([100, 200, 400, 800, 1000, 1000]);
    expect(backoff.tries).toBe(6);
    backoff.reset();
    expect(backoff.next()).toBe(100);
  });

  it("waits anything from nothing to the ceiling", () => {
    const random = vi.fn().mockReturnValueOnce(0).mockReturnValueOnce(0.5);
    const backoff = new Backoff({ min: 100, max: 1000, random });
    expect(backoff.next()).toBe(0);
    expect(backoff.next()).toBe(100);
  });

  it("stays at the longest wait for ever", () => {
    const backoff = new Backoff({ min: 100, max: 1000, random: () => 1 });
    for (let i = 0; i < 2000; i++) backoff.next();
    expect(backoff.next()).toBe(1000);
  });
});

describe("format", () => {
  it.each([
    [undefined, "–"],
    [Number.NaN, "–"],
    [0, "0 bit/s"],
    [950, "950 bit/s"],
    [128_400, "128 kbit/s"],
    [999_499, "999 kbit/s"],
    [999_500, "1.00 Mbit/s"],
    [2_144_000, "2.14 Mbit/s"],
    [24_160_000, "24.2 Mbit/s"],
    [240_000_000, "240 Mbit/s"],
    [1_500_000_000, "1.50 Gbit/s"],
  ])("bitrate of %s is %s", (bps, text) => expect(format.bitrate(bps)).toBe(text));

  it.each([
    [25, "25 fps"],
    [24.8, "25 fps"],
    [29.97, "30 fps"],
    [12.5, "12.5 fps"],
    [0, "0 fps"],
    [undefined, "–"],
  ])("frameRate of %s is %s", (fps, text) => expect(format.frameRate(fps)).toBe(text));

  it("writes sizes, counts and times", () => {
    expect(format.resolution(1920, 1080)).toBe("1920×1080");
    expect(format.resolution(0, 0)).toBe("–");
    expect(format.count(1_234_567)).toBe("1,234,567");
    expect(format.packetRate(1236.4)).toBe("1,236 pkt/s");
    expect(format.share(0)).toBe("0 %");
    expect(format.share(0.0123)).toBe("1.2 %");
    expect(format.share(0.0999)).toBe("10 %");
    expect(format.share(Number.NaN)).toBe("–");
    expect(format.milliseconds(84.4)).toBe("84 ms");
    expect(format.milliseconds(12_400)).toBe("12 s");
    expect(format.milliseconds(undefined)).toBe("–");
  });
});

describe("sentence", () => {
  it("lets the gateway speak first, as a sentence", () => {
    expect(sentence("codec_unsupported", "camera sends H265, browser offers H264, VP8")).toBe(
      "Camera sends H265, browser offers H264, VP8.",
    );
    expect(sentence("timeout", "No answer!")).toBe("No answer!");
  });

  it("has words for a reason alone, and for one it does not know", () => {
    expect(sentence("connection_refused")).toBe("The camera refused the connection.");
    expect(sentence("sunspots_too_large")).toBe("Sunspots too large.");
    expect(sentence("")).toBe("");
  });

  it("says what is missing in a browser without H.264", () => {
    expect(sentence("codec_unsupported", "", false)).toMatch(/no H\.264 decoder/);
    expect(sentence("codec_unsupported", "", true)).not.toMatch(/H\.264/);
    expect(sentence("timeout", "", false)).not.toMatch(/H\.264/);
  });

  it("knows which reasons pass by themselves", () => {
    expect(["timeout", "node_unreachable", "gateway_lost", "no_answer"].filter(isLasting)).toEqual([]);
    const lasting = ["camera_not_found", "camera_forbidden", "codec_unsupported", "token_expired"];
    expect(lasting.filter(isLasting)).toEqual(lasting);
    expect(isTokenReason("camera_forbidden")).toBe(false);
  });
});

describe("countdown", () => {
  it.each([
    [undefined, ""],
    [999, ""],
    [1_000, ""],
    [1_001, "Next try in 1 s."],
    [5_400, "Next try in 5 s."],
    [121_000, "Next try in 2 min."],
  ])("to %s at 1000 is %j", (retryAt, text) => expect(countdown(retryAt, 1_000)).toBe(text));
});

describe("codecs", () => {
  it("puts H264 first and keeps the order of the rest", () => {
    const media = new FakeMedia();
    expect(codecNames(preferH264(media.videoCodecs()))).toEqual(["H264", "VP8", "AV1"]);
    expect(hasH264(media)).toBe(true);
    media.codecs = ["video/VP8"];
    expect(hasH264(media)).toBe(false);
  });

  it("asks for sound only when it is wanted, and only to receive", () => {
    const media = new FakeMedia();
    receiver(media, [], false);
    expect(media.last.transceivers.map(({ kind, direction }) => [kind, direction])).toEqual([
      ["video", "recvonly"],
    ]);
    expect(media.last.transceivers[0]?.codecs[0]).toBe("video/H264");
    receiver(media, [{ urls: ["stun:s"] }], true);
    expect(media.last.transceivers.map(({ kind }) => kind)).toEqual(["video", "audio"]);
    expect(media.last.config.iceServers).toEqual([{ urls: ["stun:s"] }]);
  });
});

describe("token", () => {
  const jwt = (claims: unknown) =>
    `h.${btoa(JSON.stringify(claims)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}.s`;

  it("reads when a token ends", () => {
    expect(expiry(jwt({ sub: "a?>~~", exp: 1_800_000_000 }))).toBe(1_800_000_000_000);
  });

  it.each([
    ["none", jwt({ sub: "a" })],
    ["text", jwt({ exp: "later" })],
    ["no JWT", "opaque"],
    ["garbage", "a.b!.c"],
    ["null", jwt(null)],
  ])("knows no end from %s", (_name, token) => expect(expiry(token)).toBeUndefined());

  it("is replaced before its end, but not without a pause", () => {
    expect(refreshIn(100_000, 0)).toBe(80_000);
    expect(refreshIn(1_000, 0)).toBe(5_000);
    expect(refreshIn(0, 50_000)).toBe(5_000);
  });
});

describe("blame", () => {
  it("names who it is, also one that this player does not know", () => {
    expect(["camera", "node", "viewer_network", "codec", "the_weather", ""].map(blame)).toEqual([
      "Camera",
      "Node",
      "Your network",
      "Codec",
      "the weather",
      "",
    ]);
  });
});

describe("viewport", () => {
  it("is in device pixels, and what has no size cannot be seen", () => {
    expect(viewport(320.4, 180, 2, true)).toEqual({ width: 641, height: 360, visible: true });
    expect(viewport(0, 180, 2, true)).toEqual({ width: 0, height: 360, visible: false });
  });

  it("counts as visible while it is heard", () => {
    const hidden = { width: 640, height: 360, visible: false };
    expect(heard(hidden, true)).toEqual(hidden);
    expect(heard(hidden, false)).toEqual({ ...hidden, visible: true });
  });
});
