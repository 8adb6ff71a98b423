// What a player shows besides the picture: why it is missing, and the buttons.

import { h, icon, setText } from "./dom.ts";
import { asSentence, blame, countdown, sentence } from "./messages.ts";
import type { PlaybackStatus, PlayerState, Quality } from "./playback.ts";
import { STYLE } from "./style.ts";

/** What the buttons do. */
export interface ViewActions {
  toggleMuted(): void;
  toggleFullscreen(): void;
}

const TITLES: Readonly<Record<PlayerState, string>> = {
  idle: "",
  connecting: "Connecting",
  live: "",
  camera_offline: "Camera offline",
  moving: "",
  reconnecting: "Reconnecting",
  ended: "No picture",
};

/** What is wanted needs no alarm: a disabled camera is only that. */
function titleOf({ state, reason }: PlaybackStatus): string {
  return reason === "camera_disabled" || reason === "disabled" ? "Camera disabled" : TITLES[state];
}

type Symbol = "none" | "wait" | "off" | "bar";

const SYMBOLS: Readonly<Record<PlayerState, Symbol>> = {
  idle: "none",
  connecting: "wait",
  live: "none",
  camera_offline: "off",
  moving: "none",
  reconnecting: "wait",
  ended: "bar",
};

// One sheet serves all the players of the page; made at the first one.
let sheet: CSSStyleSheet | undefined;

function styleSheet(): CSSStyleSheet {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
}

export class View {
  /** Where the pictures go. */
  readonly screen = h("div", { className: "screen" });
  readonly #frame: HTMLElement;
  readonly #overlay: HTMLElement;
  readonly #title = h("p", { className: "title", part: "title" });
  readonly #message = h("p", { className: "message", part: "message" });
  readonly #countdown = h("p", { className: "countdown", part: "countdown" });
  readonly #spoken = h("p", { className: "spoken", attributes: { role: "status", "aria-live": "polite" } });
  readonly #verdict: HTMLElement;
  readonly #blamed = h("span");
  readonly #charge = h("span", { className: "spoken" });
  readonly #toolbar: HTMLElement;
  readonly #mute: HTMLButtonElement;
  readonly #fullscreen: HTMLButtonElement;
  #retryAt: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #hadTrouble = false;

  constructor(root: ShadowRoot, actions: ViewActions) {
    root.adoptedStyleSheets = [styleSheet()];
    this.#mute = button(
      "Sound (m)",
      icon("M11 5 6 9H3v6h3l5 4z", "m16 9 5 6", "m21 9-5 6"),
      icon("M11 5 6 9H3v6h3l5 4z", "M15.5 9a4 4 0 0 1 0 6", "M18.5 6a8 8 0 0 1 0 12"),
      actions.toggleMuted,
    );
    this.#fullscreen = button(
      "Full screen (f)",
      icon("M4 9V4h5", "M15 4h5v5", "M20 15v5h-5", "M9 20H4v-5"),
      icon("M9 4v5H4", "M20 9h-5V4", "M15 20v-5h5", "M4 15h5v5"),
      actions.toggleFullscreen,
    );
    this.#toolbar = h(
      "div",
      { className: "toolbar", part: "toolbar", hidden: true },
      this.#mute,
      this.#fullscreen,
    );
    const off = icon(
      "m3 3 18 18",
      "M16 16H5a2 2 0 0 1-2-2V8a2 2 0 0 1 1.4-1.9",
      "M10 6h4a2 2 0 0 1 2 2v3l5-3v8",
    );
    off.classList.add("off");
    const bar = icon("M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18", "M12 8v5", "M12 16v.01");
    bar.classList.add("bar");
    const symbol = h("div", { className: "symbol", part: "symbol" }, h("div", { className: "spinner" }), off);
    symbol.append(bar);
    // The spoken text says the same without repeating it every second.
    this.#overlay = h(
      "div",
      { className: "overlay", part: "overlay", attributes: { "aria-hidden": "true" } },
      symbol,
      this.#title,
      this.#message,
      this.#countdown,
    );
    this.#verdict = h("p", { className: "verdict", part: "verdict", hidden: true });
    this.#verdict.append(icon("M12 4 2.5 20h19z", "M12 10v4.5", "M12 17.5v.01"), this.#blamed, this.#charge);
    this.#frame = h(
      "div",
      { className: "frame", part: "frame" },
      this.screen,
      this.#verdict,
      this.#overlay,
      this.#toolbar,
      this.#spoken,
    );
    root.append(this.#frame);
  }

  /** Shows where the picture stands. Returns the sentence that says why it is missing; empty: it is not. */
  show(
    status: PlaybackStatus,
    options: { hasPicture: boolean; browserHasH264: boolean; speak: boolean },
  ): string {
    const text = sentence(status.reason, status.message, options.browserHasH264);
    const title = titleOf(status);
    this.#frame.classList.toggle("picture", options.hasPicture);
    this.#overlay.dataset.symbol = SYMBOLS[status.state];
    this.#overlay.classList.toggle("on", title !== "");
    if (title !== "") {
      // What fades away keeps its words.
      setText(this.#title, title);
      setText(this.#message, text);
    }
    this.#judge(title === "" ? status.quality : undefined);
    this.#speak(status.state, title, text, options.speak);
    this.#retryAt = title === "" ? undefined : status.retryAt;
    this.#count();
    return title === "" ? "" : text;
  }

  /** Shows or hides the buttons. */
  set controls(shown: boolean) {
    this.#toolbar.hidden = !shown;
  }

  set sound(on: boolean) {
    this.#mute.setAttribute("aria-pressed", String(on));
  }

  set fullscreen(on: boolean) {
    this.#fullscreen.setAttribute("aria-pressed", String(on));
  }

  /** Ends what runs. The view can be shown again. */
  close(): void {
    clearTimeout(this.#timer);
  }

  /** Shows what is to blame for a picture that moves and is not good. */
  #judge(quality: Quality | undefined): void {
    const verdict = quality?.verdict ?? "";
    this.#verdict.hidden = verdict === "";
    if (verdict === "") return;
    const charge = asSentence(quality?.message ?? "");
    this.#verdict.title = charge;
    setText(this.#blamed, blame(verdict));
    setText(this.#charge, `: the picture is not good. ${charge}`);
  }

  /** Counts down to the next try, on the second, so that players with the same next try agree. */
  #count(): void {
    clearTimeout(this.#timer);
    const now = Date.now();
    setText(this.#countdown, countdown(this.#retryAt, now));
    const left = (this.#retryAt ?? 0) - now;
    if (left > 0) this.#timer = setTimeout(() => this.#count(), left % 1_000 || 1_000);
  }

  /** Says a loss, and the end of one; the first connecting goes without words. */
  #speak(state: PlayerState, title: string, text: string, aloud: boolean): void {
    if (!aloud) return;
    const trouble = state === "camera_offline" || state === "reconnecting" || state === "ended";
    if (trouble) setText(this.#spoken, `${title}. ${text}`.trim());
    else if (state === "live" && this.#hadTrouble) setText(this.#spoken, "Live.");
    if (trouble || state === "live") this.#hadTrouble = trouble;
  }
}

function button(
  label: string,
  usual: SVGElement,
  alternative: SVGElement,
  onClick: () => void,
): HTMLButtonElement {
  usual.classList.add("usual");
  alternative.classList.add("alternative");
  const element = h("button", {
    type: "button",
    title: label,
    part: "button",
    attributes: { "aria-label": label, "aria-pressed": "false" },
  });
  element.append(usual, alternative);
  element.addEventListener("click", onClick);
  return element;
}
