import { WrennError } from "../errors.js";
import type { Sockets } from "./socket.js";

/** Events that may wait for a consumer that is slower than they come, before its stream fails. */
const MOST_WAITING = 10_000;

/** The events of one subscription, until it ends or its connection does; `signal` ends it at once, as a failure. */
export async function* events<T>(
  sockets: Sockets,
  query: string,
  variables: unknown,
  signal?: AbortSignal,
): AsyncGenerator<T, void, void> {
  signal?.throwIfAborted();
  const waiting: T[] = [];
  let failure: { error: unknown } | undefined;
  let over = false;
  let wake = (): void => {};
  const operation = sockets.subscribe(query, variables, {
    next: (data) => {
      if (waiting.length >= MOST_WAITING) {
        failure = { error: new WrennError("RESOURCE_EXHAUSTED", `${MOST_WAITING} events wait for their reader`) };
        waiting.length = 0;
        operation.end();
      } else {
        waiting.push(data as T);
      }
      wake();
    },
    error: (error) => {
      failure ??= { error };
      wake();
    },
    complete: () => {
      over = true;
      wake();
    },
  });
  const abort = (): void => {
    failure = { error: signal?.reason };
    waiting.length = 0;
    wake();
  };
  signal?.addEventListener("abort", abort);
  try {
    for (;;) {
      const next = waiting.shift();
      if (next !== undefined) {
        yield next;
      } else if (failure !== undefined) {
        throw failure.error;
      } else if (over) {
        return;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    operation.end();
  }
}
