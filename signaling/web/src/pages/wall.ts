// The page "/": every camera that the viewer may see.

import { h, icon, setText } from "../dom.ts";
import { bitrate } from "../format.ts";
import { Api, type CameraEntry } from "./api.ts";
import { addCommand, columns, stepped, summaryText } from "./layout.ts";
import { Poll } from "./poll.ts";
import { Banner, base, header, storedToken, TokenDialog } from "./shell.ts";
import { Tile } from "./tile.ts";

/** A new camera is on the wall within about this time, milliseconds. */
const REFRESH = 600;
/** Changes within so long are added up at once, milliseconds. */
const SUMMARY_AFTER = 250;
/** So many cameras fit the page without scrolling. */
const FEW = 4;
/** More cameras than are found by looking have a filter. */
const FILTER_FROM = 7;

/** The state of a history entry that shows one camera, when the entry before it is the wall. */
const FROM_WALL = { fromWall: true };

class Wall {
  readonly #api = new Api(base);
  readonly #tiles = new Map<string, Tile>();
  readonly #banner = new Banner();
  readonly #grid = h("ul", { className: "wall", attributes: { "aria-label": "Cameras" } });
  readonly #summary = h("p", { className: "summary" });
  readonly #filter = h("input", {
    type: "search",
    className: "filter",
    placeholder: "Filter",
    hidden: true,
    attributes: { "aria-label": "Filter cameras by name, label or state" },
  });
  readonly #nothing = h("p", { className: "nothing", hidden: true }, "No camera matches the filter.");
  readonly #empty = emptyState();
  readonly #loading = h("p", { className: "loading" }, "Asking for the cameras…");
  readonly #dialog = new TokenDialog((token) => this.#setToken(token));
  readonly #poll = new Poll({ ask: () => this.#ask(), interval: REFRESH });
  readonly #head = header("wall", this.#summary, this.#filter);
  readonly #main: HTMLElement;
  #summaryTimer: ReturnType<typeof setTimeout> | undefined;
  /** Where the wall was scrolled to when a tile was enlarged. */
  #scroll = 0;

  constructor() {
    this.#api.token = storedToken.get();
    this.#main = h("main", {}, this.#loading, this.#empty, this.#nothing, this.#grid);
    document.body.append(this.#head, this.#banner.element, this.#main, this.#dialog.element);
    this.#filter.addEventListener("input", () => this.#applyFilter());
    addEventListener("hashchange", () => this.#applyFocus());
    addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("online", () => this.#poll.now());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#poll.now();
    });
  }

  start(): void {
    this.#poll.start();
  }

  async #ask(): Promise<boolean> {
    const outcome = await this.#api.cameras();
    switch (outcome.kind) {
      case "ok":
        this.#update(outcome.value);
        break;
      case "unauthorized":
        this.#banner.hide();
        this.#loading.hidden = true;
        this.#update([], false);
        this.#dialog.open(this.#api.token === "" ? "" : outcome.message);
        return false;
      case "failed":
        this.#banner.show(`${outcome.message} Trying again…`);
        return false;
    }
    this.#banner.hide();
    this.#loading.hidden = true;
    return true;
  }

  #setToken(token: string): void {
    this.#api.token = token;
    storedToken.set(token);
    for (const tile of this.#tiles.values()) tile.token = token;
    this.#poll.now();
  }

  /** Brings the tiles in line with the list. Tiles that stay are not moved in the document, which would restart them. */
  #update(cameras: CameraEntry[], known = true): void {
    const wanted = new Set(cameras.map(({ camera }) => camera));
    for (const [camera, tile] of this.#tiles) {
      if (wanted.has(camera)) continue;
      tile.element.remove();
      this.#tiles.delete(camera);
    }
    let changed = false;
    let next: Element | null = this.#grid.firstElementChild;
    for (const entry of cameras) {
      const existing = this.#tiles.get(entry.camera);
      if (existing) {
        existing.update(entry);
        if (existing.element === next) next = next.nextElementSibling;
        continue;
      }
      const tile = new Tile(entry, this.#api.token, this.#actions, () => this.#summarize());
      this.#tiles.set(entry.camera, tile);
      this.#grid.insertBefore(tile.element, next);
      changed = true;
    }
    this.#empty.hidden = !known || cameras.length > 0;
    this.#filter.hidden = cameras.length < FILTER_FROM;
    const across = columns(cameras.length);
    this.#grid.style.setProperty("--columns", String(across));
    this.#grid.style.setProperty("--rows", String(Math.ceil(cameras.length / across)));
    this.#grid.classList.toggle("few", cameras.length <= FEW);
    if (changed || this.#filter.value !== "") this.#applyFilter();
    this.#applyFocus();
    this.#summarize();
  }

  readonly #actions = {
    open: (camera: string) => {
      history.pushState(FROM_WALL, "", `#${encodeURIComponent(camera)}`);
      this.#applyFocus();
    },
    close: () => this.#leaveFocus(),
    step: (by: 1 | -1) => this.#step(by),
  };

  get #focusedCamera(): string {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return "";
    }
  }

  /** Shows the tile that the address names, or all of them. */
  #applyFocus(): void {
    const focused = this.#tiles.get(this.#focusedCamera);
    const before = [...this.#tiles.values()].find((tile) => tile.element.classList.contains("focused"));
    if (focused === before) return;
    const was = document.body.classList.contains("focus");
    if (focused && !was) this.#scroll = scrollY;
    document.body.classList.toggle("focus", focused !== undefined);
    this.#head.inert = focused !== undefined;
    if (before) before.focused = false;
    if (focused) {
      focused.focused = true;
      document.title = `${focused.camera} · Fanlight`;
      return;
    }
    document.title = "Cameras · Fanlight";
    scrollTo({ top: this.#scroll, behavior: "instant" });
    before?.focus();
  }

  #leaveFocus(): void {
    if (history.state?.fromWall) {
      history.back();
      return;
    }
    // The page was opened with the camera in its address: there is no wall to go back to.
    history.replaceState(null, "", location.pathname + location.search);
    this.#applyFocus();
  }

  #step(by: 1 | -1): void {
    const visible = [...this.#grid.children]
      .map((element) => [...this.#tiles.values()].find((tile) => tile.element === element))
      .filter((tile): tile is Tile => tile !== undefined && !tile.element.hidden)
      .map((tile) => tile.camera);
    const next = stepped(visible, this.#focusedCamera, by);
    if (next === undefined) return;
    // One step back still leads to the wall.
    history.replaceState(history.state, "", `#${encodeURIComponent(next)}`);
    this.#applyFocus();
  }

  #onKey(event: KeyboardEvent): void {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.body.classList.contains("focus");
    if (event.key === "/" && !focused && !this.#filter.hidden && event.target !== this.#filter) {
      this.#filter.focus();
    } else if (focused && event.key === "Escape" && !document.fullscreenElement) {
      this.#leaveFocus();
    } else if (focused && event.key === "ArrowLeft") {
      this.#step(-1);
    } else if (focused && event.key === "ArrowRight") {
      this.#step(1);
    } else {
      return;
    }
    event.preventDefault();
  }

  #applyFilter(): void {
    const words = this.#filter.hidden ? [] : this.#filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matches = 0;
    for (const tile of this.#tiles.values()) if (tile.filter(words)) matches++;
    this.#nothing.hidden = matches > 0 || this.#tiles.size === 0;
  }

  /** Adds up the tiles, once for all the changes of a moment. */
  #summarize(): void {
    this.#summaryTimer ??= setTimeout(() => {
      this.#summaryTimer = undefined;
      const tiles = [...this.#tiles.values()].map((tile) => tile.summary);
      setText(this.#summary, summaryText(tiles, bitrate));
    }, SUMMARY_AFTER);
  }
}

/** What to do when there is no camera yet. */
function emptyState(): HTMLElement {
  const parts = addCommand(location.hostname);
  const code = h("code", {}, ...parts.flatMap((part) => [h("span", {}, part), " "]));
  const copy = h("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => {
    // Browsers have no clipboard for pages without TLS: then the text can still be marked.
    navigator.clipboard?.writeText(parts.join(" ")).then(
      () => setText(copy, "Copied"),
      () => setText(copy, "Mark it and copy"),
    );
  });
  copy.hidden = navigator.clipboard === undefined;
  const camera = icon("M3 7h11a2 2 0 0 1 2 2v6a2 2 0 0 1-2 2H3z", "m16 11 5-3v8l-5-3");
  const element = h(
    "section",
    { className: "empty", hidden: true },
    h("h2", {}, "No cameras yet"),
    h("p", {}, "Add the first one, with the RTSP address from its manual. It appears here by itself."),
    h("div", { className: "command" }, code, copy),
    h("p", { className: "hint" }, "Add --username and --password if the camera asks for them."),
  );
  element.prepend(camera);
  return element;
}

new Wall().start();
