import { randomName } from "./bytes.js";
import { asyncDispose } from "./dispose.js";
import { textOf } from "./document.js";
import { WrennError } from "./errors.js";
import { PtyOutputDocument } from "./generated/graphql.js";
import { Input } from "./input.js";
import { startedOnce } from "./once.js";
import { type Cursor, type Exit, Output } from "./output.js";
import { acrossPauses, untilResumed } from "./pauses.js";
import type { Wrenn } from "./wrenn.js";

export interface PtyOptions {
  /** Run by `/bin/sh -c`; the user's shell if absent. */
  command?: string | undefined;
  columns?: number | undefined;
  rows?: number | undefined;
  cwd?: string | undefined;
  env?: Record<string, string> | undefined;
  user?: string | undefined;
  /** A name of its own, unique among the living. */
  tag?: string | undefined;
  /** Hang up when it has said nothing and nobody has followed it for two minutes. */
  closeWhenIdle?: boolean | undefined;
  /** While the capsule is paused, wait for it to be resumed; otherwise a pause is a failure, and the terminal goes on later. */
  acrossPauses?: boolean | undefined;
}

export interface AttachOptions extends Pick<PtyOptions, "acrossPauses"> {
  /** Offset of the first byte wanted of the terminal's output; the oldest that is still held if absent. */
  after?: number | undefined;
}

/** Milliseconds of not typing after which somebody else may have typed. */
const TURN = 1_000;

interface Size {
  columns: number;
  rows: number;
}

/** A terminal in a capsule. Iterate over it, once, for what it shows; write what is typed. One writer at a time. */
export class Pty implements AsyncIterable<Uint8Array> {
  readonly capsuleId: string;
  readonly tag: string;
  readonly #wrenn: Wrenn;
  readonly #output: Output;
  readonly #input: Input;
  readonly #across: boolean;
  /** The size it is to have. */
  #size: Size | undefined;
  #resizing: Promise<void> | undefined;

  /** Opens a terminal exactly once, although nobody may hear that it was opened. */
  static async open(wrenn: Wrenn, capsuleId: string, options: PtyOptions = {}): Promise<Pty> {
    const { acrossPauses: across, env, ...given } = options;
    const tag = options.tag ?? randomName("pty-");
    const vars = env && Object.entries(env).map(([name, value]) => ({ name, value }));
    const input = { ...given, capsuleId, tag, env: vars };
    await startedOnce(wrenn, capsuleId, tag, () => wrenn.graphql.openPty({ input }));
    return new Pty(wrenn, capsuleId, tag, 0, { after: 0, acrossPauses: across });
  }

  /** A terminal that was opened before. */
  static async attach(wrenn: Wrenn, capsuleId: string, tag: string, options: AttachOptions = {}): Promise<Pty> {
    // Nothing, at the beginning: a repeat, which is answered with where the input stands.
    const variables = { capsuleId, tag, sequence: "0", data: "" };
    const { writePty } = await wrenn.graphql.writePty(variables, { repeatable: true });
    return new Pty(wrenn, capsuleId, tag, Number(writePty.nextSequence), options);
  }

  private constructor(wrenn: Wrenn, capsuleId: string, tag: string, written: number, options: AttachOptions) {
    this.#wrenn = wrenn;
    this.capsuleId = capsuleId;
    this.tag = tag;
    this.#across = options.acrossPauses ?? false;
    const source = {
      capsuleId,
      selector: tag,
      subscription: ({ pty }: Cursor) => ({
        query: textOf(PtyOutputDocument),
        variables: { capsuleId, tag, after: pty?.toString() },
      }),
      ...(options.acrossPauses && {
        resumed: (error: unknown, signal: AbortSignal) => untilResumed(wrenn, capsuleId, error, signal),
      }),
    };
    this.#output = new Output(wrenn, source, options.after === undefined ? {} : { pty: options.after });
    this.#input = new Input(
      async (sequence, data, signal) => {
        const variables = { capsuleId, tag, sequence, data };
        const { writePty } = await this.#carried(() => wrenn.graphql.writePty(variables, { overSocket: true, signal }));
        return writePty.nextSequence;
      },
      wrenn.patience,
      { stands: written, trust: TURN },
    );
    this.#output.exited.then(
      () => this.#input.end(),
      () => this.#input.abandon(),
    );
  }

  /** Resolves when it is where the program in the terminal can read it. */
  write(data: string | Uint8Array): Promise<void> {
    return this.#input.write(data);
  }

  /** Resolves when it has this size, or one that was asked for later: one at a time is sent, and the newest next. */
  resize(columns: number, rows: number): Promise<void> {
    this.#size = { columns, rows };
    this.#resizing ??= this.#resize();
    return this.#resizing;
  }

  async #resize(): Promise<void> {
    const { capsuleId, tag } = this;
    const options = { overSocket: true, repeatable: true };
    let size: Size | undefined;
    try {
      while (size !== this.#size) {
        size = this.#size as Size;
        const variables = { capsuleId, tag, ...size };
        try {
          await this.#carried(() => this.#wrenn.graphql.resizePty(variables, options));
        } catch (error) {
          // What became of a size that is out of date does not matter.
          if (size === this.#size) {
            throw error;
          }
        }
      }
    } finally {
      this.#resizing = undefined;
    }
  }

  #carried<T>(send: () => Promise<T>): Promise<T> {
    const signal = this.#input.abandoned;
    return acrossPauses(this.#wrenn, this.capsuleId, { across: this.#across, signal }, send);
  }

  /** Hangs up: what runs in the terminal gets SIGHUP, as from a line that broke. */
  async close(): Promise<void> {
    await this.#wrenn.graphql.closePty({ capsuleId: this.capsuleId, tag: this.tag });
  }

  /** Leaves the terminal open. Whoever attaches to it goes on. */
  detach(): void {
    this.#output.abandon();
  }

  /** How the program in the terminal ended. Told only as far as the output is read. */
  get exited(): Promise<Exit> {
    return this.#output.exited;
  }

  /** Offset of the next byte of its output: pass it as `after` to go on elsewhere. */
  get offset(): number {
    return this.#output.cursor.pty ?? 0;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    try {
      for (let event = await this.#output.next(); event !== undefined; event = await this.#output.next()) {
        // What is lost of a screen cannot be shown; what comes after it is.
        if (event.type === "output") {
          yield event.data;
        }
      }
    } finally {
      this.#output.abandon();
    }
  }

  /** Hangs up, if what runs in it has not ended. */
  async [asyncDispose](): Promise<void> {
    this.detach();
    await this.close().catch((error: unknown) => {
      if (!(error instanceof WrennError && error.code === "NOT_FOUND")) {
        throw error;
      }
    });
  }
}
