// Reasons in words: why a picture is missing, as a sentence for the person in
// front of it. The reasons are those of docs/errors.md in lower case, and the
// player's own.

/** What the player finds out by itself. */
export type LocalReason =
  | "gateway_unreachable"
  | "gateway_lost"
  | "no_answer"
  | "no_frames"
  | "webrtc_unsupported"
  | "websocket_blocked";

const SENTENCES: Readonly<Record<string, string>> = {
  // The camera.
  no_node: "No media node is running that could take this camera.",
  no_matching_node: "No media node has the labels this camera asks for.",
  no_capacity: "Every media node is full.",
  starting: "The camera is being connected.",
  disabled: "The camera is disabled.",
  idle: "The camera is asleep and wakes when somebody watches.",
  connection_refused: "The camera refused the connection.",
  timeout: "The camera does not answer.",
  host_not_found: "The camera's host name cannot be resolved.",
  authentication_failed: "The camera refused the user name or password.",
  stream_not_found: "The camera has no stream at the configured path.",
  camera_busy: "The camera has no free session.",
  transport_unsupported: "The camera refused the configured transport.",
  tls_failed: "The camera's certificate is not trusted.",
  protocol_error: "The camera gave an answer that is not valid RTSP.",
  no_video: "The camera sends no video.",
  codec_unsupported: "The camera's video codec cannot be played here.",
  no_media: "The camera is connected but sends no media.",
  connection_closed: "The camera closed the connection.",
  network_forbidden: "The camera's network is not one that may be dialled.",
  camera_deleted: "The camera was deleted.",
  moving: "The camera is moving to another media node.",

  // The session.
  unauthenticated: "A viewer token is needed.",
  permission_denied: "This token does not allow watching.",
  token_expired: "The viewer token has expired.",
  camera_forbidden: "The viewer token does not allow this camera.",
  camera_not_found: "There is no camera of this name.",
  camera_disabled: "The camera is disabled.",
  camera_unassigned: "No media node has this camera yet.",
  camera_moved: "The camera has moved to another media node.",
  stale_route: "The camera has moved to another media node.",
  node_full: "The camera's media node takes no more viewers.",
  node_stopping: "The camera's media node is stopping.",
  node_unreachable: "The camera's media node cannot be reached.",
  peer_connection_failed: "The media connection was lost.",
  too_many_sessions: "This page shows as many cameras as it may.",
  too_many_connections: "This viewer has as many connections as allowed.",
  rate_limited: "Too many requests; waiting before the next.",
  unavailable: "Fanlight is not available at the moment.",
  internal: "Something went wrong in Fanlight.",
  slow_reader: "This browser was too slow to follow.",
  gateway_stopping: "The gateway is stopping.",
  origin_forbidden: "The gateway does not allow players on this page.",
  protocol_unsupported: "The gateway is of another version.",

  // The player.
  gateway_unreachable: "The gateway cannot be reached.",
  gateway_lost: "The connection to the gateway was lost.",
  no_answer: "The gateway does not answer.",
  no_frames: "The picture has stopped arriving.",
  websocket_blocked: "A proxy on the way to the gateway does not pass websockets on.",
  webrtc_unsupported: "This browser has no WebRTC.",
};

const NO_H264 =
  "This browser has no H.264 decoder, which most cameras need. Install the browser's H.264 plugin or use another browser.";

/** Returns the sentence for a reason. What the gateway says goes first, for it knows the details. */
export function sentence(reason: string, message = "", browserHasH264 = true): string {
  const own = SENTENCES[reason];
  const text = asSentence(message) || own || (reason === "" ? "" : asSentence(reason.replaceAll("_", " ")));
  return reason === "codec_unsupported" && !browserHasH264 ? `${text} ${NO_H264}`.trim() : text;
}

const VERDICTS: Readonly<Record<string, string>> = {
  camera: "Camera",
  node: "Node",
  viewer_network: "Your network",
  codec: "Codec",
};

/** Returns who is to blame, in a word or two; empty: nobody is. */
export function blame(verdict: string): string {
  return VERDICTS[verdict] ?? verdict.replaceAll("_", " ");
}

/** Begins with a capital and ends with a full stop. */
export function asSentence(text: string): string {
  const trimmed = text.trim();
  if (trimmed === "") return "";
  const capital = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(capital) ? capital : `${capital}.`;
}

/** The reasons that a new token would cure. */
export function isTokenReason(reason: string): boolean {
  return reason === "unauthenticated" || reason === "token_expired" || reason === "permission_denied";
}

/** The reasons that time alone hardly cures: the next try can wait. */
export function isLasting(reason: string): boolean {
  switch (reason) {
    case "camera_not_found":
    case "camera_deleted":
    case "camera_forbidden":
    case "camera_disabled":
    case "codec_unsupported":
    case "no_video_section":
    case "bad_offer":
    case "invalid_argument":
    case "too_many_sessions":
    case "node_full":
    case "origin_forbidden":
      return true;
    default:
      return isTokenReason(reason);
  }
}

/** Returns "Next try in 4 s.", or nothing if no next try is known or it is due. */
export function countdown(retryAt: number | undefined, now: number): string {
  if (retryAt === undefined) return "";
  const seconds = Math.ceil((retryAt - now) / 1000);
  if (seconds <= 0) return "";
  if (seconds < 120) return `Next try in ${seconds} s.`;
  return `Next try in ${Math.round(seconds / 60)} min.`;
}
