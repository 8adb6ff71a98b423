// Keeps one camera's picture on the screen: begins sessions, replaces them
// before they are missed, waits between failures, and says what is going on.
//
// A session that has shown a frame is "shown"; one that has not is "pending".
// There is at most one of each. A pending session replaces the shown one with
// its first frame, and not before: a moved camera, a lost websocket or a
// failed peer connection leave the old picture, or its last frame, in place
// until there is a better one.
//
// A session whose websocket is lost is an orphan: nothing can be said to it, and
// its node goes on with it for some seconds only. So a lost websocket means a
// new session as soon as there is a new websocket, beside the old one, which
// brings the picture until then.

import { Backoff } from "./backoff.ts";
import type { Connection, Member, Trouble } from "./connection.ts";
import { isLasting, isTokenReason } from "./messages.ts";
import type { Media } from "./peer.ts";
import { type Failure, Session } from "./session.ts";
import { rates, readReport, type Sample, type Stats } from "./stats.ts";
import type { Turn } from "./turns.ts";
import type { StateMessage, Viewport, Welcome } from "./wire.ts";

/** Where the picture stands. */
export type PlayerState =
  /** Nothing is asked for: no camera, or the player is not near the viewport. */
  | "idle"
  /** The gateway, the session or the first frame is awaited. */
  | "connecting"
  /** The picture moves. */
  | "live"
  /** The camera does not send; the session waits for it. */
  | "camera_offline"
  /** The picture moves, and is about to come from another node. */
  | "moving"
  /** The gateway or the media connection was lost and is tried again. */
  | "reconnecting"
  /** The gateway ended the session for a reason that will hardly pass; it is tried again seldom. */
  | "ended";

export interface PlaybackStatus {
  state: PlayerState;
  /** Empty: nothing is wrong. */
  reason: string;
  /** What the gateway says of the reason; may be empty. */
  message: string;
  /** When the next try begins, milliseconds since the epoch. */
  retryAt: number | undefined;
  /** Of a picture that moves, what the gateway says of it; undefined: nothing. */
  quality?: Quality | undefined;
}

/** What is known of a picture that moves. */
export interface Quality {
  /** The camera's profile: "main", "sub"; empty: not known. */
  profile: string;
  /** What is to blame if the picture is not good: "camera", "node", "viewer_network", "codec"; empty: nothing is. */
  verdict: string;
  /** The verdict in a sentence; may be empty. */
  message: string;
}

/** Where pictures are shown. */
export interface Screen {
  /** Prepares a picture behind the present one. Calls firstFrame once, when one could be shown. */
  load(stream: MediaStream, firstFrame: () => void): Picture;
  /** Removes every picture. */
  clear(): void;
}

/** One session's picture. Its last frame stays when its media ends. */
export interface Picture {
  /** Puts it in front. */
  show(): void;
  /** Removes it. */
  close(): void;
}

export interface PlaybackOptions {
  connection: Connection;
  camera: string;
  audio: boolean;
  viewport: Viewport;
  media: Media;
  screen: Screen;
  onStatus: (status: PlaybackStatus) => void;
  onStats: (stats: Stats) => void;
  random?: () => number;
}

/** A session, its picture, and what is known of both. */
interface Take {
  session: Session;
  picture: Picture | undefined;
  state: StateMessage | undefined;
  beganAt: number;
  firstFrameMs: number | undefined;
  sample: Sample | undefined;
  /** When the number of received frames last grew. */
  movedAt: number;
  /** The websocket of the session is gone. */
  orphaned: boolean;
  /** The gateway says that the session's node is lost. */
  lost: boolean;
  /** The session is over; only its last frame is left. */
  dead: boolean;
}

const STATS_INTERVAL = 1_000;
/** A live picture that has not moved for so long is said to be missing, milliseconds. */
const STALL_SHOWN = 6_000;
/** After so long a new session is begun. */
const STALL_RENEW = 12_000;
/** A session of a live camera has so long to show its first frame: a keyframe interval of many cameras fits. */
const FIRST_FRAME_TIMEOUT = 30_000;
/** A picture that was up for so long was a good one: the next wait is short. */
const STABLE_AFTER = 10_000;
/** What hardly passes is tried again so rarely; up to half as long again, by chance. */
const LASTING_WAIT = 30_000;

export class Playback implements Member {
  readonly #options: PlaybackOptions;
  readonly #connection: Connection;
  readonly #backoff: Backoff;
  readonly #random: () => number;
  #viewport: Viewport;
  #audio: boolean;
  #started = false;
  #shown: Take | undefined;
  #pending: Take | undefined;
  #failure: Failure | undefined;
  #retryAt: number | undefined;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #statsTimer: ReturnType<typeof setInterval> | undefined;
  /** The turn to replace the shown session, had or waited for. */
  #turn: Turn | undefined;
  #status = "";

  constructor(options: PlaybackOptions) {
    this.#options = options;
    this.#connection = options.connection;
    this.#viewport = options.viewport;
    this.#audio = options.audio;
    this.#random = options.random ?? Math.random;
    this.#backoff = new Backoff({ min: 500, max: 15_000, random: this.#random });
  }

  /** Begins. A playback is started and stopped once. */
  start(): void {
    this.#started = true;
    if (!this.#options.media.available) {
      this.#failure = { reason: "webrtc_unsupported", message: "" };
      this.#tell();
      return;
    }
    this.#statsTimer = setInterval(() => void this.#tick(), STATS_INTERVAL);
    this.#connection.join(this);
    this.#tell();
  }

  /** Ends everything and removes the picture. */
  stop(): void {
    this.#started = false;
    clearInterval(this.#statsTimer);
    this.#cancelRetry();
    this.#giveTurnBack();
    this.#discard(this.#pending);
    this.#discard(this.#shown);
    this.#pending = this.#shown = undefined;
    this.#connection.leave(this);
    this.#options.screen.clear();
  }

  /** Tells how the picture is shown. */
  setViewport(viewport: Viewport): void {
    // Nothing was expected to move while nobody could see it.
    if (viewport.visible && !this.#viewport.visible) {
      for (const take of [this.#shown, this.#pending]) if (take) take.movedAt = Date.now();
    }
    this.#viewport = viewport;
    this.#shown?.session.setViewport(viewport);
    this.#pending?.session.setViewport(viewport);
  }

  /** Makes the next try now, if one is waited for. */
  retryNow(): void {
    if (this.#retryTimer !== undefined) this.#watch();
    else this.#connection.retryNow();
  }

  /** Asks for the camera's sound too, which takes a new session. Sound that is there is left. */
  wantAudio(): void {
    if (this.#audio) return;
    this.#audio = true;
    if (this.#shown || this.#pending) this.#watch();
  }

  /** Member. */
  connected(_welcome: Welcome): void {
    const lasting = this.#failure && isLasting(this.#failure.reason) && !isTokenReason(this.#failure.reason);
    // An orphan has not the time to wait, whatever has failed before.
    if (lasting && !this.#alive) this.#tell();
    else this.#watch();
  }

  /** Member. */
  disconnected(_trouble: Trouble): void {
    this.#giveTurnBack();
    this.#discard(this.#pending);
    this.#pending = undefined;
    if (this.#shown && !this.#shown.orphaned) {
      this.#shown.orphaned = true;
      this.#shown.session.detach();
    }
    if (this.#failure && !isLasting(this.#failure.reason)) this.#cancelRetry();
    this.#tell();
  }

  /** Whether there is a session that brings a picture. */
  get #alive(): boolean {
    return this.#shown !== undefined && !this.#shown.dead;
  }

  /** Begins a session beside the one that is shown: in its turn if that still brings a picture, else at once. */
  #watch(): void {
    this.#cancelRetry();
    this.#giveTurnBack();
    this.#failure = undefined;
    this.#discard(this.#pending);
    this.#pending = undefined;
    if (!this.#started || !this.#connection.welcome) return;
    if (!this.#alive || this.#shown?.lost) {
      this.#replace();
      return;
    }
    this.#turn = this.#connection.turns.turn(() => this.#replace());
    this.#turn.take();
  }

  #replace(): void {
    const welcome = this.#connection.welcome;
    if (!welcome) return;
    try {
      this.#pending = this.#begin(welcome);
    } catch (error) {
      // Browsers bound the number of peer connections of a page.
      this.#retry({ reason: "too_many_sessions", message: error instanceof Error ? error.message : "" });
      return;
    }
    this.#tell();
    void this.#pending.session.start();
  }

  #begin(welcome: Welcome): Take {
    const { camera, media, screen } = this.#options;
    const now = Date.now();
    const take: Take = {
      session: new Session({
        connection: this.#connection,
        camera,
        iceServers: welcome.iceServers,
        audio: this.#audio,
        viewport: this.#viewport,
        media,
        events: {
          stream: (stream) => {
            take.picture = screen.load(stream, () => this.#firstFrame(take));
          },
          state: (state) => this.#camera(take, state),
          move: () => this.#moved(take),
          failed: (failure) => this.#failed(take, failure),
        },
      }),
      picture: undefined,
      state: undefined,
      beganAt: now,
      firstFrameMs: undefined,
      sample: undefined,
      movedAt: now,
      orphaned: false,
      lost: false,
      dead: false,
    };
    return take;
  }

  #firstFrame(take: Take): void {
    if (take !== this.#pending) return;
    const now = Date.now();
    take.firstFrameMs = now - take.beganAt;
    take.movedAt = now;
    take.picture?.show();
    this.#giveTurnBack();
    this.#discard(this.#shown);
    this.#shown = take;
    this.#pending = undefined;
    take.session.report({ first_frame_ms: Math.round(take.firstFrameMs) });
    this.#tell();
  }

  #camera(take: Take, state: StateMessage): void {
    if (state.state === "live" && take.state?.state !== "live") take.movedAt = Date.now();
    take.state = state;
    take.lost = state.state === "moving" && state.reason !== MOVING.reason;
    this.#tell();
  }

  #moved(take: Take): void {
    if (take.state) take.state = { ...take.state, state: "moving", reason: "moving", message: "" };
    if (take === this.#pending || (!this.#pending && (take.lost || !this.#turn))) this.#watch();
  }

  #failed(take: Take, failure: Failure): void {
    if (take === this.#pending) {
      this.#discard(take);
      this.#pending = undefined;
      this.#retry(failure);
    } else if (take === this.#shown) {
      take.dead = true;
      if (Date.now() - take.beganAt - (take.firstFrameMs ?? 0) >= STABLE_AFTER) this.#backoff.reset();
      // A pending session is the answer already; one that waits for its turn need not wait any more.
      if (this.#pending) this.#tell();
      else if (this.#turn) this.#watch();
      else this.#retry(failure);
    }
  }

  /** Waits, then begins a new session. Without a websocket its return is the next try. */
  #retry(failure: Failure): void {
    this.#failure = failure;
    this.#cancelRetry();
    this.#giveTurnBack();
    if (isForbidden(failure.reason)) {
      // What may no longer be seen is not left on the screen.
      this.#discard(this.#shown);
      this.#shown = undefined;
      this.#options.screen.clear();
    }
    if (this.#connection.welcome || isLasting(failure.reason)) {
      const wait = isLasting(failure.reason) ? LASTING_WAIT * (1 + this.#random() / 2) : this.#backoff.next();
      this.#retryAt = Date.now() + wait;
      this.#retryTimer = setTimeout(() => this.#watch(), wait);
    }
    this.#tell();
    // The token belongs to the connection: a new one needs a new connection.
    if (isTokenReason(failure.reason)) this.#connection.renew(failure.reason);
  }

  #cancelRetry(): void {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    this.#retryAt = undefined;
  }

  #giveTurnBack(): void {
    this.#turn?.giveBack();
    this.#turn = undefined;
  }

  /** Ends a session and removes its picture. */
  #discard(take: Take | undefined): void {
    if (!take) return;
    take.dead = true;
    take.session.close();
    take.picture?.close();
  }

  /** Once a second: figures, and whether the picture still moves. */
  async #tick(): Promise<void> {
    const take = this.#shown ?? this.#pending;
    if (take && !take.dead) await this.#measure(take);
    if (!this.#started) return;
    const now = Date.now();
    const { pending, shown } = { pending: this.#pending, shown: this.#shown };
    if (
      pending?.state?.state === "live" &&
      this.#viewport.visible &&
      now - pending.movedAt > FIRST_FRAME_TIMEOUT
    ) {
      this.#failed(pending, { reason: "no_frames", message: "" });
    } else if (
      shown &&
      !pending &&
      this.#stalled(shown, now) > STALL_RENEW &&
      !this.#failure &&
      !this.#turn
    ) {
      this.#watch();
    }
    this.#tell();
  }

  async #measure(take: Take): Promise<void> {
    let report: RTCStatsReport;
    try {
      report = await take.session.getStats();
    } catch {
      return;
    }
    const sample = readReport(report as unknown as Iterable<[string, unknown]>);
    if (!sample || take.dead) return;
    const before = take.sample;
    take.sample = sample;
    if (!before) return;
    if (sample.framesReceived > before.framesReceived) take.movedAt = Date.now();
    const stats = take === this.#shown && rates(before, sample, take.firstFrameMs);
    if (stats) this.#options.onStats(stats);
  }

  /** For how long a picture that should move has not, milliseconds. */
  #stalled(take: Take, now: number): number {
    if (take.dead || !this.#viewport.visible) return 0;
    const state = take.state?.state;
    return take.orphaned || state === "live" || state === "moving" ? now - take.movedAt : 0;
  }

  #tell(): void {
    const status = this.#started ? this.#now() : IDLE;
    const text = JSON.stringify(status);
    if (text === this.#status) return;
    this.#status = text;
    this.#options.onStatus(status);
  }

  #now(): PlaybackStatus {
    const shown = this.#shown;
    if (shown && !shown.dead) {
      const still = this.#stalled(shown, Date.now());
      const state = shown.state?.state;
      const running = state === "live" || state === "moving" || state === undefined;
      if (shown.orphaned) {
        if (still < STATS_INTERVAL * 2.5 && running) return { ...LIVE, quality: quality(shown.state) };
      } else if (!running) {
        return ofCamera(shown.state);
      } else if (still >= STALL_SHOWN) {
        const { reason, message } = state === "moving" && shown.state ? shown.state : NO_FRAMES;
        return { ...CONNECTING, reason, message };
      } else {
        const moving = this.#pending && state === "moving";
        return { ...(moving ? MOVING : LIVE), quality: quality(shown.state) };
      }
    }
    if (this.#failure) {
      const state =
        isLasting(this.#failure.reason) || !this.#options.media.available ? "ended" : "reconnecting";
      return { state, ...this.#failure, retryAt: this.#retryAt ?? this.#connection.trouble?.retryAt };
    }
    const trouble = this.#connection.trouble;
    if (trouble) return { state: "reconnecting", ...trouble };
    return ofCamera(this.#pending?.state);
  }
}

const IDLE: PlaybackStatus = { state: "idle", reason: "", message: "", retryAt: undefined };
const LIVE: PlaybackStatus = { state: "live", reason: "", message: "", retryAt: undefined };
const MOVING: PlaybackStatus = { state: "moving", reason: "moving", message: "", retryAt: undefined };
const NO_FRAMES: Failure = { reason: "no_frames", message: "" };
const CONNECTING: PlaybackStatus = { state: "connecting", reason: "", message: "", retryAt: undefined };

/** What the gateway says, for a session whose picture is not there. */
function ofCamera(said: StateMessage | undefined): PlaybackStatus {
  if (said?.state !== "camera_offline" && said?.state !== "connecting") return CONNECTING;
  const { state, reason, message, retryAt } = said;
  return { state, reason, message, retryAt };
}

function quality(said: StateMessage | undefined): Quality | undefined {
  if (!said || (said.profile === "" && said.verdict === "")) return undefined;
  return { profile: said.profile, verdict: said.verdict, message: said.verdictMessage };
}

/** The reasons for which a picture may not be seen any longer. */
function isForbidden(reason: string): boolean {
  return isTokenReason(reason) || reason === "camera_forbidden" || reason === "camera_deleted";
}
