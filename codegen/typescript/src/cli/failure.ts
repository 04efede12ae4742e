import type { WrennError } from "../index.js";

export function complain(message: string): void {
  process.stderr.write(`wrenn: ${message}\n`);
}

/** Says what went wrong; `about`: with which of several capsules. */
export function explain({ code, message, field, reason, requestId }: WrennError, json: boolean, about?: string): void {
  if (json) {
    const error = { capsule: about, code, message, field, reason, requestId };
    process.stderr.write(`${JSON.stringify({ error })}\n`);
  } else {
    const kind = [code, reason, field && `field ${field}`].filter(Boolean).join(", ");
    complain(`${about === undefined ? "" : `${about}: `}${message} (${kind})`);
  }
}

/** Whoever read what is printed here does not any more, as `head` when it has enough. */
export function isBrokenPipe(error: unknown): boolean {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === "EPIPE";
}
