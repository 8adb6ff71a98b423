// One camera on the wall: its picture, and below it what it is and does.

import { h, icon, setText } from "../dom.ts";
import type { FanlightPlayer, StateDetail, StatsDetail } from "../element.ts";
import { bitrate, count, frameRate, milliseconds, packetRate, resolution } from "../format.ts";
import { sentence } from "../messages.ts";
import type { CameraEntry } from "./api.ts";
import { type Badge, badge } from "./badge.ts";

/** What a tile asks of the wall. */
export interface TileActions {
  open(camera: string): void;
  close(): void;
  step(by: 1 | -1): void;
}

/** What is known of the picture, for the wall's sums. */
export interface TileSummary {
  tone: Badge["tone"];
  bitrateBps: number;
}

export class Tile {
  readonly element: HTMLLIElement;
  readonly #player: FanlightPlayer;
  readonly #open: HTMLButtonElement;
  readonly #close: HTMLButtonElement;
  readonly #name = h("h2", { className: "name" });
  readonly #badge = h("span", { className: "badge" });
  readonly #badgeText = h("span");
  readonly #profile = h("span", { className: "profile", title: "The camera's profile that is shown" });
  readonly #reason = h("p", { className: "reason" });
  readonly #figures: Record<Figure, HTMLElement>;
  readonly #labels = h("ul", { className: "labels" });
  #entry: CameraEntry;
  #state: StateDetail | undefined;
  #stats: StatsDetail | undefined;
  readonly #onChange: () => void;

  constructor(entry: CameraEntry, token: string, actions: TileActions, onChange: () => void) {
    this.#entry = entry;
    this.#onChange = onChange;
    this.#player = document.createElement("fanlight-player");
    this.#player.setAttribute("loading", "lazy");
    this.#player.setAttribute("muted", "");
    this.#player.setAttribute("camera", entry.camera);
    if (token !== "") this.#player.setAttribute("token", token);
    this.#player.addEventListener("fanlight-state", (event) => this.#stateChanged(event.detail));
    this.#player.addEventListener("fanlight-stats", (event) => this.#measured(event.detail));
    this.#open = h("button", { type: "button", className: "open" });
    this.#open.addEventListener("click", () => actions.open(entry.camera));
    this.#close = tool("Back to all cameras (Escape)", icon("M6 6l12 12", "M18 6 6 18"), () =>
      actions.close(),
    );
    const tools = h(
      "div",
      { className: "tools" },
      tool("Camera before (←)", icon("m14 6-6 6 6 6"), () => actions.step(-1)),
      tool("Next camera (→)", icon("m10 6 6 6-6 6"), () => actions.step(1)),
      this.#close,
    );
    this.#badge.append(h("i", { className: "dot" }), this.#badgeText);
    this.#figures = figures();
    this.element = h(
      "li",
      { className: "tile" },
      h("div", { className: "picture" }, this.#player, this.#open),
      h(
        "div",
        { className: "caption" },
        h("div", { className: "title" }, this.#name, this.#profile, this.#badge),
        h("dl", { className: "figures" }, ...FIGURES.map(([key]) => this.#figures[key])),
        this.#reason,
        this.#labels,
      ),
      tools,
    );
    this.#show();
    this.#showFigures();
  }

  get camera(): string {
    return this.#entry.camera;
  }

  get summary(): TileSummary {
    return { tone: this.#tone().tone, bitrateBps: this.#stats?.bitrateBps ?? 0 };
  }

  /** Takes what the API says now. */
  update(entry: CameraEntry): void {
    // A camera that was disabled, or not there, is back: the player need not wait for its next try.
    if (entry.state !== this.#entry.state && this.#player.state === "ended") this.#player.retry();
    this.#entry = entry;
    this.#show();
  }

  set token(token: string) {
    if (token === "") this.#player.removeAttribute("token");
    else this.#player.setAttribute("token", token);
  }

  /** Shows or hides the tile, which is about the words typed into the filter. */
  filter(words: readonly string[]): boolean {
    const { camera, displayName, labels } = this.#entry;
    const pairs = Object.entries(labels).map(([key, value]) => `${key}=${value}`);
    const text = [camera, displayName, ...pairs, this.#tone().text].join(" ").toLowerCase();
    const matches = words.every((word) => text.includes(word));
    this.element.hidden = !matches;
    return matches;
  }

  /** Makes the tile fill the page, or not. The player stays where it is in the document, so its picture goes on. */
  set focused(focused: boolean) {
    if (this.element.classList.contains("focused") === focused) return;
    this.element.classList.toggle("focused", focused);
    this.#player.toggleAttribute("controls", focused);
    this.#open.hidden = focused;
    if (focused) {
      this.element.setAttribute("role", "dialog");
      this.element.setAttribute("aria-modal", "true");
      this.element.setAttribute("aria-label", this.#title());
      this.#close.focus({ preventScroll: true });
    } else {
      for (const name of ["role", "aria-modal", "aria-label"]) this.element.removeAttribute(name);
      this.#player.muted = true;
    }
  }

  /** Brings the keyboard back to where the tile was opened. */
  focus(): void {
    this.#open.focus();
  }

  #title(): string {
    return this.#entry.displayName || this.#entry.camera;
  }

  #stateChanged(detail: StateDetail): void {
    this.#state = detail;
    if (detail.state !== "live" && detail.state !== "moving") {
      this.#stats = undefined;
      this.#showFigures();
    }
    this.#show();
    this.#onChange();
  }

  #measured(detail: StatsDetail): void {
    if (this.#tone().tone !== "live") return;
    this.#stats = detail;
    this.#showFigures();
    this.#onChange();
  }

  #tone(): Badge {
    return badge(this.#state?.state ?? "idle", this.#entry.state);
  }

  #show(): void {
    const { camera, displayName, labels } = this.#entry;
    setText(this.#name, this.#title());
    this.#name.title = displayName ? `${displayName} (${camera})` : camera;
    this.#open.setAttribute("aria-label", `Enlarge ${this.#title()}`);
    const { tone, text } = this.#tone();
    this.element.dataset.tone = tone;
    setText(this.#badgeText, text);
    setText(this.#profile, this.#state?.profile ?? "");
    // While there is a player its overlay says why; the tile speaks for what is not being watched.
    const idle = this.#state === undefined || this.#state.state === "idle";
    const why = idle && tone !== "live" ? sentence(this.#entry.reason, this.#entry.message) : "";
    setText(this.#reason, why || (this.#state?.verdictMessage ?? ""));
    this.#reason.classList.toggle("verdict", why === "");
    const pairs = Object.entries(labels).map(([key, value]) => (value === "" ? key : `${key}=${value}`));
    if (pairs.join("\n") !== [...this.#labels.children].map((child) => child.textContent).join("\n")) {
      this.#labels.replaceChildren(...pairs.map((pair) => h("li", {}, pair)));
    }
  }

  #showFigures(): void {
    const stats = this.#stats;
    this.element.classList.toggle("quiet", stats === undefined);
    for (const [key, , value] of FIGURES) {
      const field = this.#figures[key].lastElementChild;
      if (field) setText(field, value(stats));
    }
  }
}

type Figure = (typeof FIGURES)[number][0];

/** Key, name, value; the first four are on the wall, the others only on the enlarged tile. */
const FIGURES = [
  ["bitrate", "Bit rate", (s?: StatsDetail) => bitrate(s?.bitrateBps)],
  ["packets", "Packet rate", (s?: StatsDetail) => packetRate(s?.packetsPerSecond)],
  ["resolution", "Resolution", (s?: StatsDetail) => resolution(s?.width ?? 0, s?.height ?? 0)],
  ["frames", "Frame rate", (s?: StatsDetail) => frameRate(s?.framesPerSecond)],
  ["codec", "Codec", (s?: StatsDetail) => s?.codec || "–"],
  ["lost", "Packets lost", (s?: StatsDetail) => count(s?.packetsLost)],
  ["buffer", "Jitter buffer", (s?: StatsDetail) => milliseconds(s?.jitterBufferMs)],
  ["roundtrip", "Round trip", (s?: StatsDetail) => milliseconds(s?.roundTripMs)],
  ["first", "First frame after", (s?: StatsDetail) => milliseconds(s?.firstFrameMs)],
] as const;

function figures(): Record<Figure, HTMLElement> {
  const made: Partial<Record<Figure, HTMLElement>> = {};
  for (const [key, name] of FIGURES) {
    made[key] = h("div", { className: `figure ${key}` }, h("dt", {}, name), h("dd"));
  }
  return made as Record<Figure, HTMLElement>;
}

function tool(label: string, picture: SVGElement, onClick: () => void): HTMLButtonElement {
  const element = h("button", { type: "button", title: label, attributes: { "aria-label": label } }, picture);
  element.addEventListener("click", onClick);
  return element;
}
