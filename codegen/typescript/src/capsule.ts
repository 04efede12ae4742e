import { randomName } from "./bytes.js";
import { asyncDispose } from "./dispose.js";
import { type ExecOptions, Execution, processInput } from "./exec.js";
import { Files } from "./files.js";
import type {
  CapsuleFilter,
  CapsuleFragment,
  CapsuleState,
  EgressPolicyInput,
  MetricPointFragment,
  MetricsRange,
  TemplateFragment,
} from "./generated/graphql.js";
import { live, type LiveOptions, present } from "./live.js";
import { startedOnce } from "./once.js";
import { Ports } from "./ports.js";
import { Process, type ProcessInfo, type StartOptions } from "./process.js";
import { type AttachOptions, Pty, type PtyOptions } from "./pty.js";
import { fromEnv, type Wrenn } from "./wrenn.js";

export type { CapsuleFilter, CapsuleState, MetricsRange } from "./generated/graphql.js";
export type CapsuleInfo = CapsuleFragment;
export type TemplateInfo = TemplateFragment;

/** A variable of every process in a capsule. */
export type EnvValue = string | { value: string; secret: boolean };

export interface CreateOptions {
  /** Id or name; the platform's `minimal` if absent. */
  template?: string | undefined;
  name?: string | undefined;
  vcpus?: number | undefined;
  memoryMib?: number | undefined;
  diskMib?: number | undefined;
  /** Paused after this long without activity; never if absent. */
  timeoutSec?: number | undefined;
  /** A secret one is not handed to forks unless asked, and no snapshot keeps it. */
  env?: Record<string, EnvValue> | undefined;
  labels?: Record<string, string> | undefined;
  /** When it is paused, a request to one of its ports lets it go on; otherwise such requests are refused. */
  autoResume?: boolean | undefined;
  /** Everything outside may be reached if absent. */
  egress?: EgressPolicyInput | undefined;
  /** A repeat with the same key and options answers with the same capsule; one of its own if absent. */
  idempotencyKey?: string | undefined;
  /** The client; the one that the environment describes if absent. */
  wrenn?: Wrenn | undefined;
}

export interface ForkOptions {
  /** 1 if absent. */
  count?: number | undefined;
  /** With the secret variables too. */
  inheritSecrets?: boolean | undefined;
}

/** What a capsule used at a moment, or on average since the point before. */
export interface MetricPoint {
  at: Date;
  /** Of one processor of the host: 200 is two of them. */
  cpuPercent: number;
  memoryBytes: number;
  diskBytes: number;
}

/** Capsules on one page of a listing. */
const PAGE = 100;

/** One microVM with its disk, network and lifecycle. */
export class Capsule {
  readonly id: string;
  readonly files: Files;
  readonly ports: Ports;
  readonly #wrenn: Wrenn;
  /** Made by this program, so `await using` ends it. */
  readonly #own: boolean;
  #info: CapsuleInfo;

  /** Makes a capsule; it runs when this is answered. `await using` kills it at the end of its block. */
  static async create(options: CreateOptions = {}): Promise<Capsule> {
    const { wrenn = fromEnv(), env, idempotencyKey = randomName("sdk-"), ...rest } = options;
    const vars = env && Object.entries(env).map(([name, value]) => variable(name, value));
    const input = { ...rest, env: vars, idempotencyKey };
    const { createCapsule } = await wrenn.graphql.createCapsule({ input }, { repeatable: true });
    return new Capsule(wrenn, createCapsule.capsule, true);
  }

  /** A capsule that is there already. `await using` lets go of it, no more. */
  static async connect(id: string, { wrenn = fromEnv() }: { wrenn?: Wrenn | undefined } = {}): Promise<Capsule> {
    const { capsule } = await wrenn.graphql.capsule({ id });
    return new Capsule(wrenn, present(capsule, id), false);
  }

  /** The team's capsules, oldest first; those that are stopped only if the filter names their state. */
  static async *list(
    filter: CapsuleFilter = {},
    { wrenn = fromEnv() }: { wrenn?: Wrenn | undefined } = {},
  ): AsyncGenerator<Capsule, void, void> {
    let after: string | null = null;
    do {
      const { capsules } = await wrenn.graphql.capsules({ filter, first: PAGE, after });
      for (const capsule of capsules.nodes) {
        yield new Capsule(wrenn, capsule, false);
      }
      after = capsules.pageInfo.hasNextPage ? capsules.pageInfo.endCursor : null;
    } while (after !== null);
  }

  private constructor(wrenn: Wrenn, info: CapsuleInfo, own: boolean) {
    this.id = info.id;
    this.#wrenn = wrenn;
    this.#info = info;
    this.#own = own;
    this.files = new Files(wrenn, info.id);
    this.ports = new Ports(wrenn, info.id);
  }

  /** As the server last told it; {@link refresh} asks again. */
  get info(): CapsuleInfo {
    return this.#info;
  }

  get state(): CapsuleState {
    return this.#info.state;
  }

  get name(): string | null {
    return this.#info.name;
  }

  async refresh(): Promise<CapsuleInfo> {
    const { capsule } = await this.#wrenn.graphql.capsule({ id: this.id });
    return this.#now(present(capsule, this.id));
  }

  /** The present state, then every change; ends with the capsule. */
  async *watch({ signal }: LiveOptions = {}): AsyncGenerator<CapsuleInfo, void, void> {
    const open = () => this.#wrenn.graphql.watchCapsule({ id: this.id }, { signal });
    for await (const { capsule } of live(this.#wrenn, { open, signal })) {
      yield this.#now(capsule);
    }
  }

  /**
   * Runs a shell line, or a program with its arguments. Await it for its result, or iterate over it for its output as
   * it comes. It begins at once; without a reader it is held back after some megabytes of output: see {@link start}.
   */
  exec(command: string | readonly string[], options: ExecOptions = {}): Execution {
    return new Execution(this.#wrenn, this.id, command, options);
  }

  /** Starts a process in the background. */
  async start(command: string | readonly string[], options: StartOptions = {}): Promise<Process> {
    const input = { ...processInput(this.id, command, options), keepAwake: options.keepAwake };
    await startedOnce(this.#wrenn, this.id, input.tag, () => this.#wrenn.graphql.startProcess({ input }));
    return this.process(input.tag);
  }

  /** A process that was started before, by its pid or its tag. */
  process(selector: number | string): Process {
    return new Process(this.#wrenn, this.id, String(selector));
  }

  /** The living processes that were started from outside, and those that exited lately. */
  async processes(): Promise<ProcessInfo[]> {
    const { capsule } = await this.#wrenn.graphql.processes({ id: this.id });
    return present(capsule, this.id).processes;
  }

  /** Opens a terminal. */
  pty(options: PtyOptions = {}): Promise<Pty> {
    return Pty.open(this.#wrenn, this.id, options);
  }

  /** Attaches to a terminal that was opened before. */
  attach(tag: string, options: AttachOptions = {}): Promise<Pty> {
    return Pty.attach(this.#wrenn, this.id, tag, options);
  }

  /** What it used, oldest point first. */
  async metrics(range: MetricsRange = "M5"): Promise<MetricPoint[]> {
    const { capsule } = await this.#wrenn.graphql.metrics({ id: this.id, range });
    return present(capsule, this.id).metrics.map(pointOf);
  }

  /** The points of the range, then each new one; ends when the capsule does not run any more. */
  async *watchMetrics(
    range: MetricsRange = "M5",
    { signal }: LiveOptions = {},
  ): AsyncGenerator<MetricPoint, void, void> {
    let last = 0;
    const open = () => this.#wrenn.graphql.watchMetrics({ id: this.id, range }, { signal });
    for await (const { capsuleMetrics: point } of live(this.#wrenn, { open, signal })) {
      // After a lost connection the range comes again.
      const next = pointOf(point);
      if (next.at.getTime() > last) {
        last = next.at.getTime();
        yield next;
      }
    }
  }

  /** Puts it to disk with everything in its memory. One that is paused stays so. */
  async pause(): Promise<this> {
    this.#now((await this.#wrenn.graphql.pauseCapsule({ id: this.id }, { repeatable: true })).pauseCapsule.capsule);
    return this;
  }

  /** Lets a paused one go on. One that is running stays so. */
  async resume(): Promise<this> {
    this.#now((await this.#wrenn.graphql.resumeCapsule({ id: this.id }, { repeatable: true })).resumeCapsule.capsule);
    return this;
  }

  /** Running copies of a running or paused capsule, all of this moment. `await using` kills them. */
  async fork({ count = 1, inheritSecrets = false }: ForkOptions = {}): Promise<Capsule[]> {
    const variables = { id: this.id, count, inheritSecrets, idempotencyKey: randomName("sdk-") };
    const { forkCapsule } = await this.#wrenn.graphql.forkCapsule(variables, { repeatable: true });
    return forkCapsule.capsules.map((capsule) => new Capsule(this.#wrenn, capsule, true));
  }

  /** Makes a template of it as it is at this moment, with everything in its memory. */
  async snapshot(name: string, { overwrite = false }: { overwrite?: boolean } = {}): Promise<TemplateInfo> {
    const variables = { id: this.id, name, overwrite, idempotencyKey: randomName("sdk-") };
    return (await this.#wrenn.graphql.snapshotCapsule(variables, { repeatable: true })).snapshotCapsule.template;
  }

  /** Removes it with its disk and its memory, for good. */
  async kill(): Promise<void> {
    this.#now((await this.#wrenn.graphql.destroyCapsule({ id: this.id }, { repeatable: true })).destroyCapsule.capsule);
  }

  /** Counts as activity. */
  async ping(): Promise<void> {
    this.#now((await this.#wrenn.graphql.pingCapsule({ id: this.id }, { repeatable: true })).pingCapsule.capsule);
  }

  /** After how long without activity it is paused; 0 = never. */
  async setTimeout(timeoutSec: number): Promise<void> {
    const variables = { id: this.id, timeoutSec };
    const { setCapsuleTimeout } = await this.#wrenn.graphql.setCapsuleTimeout(variables, { repeatable: true });
    this.#now(setCapsuleTimeout.capsule);
  }

  /** Gives it these labels in place of those that it has. */
  async setLabels(labels: Record<string, string>): Promise<void> {
    const { setCapsuleLabels } = await this.#wrenn.graphql.setCapsuleLabels(
      { id: this.id, labels },
      { repeatable: true },
    );
    this.#now(setCapsuleLabels.capsule);
  }

  async [asyncDispose](): Promise<void> {
    if (this.#own && this.state !== "STOPPED") {
      await this.kill();
    }
  }

  #now(info: CapsuleInfo): CapsuleInfo {
    this.#info = info;
    return info;
  }
}

function variable(name: string, value: EnvValue): { name: string; value: string; secret?: boolean } {
  return typeof value === "string" ? { name, value } : { name, ...value };
}

function pointOf({ at, cpuPercent, memoryBytes, diskBytes }: MetricPointFragment): MetricPoint {
  return { at: new Date(at), cpuPercent, memoryBytes: Number(memoryBytes), diskBytes: Number(diskBytes) };
}
