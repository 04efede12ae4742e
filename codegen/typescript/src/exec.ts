import { concat, randomName } from "./bytes.js";
import { textOf } from "./document.js";
import { PROCESS_FORGOTTEN, WrennError } from "./errors.js";
import { ExecDocument, type ExecInput, ProcessOutputDocument } from "./generated/graphql.js";
import { type Cursor, type Exit, Output, type OutputEvent, type Source, type Subscription } from "./output.js";
import { acrossPauses, untilResumed } from "./pauses.js";
import { type Data, pour } from "./sources.js";
import { Stdin } from "./stdin.js";
import type { Wrenn } from "./wrenn.js";

export interface ProcessOptions {
  /** Absolute, or relative to the user's home; the home if absent. */
  cwd?: string | undefined;
  env?: Record<string, string> | undefined;
  /** A name or a numeric uid; the template's default if absent. */
  user?: string | undefined;
  /** The whole process group is killed after this; never if absent. */
  timeoutSec?: number | undefined;
  /** A name of its own, unique among the living. */
  tag?: string | undefined;
}

export interface ExecOptions extends ProcessOptions {
  /**
   * What it reads; nothing if absent. If what yields it fails, the process is killed, so that it does not take a part for
   * the whole, and the execution fails with that error.
   */
  stdin?: Data | undefined;
  /** Kills the process. */
  signal?: AbortSignal | undefined;
  /** While the capsule is paused, wait for it to be resumed; otherwise a pause is a failure, and the process goes on later. */
  acrossPauses?: boolean | undefined;
  /** Bytes of stdout and of stderr that the result holds; 16 MiB if absent. An iteration gets everything. */
  maxBytes?: number | undefined;
}

/** What a process did that has ended. */
export interface ExecResult extends Exit {
  pid: number;
  /** Decoded as UTF-8. */
  stdout: string;
  stderr: string;
  stdoutBytes: Uint8Array;
  stderrBytes: Uint8Array;
  /** More than `maxBytes` came on one of them, or something was lost; only the beginning is here. */
  truncated: boolean;
}

/** A line of output, without its end. */
export interface Line {
  stream: "stdout" | "stderr";
  text: string;
}

/** Bytes of each stream that a result holds unless it is told otherwise. */
const MAX_BYTES = 16 * 1024 * 1024;

/** Milliseconds for which a capsule surely remembers a process that has ended: it does for five minutes. */
const REMEMBERED = 120_000;

/** A shell line, or a program with its arguments. */
function commandOf(command: string | readonly string[]): Pick<ExecInput, "command" | "argv"> {
  return typeof command === "string" ? { command } : { argv: [...command] };
}

/** What all ways to start a process have in common. */
export function processInput(
  capsuleId: string,
  command: string | readonly string[],
  { cwd, env, user, timeoutSec, tag }: ProcessOptions,
): ExecInput & { tag: string } {
  return {
    capsuleId,
    ...commandOf(command),
    cwd,
    env: env && Object.entries(env).map(([name, value]) => ({ name, value })),
    user,
    timeoutSec,
    tag: tag ?? randomName("exec-"),
  };
}

/**
 * A process that is followed to its end. It has begun when this is there.
 *
 * `await` gives its result. Or iterate over it for the output as it comes: each event once, in order, whatever happens
 * to the connection. An iteration that is left early leaves the process running.
 */
export class Execution implements PromiseLike<ExecResult>, AsyncIterable<OutputEvent> {
  readonly tag: string;
  readonly #kill: () => Promise<unknown>;
  readonly #output: Output;
  readonly #beginning: Beginning;
  readonly #kept: Record<"stdout" | "stderr", Kept>;
  #reading: "nobody" | "iteration" | "result" = "nobody";
  #result: Promise<ExecResult> | undefined;
  #lost = false;
  /** Why its input ended too early. */
  #starved: { error: unknown } | undefined;

  constructor(wrenn: Wrenn, capsuleId: string, command: string | readonly string[], options: ExecOptions = {}) {
    const input = processInput(capsuleId, command, options);
    this.tag = input.tag;
    const killing = { capsuleId, selector: input.tag, signal: "SIGKILL" } as const;
    const kill = () => wrenn.graphql.signalProcess(killing, { repeatable: true });
    this.#kill = () => acrossPauses(wrenn, capsuleId, { across: options.acrossPauses }, kill);
    const maxBytes = options.maxBytes ?? MAX_BYTES;
    this.#kept = { stdout: new Kept(maxBytes), stderr: new Kept(maxBytes) };
    this.#beginning = new Beginning(wrenn, input, options.acrossPauses ?? false);
    this.#output = new Output(wrenn, this.#beginning, { stdout: 0, stderr: 0 });
    this.#output.exited.catch((error: unknown) => this.#beginning.failed(error));
    this.#feed(new Stdin(wrenn, capsuleId, this.tag, { across: options.acrossPauses, alone: true }), options.stdin);
    this.#obey(options.signal);
  }

  /** The process's id, once it has begun. */
  get pid(): Promise<number> {
    return this.#beginning.pid;
  }

  /** To be awaited is what it is for. */
  then<A = ExecResult, B = never>(
    onResult?: ((result: ExecResult) => A | PromiseLike<A>) | null,
    onError?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#result ??= this.#collect();
    return this.#result.then(onResult, onError);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<OutputEvent, void, void> {
    if (this.#reading !== "nobody") {
      throw new WrennError(
        "FAILED_PRECONDITION",
        `the output is read by the ${this.#reading} already: iterate first, once`,
      );
    }
    this.#reading = "iteration";
    try {
      for (let event = await this.#next(); event !== undefined; event = await this.#next()) {
        yield event;
      }
    } finally {
      // Of no effect after the end.
      this.#output.abandon();
    }
  }

  /** The output line by line, decoded as UTF-8; in place of the iteration over its bytes. */
  async *lines(): AsyncGenerator<Line, void, void> {
    const cutters = { stdout: new LineCutter(), stderr: new LineCutter() };
    for await (const event of this) {
      if (event.type === "output" && event.stream !== "pty") {
        for (const text of cutters[event.stream].add(event.data)) {
          yield { stream: event.stream, text };
        }
      }
    }
    for (const stream of ["stdout", "stderr"] as const) {
      const text = cutters[stream].rest();
      if (text !== "") {
        yield { stream, text };
      }
    }
  }

  async #collect(): Promise<ExecResult> {
    if (this.#reading === "nobody") {
      this.#reading = "result";
      while ((await this.#next()) !== undefined) {
        // Kept on the way.
      }
    }
    const { exitCode, signal } = await this.#exit();
    const { stdout, stderr } = this.#kept;
    const [stdoutBytes, stderrBytes] = [stdout.bytes(), stderr.bytes()];
    const decoder = new TextDecoder();
    return {
      pid: await this.pid,
      exitCode,
      signal,
      stdout: decoder.decode(stdoutBytes),
      stderr: decoder.decode(stderrBytes),
      stdoutBytes,
      stderrBytes,
      truncated: stdout.truncated || stderr.truncated || this.#lost,
    };
  }

  /** How it ended; fails where that is because of its input. */
  async #exit(): Promise<Exit> {
    const exit = await this.#output.exited;
    if (this.#starved !== undefined) {
      throw this.#starved.error;
    }
    return exit;
  }

  async #next(): Promise<OutputEvent | undefined> {
    const event = await this.#output.next();
    if (event === undefined) {
      await this.#exit();
    }
    if (event?.type === "gap") {
      this.#lost = true;
    } else if (event !== undefined && event.stream !== "pty") {
      this.#kept[event.stream].add(event.data);
    }
    return event;
  }

  #feed(stdin: Stdin, data: Data | undefined): void {
    let [refused, ended] = [false, false];
    const write = (bytes: Uint8Array): Promise<void> =>
      stdin.write(bytes).catch((error: unknown) => {
        refused = true;
        throw error;
      });
    const starve = async (error: unknown): Promise<void> => {
      this.#starved = { error };
      await this.#kill().catch(() => {});
      // Of no effect if it has ended.
      this.#output.abandon(error);
    };
    const feed = async (): Promise<void> => {
      await this.pid;
      try {
        await pour(data ?? [], write);
      } catch (error) {
        return refused || ended ? undefined : starve(error);
      }
      await stdin.close();
    };
    // A process need not read all it is given: only its own end and output say how it went.
    feed().catch(() => {});
    const over = (): void => {
      ended = true;
      stdin.abandon();
    };
    this.#output.exited.then(over, over);
  }

  #obey(signal: AbortSignal | undefined): void {
    if (signal === undefined) {
      return;
    }
    const kill = async (): Promise<void> => {
      await this.pid;
      await this.#kill();
    };
    // If it cannot be killed, its end says so: there is none.
    const obey = (): void => void kill().catch(() => {});
    signal.aborted ? obey() : signal.addEventListener("abort", obey);
    const over = (): void => signal.removeEventListener("abort", obey);
    this.#output.exited.then(over, over);
  }
}

/**
 * Starts a process exactly once, although nobody may hear that it was started: it is looked for by its tag before it
 * is started again. Where it may have ended and been forgotten, not finding it is a failure.
 *
 *   fresh ──▶ sent ──lost──▶ asked ──▶ begun
 *     ▲         │  (conflict)  │
 *     └─────────┼──not found───┘
 *               └──▶ begun
 */
class Beginning implements Source {
  readonly capsuleId: string;
  readonly selector: string;
  readonly #input: ExecInput & { tag: string };
  #state: "fresh" | "sent" | "asked" | "begun" = "fresh";
  #sent = 0;
  #conflicted = false;
  /** Since when it may have been forgotten. */
  #since = 0;
  #tell: (pid: number) => void = () => {};
  /** It was not started, or nobody knows. */
  failed: (error: unknown) => void = () => {};
  readonly pid: Promise<number>;
  readonly resumed?: (error: unknown, signal: AbortSignal) => Promise<void>;

  constructor(wrenn: Wrenn, input: ExecInput & { tag: string }, acrossPauses: boolean) {
    this.capsuleId = input.capsuleId;
    this.selector = input.tag;
    this.#input = input;
    this.pid = new Promise((resolve, reject) => {
      this.#tell = resolve;
      this.failed = reject;
    });
    // Who does not ask for it is told by the result.
    this.pid.catch(() => {});
    if (acrossPauses) {
      this.resumed = async (error, signal) => {
        await untilResumed(wrenn, input.capsuleId, error, signal);
        // The capsule's time stood still.
        this.#since = Date.now();
      };
    }
  }

  subscription(cursor: Cursor): Subscription {
    if (this.#state === "fresh") {
      this.#state = "sent";
      this.#sent++;
      this.#since = Date.now();
      return { query: textOf(ExecDocument), variables: { input: this.#input } };
    }
    if (this.#state === "sent") {
      this.#state = "asked";
    }
    return followed(this.capsuleId, this.selector, cursor);
  }

  started(pid: number): void {
    this.#state = "begun";
    this.#tell(pid);
  }

  mayGoOn(error: unknown): boolean {
    const code = error instanceof WrennError ? error.code : undefined;
    if (this.#state === "asked" && code === "NOT_FOUND") {
      if (this.#conflicted || Date.now() - this.#since > REMEMBERED) {
        const message = `nobody knows what became of \`${this.selector}\`: it may have been carried out`;
        throw new WrennError("NOT_FOUND", message, { reason: PROCESS_FORGOTTEN, cause: error });
      }
      this.#state = "fresh";
      return true;
    }
    // The first start arrived after all.
    const conflicted = this.#state === "sent" && this.#sent > 1 && code === "CONFLICT";
    this.#conflicted ||= conflicted;
    return conflicted;
  }
}

/** The output of a process that is there. */
export function followed(capsuleId: string, selector: string, { stdout, stderr, pty }: Cursor): Subscription {
  const after = { stdout: stdout?.toString(), stderr: stderr?.toString(), pty: pty?.toString() };
  return { query: textOf(ProcessOutputDocument), variables: { capsuleId, selector, after } };
}

/** The beginning of a stream. */
class Kept {
  readonly #max: number;
  readonly #parts: Uint8Array[] = [];
  #length = 0;
  truncated = false;

  constructor(max: number) {
    this.#max = max;
  }

  add(data: Uint8Array): void {
    const part = data.subarray(0, this.#max - this.#length);
    this.truncated ||= part.length < data.length;
    this.#length += part.length;
    if (part.length > 0) {
      this.#parts.push(part);
    }
  }

  bytes(): Uint8Array {
    return concat(this.#parts);
  }
}

class LineCutter {
  readonly #decoder = new TextDecoder();
  #begun = "";

  add(data: Uint8Array): string[] {
    const lines = (this.#begun + this.#decoder.decode(data, { stream: true })).split("\n");
    this.#begun = lines.pop() ?? "";
    return lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
  }

  rest(): string {
    return this.#begun + this.#decoder.decode();
  }
}
