// Lets a few of many go at a time: a wall of pictures that all have to be
// replaced would else make as many peer connections and decoders at once as it
// has pictures, and stop those that still move.

/** One turn among many. */
export interface Turn {
  /** Asks for it: start is called when it comes, at once if there is a free one. Once. */
  take(): void;
  /** Gives it back, or the place among those that wait. May be called more than once. */
  giveBack(): void;
}

export class Turns {
  readonly #most: () => number;
  readonly #longest: number;
  readonly #waiting: (() => void)[] = [];
  #taken = 0;

  /** So many as most says may have a turn at the same time, each for the longest time at most, milliseconds. */
  constructor(most: () => number, longest: number) {
    this.#most = most;
    this.#longest = longest;
  }

  /** Returns a turn for the caller to take. */
  turn(start: () => void): Turn {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let has = false;
    const begin = () => {
      has = true;
      this.#taken++;
      timer = setTimeout(giveBack, this.#longest);
      start();
    };
    const giveBack = () => {
      const place = this.#waiting.indexOf(begin);
      if (place >= 0) this.#waiting.splice(place, 1);
      if (!has) return;
      has = false;
      clearTimeout(timer);
      this.#taken--;
      this.#next();
    };
    return {
      take: () => {
        this.#waiting.push(begin);
        this.#next();
      },
      giveBack,
    };
  }

  #next(): void {
    while (this.#taken < this.#most()) {
      const begin = this.#waiting.shift();
      if (!begin) return;
      begin();
    }
  }
}
