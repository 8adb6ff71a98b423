/**
 * Exponential backoff with full jitter: the n-th wait is anything from 0 to
 * min · 2ⁿ, at most max, so that browsers that lost the same gateway do not
 * all come back at once. Times in milliseconds.
 */
export class Backoff {
  readonly #min: number;
  readonly #max: number;
  readonly #random: () => number;
  #tries = 0;

  constructor(options: { min: number; max: number; random?: () => number }) {
    this.#min = options.min;
    this.#max = options.max;
    this.#random = options.random ?? Math.random;
  }

  /** How many waits have been handed out since the last reset. */
  get tries(): number {
    return this.#tries;
  }

  /** Returns the next wait. */
  next(): number {
    // 2³⁰ is beyond any max that makes sense, and no overflow.
    const ceiling = Math.min(this.#max, this.#min * 2 ** Math.min(this.#tries, 30));
    this.#tries++;
    return this.#random() * ceiling;
  }

  /** Begins again at the shortest wait. */
  reset(): void {
    this.#tries = 0;
  }
}
