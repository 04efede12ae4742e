import {
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type RequestOptions,
  type ServerResponse,
} from "node:http";
import { request as httpsRequest } from "node:https";
import { type AddressInfo, isIP } from "node:net";
import { hostname } from "node:os";
import type { Duplex } from "node:stream";
import type { Wrenn } from "../index.js";
import { client, find } from "./client.js";
import { print, printJson } from "./print.js";
import { type Command, EXIT, UsageError } from "./usage.js";

export const forward: Command = {
  name: "forward",
  operands: "CAPSULE [[ADDRESS:]LOCAL:]PORT…",
  summary: "Bring HTTP services in a capsule to ports of this machine",
  details:
    "`8080:3000` brings port 3000 of the capsule to 127.0.0.1:8080, `3000` to 127.0.0.1:3000, and LOCAL 0 to any free\n" +
    "port. HTTP and WebSockets go through, other protocols do not; what is asked for by another name than this machine's\n" +
    "is refused. Ctrl-C ends it.",
  options: {},
  async run(given) {
    const [target, ...texts] = given.operands;
    if (target === undefined || texts.length === 0) {
      throw new UsageError(target === undefined ? "CAPSULE is missing" : "PORT is missing");
    }
    const wanted = texts.map(parseForward);
    const capsule = await find(target);
    const { id } = capsule;
    const closings: (() => Promise<void>)[] = [];
    try {
      for (const one of wanted) {
        const { address, port, close } = await listen(new Way(client(), await capsule.ports.url(one.remote)), one);
        closings.push(close);
        await (given.flag("json")
          ? printJson({ address, port, capsule: id, remote: one.remote })
          : print(`http://${address}:${port} → ${id}:${one.remote}\n`));
      }
      await new Promise<void>((resolve) => process.once("SIGINT", () => resolve()).once("SIGTERM", () => resolve()));
      return EXIT.ok;
    } finally {
      await Promise.all(closings.map((close) => close()));
    }
  },
};

interface Forward {
  address: string;
  local: number;
  remote: number;
}

function parseForward(text: string): Forward {
  const parts = text.split(":");
  const remote = parts.pop() ?? "";
  const local = parts.pop() ?? remote;
  const address = parts.join(":").replace(/^\[(.*)\]$/, "$1") || "127.0.0.1";
  return { address, local: portOf(text, local, 0), remote: portOf(text, remote, 1) };
}

function portOf(text: string, port: string, lowest: number): number {
  const number = /^\d{1,5}$/.test(port) ? Number(port) : Number.NaN;
  if (!(number >= lowest && number <= 65_535)) {
    throw new UsageError(`\`${text}\` is not [[ADDRESS:]LOCAL:]PORT, as 8080:3000`);
  }
  return number;
}

/** Headers that speak of one connection only. */
const OF_CONNECTION = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer"];

/**
 * Whether a request is for this machine. A page from elsewhere whose name was made to point here would reach the service
 * with the API key, and be of one origin with it.
 */
function isForHere({ headers }: IncomingMessage, address: string): boolean {
  const name = (headers.host ?? "").replace(/:\d+$/, "").toLowerCase();
  const own = ["", "localhost", address, hostname(), `${hostname()}.local`].map((known) => known.toLowerCase());
  return own.includes(name) || name.endsWith(".localhost") || isIP(name.replace(/^\[(.*)\]$/, "$1")) !== 0;
}

function refuse({ headers }: IncomingMessage): string {
  return `wrenn forward: \`${headers.host}\` is no name of this machine: use its address, or localhost\n`;
}

async function listen(way: Way, { address, local }: Forward) {
  const server = createServer((request, response) => {
    if (isForHere(request, address)) {
      way.serve(request, response);
    } else {
      response.writeHead(403, { "content-type": "text/plain; charset=utf-8" }).end(refuse(request));
    }
  });
  server.on("upgrade", (request, socket, head) => {
    if (isForHere(request, address)) {
      way.upgrade(request, socket, head);
    } else {
      socket.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
  });
  // As long as whoever answers wants it to be.
  server.requestTimeout = 0;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(new UsageError(`cannot listen on ${address}:${local}: ${error.message}`)));
    server.listen(local, address, resolve);
  });
  const { port } = server.address() as AddressInfo;
  const close = async (): Promise<void> => {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    way.close();
    await closed;
  };
  return { address, port, close };
}

/** From a local server to a port of a capsule, through the URL that the port has outside. */
class Way {
  readonly #base: URL;
  /** What the server puts before the paths of the service; they have none here. */
  readonly #prefix: string;
  readonly #headers: Record<string, string>;
  readonly #upgraded = new Set<Duplex>();

  constructor(wrenn: Wrenn, url: string) {
    const target = new URL(url);
    this.#prefix = target.pathname.replace(/\/$/, "");
    // By path, the port is where this client reaches the server, whatever the server calls itself.
    const base = new URL(wrenn.address.base);
    this.#base = this.#prefix === "" ? target : base;
    this.#prefix = this.#prefix && base.pathname.replace(/\/$/, "") + this.#prefix;
    this.#headers = wrenn.headers;
  }

  serve(request: IncomingMessage, response: ServerResponse): void {
    const onward = this.#open(request, { headers: this.#onward(request, false) });
    onward.on("response", (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.statusMessage, this.#back(answer));
      answer.pipe(response);
      answer.on("error", () => response.destroy());
    });
    onward.on("error", (error) => {
      if (response.headersSent) {
        response.destroy();
      } else {
        response.writeHead(502, { "content-type": "text/plain; charset=utf-8" });
        response.end(`wrenn forward: ${error.message}\n`);
      }
    });
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  }

  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const onward = this.#open(request, { headers: this.#onward(request, true) });
    socket.on("error", () => onward.destroy());
    onward.on("upgrade", (answer, other, first) => {
      const lines = [`HTTP/1.1 101 ${answer.statusMessage ?? "Switching Protocols"}`];
      for (let index = 0; index < answer.rawHeaders.length; index += 2) {
        lines.push(`${answer.rawHeaders[index]}: ${answer.rawHeaders[index + 1]}`);
      }
      socket.write(`${lines.join("\r\n")}\r\n\r\n`);
      socket.write(first);
      other.write(head);
      this.#join(socket, other);
    });
    onward.on("response", (answer) => {
      // It does not want to.
      socket.write(`HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}\r\nconnection: close\r\n\r\n`);
      answer.pipe(socket);
    });
    onward.on("error", () => socket.destroy());
    onward.end();
  }

  close(): void {
    for (const socket of this.#upgraded) {
      socket.destroy();
    }
  }

  #join(one: Duplex, other: Duplex): void {
    for (const [from, to] of [
      [one, other],
      [other, one],
    ] as const) {
      this.#upgraded.add(from);
      from.pipe(to);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#upgraded.delete(from);
        to.destroy();
      });
    }
  }

  #open({ method, url }: IncomingMessage, options: RequestOptions) {
    const send = this.#base.protocol === "https:" ? httpsRequest : httpRequest;
    const { hostname, port } = this.#base;
    // Not every resolver knows what lies below it.
    const host = hostname.endsWith(".localhost") ? "127.0.0.1" : hostname.replace(/^\[(.*)\]$/, "$1");
    return send({ ...options, host, port, method, path: this.#prefix + (url ?? "/") });
  }

  #onward(request: IncomingMessage, upgrade: boolean): Record<string, string | string[]> {
    const headers: Record<string, string | string[]> = {};
    for (const [name, value] of Object.entries(request.headers)) {
      if (value !== undefined && !OF_CONNECTION.includes(name)) {
        headers[name] = value;
      }
    }
    if (upgrade) {
      headers["connection"] = "Upgrade";
      headers["upgrade"] = request.headers.upgrade ?? "websocket";
    } else if (request.headers["transfer-encoding"] !== undefined) {
      headers["transfer-encoding"] = "chunked";
    }
    const { host, origin, referer, ...rest } = headers;
    const here = `http://${host}`;
    const there = this.#base.origin;
    return {
      ...rest,
      host: this.#base.host,
      // Pages from here are of the service's own origin there, as services demand of WebSockets; others stay strangers.
      ...(origin && { origin: origin === here ? there : origin }),
      ...(referer && { referer: moved(String(referer), here, there + this.#prefix) }),
      ...this.#headers,
    };
  }

  /** Redirects and cookies as the service itself has them. */
  #back(answer: IncomingMessage): string[] {
    const headers: string[] = [];
    for (let index = 0; index < answer.rawHeaders.length; index += 2) {
      const [name, value] = [answer.rawHeaders[index] ?? "", answer.rawHeaders[index + 1] ?? ""];
      const lower = name.toLowerCase();
      if (lower === "location") {
        headers.push(name, this.#location(value));
      } else if (lower === "set-cookie") {
        headers.push(
          name,
          value.replace(/(;\s*path=)([^;]*)/i, (_, before, path) => before + this.#bare(path)),
        );
      } else if (!OF_CONNECTION.includes(lower)) {
        headers.push(name, value);
      }
    }
    return headers;
  }

  #location(value: string): string {
    const { origin } = this.#base;
    return this.#bare(value.startsWith(`${origin}/`) ? value.slice(origin.length) : value);
  }

  #bare(path: string): string {
    const [has, next] = [path.startsWith(this.#prefix), path[this.#prefix.length]];
    return has && (next === undefined || next === "/" || next === "?") ? path.slice(this.#prefix.length) || "/" : path;
  }
}

/** A URL below one place as below another one; others as they are. */
function moved(url: string, from: string, to: string): string {
  return url.startsWith(`${from}/`) ? to + url.slice(from.length) : url;
}
