/*
 * The output of a process, followed over any number of connections.
 *
 *                 subscribe                 the reader is behind
 *   lost ──────────────────────▶ attached ──────────────────────▶ parked
 *    ▲   after a pause,             │  ▲                             │
 *    │   from where it was          │  └─── the reader caught up ◀───┤
 *    └──────────────────────────────┤                                │ every HOLD: attach and leave again,
 *       connection, server or host  │                                │ so that the process goes on waiting
 *       is away                     ├──▶ exited                      │
 *                                   └──▶ failed ◀────────────────────┘ abandoned
 *
 * Every byte has an offset in its stream. What comes again is skipped; what comes too late is told as a gap. A reader
 * that does not read holds the process back: WebSockets of browsers cannot be read more slowly, so the subscription is
 * given up while too much waits, and the process waits for its return for as long as the server allows (30 s). It is
 * told in time that its reader still lives; what comes with that is asked for again later.
 */
import { fromBase64 } from "./bytes.js";
import { CAPSULE_PAUSED, connectionLost, WrennError } from "./errors.js";
import type { ProcessEventFragment } from "./generated/graphql.js";
import { pause, Retry } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

type ProcessEvent = ProcessEventFragment;

/** Bytes that may wait for the reader before the subscription is given up. */
const HIGH = 1024 * 1024;

/** Bytes that still wait when it is taken up again. */
const LOW = 256 * 1024;

/** Bytes that may wait with what was under way then, and what is held of a process that has ended: 1 MiB a stream. */
const MOST = 4 * 1024 * 1024;

/** Bytes that an event takes besides its data, about. */
const EVENT = 256;

/** Milliseconds between signs of life of a reader that is behind; a process waits for 30 s. */
const HOLD = 10_000;

export type StreamName = "stdout" | "stderr" | "pty";

/** Bytes that a process wrote. */
export interface OutputChunk {
  type: "output";
  stream: StreamName;
  /** The first byte's offset in its stream. */
  offset: number;
  data: Uint8Array<ArrayBuffer>;
}

/** Bytes that a process wrote and that are not held any more: nobody was there to take them in time. */
export interface OutputGap {
  type: "gap";
  stream: StreamName;
  from: number;
  to: number;
}

export type OutputEvent = OutputChunk | OutputGap;

/** How a process ended: one of the two. */
export interface Exit {
  exitCode: number | null;
  signal: string | null;
}

/** The first byte wanted of each stream; of a stream that is not named, the oldest that is held. */
export type Cursor = Partial<Record<StreamName, number>>;

/** What to subscribe to. */
export interface Subscription {
  query: string;
  variables: unknown;
}

export interface Source {
  capsuleId: string;
  /** A pid in digits, or a tag. */
  selector: string;
  /** For what comes from the cursor on. */
  subscription(cursor: Cursor): Subscription;
  /** The process is there. */
  started?(pid: number, tag: string): void;
  /** Whether a refusal is no reason to give up: the next {@link subscription} is another one. Throws what it means. */
  mayGoOn?(error: unknown): boolean;
  /**
   * Waits until a capsule that was paused runs again, or throws what cannot come from a pause. Where it is not there,
   * a pause is a failure.
   */
  resumed?(error: unknown, signal: AbortSignal): Promise<void>;
}

/** What became of an event: it was the exit, or how the subscription goes on. */
type Taken = Exit | "more" | "enough";

const NAMES = { STDOUT: "stdout", STDERR: "stderr", PTY: "pty" } as const;

export class Output {
  readonly #wrenn: Wrenn;
  readonly #source: Source;
  /** The next byte that is to come, of each stream. */
  readonly #cursor: Cursor;
  /** The next byte for the reader. */
  readonly #read: Cursor;
  readonly #abandoned = new AbortController();
  #waiting: OutputEvent[] = [];
  #waitingBytes = 0;
  #exit: Exit | undefined;
  #failure: { error: unknown } | undefined;
  /** Told when something is there to be read. */
  #arrived = (): void => {};
  /** Told when the reader has taken something. */
  #taken = (): void => {};
  /** How the process ended. */
  readonly exited: Promise<Exit>;

  constructor(wrenn: Wrenn, source: Source, after: Cursor = {}) {
    this.#wrenn = wrenn;
    this.#source = source;
    this.#cursor = { ...after };
    this.#read = { ...after };
    this.exited = this.#follow().then(
      (exit) => {
        this.#exit = exit;
        this.#arrived();
        return exit;
      },
      (error: unknown) => {
        this.#failure = { error };
        this.#arrived();
        throw error;
      },
    );
    // Who does not ask for it is told by the events.
    this.exited.catch(() => {});
  }

  /** The next event; `undefined` after the last one. */
  async next(): Promise<OutputEvent | undefined> {
    for (;;) {
      const event = this.#waiting.shift();
      if (event !== undefined) {
        this.#waitingBytes -= sizeOf(event);
        this.#read[event.stream] = event.type === "output" ? event.offset + event.data.length : event.to;
        this.#taken();
        return event;
      }
      if (this.#failure !== undefined) {
        throw this.#failure.error;
      }
      if (this.#exit !== undefined) {
        return undefined;
      }
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
      });
    }
  }

  /** Where another reader would go on: behind what was read here. */
  get cursor(): Cursor {
    return { ...this.#read };
  }

  /** Stops following, which fails with `why`. The process goes on. */
  abandon(why: unknown = new WrennError("FAILED_PRECONDITION", "the output is not followed any more")): void {
    this.#abandoned.abort(why);
  }

  async #follow(): Promise<Exit> {
    const retry = new Retry(this.#wrenn.patience);
    const { signal } = this.#abandoned;
    const take = (event: ProcessEvent): Taken => {
      retry.succeeded();
      return this.#take(event, HIGH);
    };
    for (;;) {
      try {
        const exit = (await this.#attach(take)) ?? (await this.#parked());
        if (exit !== undefined) {
          return exit;
        }
      } catch (error) {
        signal.throwIfAborted();
        if (this.#source.mayGoOn?.(error)) {
          continue;
        }
        if (this.#source.resumed !== undefined && wasPaused(error)) {
          await this.#source.resumed(error, signal);
          retry.succeeded();
        } else {
          await retry.after(error, signal);
        }
      }
      signal.throwIfAborted();
    }
  }

  /** Subscribes until the exit, or until it is enough; what was under way then comes all the same. */
  #attach(take: (event: ProcessEvent) => Taken): Promise<Exit | undefined> {
    const { query, variables } = this.#source.subscription(this.#cursor);
    const { signal } = this.#abandoned;
    return new Promise<Exit | undefined>((resolve, reject) => {
      let finishing = false;
      const leave = (then: () => void): void => {
        signal.removeEventListener("abort", abort);
        operation.end();
        then();
      };
      const abort = (): void => leave(() => reject(signal.reason));
      const operation = this.#wrenn.sockets.subscribe(query, variables, {
        next: (data) => {
          try {
            const taken = take((data as { event: ProcessEvent }).event);
            if (taken === "enough" && !finishing) {
              finishing = true;
              void operation.finish().then(() => leave(() => resolve(undefined)));
            } else if (typeof taken !== "string") {
              leave(() => resolve(taken));
            }
          } catch (error) {
            leave(() => reject(error));
          }
        },
        error: (error) => leave(() => reject(error)),
        complete: () =>
          leave(() => (finishing ? resolve(undefined) : reject(connectionLost("the stream ended too early")))),
      });
      signal.aborted ? abort() : signal.addEventListener("abort", abort);
    });
  }

  /** It is enough when more than `most` bytes wait. */
  #take(event: ProcessEvent, most: number): Taken {
    switch (event.__typename) {
      case "ProcessStarted":
        this.#source.started?.(event.pid, event.tag);
        break;
      case "ProcessOutput":
        this.#takeOutput(NAMES[event.stream], Number(event.sequence), fromBase64(event.data));
        break;
      case "ProcessGap":
        this.#takeGap(NAMES[event.stream], Number(event.from), Number(event.to));
        break;
      case "ProcessExited":
        return exitOf(event);
    }
    return this.#waitingBytes > most ? "enough" : "more";
  }

  #takeOutput(stream: StreamName, sequence: number, data: Uint8Array<ArrayBuffer>): void {
    const due = this.#cursor[stream] ?? sequence;
    if (sequence > due) {
      this.#takeGap(stream, due, sequence);
    }
    const fresh = data.subarray(Math.max(0, due - sequence));
    if (fresh.length === 0) {
      return;
    }
    const offset = Math.max(sequence, due);
    this.#cursor[stream] = offset + fresh.length;
    this.#put({ type: "output", stream, offset, data: fresh });
  }

  #takeGap(stream: StreamName, from: number, to: number): void {
    const start = Math.max(from, this.#cursor[stream] ?? from);
    if (to > start) {
      this.#cursor[stream] = to;
      this.#put({ type: "gap", stream, from: start, to });
    }
  }

  #put(event: OutputEvent): void {
    this.#waiting.push(event);
    this.#waitingBytes += sizeOf(event);
    this.#arrived();
  }

  /** Until the reader has caught up, or the process has ended. */
  async #parked(): Promise<Exit | undefined> {
    const { signal } = this.#abandoned;
    while (this.#waitingBytes > LOW && !signal.aborted) {
      const caughtUp = new AbortController();
      this.#taken = () => {
        if (this.#waitingBytes <= LOW) {
          caughtUp.abort();
        }
      };
      await pause(HOLD, AbortSignal.any([caughtUp.signal, signal]));
      this.#taken = () => {};
      if (this.#waitingBytes > LOW && !signal.aborted) {
        // A failure is met again when the reader goes on.
        const exit = await this.#showLife().catch(() => undefined);
        if (exit !== undefined) {
          return exit;
        }
      }
    }
    return undefined;
  }

  /** Lets a process wait on for its reader. The rest of one that has ended is taken: it is not held for long. */
  async #showLife(): Promise<Exit | undefined> {
    const { capsuleId, selector } = this.#source;
    const { capsule } = await this.#wrenn.graphql.processes({ id: capsuleId }, { signal: this.#abandoned.signal });
    const named = capsule?.processes.filter(({ pid, tag }) => tag === selector || String(pid) === selector);
    const runs = named?.some(({ running }) => running);
    return this.#attach(runs ? () => "enough" : (event) => this.#take(event, MOST));
  }
}

function sizeOf(event: OutputEvent): number {
  return EVENT + (event.type === "output" ? event.data.length : 0);
}

function exitOf({ exitCode, signal, cause }: Extract<ProcessEvent, { __typename: "ProcessExited" }>): Exit {
  if (cause !== null) {
    throw new WrennError("UNAVAILABLE", cause.message, { reason: cause.code });
  }
  return { exitCode, signal };
}

/** The stream ended with a pause, or was asked for during one. */
function wasPaused(error: unknown): boolean {
  if (!(error instanceof WrennError)) {
    return false;
  }
  return error.reason === CAPSULE_PAUSED || error.code === "FAILED_PRECONDITION" || error.code === "CONFLICT";
}
