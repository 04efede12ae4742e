/** What kind of failure it was: `extensions.code` of every error of the server. */
export type ErrorCode =
  | "UNAUTHENTICATED"
  | "FORBIDDEN"
  | "NOT_FOUND"
  | "CONFLICT"
  | "INVALID_INPUT"
  | "FAILED_PRECONDITION"
  | "RESOURCE_EXHAUSTED"
  | "UNAVAILABLE"
  | "DEADLINE_EXCEEDED"
  | "INTERNAL";

const CODES: ReadonlySet<string> = new Set<ErrorCode>([
  "UNAUTHENTICATED",
  "FORBIDDEN",
  "NOT_FOUND",
  "CONFLICT",
  "INVALID_INPUT",
  "FAILED_PRECONDITION",
  "RESOURCE_EXHAUSTED",
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
  "INTERNAL",
]);

export interface WrennErrorDetails {
  /** The input that an `INVALID_INPUT` is about, spelled as in the schema. */
  field?: string | undefined;
  /** A stable word for what lies behind it, as `CAPSULE_PAUSED`. */
  reason?: string | undefined;
  /** Under which the server's log tells more. */
  requestId?: string | undefined;
  cause?: unknown;
}

/** Every failure of this package, whether the server told it or the way to the server failed. */
export class WrennError extends Error {
  override readonly name = "WrennError";
  readonly code: ErrorCode;
  readonly field: string | undefined;
  readonly reason: string | undefined;
  readonly requestId: string | undefined;

  constructor(code: ErrorCode, message: string, details: WrennErrorDetails = {}) {
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.code = code;
    this.field = details.field;
    this.reason = details.reason;
    this.requestId = details.requestId;
  }
}

/** One entry of a response's `errors`. */
export interface ServerError {
  message: string;
  extensions?: Record<string, unknown> | undefined;
}

/** What the server answered; the first of its errors counts. */
export function fromServer(errors: readonly ServerError[]): WrennError {
  const [first] = errors;
  if (first === undefined) {
    return new WrennError("INTERNAL", "the server answered with an empty list of errors");
  }
  const text = (name: string): string | undefined => {
    const value = first.extensions?.[name];
    return typeof value === "string" ? value : undefined;
  };
  const code = text("code");
  return new WrennError(isCode(code) ? code : "INTERNAL", first.message, {
    field: text("field"),
    reason: text("cause"),
    requestId: text("requestId"),
  });
}

function isCode(code: string | undefined): code is ErrorCode {
  return code !== undefined && CODES.has(code);
}

/** `reason` of an error when the server cannot be reached, or the connection broke. */
export const CONNECTION_LOST = "CONNECTION_LOST";

/** `reason` of an error when the capsule was paused under a stream; its processes go on after `resume`. */
export const CAPSULE_PAUSED = "CAPSULE_PAUSED";

/** `reason` of an error when a command may have been carried out, and the capsule does not remember it any more. */
export const PROCESS_FORGOTTEN = "PROCESS_FORGOTTEN";

export function connectionLost(message: string, cause?: unknown): WrennError {
  return new WrennError("UNAVAILABLE", message, { reason: CONNECTION_LOST, cause });
}

/** Failures on the way to a capsule that is still there: server, host agent or the network between is away for a while. */
const PASSING: ReadonlySet<string | undefined> = new Set([
  undefined,
  CONNECTION_LOST,
  "HOST_AGENT_LOST",
  "AGENT_STOPPING",
]);

/** Whether the same may go well in a moment. */
export function isPassing(error: unknown): boolean {
  if (!(error instanceof WrennError)) {
    return false;
  }
  return (error.code === "UNAVAILABLE" || error.code === "DEADLINE_EXCEEDED") && PASSING.has(error.reason);
}

/** Whether the answer got lost, or nobody was there to answer. */
export function isLost(error: unknown): boolean {
  return error instanceof WrennError && error.reason === CONNECTION_LOST;
}
