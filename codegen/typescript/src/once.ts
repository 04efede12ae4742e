import { WrennError } from "./errors.js";
import { Retry } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

/** Starts what will have the tag, exactly once although the answer may get lost: it is looked for before another try. */
export async function startedOnce(
  wrenn: Wrenn,
  capsuleId: string,
  tag: string,
  start: () => Promise<unknown>,
): Promise<void> {
  const retry = new Retry(wrenn.patience);
  for (let tries = 1; ; tries++) {
    try {
      await start();
      return;
    } catch (error) {
      if (tries > 1 && error instanceof WrennError && error.code === "CONFLICT") {
        // An earlier try arrived after all.
        return;
      }
      await retry.after(error);
    }
    const { capsule } = await wrenn.graphql.processes({ id: capsuleId });
    if (capsule?.processes.some((process) => process.tag === tag)) {
      return;
    }
  }
}
