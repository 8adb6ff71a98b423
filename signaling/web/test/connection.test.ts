import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Connection, type ConnectionOptions, type Member, probe, type Trouble } from "../src/connection.ts";
import { Pool } from "../src/pool.ts";
import { FakeGateway, settle } from "./fakes.ts";

class Listener implements Member {
  connects = 0;
  readonly troubles: Trouble[] = [];

  connected(): void {
    this.connects++;
  }

  disconnected(trouble: Trouble): void {
    this.troubles.push(trouble);
  }

  get reason(): string | undefined {
    return this.troubles.at(-1)?.reason;
  }
}

let gateway: FakeGateway;

function make(options: Partial<ConnectionOptions> = {}): Connection {
  return new Connection({
    gateway: new URL("https://gateway.example/"),
    token: "",
    open: gateway.open,
    probe: async () => "gateway_unreachable",
    random: () => 0.5,
    ...options,
  });
}

/** Joins and connects. */
async function up(options: Partial<ConnectionOptions> = {}) {
  const connection = make(options);
  const member = new Listener();
  connection.join(member);
  await settle();
  gateway.last.welcome([{ urls: ["stun:s.example"] }]);
  return { connection, member };
}

const jwt = (exp: number) => `h.${btoa(JSON.stringify({ exp }))}.s`;

beforeEach(() => {
  vi.useFakeTimers();
  gateway = new FakeGateway();
});
afterEach(() => vi.useRealTimers());

describe("Connection", () => {
  it("opens one websocket for all its members, and tells them of the welcome", async () => {
    const { connection, member } = await up({ token: "abc" });
    expect(gateway.last.url.href).toBe("wss://gateway.example/v1/ws");
    expect(gateway.last.protocols).toEqual(["fanlight.v1", "fanlight.token.abc"]);
    const late = new Listener();
    connection.join(late);
    await settle();
    expect(gateway.sockets).toHaveLength(1);
    expect([member.connects, late.connects]).toEqual([1, 1]);
    expect(connection.welcome?.iceServers).toEqual([{ urls: ["stun:s.example"] }]);
  });

  it("gives each session its messages and nobody else's", async () => {
    const { connection } = await up();
    const got: Record<string, unknown[]> = { a: [], b: [] };
    const a = connection.claim((message) => got.a?.push(message.type));
    const b = connection.claim((message) => got.b?.push(message.type));
    expect(a).not.toBe(b);
    gateway.last.say({ type: "answer", session: a, sdp: "v=0" });
    gateway.last.say({ type: "move", session: b });
    gateway.last.say({ type: "error", session: b, reason: "bad_candidate" });
    gateway.last.say({ type: "error", reason: "rate_limited" });
    gateway.last.say({ type: "answer", session: "s99", sdp: "v=0" });
    expect(got).toEqual({ a: ["answer"], b: ["move", "error"] });
    connection.release(a);
    gateway.last.say({ type: "move", session: a });
    expect(got.a).toEqual(["answer"]);
  });

  it("sends nothing before welcome, and says so", async () => {
    const connection = make();
    connection.join(new Listener());
    await settle();
    gateway.last.readyState = 1;
    expect(connection.send({ type: "leave", session: "s1" })).toBe(false);
    gateway.last.welcome();
    expect(connection.send({ type: "leave", session: "s1" })).toBe(true);
    expect(gateway.last.sent).toEqual([{ type: "leave", session: "s1" }]);
  });

  it("takes fresh ICE servers without connecting again", async () => {
    const { connection, member } = await up();
    gateway.last.welcome([{ urls: ["stun:fresh.example"] }]);
    expect(member.connects).toBe(1);
    expect(connection.welcome?.iceServers).toEqual([{ urls: ["stun:fresh.example"] }]);
  });

  it("comes back with longer and longer waits, and with ids that were never used", async () => {
    const { connection, member } = await up();
    const first = connection.claim(() => {});
    gateway.last.lose();
    expect(member.troubles).toEqual([{ reason: "gateway_lost", message: "", retryAt: Date.now() + 250 }]);
    await vi.advanceTimersByTimeAsync(249);
    expect(gateway.sockets).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(gateway.sockets).toHaveLength(2);
    gateway.last.lose();
    await settle();
    expect(member.troubles.at(-1)).toEqual({
      reason: "gateway_unreachable",
      message: "",
      retryAt: Date.now() + 500,
    });
    await vi.advanceTimersByTimeAsync(500);
    gateway.last.welcome();
    expect(member.connects).toBe(2);
    expect(connection.trouble).toBeUndefined();
    expect(connection.claim(() => {})).not.toBe(first);
  });

  it("waits longer each time a gateway welcomes it and hangs up, and not at all after a connection that lasted", async () => {
    const { member } = await up();
    const wait = () => (member.troubles.at(-1)?.retryAt ?? 0) - Date.now();
    gateway.last.lose();
    expect(wait()).toBe(250);
    await vi.advanceTimersByTimeAsync(250);
    gateway.last.welcome();
    gateway.last.lose();
    expect(wait()).toBe(500);
    await vi.advanceTimersByTimeAsync(500);
    gateway.last.welcome();
    await vi.advanceTimersByTimeAsync(6_000);
    gateway.last.lose(1012, "gateway_stopping: connect again");
    expect(wait()).toBe(0);
    await vi.advanceTimersByTimeAsync(0);
    expect(gateway.sockets).toHaveLength(4);
    // The address leads to no other gateway yet.
    gateway.last.lose();
    await settle();
    expect(wait()).toBe(250);
  });

  it("says what the gateway said instead of welcome, and tries a refused token seldom", async () => {
    const member = new Listener();
    const connection = make({ token: "old" });
    connection.join(member);
    await settle();
    gateway.last.readyState = 1;
    gateway.last.say({ type: "error", reason: "token_expired", message: "the token has expired" });
    gateway.last.lose(1008);
    expect(member.troubles.at(-1)).toEqual({
      reason: "token_expired",
      message: "the token has expired",
      retryAt: Date.now() + 30_000,
    });
  });

  it("reads the reason in a close frame", async () => {
    const { member } = await up();
    gateway.last.lose(1001, "gateway_stopping: connect again");
    expect(member.troubles.at(-1)).toMatchObject({ reason: "gateway_stopping", message: "connect again" });
  });

  it("gives up on a gateway that does not say welcome", async () => {
    const member = new Listener();
    make().join(member);
    await settle();
    await vi.advanceTimersByTimeAsync(10_000);
    expect(gateway.sockets[0]?.closedByPlayer).toBe(true);
    expect(member.reason).toBe("no_answer");
  });

  it("asks its provider for a token at every attempt", async () => {
    const token = vi.fn().mockResolvedValueOnce("first").mockResolvedValueOnce("second");
    await up({ token });
    gateway.last.lose();
    await vi.advanceTimersByTimeAsync(250);
    expect(gateway.sockets.map((socket) => socket.protocols[1])).toEqual([
      "fanlight.token.first",
      "fanlight.token.second",
    ]);
  });

  it("says why a provider failed, and asks it again", async () => {
    const token = vi.fn().mockRejectedValueOnce(new Error("signed out")).mockResolvedValue("good");
    const member = new Listener();
    make({ token }).join(member);
    await settle();
    expect(member.troubles.at(-1)).toMatchObject({ reason: "unauthenticated", message: "signed out" });
    await vi.advanceTimersByTimeAsync(250);
    expect(gateway.last.protocols).toContain("fanlight.token.good");
  });

  it("replaces a token before it ends", async () => {
    const ends = (seconds: number) => jwt(Math.floor(Date.now() / 1000) + seconds);
    const first = ends(1000);
    const second = ends(5000);
    const token = vi.fn().mockResolvedValueOnce(first).mockResolvedValue(second);
    await up({ token });
    await vi.advanceTimersByTimeAsync(790_000);
    expect(gateway.last.of("token")).toEqual([]);
    await vi.advanceTimersByTimeAsync(20_000);
    expect(gateway.last.of("token")).toEqual([{ type: "token", token: second }]);
    expect(gateway.sockets).toHaveLength(1);
  });

  it("begins anew when a session finds it dead", async () => {
    const { connection, member } = await up();
    const dead = gateway.last;
    connection.renew("no_answer");
    expect(dead.closedByPlayer).toBe(true);
    // Neither 1000 nor 1001, by which the gateway would end the sessions.
    expect(dead.closeCode).toBe(4000);
    expect(member.reason).toBe("no_answer");
    dead.say({ type: "welcome", protocol: "fanlight.v1" });
    expect(member.connects).toBe(1);
    await vi.advanceTimersByTimeAsync(250);
    gateway.last.welcome();
    expect(member.connects).toBe(2);
  });

  it("gives up a gateway whose heartbeat has stopped", async () => {
    const { member } = await up();
    const silent = gateway.last;
    silent.say({ type: "welcome", protocol: "fanlight.v1", heartbeat_ms: 4_000 });
    for (let beat = 0; beat < 5; beat++) {
      await vi.advanceTimersByTimeAsync(4_000);
      silent.say({ type: "heartbeat" });
    }
    await vi.advanceTimersByTimeAsync(9_999);
    expect(silent.closedByPlayer).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(silent.closeCode).toBe(4000);
    expect(member.reason).toBe("gateway_lost");
    // At once: it was a good connection.
    await vi.advanceTimersByTimeAsync(1);
    await settle();
    expect(gateway.sockets).toHaveLength(2);
  });

  it("waits for ever for a gateway without a heartbeat", async () => {
    await up();
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(gateway.sockets).toHaveLength(1);
  });

  it("does not wait when there is reason for hope", async () => {
    const { connection } = await up();
    gateway.last.lose();
    connection.retryNow();
    await settle();
    expect(gateway.sockets).toHaveLength(2);
    connection.retryNow();
    await settle();
    expect(gateway.sockets).toHaveLength(2);
  });

  it("closes a moment after its last member has left, and not if one returns", async () => {
    const onUnused = vi.fn();
    const { connection, member } = await up({ onUnused });
    connection.leave(member);
    await vi.advanceTimersByTimeAsync(2_999);
    connection.join(member);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(gateway.last.closedByPlayer).toBe(false);
    connection.leave(member);
    await vi.advanceTimersByTimeAsync(3_000);
    expect(gateway.last.closedByPlayer).toBe(true);
    expect(gateway.last.closeCode).toBe(1000);
    expect(onUnused).toHaveBeenCalledOnce();
    expect(vi.getTimerCount()).toBe(0);
  });

  it("leaves no timer behind when it is left while it waits", async () => {
    const { connection, member } = await up();
    gateway.last.lose();
    connection.leave(member);
    await vi.advanceTimersByTimeAsync(3_000);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("probe", () => {
  const answer = (status: number, body?: unknown) => async () =>
    new Response(body === undefined ? null : JSON.stringify(body), { status });
  const ask = (get: () => Promise<Response>) =>
    probe(new URL("https://g.example/"), "t", get as typeof fetch);

  it("finds out what a refused websocket does not say", async () => {
    expect(await ask(answer(401, { reason: "token_expired" }))).toBe("token_expired");
    expect(await ask(answer(401))).toBe("unauthenticated");
    expect(await ask(answer(502))).toBe("unavailable");
    expect(await ask(answer(200, { cameras: [] }))).toBe("websocket_blocked");
    expect(await ask(() => Promise.reject(new TypeError("failed to fetch")))).toBe("gateway_unreachable");
  });

  it("shows the token where one belongs, and not in the address", async () => {
    const get = vi.fn(answer(200));
    await probe(new URL("https://g.example/sub/"), "secret", get as unknown as typeof fetch);
    const [url, init] = get.mock.calls[0] as unknown as [URL, RequestInit];
    expect(url.href).toBe("https://g.example/sub/v1/cameras?page_size=1");
    expect(init.headers).toEqual({ Authorization: "Bearer secret" });
  });
});

describe("Pool", () => {
  it("has one connection for each gateway and token, until it is unused", async () => {
    const pool = new Pool((options) => make(options));
    const url = new URL("https://gateway.example/");
    const provider = () => "t";
    const first = pool.get(url, "a");
    expect(pool.get(new URL(url), "a")).toBe(first);
    const others = [
      pool.get(url, "b"),
      pool.get(url, provider),
      pool.get(new URL("https://other.example/"), "a"),
    ];
    expect(new Set([first, ...others]).size).toBe(4);
    expect(pool.get(url, provider)).toBe(others[1]);
    const member = new Listener();
    first.join(member);
    await settle();
    first.leave(member);
    await vi.advanceTimersByTimeAsync(3_000);
    expect(pool.size).toBe(3);
    expect(pool.get(url, "a")).not.toBe(first);
  });
});
