// The gateway's HTTP API as the pages use it. What comes is checked here, once.

import { asSentence } from "../messages.ts";

export interface CameraEntry {
  camera: string;
  displayName: string;
  labels: Record<string, string>;
  /** "live", "connecting", "failed", "unassigned", "idle", "disabled". */
  state: string;
  reason: string;
  message: string;
}

export interface StatsEntry {
  camera: string;
  node: string;
  state: string;
  bitrateBps: number;
  packetsPerSecond: number;
  framesPerSecond: number;
  width: number;
  height: number;
  viewers: number;
  packets: number;
  bytes: number;
  packetsLost: number;
  /** The share of packets lost between camera and node in the last ten seconds, 0 to 1. */
  loss: number;
  /** How unevenly the camera's pictures come, milliseconds. */
  jitterMs: number;
  /** What is to blame for a picture that is not good; empty: nothing is. */
  verdict: string;
  verdictMessage: string;
}

/** What a request came to. */
export type Outcome<T> =
  | { kind: "ok"; value: T }
  /** As it was at the request before. */
  | { kind: "unchanged" }
  /** The gateway wants a token, or another one. */
  | { kind: "unauthorized"; message: string }
  | { kind: "failed"; message: string };

type Fetch = (url: URL, init: RequestInit) => Promise<Response>;

/** Bounds the pages of one list, should the gateway never end it. */
const MAX_PAGES = 200;
const PAGE_SIZE = 1000;
const TIMEOUT = 10_000;

const UNREADABLE = { kind: "failed", message: "The gateway's answer cannot be read." } as const;

export class Api {
  readonly #base: URL;
  readonly #fetch: Fetch;
  #etag = "";
  /** The token and the text of the last list, for gateways without ETags. */
  #listedWith = "";
  #listed = "";
  token = "";

  constructor(base: URL, get: Fetch = (url, init) => fetch(url, init)) {
    this.#base = base;
    this.#fetch = get;
  }

  /** Returns all the cameras that the viewer may see, by name, if there was a change since they were last returned. */
  async cameras(): Promise<Outcome<CameraEntry[]>> {
    if (this.#listedWith !== this.token) this.#etag = this.#listed = "";
    this.#listedWith = this.token;
    const cameras: CameraEntry[] = [];
    let etag = "";
    let listed = "";
    let page = "";
    for (let pages = 0; pages < MAX_PAGES; pages++) {
      // An ETag speaks for one page: only a list that is one page can be unchanged by it.
      const got = await this.#get(pageURL("v1/cameras", this.#base, page), pages === 0 ? this.#etag : "");
      if (got.kind === "unauthorized") this.#etag = this.#listed = "";
      if (got.kind !== "ok") return got;
      const { body, response } = got.value;
      for (const entry of list(body.cameras)) {
        const camera = cameraEntry(entry);
        if (camera) cameras.push(camera);
      }
      listed += got.value.text;
      page = text(body.next_page_token);
      etag = pages === 0 && page === "" ? (response.headers.get("ETag") ?? "") : "";
      if (page === "") break;
    }
    this.#etag = etag;
    if (listed === this.#listed) return { kind: "unchanged" };
    this.#listed = listed;
    return { kind: "ok", value: cameras };
  }

  /** Returns the live figures of all the cameras that the viewer may see. */
  async stats(): Promise<Outcome<StatsEntry[]>> {
    const entries: StatsEntry[] = [];
    let page = "";
    for (let pages = 0; pages < MAX_PAGES; pages++) {
      const got = await this.#get(pageURL("stats", this.#base, page), "");
      if (got.kind !== "ok") return got;
      for (const value of list(got.value.body.cameras)) {
        const entry = statsEntry(value);
        if (entry) entries.push(entry);
      }
      page = text(got.value.body.next_page_token);
      if (page === "") break;
    }
    return { kind: "ok", value: entries };
  }

  async #get(
    url: URL,
    etag: string,
  ): Promise<Outcome<{ body: Record<string, unknown>; text: string; response: Response }>> {
    const headers: Record<string, string> = { Accept: "application/json" };
    if (this.token !== "") headers.Authorization = `Bearer ${this.token}`;
    if (etag !== "") headers["If-None-Match"] = etag;
    try {
      const response = await this.#fetch(url, {
        headers,
        cache: "no-store",
        signal: AbortSignal.timeout(TIMEOUT),
      });
      if (response.status === 304) return { kind: "unchanged" };
      if (response.status === 401) {
        return { kind: "unauthorized", message: await errorMessage(response) };
      }
      if (!response.ok) return { kind: "failed", message: await errorMessage(response) };
      const content = await response.text();
      const body: unknown = JSON.parse(content);
      if (!isObject(body)) return UNREADABLE;
      return { kind: "ok", value: { body, text: content, response } };
    } catch (error) {
      if (error instanceof SyntaxError) return UNREADABLE;
      const timedOut = error instanceof DOMException && error.name === "TimeoutError";
      return {
        kind: "failed",
        message: timedOut ? "The gateway does not answer." : "The gateway cannot be reached.",
      };
    }
  }
}

function pageURL(path: string, base: URL, page: string): URL {
  const url = new URL(path, base);
  url.searchParams.set("page_size", String(PAGE_SIZE));
  if (page !== "") url.searchParams.set("page_token", page);
  return url;
}

/** What the gateway says of an error (RFC 9457); else the status. */
async function errorMessage(response: Response): Promise<string> {
  try {
    const body: unknown = await response.json();
    if (isObject(body) && text(body.detail) !== "") return asSentence(text(body.detail));
  } catch {
    // Not JSON: a proxy's page.
  }
  return `The gateway answered ${response.status}.`;
}

function cameraEntry(value: unknown): CameraEntry | undefined {
  if (!isObject(value) || text(value.camera) === "") return undefined;
  const labels: Record<string, string> = {};
  if (isObject(value.labels)) {
    for (const [key, label] of Object.entries(value.labels)) labels[key] = text(label);
  }
  return {
    camera: text(value.camera),
    displayName: text(value.display_name),
    labels,
    state: text(value.state).toLowerCase(),
    reason: text(value.reason),
    message: text(value.message),
  };
}

function statsEntry(value: unknown): StatsEntry | undefined {
  if (!isObject(value) || text(value.camera) === "") return undefined;
  return {
    camera: text(value.camera),
    node: text(value.node),
    state: text(value.state).toLowerCase(),
    bitrateBps: number(value.bitrate_bps),
    packetsPerSecond: number(value.packets_per_second),
    framesPerSecond: number(value.frames_per_second),
    width: number(value.width),
    height: number(value.height),
    viewers: number(value.viewers),
    packets: number(value.packets),
    bytes: number(value.bytes),
    packetsLost: number(value.packets_lost),
    loss: number(value.loss),
    jitterMs: number(value.jitter_ms),
    verdict: text(value.verdict),
    verdictMessage: text(value.verdict_message),
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Protobuf's JSON writes 64-bit integers as strings. */
function number(value: unknown): number {
  const n = typeof value === "string" ? Number(value) : value;
  return typeof n === "number" && Number.isFinite(n) ? n : 0;
}
