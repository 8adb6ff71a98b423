// How an element is shown: its size in device pixels, whether any of it can be
// seen, and whether it is near enough to the viewport to be prepared.

import type { Viewport } from "./wire.ts";

export interface Shown {
  viewport: Viewport;
  /** In the viewport, or less than three quarters of its height away. */
  near: boolean;
}

/** Changes within so long are told as one, milliseconds. */
const SETTLE = 150;

/** Watches an element until it is closed. */
export class Visibility {
  readonly #onChange: (shown: Shown) => void;
  readonly #resize: ResizeObserver;
  readonly #seen: IntersectionObserver;
  readonly #near: IntersectionObserver;
  readonly #pageChanged = () => this.#changed();
  #width = 0;
  #height = 0;
  #isSeen = false;
  #isNear = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(element: Element, onChange: (shown: Shown) => void) {
    this.#onChange = onChange;
    this.#resize = new ResizeObserver((entries) => {
      const box = entries.at(-1)?.contentRect;
      this.#width = box?.width ?? 0;
      this.#height = box?.height ?? 0;
      this.#changed();
    });
    this.#seen = new IntersectionObserver((entries) => {
      this.#isSeen = entries.at(-1)?.isIntersecting ?? false;
      this.#changed();
    });
    this.#near = new IntersectionObserver(
      (entries) => {
        this.#isNear = entries.at(-1)?.isIntersecting ?? false;
        this.#changed();
      },
      { rootMargin: "75% 0px" },
    );
    this.#resize.observe(element);
    this.#seen.observe(element);
    this.#near.observe(element);
    document.addEventListener("visibilitychange", this.#pageChanged);
  }

  /** How it is shown now, as far as is known. */
  get shown(): Shown {
    return {
      viewport: viewport(this.#width, this.#height, devicePixelRatio, this.#isSeen && !document.hidden),
      near: this.#isNear,
    };
  }

  /** Ends the watch. */
  close(): void {
    clearTimeout(this.#timer);
    this.#resize.disconnect();
    this.#seen.disconnect();
    this.#near.disconnect();
    document.removeEventListener("visibilitychange", this.#pageChanged);
  }

  #changed(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#onChange(this.shown);
    }, SETTLE);
  }
}

/** What is heard goes on though nobody sees it: a player with sound counts as visible. */
export function heard(shown: Viewport, muted: boolean): Viewport {
  return muted ? shown : { ...shown, visible: true };
}

/** CSS pixels to what the gateway is told: whole device pixels, none of them negative. */
export function viewport(width: number, height: number, ratio: number, visible: boolean): Viewport {
  return {
    width: Math.max(0, Math.round(width * ratio)),
    height: Math.max(0, Math.round(height * ratio)),
    visible: visible && width > 0 && height > 0,
  };
}
