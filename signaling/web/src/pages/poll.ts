import { Backoff } from "../backoff.ts";

export interface PollOptions {
  /** Asks once. False: it failed, and the next time is later. Must not reject. */
  ask: () => Promise<boolean>;
  /** The wait between two that went well, at least, milliseconds. */
  interval: number;
  /** Whether anybody looks; asked before each. Default: the page is not hidden. */
  watched?: () => boolean;
  random?: () => number;
}

/** A request may take this part of the time: a slow gateway is asked less often. */
const SHARE = 0.1;
const LONGEST = 15_000;

/** Asks again and again, one at a time: with pauses while nobody looks, and longer and longer ones after failures. */
export class Poll {
  readonly #options: PollOptions;
  readonly #backoff: Backoff;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #asking = false;
  #again = false;
  #stopped = true;

  constructor(options: PollOptions) {
    this.#options = options;
    this.#backoff = new Backoff({
      min: 2 * options.interval,
      max: LONGEST,
      ...(options.random && { random: options.random }),
    });
  }

  start(): void {
    this.#stopped = false;
    this.now();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Asks now, or at once after the request under way. */
  now(): void {
    if (this.#asking) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#timer);
    this.#timer = undefined;
    void this.#ask();
  }

  async #ask(): Promise<void> {
    if (this.#stopped) return;
    const { ask, interval, watched = () => !document.hidden } = this.#options;
    if (!watched()) {
      this.#timer = setTimeout(() => this.now(), interval);
      return;
    }
    this.#asking = true;
    const began = Date.now();
    const ok = await ask();
    this.#asking = false;
    if (this.#stopped) return;
    if (this.#again) {
      this.#again = false;
      this.now();
      return;
    }
    if (ok) this.#backoff.reset();
    const took = Date.now() - began;
    const wait = ok ? Math.min(LONGEST, Math.max(interval, took / SHARE)) : interval + this.#backoff.next();
    this.#timer = setTimeout(() => this.now(), wait);
  }
}
