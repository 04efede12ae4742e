/*
 * A server that speaks the schema over real HTTP and real sockets, with processes that are lists of bytes. It is there
 * to lose connections at chosen moments; what capsules do is tested against the real ones.
 */
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { buildSchema, type ExecutionArgs, type GraphQLSchema, graphql, subscribe } from "graphql";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";

const SCHEMA = new URL("../../../../schema.graphql", import.meta.url);

/** Bytes in one event. */
const CHUNK = 16 * 1024;

export interface FakeProcess {
  tag: string;
  pid: number;
  stdout: Uint8Array;
  stdin: Uint8Array[];
  stdinLength: number;
  stdinClosed: boolean;
  /** Offset behind what was handed over so far. */
  delivered: number;
  /** Bytes before this are not held any more. */
  oldest: number;
}

export class FakeServer {
  readonly processes = new Map<string, FakeProcess>();
  starts = 0;
  attachments = 0;
  /** Called before each event of a process; may cut the connections. */
  beforeEvent: (process: FakeProcess, offset: number) => void = () => {};
  /** Called when a process was started, before anybody is told. */
  afterStart: () => void = () => {};
  /** Called after input was taken, before it is answered. */
  afterInput: () => void = () => {};
  /** What processes write. */
  output: Uint8Array = new Uint8Array();
  readonly #schema: GraphQLSchema;
  readonly #http: Server;
  readonly #sockets: WebSocketServer;
  readonly #connections = new Set<Socket>();

  private constructor() {
    this.#schema = buildSchema(readFileSync(SCHEMA, "utf8"));
    this.#http = createServer((request, response) => {
      void this.#answer(request).then((body) => {
        response.setHeader("content-type", "application/json");
        response.end(JSON.stringify(body));
      });
    });
    this.#http.on("connection", (socket) => {
      this.#connections.add(socket);
      socket.on("close", () => this.#connections.delete(socket));
      socket.on("error", () => {});
    });
    this.#sockets = new WebSocketServer({ server: this.#http, path: "/graphql" });
    useServer(
      {
        schema: this.#schema,
        roots: { query: this.#root(), mutation: this.#root(), subscription: this.#root() },
        subscribe: (args) => subscribe(args as ExecutionArgs),
      },
      this.#sockets,
      // No pings of its own.
      0,
    );
  }

  static async start(): Promise<FakeServer> {
    const server = new FakeServer();
    await new Promise<void>((resolve) => server.#http.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#http.address() as AddressInfo).port}`;
  }

  /** Every connection breaks now. */
  cut(): void {
    for (const socket of this.#sockets.clients) {
      socket.terminate();
    }
    for (const socket of this.#connections) {
      socket.destroy();
    }
  }

  async stop(): Promise<void> {
    const closed = new Promise((resolve) => this.#http.close(resolve));
    this.cut();
    await closed;
  }

  async #answer(request: IncomingMessage): Promise<unknown> {
    const parts: Buffer[] = [];
    for await (const part of request) {
      parts.push(part as Buffer);
    }
    const { query, variables } = JSON.parse(Buffer.concat(parts).toString());
    return graphql({ schema: this.#schema, source: query, variableValues: variables, rootValue: this.#root() });
  }

  #start(tag: string): FakeProcess {
    this.starts++;
    if (this.processes.has(tag)) {
      throw refusal("CONFLICT", `there is a process ${tag}`);
    }
    const process: FakeProcess = {
      tag,
      pid: 100 + this.starts,
      stdout: this.output,
      stdin: [],
      stdinLength: 0,
      stdinClosed: false,
      delivered: 0,
      oldest: 0,
    };
    this.processes.set(tag, process);
    this.afterStart();
    return process;
  }

  #find(tag: string): FakeProcess {
    const process = this.processes.get(tag);
    if (process === undefined) {
      throw refusal("NOT_FOUND", `there is no process ${tag}`);
    }
    return process;
  }

  async *#follow(process: FakeProcess, field: string, after: number): AsyncGenerator<Record<string, unknown>> {
    this.attachments++;
    yield { [field]: { __typename: "ProcessStarted", pid: process.pid, tag: process.tag } };
    let at = after;
    if (at < process.oldest) {
      yield { [field]: { __typename: "ProcessGap", stream: "STDOUT", from: String(at), to: String(process.oldest) } };
      at = process.oldest;
    }
    while (at < process.stdout.length) {
      this.beforeEvent(process, at);
      const data = Buffer.from(process.stdout.subarray(at, at + CHUNK)).toString("base64");
      yield { [field]: { __typename: "ProcessOutput", stream: "STDOUT", sequence: String(at), data } };
      at = Math.min(at + CHUNK, process.stdout.length);
      process.delivered = Math.max(process.delivered, at);
      // A server has other things to do as well.
      await new Promise((resolve) => setImmediate(resolve));
    }
    yield { [field]: { __typename: "ProcessExited", exitCode: 0, signal: null, cause: null } };
  }

  #input(process: FakeProcess, sequence: number, data: string): { nextSequence: string } {
    const bytes = Buffer.from(data, "base64");
    if (sequence > process.stdinLength) {
      throw refusal("FAILED_PRECONDITION", "a gap");
    }
    const fresh = bytes.subarray(process.stdinLength - sequence);
    process.stdin.push(fresh);
    process.stdinLength += fresh.length;
    this.afterInput();
    return { nextSequence: String(process.stdinLength) };
  }

  #root() {
    const after = (cursor: { stdout?: string } | null | undefined): number => Number(cursor?.stdout ?? 0);
    return {
      exec: ({ input }: { input: { tag: string } }) => this.#follow(this.#start(input.tag), "exec", 0),
      processOutput: (given: { selector: string; after?: { stdout?: string } }) =>
        this.#follow(this.#find(given.selector), "processOutput", after(given.after)),
      startProcess: ({ input }: { input: { tag: string } }) => ({ process: infoOf(this.#start(input.tag)) }),
      capsule: ({ id }: { id: string }) => ({
        id,
        state: "RUNNING",
        template: { id: "tpl-1", name: "minimal" },
        vcpus: 1,
        memoryMib: 256,
        diskMib: 1024,
        timeoutSec: 0,
        autoResume: false,
        labels: {},
        createdAt: new Date().toISOString(),
        processes: () => [...this.processes.values()].map(infoOf),
      }),
      writeStdin: (given: { selector: string; sequence: string; data: string }) =>
        this.#input(this.#find(given.selector), Number(given.sequence), given.data),
      closeStdin: ({ selector }: { selector: string }) => {
        const process = this.#find(selector);
        process.stdinClosed = true;
        return { nextSequence: String(process.stdinLength) };
      },
      viewer: () => {
        throw refusal("INVALID_INPUT", "not so", { field: "name", cause: "BECAUSE", requestId: "r-1" });
      },
    };
  }
}

function infoOf({ pid, tag }: FakeProcess) {
  const startedAt = new Date().toISOString();
  return { pid, tag, command: "fake", user: "root", startedAt, pty: false, running: true };
}

class Refusal extends Error {
  readonly extensions: Record<string, string>;
  constructor(message: string, extensions: Record<string, string>) {
    super(message);
    this.extensions = extensions;
  }
}

function refusal(code: string, message: string, more: Record<string, string> = {}): Error {
  return new Refusal(message, { code, ...more });
}
