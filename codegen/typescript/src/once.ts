import { WrennError } from "./errors.js";
import { live } from "./live.js";
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
    if (await isKnown(wrenn, capsuleId, tag)) {
      return;
    }
  }
}

/** Whether there is or was a process with this tag: of many that have ended, only the last are listed. */
async function isKnown(wrenn: Wrenn, capsuleId: string, tag: string): Promise<boolean> {
  const { capsule } = await wrenn.graphql.processes({ id: capsuleId });
  if (capsule?.processes.some((process) => process.tag === tag)) {
    return true;
  }
  const open = () => wrenn.graphql.processOutput({ capsuleId, selector: tag });
  try {
    for await (const _ of live(wrenn, { open })) {
      break;
    }
    return true;
  } catch (error) {
    if (error instanceof WrennError && error.code === "NOT_FOUND") {
      return false;
    }
    throw error;
  }
}
