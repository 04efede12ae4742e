import { followed, type ProcessOptions } from "./exec.js";
import type { ProcessFragment, Signal } from "./generated/graphql.js";
import { type Cursor, type Exit, Output, type OutputEvent } from "./output.js";
import { untilResumed } from "./pauses.js";
import { Stdin } from "./stdin.js";
import type { Wrenn } from "./wrenn.js";

export type { ProcessFragment as ProcessInfo, Signal } from "./generated/graphql.js";

export interface StartOptions extends ProcessOptions {
  /** Count as activity while it runs, even with no one attached. */
  keepAwake?: boolean | undefined;
}

export interface FollowOptions {
  /** Where to begin; with the oldest bytes that are still held if absent. */
  after?: Cursor | undefined;
  /** While the capsule is paused, wait for it to be resumed; otherwise a pause is a failure, and the process goes on later. */
  acrossPauses?: boolean | undefined;
}

/** A process in the background. It goes on without this object, and without this client. */
export class Process {
  readonly capsuleId: string;
  /** A pid in digits, or a tag. */
  readonly selector: string;
  readonly #wrenn: Wrenn;
  #stdin: Stdin | undefined;

  constructor(wrenn: Wrenn, capsuleId: string, selector: string) {
    this.#wrenn = wrenn;
    this.capsuleId = capsuleId;
    this.selector = selector;
  }

  /** Its standard input, from where it stands when something is written. One writer at a time. */
  get stdin(): Stdin {
    this.#stdin ??= new Stdin(this.#wrenn, this.capsuleId, this.selector, {});
    return this.#stdin;
  }

  /** Sends a signal to its whole process group. */
  async signal(signal: Signal = "SIGTERM"): Promise<ProcessFragment> {
    const variables = { capsuleId: this.capsuleId, selector: this.selector, signal };
    return (await this.#wrenn.graphql.signalProcess(variables)).signalProcess.process;
  }

  /** Kills its whole process group. */
  kill(): Promise<ProcessFragment> {
    return this.signal("SIGKILL");
  }

  /** Its output and its end. To leave early: `return` the iteration, or `stop` it. */
  follow(options: FollowOptions = {}): Following {
    return new Following(this.#wrenn, this.capsuleId, this.selector, options);
  }

  /** Waits for its end, without keeping what it writes. */
  async wait(options: Omit<FollowOptions, "after"> = {}): Promise<Exit> {
    const following = this.follow(options);
    for await (const _ of following) {
      // Read, so that the process is not held back.
    }
    return following.exited;
  }
}

/** One reader of a process's output. Iterate over it once. */
export class Following implements AsyncIterable<OutputEvent> {
  readonly #output: Output;

  constructor(wrenn: Wrenn, capsuleId: string, selector: string, { after, acrossPauses }: FollowOptions) {
    const source = {
      capsuleId,
      selector,
      subscription: (cursor: Cursor) => followed(capsuleId, selector, cursor),
      ...(acrossPauses && {
        resumed: (error: unknown, signal: AbortSignal) => untilResumed(wrenn, capsuleId, error, signal),
      }),
    };
    this.#output = new Output(wrenn, source, after);
  }

  /** How the process ended. Told only as far as the output is read. */
  get exited(): Promise<Exit> {
    return this.#output.exited;
  }

  /** Where another reader would go on: pass it as `after`. */
  get cursor(): Cursor {
    return this.#output.cursor;
  }

  /** Ends the iteration with an error; the process goes on. */
  stop(): void {
    this.#output.abandon();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<OutputEvent, void, void> {
    try {
      for (let event = await this.#output.next(); event !== undefined; event = await this.#output.next()) {
        yield event;
      }
    } finally {
      this.#output.abandon();
    }
  }
}
