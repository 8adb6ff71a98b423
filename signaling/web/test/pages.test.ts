import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Api, type StatsEntry } from "../src/pages/api.ts";
import { badge } from "../src/pages/badge.ts";
import { addCommand, columns, stepped, summaryText } from "../src/pages/layout.ts";
import { Poll } from "../src/pages/poll.ts";
import { sorted, totals } from "../src/pages/table.ts";

type Answer = { status?: number; body?: unknown; text?: string; etag?: string } | Error;

/** An HTTP API that gives the answers in turn, and notes what was asked. */
function api(...answers: Answer[]) {
  const asked: { url: URL; headers: Record<string, string> }[] = [];
  const made = new Api(new URL("https://g.example/sub/"), async (url, init) => {
    asked.push({ url, headers: init.headers as Record<string, string> });
    const answer = answers[asked.length - 1];
    if (!answer) throw new Error("asked too often");
    if (answer instanceof Error) throw answer;
    const { status = 200, body, text, etag } = answer;
    return new Response(text ?? (body === undefined ? null : JSON.stringify(body)), {
      status,
      headers: etag ? { ETag: etag } : {},
    });
  });
  return { api: made, asked };
}

const lobby = {
  camera: "lobby",
  display_name: "Lobby",
  labels: { site: "a" },
  state: "live",
  reason: "",
  message: "",
};

describe("Api.cameras", () => {
  it("reads all the pages", async () => {
    const { api: client, asked } = api(
      { body: { cameras: [lobby, { nonsense: true }, "text"], next_page_token: "p2" } },
      {
        body: {
          cameras: [{ camera: "yard", state: "FAILED", reason: "timeout", message: "m" }],
          next_page_token: "",
        },
      },
    );
    client.token = "t";
    const outcome = await client.cameras();
    expect(outcome).toEqual({
      kind: "ok",
      value: [
        {
          camera: "lobby",
          displayName: "Lobby",
          labels: { site: "a" },
          state: "live",
          reason: "",
          message: "",
        },
        { camera: "yard", displayName: "", labels: {}, state: "failed", reason: "timeout", message: "m" },
      ],
    });
    expect(asked.map(({ url }) => url.href)).toEqual([
      "https://g.example/sub/v1/cameras?page_size=1000",
      "https://g.example/sub/v1/cameras?page_size=1000&page_token=p2",
    ]);
    expect(asked[0]?.headers.Authorization).toBe("Bearer t");
  });

  it("asks whether a list of one page has changed, with the same token only", async () => {
    const page = { body: { cameras: [lobby] }, etag: '"1"' };
    const { api: client, asked } = api(page, { status: 304 }, page);
    await client.cameras();
    expect(await client.cameras()).toEqual({ kind: "unchanged" });
    client.token = "another";
    await client.cameras();
    expect(asked.map(({ headers }) => headers["If-None-Match"])).toEqual([undefined, '"1"', undefined]);
  });

  it("sees by itself that nothing has changed, where the gateway has no ETags", async () => {
    const changed = { body: { cameras: [{ ...lobby, state: "failed" }] } };
    const { api: client } = api(
      { body: { cameras: [lobby] } },
      { body: { cameras: [lobby] } },
      changed,
      { status: 401 },
      changed,
    );
    const kinds: string[] = [];
    for (let i = 0; i < 5; i++) kinds.push((await client.cameras()).kind);
    expect(kinds).toEqual(["ok", "unchanged", "ok", "unauthorized", "ok"]);
  });

  it("does not take the first of several pages for all", async () => {
    const first = { body: { cameras: [lobby], next_page_token: "p2" }, etag: '"1"' };
    const { api: client, asked } = api(first, { body: { cameras: [] } }, first, { body: { cameras: [] } });
    await client.cameras();
    await client.cameras();
    expect(asked.map(({ headers }) => headers["If-None-Match"])).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
    ]);
  });

  it("tells a missing token from other trouble, in the gateway's words", async () => {
    const problem = { reason: "token_expired", detail: "the token has expired" };
    const { api: client } = api(
      { status: 401, body: problem },
      { status: 403, body: { reason: "origin_forbidden", detail: "pages of x may not" } },
      { status: 502 },
      new TypeError("failed to fetch"),
      new DOMException("late", "TimeoutError"),
      { body: [] },
      { text: "<html>" },
    );
    expect(await client.cameras()).toEqual({ kind: "unauthorized", message: "The token has expired." });
    expect(await client.cameras()).toEqual({ kind: "failed", message: "Pages of x may not." });
    expect(await client.cameras()).toEqual({ kind: "failed", message: "The gateway answered 502." });
    expect(await client.cameras()).toEqual({ kind: "failed", message: "The gateway cannot be reached." });
    expect(await client.cameras()).toEqual({ kind: "failed", message: "The gateway does not answer." });
    expect(await client.cameras()).toEqual({
      kind: "failed",
      message: "The gateway's answer cannot be read.",
    });
  });
});

const entry = (values: Partial<StatsEntry>): StatsEntry => ({
  camera: "c",
  node: "node-1",
  state: "live",
  bitrateBps: 0,
  packetsPerSecond: 0,
  framesPerSecond: 0,
  width: 0,
  height: 0,
  viewers: 0,
  packets: 0,
  bytes: 0,
  packetsLost: 0,
  loss: 0,
  jitterMs: 0,
  verdict: "",
  verdictMessage: "",
  ...values,
});

describe("Api.stats", () => {
  it("reads figures, be they numbers or protobuf's 64-bit text", async () => {
    const { api: client, asked } = api({
      body: {
        cameras: [
          {
            camera: "lobby",
            node: "n",
            state: "live",
            bitrate_bps: "2000000",
            packets_per_second: 1.5,
            viewers: 2,
            width: "x",
            loss: 0.125,
            jitter_ms: 7.5,
            verdict: "camera",
            verdict_message: "the camera lost 12.5 % of its packets",
          },
        ],
      },
    });
    expect(await client.stats()).toEqual({
      kind: "ok",
      value: [
        entry({
          camera: "lobby",
          node: "n",
          bitrateBps: 2_000_000,
          packetsPerSecond: 1.5,
          viewers: 2,
          loss: 0.125,
          jitterMs: 7.5,
          verdict: "camera",
          verdictMessage: "the camera lost 12.5 % of its packets",
        }),
      ],
    });
    expect(asked[0]?.url.pathname).toBe("/sub/stats");
    expect(asked[0]?.headers.Accept).toBe("application/json");
  });
});

describe("table", () => {
  const entries = [
    entry({ camera: "demo-10", viewers: 1, bitrateBps: 5, node: "b" }),
    entry({ camera: "demo-2", viewers: 1, bitrateBps: 9, node: "a", packetsLost: 4, verdict: "node" }),
    entry({ camera: "attic", viewers: 7, state: "failed", node: "" }),
  ];

  it("sorts by numbers and by names with numbers in them; equal ones by camera", () => {
    const names = (list: StatsEntry[]) => list.map(({ camera }) => camera);
    expect(names(sorted(entries, "camera", false))).toEqual(["attic", "demo-2", "demo-10"]);
    expect(names(sorted(entries, "viewers", true))).toEqual(["attic", "demo-2", "demo-10"]);
    expect(names(sorted(entries, "bitrateBps", false))).toEqual(["attic", "demo-10", "demo-2"]);
    expect(names(entries)).toEqual(["demo-10", "demo-2", "attic"]);
  });

  it("adds up", () => {
    expect(totals(entries)).toMatchObject({
      cameras: 3,
      live: 2,
      nodes: 2,
      bitrateBps: 14,
      viewers: 9,
      packetsLost: 4,
      blamed: 1,
    });
    expect(totals([])).toMatchObject({ cameras: 0, live: 0, nodes: 0, bitrateBps: 0 });
  });
});

describe("layout", () => {
  it.each([
    [0, 1],
    [1, 1],
    [2, 2],
    [4, 2],
    [5, 3],
    [16, 4],
    [200, 6],
  ])("of %i tiles has %i columns", (tiles, wanted) => expect(columns(tiles)).toBe(wanted));

  it("steps round the end", () => {
    expect(stepped(["a", "b", "c"], "c", 1)).toBe("a");
    expect(stepped(["a", "b", "c"], "a", -1)).toBe("c");
    expect(stepped(["a", "b"], "gone", 1)).toBe("a");
    expect(stepped(["a"], "a", 1)).toBeUndefined();
    expect(stepped([], "a", 1)).toBeUndefined();
  });

  it("sums the wall up", () => {
    const bps = (value: number) => `${value} bit/s`;
    const tiles = [
      { tone: "live", bitrateBps: 5 },
      { tone: "live", bitrateBps: 6 },
      { tone: "bad", bitrateBps: 0 },
    ] as const;
    expect(summaryText(tiles, bps)).toBe("3 cameras · 2 live · 11 bit/s");
    expect(summaryText(tiles.slice(2), bps)).toBe("1 camera · 0 live");
    expect(summaryText([], bps)).toBe("");
  });

  it("names the command that adds a camera", () => {
    expect(addCommand("cams.example").join(" ")).toBe(
      "fanlight camera add lobby --url rtsp://CAMERA-ADDRESS/stream --server cams.example:9090",
    );
  });
});

describe("badge", () => {
  it("says what the viewer sees, else what the gateway says", () => {
    expect(badge("live", "failed").text).toBe("Live");
    expect(badge("camera_offline", "live").text).toBe("Offline");
    expect(badge("idle", "failed")).toEqual({ tone: "bad", text: "Offline" });
    expect(badge("idle", "live")).toEqual({ tone: "live", text: "Live" });
    expect(badge("ended", "disabled")).toEqual({ tone: "off", text: "Disabled" });
    expect(badge("idle", "new-in-some-later-version")).toEqual({ tone: "off", text: "Unknown" });
  });
});

describe("Poll", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => vi.useRealTimers());

  it("asks in its interval, one at a time, and not after it was stopped", async () => {
    let under = 0;
    let most = 0;
    const ask = vi.fn(async () => {
      most = Math.max(most, ++under);
      await new Promise((resolve) => setTimeout(resolve, 20));
      under--;
      return true;
    });
    const poll = new Poll({ ask, interval: 500, watched: () => true });
    poll.start();
    poll.now();
    await vi.advanceTimersByTimeAsync(1_700);
    expect(most).toBe(1);
    expect(ask.mock.calls.length).toBe(5);
    poll.stop();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(ask.mock.calls.length).toBe(5);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("leaves a slow gateway in peace", async () => {
    const ask = vi.fn(async () => {
      await new Promise((resolve) => setTimeout(resolve, 400));
      return true;
    });
    new Poll({ ask, interval: 500, watched: () => true }).start();
    await vi.advanceTimersByTimeAsync(4_300);
    expect(ask).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(200);
    expect(ask).toHaveBeenCalledTimes(2);
  });

  it("asks less and less often while it fails, and as before after a success", async () => {
    let ok = false;
    const times: number[] = [];
    const ask = async () => {
      times.push(Date.now());
      return ok;
    };
    const poll = new Poll({ ask, interval: 100, watched: () => true, random: () => 1 });
    poll.start();
    await vi.advanceTimersByTimeAsync(2_500);
    const waits = times.slice(1).map((time, index) => time - (times[index] ?? 0));
    expect(waits).toEqual([300, 500, 900]);
    ok = true;
    await vi.advanceTimersByTimeAsync(1_000);
    expect((times.at(-1) ?? 0) - (times.at(-2) ?? 0)).toBe(100);
    poll.stop();
  });

  it("does not ask while nobody looks", async () => {
    let looks = false;
    const ask = vi.fn(async () => true);
    const poll = new Poll({ ask, interval: 100, watched: () => looks });
    poll.start();
    await vi.advanceTimersByTimeAsync(5_000);
    expect(ask).not.toHaveBeenCalled();
    looks = true;
    await vi.advanceTimersByTimeAsync(100);
    expect(ask).toHaveBeenCalledTimes(1);
    poll.stop();
  });
});
