import { CAPSULE_PAUSED, isPassing, WrennError } from "./errors.js";
import { live } from "./live.js";
import { pause } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

/** Milliseconds that the server may be behind with what it says about a capsule's state. */
const LAG = 200;

/** Waits until a capsule that was paused runs again. Throws `error` if it was not that, or if it never will. */
export async function untilResumed(wrenn: Wrenn, id: string, error: unknown, signal?: AbortSignal): Promise<void> {
  let paused = error instanceof WrennError && error.reason === CAPSULE_PAUSED;
  const open = () => wrenn.graphql.watchCapsule({ id }, { signal });
  for await (const { capsule } of live(wrenn, { open, signal })) {
    switch (capsule.state) {
      case "RUNNING":
      case "SNAPSHOTTING":
        if (!paused) {
          throw error;
        }
        await pause(LAG, signal);
        return;
      case "STOPPING":
      case "STOPPED":
      case "ERROR":
        throw error;
      default:
        paused = true;
    }
  }
  throw error;
}

/** The outcome of `attempt`; if `across`, it is made again after each pause of the capsule that it fails for. */
export async function acrossPauses<T>(
  wrenn: Wrenn,
  id: string,
  { across, signal }: { across?: boolean | undefined; signal?: AbortSignal | undefined },
  attempt: () => Promise<T>,
): Promise<T> {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!across || isPassing(error)) {
        throw error;
      }
      await untilResumed(wrenn, id, error, signal);
    }
  }
}
