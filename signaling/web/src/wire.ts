// The messages of the websocket, subprotocol fanlight.v1: JSON text frames.
// What comes from the gateway is checked here, once, so that the rest of the
// player works with values it can trust.

/** The websocket subprotocol. */
export const PROTOCOL = "fanlight.v1";

/** A second subprotocol is offered with the viewer's token behind this prefix. */
const TOKEN_PROTOCOL = "fanlight.token.";

/** How the picture is shown, in device pixels. */
export interface Viewport {
  width: number;
  height: number;
  visible: boolean;
}

/** What the browser measures of a session. All optional; times in milliseconds, counters since the session began. */
export interface SessionReport {
  first_frame_ms?: number;
}

export type ClientMessage =
  | { type: "watch"; session: string; camera: string; offer: string; viewport: Viewport; codecs: string[] }
  | { type: "candidate"; session: string; candidate: RTCIceCandidateInit | null }
  | { type: "restart"; session: string; offer: string }
  | ({ type: "viewport"; session: string } & Viewport)
  | { type: "leave"; session: string }
  | { type: "token"; token: string }
  | ({ type: "stats"; session: string } & SessionReport);

/** What the gateway says of a camera to one session. */
export type SessionState = "connecting" | "live" | "camera_offline" | "moving" | "ended";

export interface Welcome {
  type: "welcome";
  protocol: string;
  iceServers: RTCIceServer[];
  /** The gateway says something so often, milliseconds; 0: it does not promise to. */
  heartbeat: number;
}

export interface StateMessage {
  type: "state";
  session: string;
  state: SessionState;
  reason: string;
  message: string;
  /** When the camera will be tried again, milliseconds since the epoch. */
  retryAt: number | undefined;
  /** The camera's profile that is sent: "main", "sub"; empty: none, or not known. */
  profile: string;
  /** What is to blame for a picture that is not good; empty: nothing is. */
  verdict: string;
  /** The verdict in a sentence, with figures. */
  verdictMessage: string;
}

export interface ErrorMessage {
  type: "error";
  /** Undefined: the error is about the connection. */
  session: string | undefined;
  reason: string;
  message: string;
}

export type SessionMessage =
  | { type: "answer"; session: string; sdp: string }
  | { type: "candidate"; session: string; candidate: RTCIceCandidateInit }
  | StateMessage
  | { type: "move"; session: string };

export type ServerMessage = Welcome | SessionMessage | ErrorMessage;

const SESSION_STATES: ReadonlySet<string> = new Set([
  "connecting",
  "live",
  "camera_offline",
  "moving",
  "ended",
]);

/** Returns the subprotocols to offer. Throws if the token cannot travel in a header (RFC 7230 §3.2.6). */
export function protocols(token: string): string[] {
  if (token === "") return [PROTOCOL];
  if (!/^[A-Za-z0-9._~+!#$%&'*^`|-]+$/.test(token))
    throw new TypeError("the token has characters that no token has");
  return [PROTOCOL, TOKEN_PROTOCOL + token];
}

/** Returns the address of the gateway's websocket. */
export function websocketURL(gateway: URL): URL {
  const url = new URL("v1/ws", gateway);
  url.protocol = url.protocol === "https:" || url.protocol === "wss:" ? "wss:" : "ws:";
  return url;
}

/**
 * Reads a message of the gateway. Undefined: it is not one that this player
 * knows, and is to be ignored, for a newer gateway may say more.
 */
export function parseServerMessage(data: unknown): ServerMessage | undefined {
  if (typeof data !== "string") return undefined;
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (!isObject(value)) return undefined;
  const session = text(value.session);
  switch (value.type) {
    case "welcome":
      return {
        type: "welcome",
        protocol: text(value.protocol),
        iceServers: iceServers(value.ice_servers),
        heartbeat: heartbeat(value.heartbeat_ms),
      };
    case "error":
      return {
        type: "error",
        session: session || undefined,
        reason: text(value.reason),
        message: text(value.message),
      };
    case "answer":
      return session && typeof value.sdp === "string"
        ? { type: "answer", session, sdp: value.sdp }
        : undefined;
    case "candidate":
      return session ? candidate(session, value.candidate) : undefined;
    case "state":
      return session ? state(session, value) : undefined;
    case "move":
      return session ? { type: "move", session } : undefined;
    default:
      return undefined;
  }
}

function state(session: string, value: Record<string, unknown>): StateMessage | undefined {
  if (typeof value.state !== "string" || !SESSION_STATES.has(value.state)) return undefined;
  const retryAt = Date.parse(text(value.retry_at));
  return {
    type: "state",
    session,
    state: value.state as SessionState,
    reason: text(value.reason),
    message: text(value.message),
    // Go's zero time is a date, but no time to wait for.
    retryAt: retryAt > 0 ? retryAt : undefined,
    profile: text(value.profile),
    verdict: text(value.verdict),
    verdictMessage: text(value.verdict_message),
  };
}

/** A null or empty candidate is the end of candidates. */
function candidate(session: string, value: unknown): ServerMessage | undefined {
  if (value === null || value === undefined) {
    return { type: "candidate", session, candidate: { candidate: "", sdpMLineIndex: 0 } };
  }
  if (!isObject(value)) return undefined;
  const init: RTCIceCandidateInit = { candidate: text(value.candidate) };
  if (typeof value.sdpMid === "string") init.sdpMid = value.sdpMid;
  if (typeof value.sdpMLineIndex === "number") init.sdpMLineIndex = value.sdpMLineIndex;
  if (typeof value.usernameFragment === "string" && value.usernameFragment !== "") {
    init.usernameFragment = value.usernameFragment;
  }
  // A candidate must say where it belongs (W3C WebRTC §4.4.2, addIceCandidate).
  if (init.sdpMid === undefined && init.sdpMLineIndex === undefined) init.sdpMLineIndex = 0;
  return { type: "candidate", session, candidate: init };
}

function iceServers(value: unknown): RTCIceServer[] {
  if (!Array.isArray(value)) return [];
  const servers: RTCIceServer[] = [];
  for (const entry of value) {
    if (!isObject(entry)) continue;
    const urls = (Array.isArray(entry.urls) ? entry.urls : [entry.urls]).filter(
      (url): url is string => typeof url === "string" && /^(stun|turn)s?:/.test(url),
    );
    if (urls.length === 0) continue;
    const server: RTCIceServer = { urls };
    if (typeof entry.username === "string") server.username = entry.username;
    if (typeof entry.credential === "string") server.credential = entry.credential;
    servers.push(server);
  }
  return servers;
}

/** A heartbeat in seconds to minutes; what is not one is none. */
function heartbeat(value: unknown): number {
  return typeof value === "number" && value >= 1_000 && value <= 600_000 ? value : 0;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}
