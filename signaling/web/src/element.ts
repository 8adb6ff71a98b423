// The custom element <fanlight-player>.

import type { Token } from "./connection.ts";
import { asSentence } from "./messages.ts";
import { hasH264, browserMedia as media } from "./peer.ts";
import { Playback, type PlaybackStatus, type PlayerState } from "./playback.ts";
import { Pool } from "./pool.ts";
import { VideoScreen } from "./screen.ts";
import type { Stats } from "./stats.ts";
import { View } from "./view.ts";
import { heard, type Shown, Visibility } from "./visibility.ts";

/** The detail of `fanlight-state`. */
export interface StateDetail {
  camera: string;
  state: PlayerState;
  /** One of docs/errors.md in lower case, or the player's own; empty: nothing is wrong. */
  reason: string;
  /** The reason in a sentence; empty: nothing is wrong. */
  message: string;
  /** When the next try begins, milliseconds since the epoch. */
  retryAt: number | undefined;
  /** The camera's profile that is shown: "main", "sub"; empty: none, or not known. */
  profile: string;
  /** What is to blame for a picture that is not good: "camera", "node", "viewer_network", "codec"; empty: nothing is. */
  verdict: string;
  /** The verdict in a sentence; empty: nothing is to blame. */
  verdictMessage: string;
}

/** The detail of `fanlight-stats`. */
export interface StatsDetail extends Stats {
  camera: string;
}

declare global {
  interface HTMLElementTagNameMap {
    "fanlight-player": FanlightPlayer;
  }
  interface HTMLElementEventMap {
    "fanlight-state": CustomEvent<StateDetail>;
    "fanlight-stats": CustomEvent<StatsDetail>;
  }
}

/** Where the module came from is where the gateway is, unless the page says otherwise. */
const HOME = new URL(/* @vite-ignore */ ".", import.meta.url);

/** A lazy player that has left the viewport's neighbourhood keeps its session for so long, milliseconds. */
const FAR_LINGER = 8_000;

/** The connections of all players of the page. */
const pool = new Pool();

/** What a page may set. */
const PROPERTIES = ["camera", "src", "token", "muted"] as const;

const IDLE: PlaybackStatus = { state: "idle", reason: "", message: "", retryAt: undefined };

export class FanlightPlayer extends HTMLElement {
  static readonly observedAttributes = ["camera", "src", "token", "muted", "loading", "controls"];

  readonly #internals = this.attachInternals();
  readonly #view: View;
  readonly #screen: VideoScreen;
  #visibility: Visibility | undefined;
  #playback: Playback | undefined;
  #status = IDLE;
  #message = "";
  #stats: Stats | undefined;
  #token: Token | undefined;
  #farTimer: ReturnType<typeof setTimeout> | undefined;
  #restarting = false;
  readonly #networkBack = () => pool.retryNow();
  readonly #pageShown = () => {
    if (!document.hidden) pool.retryNow();
  };
  readonly #fullscreenChanged = () => {
    this.#view.fullscreen = document.fullscreenElement === this;
  };
  readonly #keyPressed = (event: KeyboardEvent) => this.#onKey(event);

  constructor() {
    super();
    this.#view = new View(this.attachShadow({ mode: "open" }), {
      toggleMuted: () => {
        this.muted = !this.muted;
      },
      toggleFullscreen: () => this.#toggleFullscreen(),
    });
    this.#screen = new VideoScreen(this.#view.screen, true, () => this.#blocked());
    this.#internals.role = "group";
  }

  /** The camera's id; empty: none. */
  get camera(): string {
    return this.getAttribute("camera") ?? "";
  }

  set camera(camera: string) {
    this.setAttribute("camera", camera);
  }

  /** The gateway's base address. */
  get src(): string {
    return this.#gateway().href;
  }

  set src(src: string) {
    this.setAttribute("src", src);
  }

  /** The viewer's token, or a function that gets one whenever the player connects. The property goes before the attribute. */
  get token(): Token {
    return this.#token ?? this.getAttribute("token") ?? "";
  }

  set token(token: Token | undefined) {
    if (this.#token === token) return;
    this.#token = token;
    this.#restart();
  }

  /** Without sound. A muted player does not ask for the camera's sound at all. */
  get muted(): boolean {
    return this.hasAttribute("muted");
  }

  set muted(muted: boolean) {
    this.toggleAttribute("muted", muted);
  }

  /** Where the picture stands. */
  get state(): PlayerState {
    return this.#status.state;
  }

  /** Why the picture is missing, in a sentence; empty: it is not. */
  get message(): string {
    return this.#message;
  }

  /** The figures of the last second; undefined: none yet. */
  get stats(): Stats | undefined {
    return this.#stats;
  }

  /** Makes the next try now, if one is waited for. */
  retry(): void {
    this.#playback?.retryNow();
  }

  /** Takes over what the page set on the element before the module was there to hear of it. */
  #upgrade(name: (typeof PROPERTIES)[number]): void {
    if (!Object.hasOwn(this, name)) return;
    const value = Reflect.get(this, name);
    Reflect.deleteProperty(this, name);
    Reflect.set(this, name, value);
  }

  connectedCallback(): void {
    for (const name of PROPERTIES) this.#upgrade(name);
    this.#visibility = new Visibility(this, (shown) => this.#shownChanged(shown));
    addEventListener("online", this.#networkBack);
    document.addEventListener("visibilitychange", this.#pageShown);
    document.addEventListener("fullscreenchange", this.#fullscreenChanged);
    this.addEventListener("keydown", this.#keyPressed);
    this.#label();
    if (!this.#lazy) this.#start();
  }

  disconnectedCallback(): void {
    this.#stop();
    this.#view.close();
    this.#visibility?.close();
    this.#visibility = undefined;
    removeEventListener("online", this.#networkBack);
    document.removeEventListener("visibilitychange", this.#pageShown);
    document.removeEventListener("fullscreenchange", this.#fullscreenChanged);
    this.removeEventListener("keydown", this.#keyPressed);
  }

  attributeChangedCallback(name: string, before: string | null, after: string | null): void {
    if (before === after) return;
    switch (name) {
      case "muted":
        this.#mutedChanged();
        break;
      case "controls":
        this.#view.controls = after !== null;
        break;
      default:
        this.#label();
        this.#restart();
    }
  }

  get #lazy(): boolean {
    return this.getAttribute("loading") === "lazy";
  }

  #gateway(): URL {
    const src = this.getAttribute("src");
    if (!src) return HOME;
    // A base address without its last "/" would lose its last part.
    return new URL(src.endsWith("/") ? src : `${src}/`, document.baseURI);
  }

  #label(): void {
    this.#internals.ariaLabel = this.camera === "" ? "Camera" : `Camera ${this.camera}`;
  }

  #start(): void {
    if (this.#playback || this.camera === "" || !this.#visibility) return;
    this.#screen.muted = this.muted;
    this.#view.sound = !this.muted;
    this.#playback = new Playback({
      connection: pool.get(this.#gateway(), this.token),
      camera: this.camera,
      audio: !this.muted,
      viewport: heard(this.#visibility.shown.viewport, this.muted),
      media,
      screen: this.#screen,
      onStatus: (status) => this.#tell(status),
      onStats: (stats) => this.#measured(stats),
    });
    this.#playback.start();
  }

  #stop(): void {
    clearTimeout(this.#farTimer);
    this.#farTimer = undefined;
    const playback = this.#playback;
    this.#playback = undefined;
    this.#stats = undefined;
    playback?.stop();
    this.#tell(IDLE);
  }

  /** Begins anew once all the attributes that change together have changed. */
  #restart(): void {
    if (this.#restarting || !this.#visibility) return;
    this.#restarting = true;
    queueMicrotask(() => {
      this.#restarting = false;
      if (!this.#visibility) return;
      this.#stop();
      if (!this.#lazy || this.#visibility.shown.near) this.#start();
    });
  }

  #shownChanged(shown: Shown): void {
    this.#playback?.setViewport(heard(shown.viewport, this.muted));
    if (!this.#lazy) return;
    if (shown.near) {
      clearTimeout(this.#farTimer);
      this.#farTimer = undefined;
      this.#start();
    } else if (this.#playback) {
      this.#farTimer ??= setTimeout(() => this.#stop(), FAR_LINGER);
    }
  }

  #tell(status: PlaybackStatus): void {
    const before = this.#status;
    this.#status = status;
    this.#message = this.#view.show(status, {
      hasPicture: this.#screen.hasPicture,
      browserHasH264: hasH264(media),
      speak: this.#visibility?.shown.viewport.visible ?? false,
    });
    if (before.state === "idle" && status.state === "idle") return;
    const { state, reason, retryAt, quality } = status;
    const detail: StateDetail = {
      camera: this.camera,
      state,
      reason,
      message: this.#message,
      retryAt,
      profile: quality?.profile ?? "",
      verdict: quality?.verdict ?? "",
      verdictMessage: asSentence(quality?.message ?? ""),
    };
    this.dispatchEvent(new CustomEvent("fanlight-state", { detail, bubbles: true, composed: true }));
  }

  #measured(stats: Stats): void {
    this.#stats = stats;
    const detail: StatsDetail = { camera: this.camera, ...stats };
    this.dispatchEvent(new CustomEvent("fanlight-stats", { detail, bubbles: true, composed: true }));
  }

  #mutedChanged(): void {
    this.#screen.muted = this.muted;
    this.#view.sound = !this.muted;
    if (this.#visibility) this.#playback?.setViewport(heard(this.#visibility.shown.viewport, this.muted));
    if (!this.muted) this.#playback?.wantAudio();
  }

  /** The browser wants a gesture before it plays sound: the picture goes on without, and the button says so. */
  #blocked(): void {
    this.muted = true;
  }

  #toggleFullscreen(): void {
    // Refused where the page has no permission for it: then nothing happens.
    if (document.fullscreenElement === this) document.exitFullscreen().catch(() => {});
    else this.requestFullscreen().catch(() => {});
  }

  #onKey(event: KeyboardEvent): void {
    if (!this.hasAttribute("controls") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "m") this.muted = !this.muted;
    else if (event.key === "f") this.#toggleFullscreen();
    else return;
    event.preventDefault();
  }
}
