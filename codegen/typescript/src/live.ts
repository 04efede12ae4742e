import { WrennError } from "./errors.js";
import { Retry } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

export interface LiveOptions {
  /** Ends it at once, also while nothing happens; the iteration fails with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export interface Lives<T> extends LiveOptions {
  /** The subscription, begun anew after each loss; under the same signal. */
  open(): AsyncIterable<T>;
  /** What the reader is told when it goes on after a loss, if anything. */
  resumed?(): T;
}

/** The events of a subscription that begins with the present: after a loss it is simply asked for again. */
export async function* live<T>(wrenn: Wrenn, { open, resumed, signal }: Lives<T>): AsyncGenerator<T, void, void> {
  const retry = new Retry(wrenn.patience);
  let lost = false;
  for (;;) {
    try {
      for await (const event of open()) {
        retry.succeeded();
        if (lost && resumed !== undefined) {
          yield resumed();
        }
        lost = false;
        yield event;
      }
      return;
    } catch (error) {
      await retry.after(error, signal);
      signal?.throwIfAborted();
      lost = true;
    }
  }
}

/** What must be there: a capsule that is not is said so. */
export function present<T>(found: T | null | undefined, id: string): T {
  if (found === null || found === undefined) {
    throw new WrennError("NOT_FOUND", `there is no capsule ${id}`, { field: "id" });
  }
  return found;
}
