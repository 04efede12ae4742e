/*
 * A server that speaks the schema over real HTTP and real sockets, with processes that are lists of bytes. It is there
 * to lose connections at chosen moments; what capsules do is tested against the real ones.
 */
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { buildSchema, type ExecutionArgs, type GraphQLSchema, graphql, subscribe } from "graphql";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";

const SCHEMA = new URL("../../../../schema.graphql", import.meta.url);

/** Bytes in one event. */
const CHUNK = 16 * 1024;

interface Exit {
  exitCode: number | null;
  signal: string | null;
}

export interface FakeProcess {
  tag: string;
  pid: number;
  stdout: Uint8Array;
  stdin: Uint8Array[];
  stdinLength: number;
  stdinClosed: boolean;
  running: boolean;
  exit: Exit;
  /** Offset behind what was handed over so far. */
  delivered: number;
  /** Bytes before this are not held any more. */
  oldest: number;
}

export class FakeServer {
  /** Its one capsule. */
  readonly id = "cl-2e5glxi4g3qnhwci95qev0cg0";
  readonly processes = new Map<string, FakeProcess>();
  starts = 0;
  attachments = 0;
  /** Called before each event of a process; may cut the connections. */
  beforeEvent: (process: FakeProcess, offset: number) => void = () => {};
  /** Called when a process is to be started; may refuse it. */
  beforeStart: () => void = () => {};
  /** Called when a process was started, before anybody is told. */
  afterStart: () => void = () => {};
  /** Called after input was taken, before it is answered. */
  afterInput: () => void | Promise<void> = () => {};
  /** Called with each new size of a terminal, before it is answered. */
  beforeResize: (columns: number, rows: number) => Promise<void> = async () => {};
  /** What processes write. */
  output: Uint8Array = new Uint8Array();
  /** Processes do not end by themselves. */
  lasting = false;
  /** Processes are listed; those that are not can be followed all the same. */
  listing = true;
  /** A process that has ended is not known any more. */
  forgetful = false;
  /** Where a port of the capsule is reached. */
  portUrl: (port: number) => string = (port) => `${this.url}/proxy/${this.id}/${port}/`;
  /** Answers what is neither GraphQL nor of its sockets. */
  visit: (request: IncomingMessage, response: ServerResponse) => void = (_, response) => response.writeHead(404).end();
  /** Takes over a socket that is not one of its own. */
  upgrade: (request: IncomingMessage, socket: Duplex) => void = (_, socket) => socket.destroy();
  readonly #schema: GraphQLSchema;
  readonly #http: Server;
  readonly #sockets: WebSocketServer;
  readonly #connections = new Set<Socket>();
  #state = "RUNNING";
  #isWatched = false;
  /** Told when something has changed. */
  readonly #watching = new Set<() => void>();

  private constructor() {
    this.#schema = buildSchema(readFileSync(SCHEMA, "utf8"));
    this.#http = createServer((request, response) => {
      if (request.url !== "/graphql") {
        this.visit(request, response);
        return;
      }
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
    this.#sockets = new WebSocketServer({ noServer: true });
    this.#http.on("upgrade", (request, socket, head) => {
      if (request.url === "/graphql") {
        this.#sockets.handleUpgrade(request, socket, head, (own) => this.#sockets.emit("connection", own, request));
      } else {
        this.upgrade(request, socket);
      }
    });
    useServer(
      {
        schema: this.#schema,
        roots: {
          query: this.#root(),
          mutation: this.#root(),
          subscription: { ...this.#root(), capsule: () => this.#watch() },
        },
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

  /** Only what is watched goes on then. */
  pause(): void {
    this.#state = "PAUSED";
    this.#changed();
  }

  /** A process ends, or all of them do. */
  end(exit: Exit = { exitCode: 0, signal: null }, processes: Iterable<FakeProcess> = this.processes.values()): void {
    for (const process of processes) {
      Object.assign(process, { running: false, exit });
    }
    this.#changed();
  }

  /** Until somebody watches the capsule and has been told how it is. */
  async watched(): Promise<void> {
    while (!this.#isWatched) {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  #changed(): void {
    for (const tell of this.#watching) {
      tell();
    }
    this.#watching.clear();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#watching.add(resolve));
  }

  async *#watch(): AsyncGenerator<Record<string, unknown>> {
    for (;;) {
      yield { capsule: this.#capsule() };
      this.#isWatched = true;
      await this.#change();
    }
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
    this.beforeStart();
    this.starts++;
    if (this.processes.get(tag)?.running) {
      throw refusal("CONFLICT", `there is a process ${tag}`);
    }
    const process: FakeProcess = {
      tag,
      pid: 100 + this.starts,
      stdout: this.output,
      stdin: [],
      stdinLength: 0,
      stdinClosed: false,
      running: true,
      exit: { exitCode: 0, signal: null },
      delivered: 0,
      oldest: 0,
    };
    this.processes.set(tag, process);
    this.afterStart();
    return process;
  }

  #find(tag: string): FakeProcess {
    const process = this.processes.get(tag);
    if (this.#state !== "RUNNING") {
      throw refusal("FAILED_PRECONDITION", "the capsule is paused");
    }
    if (process === undefined || (this.forgetful && !process.running)) {
      throw refusal("NOT_FOUND", `there is no process ${tag}`);
    }
    return process;
  }

  async *#follow(
    process: FakeProcess,
    field: string,
    after: number,
    stream = "STDOUT",
  ): AsyncGenerator<Record<string, unknown>> {
    this.attachments++;
    yield { [field]: { __typename: "ProcessStarted", pid: process.pid, tag: process.tag } };
    let at = after;
    if (at < process.oldest) {
      yield { [field]: { __typename: "ProcessGap", stream, from: String(at), to: String(process.oldest) } };
      at = process.oldest;
    }
    while (at < process.stdout.length) {
      this.beforeEvent(process, at);
      const data = Buffer.from(process.stdout.subarray(at, at + CHUNK)).toString("base64");
      yield { [field]: { __typename: "ProcessOutput", stream, sequence: String(at), data } };
      at = Math.min(at + CHUNK, process.stdout.length);
      process.delivered = Math.max(process.delivered, at);
      // A server has other things to do as well.
      await new Promise((resolve) => setImmediate(resolve));
    }
    while (this.lasting && process.running) {
      await this.#change();
    }
    process.running = false;
    yield { [field]: { __typename: "ProcessExited", ...process.exit, cause: null } };
  }

  async #input(process: FakeProcess, sequence: number, data: string): Promise<{ nextSequence: string }> {
    const bytes = Buffer.from(data, "base64");
    if (sequence > process.stdinLength) {
      throw refusal("FAILED_PRECONDITION", "a gap");
    }
    const fresh = bytes.subarray(Math.min(process.stdinLength - sequence, bytes.length));
    process.stdin.push(fresh);
    process.stdinLength += fresh.length;
    await this.afterInput();
    return { nextSequence: String(process.stdinLength) };
  }

  #capsule() {
    return {
      id: this.id,
      state: this.#state,
      template: { id: "tpl-1", name: "minimal" },
      vcpus: 1,
      memoryMib: 256,
      diskMib: 1024,
      timeoutSec: 0,
      autoResume: false,
      labels: {},
      createdAt: new Date().toISOString(),
      processes: () => (this.listing ? [...this.processes.values()].map(infoOf) : []),
      url: ({ port }: { port: number }) => this.portUrl(port),
    };
  }

  #root() {
    const pty = (tag: string) => ({ pty: { pid: this.#find(tag).pid, tag, columns: 80, rows: 24 } });
    const after = (cursor: { stdout?: string } | null | undefined): number => Number(cursor?.stdout ?? 0);
    return {
      exec: ({ input }: { input: { tag: string } }) => this.#follow(this.#start(input.tag), "exec", 0),
      processOutput: (given: { selector: string; after?: { stdout?: string } }) =>
        this.#follow(this.#find(given.selector), "processOutput", after(given.after)),
      startProcess: ({ input }: { input: { tag: string } }) => ({ process: infoOf(this.#start(input.tag)) }),
      capsule: ({ id }: { id: string }) => (id === this.id ? this.#capsule() : null),
      destroyCapsule: ({ id }: { id: string }) => {
        if (id !== this.id) {
          throw refusal("NOT_FOUND", "there is no such capsule");
        }
        return { capsule: this.#capsule() };
      },
      signalProcess: ({ selector, signal }: { selector: string; signal: string }) => {
        const process = this.#find(selector);
        this.end({ exitCode: null, signal }, [process]);
        return { process: infoOf(process) };
      },
      openPty: ({ input: { tag } }: { input: { tag: string } }) => {
        this.#start(tag);
        return pty(tag);
      },
      ptyOutput: ({ tag, after }: { tag: string; after?: string }) =>
        this.#follow(this.#find(tag), "ptyOutput", Number(after ?? 0), "PTY"),
      writePty: (given: { tag: string; sequence: string; data: string }) =>
        this.#input(this.#find(given.tag), Number(given.sequence), given.data),
      resizePty: async ({ tag, columns, rows }: { tag: string; columns: number; rows: number }) => {
        await this.beforeResize(columns, rows);
        return pty(tag);
      },
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

function infoOf({ pid, tag, running }: FakeProcess) {
  const startedAt = new Date().toISOString();
  return { pid, tag, command: "fake", user: "root", startedAt, pty: false, running };
}

class Refusal extends Error {
  readonly extensions: Record<string, string>;
  constructor(message: string, extensions: Record<string, string>) {
    super(message);
    this.extensions = extensions;
  }
}

export function refusal(code: string, message: string, more: Record<string, string> = {}): Error {
  return new Refusal(message, { code, ...more });
}
