// One websocket to a gateway, shared by all the players of a page that use the
// same gateway and token, each with its sessions on it. It reconnects by
// itself for as long as it has members, at once after a connection that was
// good. A lost websocket makes orphans of its sessions, with which the nodes go
// on for some seconds: members begin new ones when it is back.

import { Backoff } from "./backoff.ts";
import { isTokenReason } from "./messages.ts";
import { expiry, refreshIn } from "./token.ts";
import { Turns } from "./turns.ts";
import {
  type ClientMessage,
  type ErrorMessage,
  PROTOCOL,
  parseServerMessage,
  protocols,
  type SessionMessage,
  type Welcome,
  websocketURL,
} from "./wire.ts";

/** A viewer's token, or what gets one; empty: none. Asked anew for every attempt to connect. */
export type Token = string | (() => string | Promise<string>);

/** Why there is no connection. */
export interface Trouble {
  reason: string;
  message: string;
  /** When the next attempt begins, milliseconds since the epoch. */
  retryAt: number | undefined;
}

/** What uses a connection. */
export interface Member {
  /** The gateway is ready for sessions. */
  connected(welcome: Welcome): void;
  /** The connection was lost, or an attempt failed: nothing can be said to the sessions any more, whose media may go on for some seconds. */
  disconnected(trouble: Trouble): void;
}

/** What a session gets from the gateway. */
export type SessionHandler = (message: SessionMessage | ErrorMessage) => void;

/** The part of WebSocket that is used. */
export interface Socket {
  readonly readyState: number;
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: CloseEvent) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export interface ConnectionOptions {
  /** The gateway's base address. */
  gateway: URL;
  token: Token;
  /** Opens a websocket. Default: WebSocket. */
  open?: (url: URL, protocols: string[]) => Socket;
  /** Finds out why the gateway refused a websocket, which the browser does not say. Default: asks its HTTP API. */
  probe?: (gateway: URL, token: string) => Promise<string>;
  /** Called when the last member has left and the websocket is closed. */
  onUnused?: () => void;
  random?: () => number;
}

/** The gateway has so long to say welcome, milliseconds. */
const WELCOME_TIMEOUT = 10_000;
/** A connection that lasted so long was a good one: the next wait is short. */
const STABLE_AFTER = 5_000;
/** The websocket outlives its last member by so long, for scrolling and page changes. */
const LINGER = 3_000;
/** A token that was refused is tried again so rarely. */
const REFUSED_WAIT = 30_000;
/** The longest time that a timer can wait. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** WebSocket.OPEN */
const OPEN = 1;
/** Closes a websocket without ending its sessions: another one follows. */
const CLOSE_TO_RETURN = 4000;
/** So many pictures that still move are replaced at a time, */
const REPLACED_AT_ONCE = 8;
/** or so much of a larger wall, so that all have had their turn before an orphan's time is over, 15 s. */
const REPLACED_SHARE = 1 / 8;
/** A gateway that has been silent for so many of its heartbeats is gone. */
const SILENT_HEARTBEATS = 2.5;
/** The next one's turn comes after so long at the latest, milliseconds. */
const LONGEST_TURN = 1_000;

export class Connection {
  readonly gateway: URL;
  /** For those who replace a picture that still moves. */
  readonly turns = new Turns(
    () => Math.max(REPLACED_AT_ONCE, Math.ceil(this.#members.size * REPLACED_SHARE)),
    LONGEST_TURN,
  );
  readonly #token: Token;
  readonly #open: (url: URL, protocols: string[]) => Socket;
  readonly #probe: (gateway: URL, token: string) => Promise<string>;
  readonly #onUnused: () => void;
  readonly #backoff: Backoff;

  readonly #members = new Set<Member>();
  readonly #sessions = new Map<string, SessionHandler>();
  #lastSession = 0;

  #socket: Socket | undefined;
  #welcome: Welcome | undefined;
  #welcomedAt = 0;
  #heardAt = 0;
  #trouble: Trouble | undefined;
  /** What the gateway said instead of welcome. */
  #said: ErrorMessage | undefined;
  /** Counts attempts, so that what an older one still brings is ignored. */
  #attempt = 0;
  #attempting = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #welcomeTimer: ReturnType<typeof setTimeout> | undefined;
  #lingerTimer: ReturnType<typeof setTimeout> | undefined;
  #tokenTimer: ReturnType<typeof setTimeout> | undefined;
  #silenceTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: ConnectionOptions) {
    this.gateway = options.gateway;
    this.#token = options.token;
    this.#open = options.open ?? ((url, names) => new WebSocket(url, names));
    this.#probe = options.probe ?? probe;
    this.#onUnused = options.onUnused ?? (() => {});
    this.#backoff = new Backoff({ min: 500, max: 15_000, ...(options.random && { random: options.random }) });
  }

  /** What the gateway said at the beginning; undefined: not connected. */
  get welcome(): Welcome | undefined {
    return this.#welcome;
  }

  /** Why there is no connection; undefined: connected, or the first attempt is under way. */
  get trouble(): Trouble | undefined {
    return this.#trouble;
  }

  /** When the gateway last said anything, milliseconds since the epoch. */
  get heardAt(): number {
    return this.#heardAt;
  }

  /** Adds a member. It hears of the connection at once if there is one. */
  join(member: Member): void {
    this.#members.add(member);
    clearTimeout(this.#lingerTimer);
    this.#lingerTimer = undefined;
    if (this.#welcome) member.connected(this.#welcome);
    else if (this.#trouble) member.disconnected(this.#trouble);
    else if (!this.#attempting) void this.#connect();
  }

  /** Removes a member, which hears nothing more. Its sessions are its own to release. */
  leave(member: Member): void {
    if (!this.#members.delete(member) || this.#members.size > 0) return;
    this.#lingerTimer = setTimeout(() => this.#close(), LINGER);
  }

  /** Returns the id of a new session, whose messages go to the handler. */
  claim(handler: SessionHandler): string {
    const id = `s${++this.#lastSession}`;
    this.#sessions.set(id, handler);
    return id;
  }

  /** Forgets a session, which hears nothing more. */
  release(id: string): void {
    this.#sessions.delete(id);
  }

  /** Sends a message. False: there is no connection, and it is lost. */
  send(message: ClientMessage): boolean {
    if (!this.#welcome || this.#socket?.readyState !== OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** A connection that looks well is of no use, because the gateway does not answer or the token has expired: begins a new one. */
  renew(reason: string): void {
    if (this.#welcome) this.#drop(reason, "");
  }

  /** Makes the next attempt now, because there is reason for hope: the network is back, the page is shown. */
  retryNow(): void {
    if (this.#retryTimer === undefined) return;
    void this.#connect();
  }

  async #connect(): Promise<void> {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    const attempt = ++this.#attempt;
    this.#attempting = true;
    this.#said = undefined;
    let token = "";
    let socket: Socket;
    try {
      token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (attempt !== this.#attempt) return;
      socket = this.#open(websocketURL(this.gateway), protocols(token));
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#failed("unauthenticated", error instanceof Error ? error.message : "");
      return;
    }
    this.#socket = socket;
    this.#welcomeTimer = setTimeout(() => this.#drop("no_answer", ""), WELCOME_TIMEOUT);
    socket.onmessage = (event) => {
      if (attempt === this.#attempt) this.#received(event.data, token);
    };
    socket.onclose = (event) => {
      if (attempt === this.#attempt) void this.#closed(attempt, token, event);
    };
  }

  #received(data: unknown, token: string): void {
    this.#heardAt = Date.now();
    const message = parseServerMessage(data);
    if (!message) return;
    if (message.type === "welcome") {
      if (message.protocol !== PROTOCOL) return;
      if (this.#welcome) {
        // Credentials of ICE servers end too: it is said again with fresh ones.
        this.#welcome = message;
        this.#listen();
        return;
      }
      clearTimeout(this.#welcomeTimer);
      this.#welcome = message;
      this.#listen();
      this.#welcomedAt = Date.now();
      this.#trouble = undefined;
      this.#attempting = false;
      this.#refreshToken(token);
      for (const member of [...this.#members]) member.connected(message);
      return;
    }
    if (message.type !== "error") this.#sessions.get(message.session)?.(message);
    else if (message.session !== undefined) this.#sessions.get(message.session)?.(message);
    // Later ones are about a message that was lost, or come again in the close frame.
    else if (!this.#welcome) this.#said = message;
  }

  /** Gives the websocket up when nothing has come for too long: a host that vanishes closes nothing. */
  #listen(): void {
    clearTimeout(this.#silenceTimer);
    const patience = (this.#welcome?.heartbeat ?? 0) * SILENT_HEARTBEATS;
    if (patience === 0) return;
    const left = Math.max(0, this.#heardAt + patience - Date.now());
    this.#silenceTimer = setTimeout(() => {
      if (Date.now() - this.#heardAt >= patience) this.#drop("gateway_lost", "");
      else this.#listen();
    }, left);
  }

  /** Has a new token from the page on its way before the present one ends, so that no session ends with it. */
  #refreshToken(token: string): void {
    clearTimeout(this.#tokenTimer);
    const provider = this.#token;
    const expires = expiry(token);
    if (typeof provider !== "function" || expires === undefined) return;
    const attempt = this.#attempt;
    this.#tokenTimer = setTimeout(
      async () => {
        let fresh = token;
        try {
          fresh = await provider();
        } catch {
          // Asked again as the end comes nearer; after it, by a new connection.
        }
        if (attempt !== this.#attempt) return;
        if (fresh !== token) this.send({ type: "token", token: fresh });
        this.#refreshToken(fresh);
      },
      Math.min(LONGEST_TIMER, refreshIn(expires, Date.now())),
    );
  }

  /** The gateway or the network closed the websocket. */
  async #closed(attempt: number, token: string, event: CloseEvent): Promise<void> {
    const welcomed = this.#welcome !== undefined;
    const good = this.#detach();
    // A close frame says "reason: sentence".
    const told = /^([a-z_]+): (.*)$/s.exec(event.reason ?? "");
    if (this.#said) {
      this.#failed(this.#said.reason, this.#said.message);
    } else if (told) {
      this.#failed(told[1] ?? "", told[2] ?? "", good);
    } else if (welcomed) {
      this.#failed("gateway_lost", "", good);
    } else {
      const reason = await this.#probe(this.gateway, token);
      if (attempt === this.#attempt) this.#failed(reason, "");
    }
  }

  /** This side gives the websocket up. */
  #drop(reason: string, message: string): void {
    const socket = this.#socket;
    const good = this.#detach();
    socket?.close(CLOSE_TO_RETURN);
    this.#failed(reason, message, good);
  }

  /** Forgets the websocket, whatever becomes of it. Returns whether it was a good one. */
  #detach(): boolean {
    clearTimeout(this.#welcomeTimer);
    clearTimeout(this.#tokenTimer);
    clearTimeout(this.#silenceTimer);
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = undefined;
    const good = this.#welcome !== undefined && Date.now() - this.#welcomedAt >= STABLE_AFTER;
    if (good) this.#backoff.reset();
    this.#welcome = undefined;
    return good;
  }

  /** Waits, then makes the next attempt: at once after a good connection, for behind the same address there may be other gateways. */
  #failed(reason: string, message: string, good = false): void {
    this.#attempt++;
    this.#attempting = false;
    const refused = isTokenReason(reason) && typeof this.#token === "string";
    const wait = refused ? REFUSED_WAIT : good ? 0 : this.#backoff.next();
    this.#trouble = { reason, message, retryAt: Date.now() + wait };
    this.#retryTimer = setTimeout(() => void this.#connect(), wait);
    for (const member of [...this.#members]) member.disconnected(this.#trouble);
  }

  /** Ends everything: nobody is left. */
  #close(): void {
    this.#lingerTimer = undefined;
    this.#attempt++;
    this.#attempting = false;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    const socket = this.#socket;
    this.#detach();
    socket?.close(1000);
    this.#trouble = undefined;
    this.#sessions.clear();
    this.#onUnused();
  }
}

/** Asks the gateway's HTTP API, which answers in words where a refused websocket has none. Never rejects. */
export async function probe(gateway: URL, token: string, get: typeof fetch = fetch): Promise<string> {
  try {
    const response = await get(new URL("v1/cameras?page_size=1", gateway), {
      headers: token === "" ? {} : { Authorization: `Bearer ${token}` },
      cache: "no-store",
      signal: AbortSignal.timeout(5_000),
    });
    // The API works and the websocket does not: there is a proxy between that knows no websockets.
    if (response.ok) return "websocket_blocked";
    const problem: unknown = await response.json().catch(() => undefined);
    const reason = (problem as { reason?: unknown } | null | undefined)?.reason;
    if (typeof reason === "string" && reason !== "") return reason;
    return response.status === 401 ? "unauthenticated" : "unavailable";
  } catch {
    return "gateway_unreachable";
  }
}
