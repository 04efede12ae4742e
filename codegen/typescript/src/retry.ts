import { isPassing } from "./errors.js";

/** Milliseconds before the first repetition; doubled each time. */
const FIRST_DELAY = 50;

/** The longest pause between repetitions, in milliseconds. */
const LONGEST_DELAY = 2_000;

/** A pause of at most `milliseconds`, shorter when `signal` is aborted. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) {
      resolve();
      return;
    }
    const over = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", over);
      resolve();
    };
    const timer = setTimeout(over, milliseconds);
    signal?.addEventListener("abort", over);
  });
}

/** Repeats what failed for a passing reason, more and more slowly, until a time is over. */
export class Retry {
  readonly #patience: number;
  readonly #mayPass: (error: unknown) => boolean;
  #since: number | undefined;
  #delay = FIRST_DELAY;

  /** `patience`: milliseconds from the first failure in a row to giving up. */
  constructor(patience: number, mayPass: (error: unknown) => boolean = isPassing) {
    this.#patience = patience;
    this.#mayPass = mayPass;
  }

  /** It went well: the next failure is a first one. */
  succeeded(): void {
    this.#since = undefined;
    this.#delay = FIRST_DELAY;
  }

  /** Waits before the next try, or throws `error` if there is to be none. */
  async after(error: unknown, signal?: AbortSignal): Promise<void> {
    const now = Date.now();
    this.#since ??= now;
    if (!this.#mayPass(error) || now - this.#since >= this.#patience) {
      throw error;
    }
    // Many clients that lose the same server do not come back all at once.
    await pause(this.#delay * (0.5 + Math.random() / 2), signal);
    this.#delay = Math.min(this.#delay * 2, LONGEST_DELAY);
  }
}

/** The outcome of `attempt`, repeated while it fails for reasons that may pass. */
export async function repeated<T>(
  patience: number,
  attempt: () => Promise<T>,
  signal?: AbortSignal,
  mayPass?: (error: unknown) => boolean,
): Promise<T> {
  const retry = new Retry(patience, mayPass);
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      await retry.after(error, signal);
      signal?.throwIfAborted();
    }
  }
}
