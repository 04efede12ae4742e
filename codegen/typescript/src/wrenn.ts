import type { DocumentNode } from "graphql";
import { textOf } from "./document.js";
import { isLost, WrennError } from "./errors.js";
import { getSdk, type Sdk } from "./generated/graphql.js";
import { repeated } from "./retry.js";
import { type Address, parseAddress } from "./transport/address.js";
import { events } from "./transport/events.js";
import { post } from "./transport/http.js";
import { Sockets } from "./transport/socket.js";

export interface WrennOptions {
  /** An API key, `wrn_…`; the environment's `WRENN_API_KEY` if absent. */
  apiKey?: string | undefined;
  /** Where the server is, with or without `/graphql`; the environment's `WRENN_URL` if absent. */
  url?: string | undefined;
  /**
   * For how many seconds a server, a host or a network that is away is waited for before what waits fails with
   * `UNAVAILABLE`; 60 if absent.
   */
  patienceSec?: number | undefined;
}

export interface RequestOptions {
  /** Gives it up at once; it fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Of a mutation: doing it twice is like doing it once, so it may be sent again when the answer to it got lost. */
  repeatable?: boolean | undefined;
  /** Over the socket that streams use; for what is small and often. */
  overSocket?: boolean | undefined;
}

const DEFAULT_PATIENCE_SEC = 60;

/** A client of one server, for one API key. What it opens is opened when needed, and closed when idle. */
export class Wrenn {
  /** Every operation of this package as it is in the schema, typed. Its subscriptions end when their connection does. */
  readonly graphql: Sdk;
  /** @internal Milliseconds. */
  readonly patience: number;
  /** @internal */
  readonly address: Address;
  /** @internal */
  readonly sockets: Sockets;
  readonly #apiKey: string;

  constructor(options: WrennOptions = {}) {
    const url = options.url ?? fromEnvironment("WRENN_URL");
    if (!url) {
      throw missing("url", "WRENN_URL");
    }
    const apiKey = options.apiKey ?? fromEnvironment("WRENN_API_KEY");
    if (!apiKey) {
      throw missing("apiKey", "WRENN_API_KEY");
    }
    this.#apiKey = apiKey;
    this.address = parseAddress(url);
    this.patience = (options.patienceSec ?? DEFAULT_PATIENCE_SEC) * 1_000;
    this.sockets = new Sockets(this.address.socket, { apiKey });
    this.graphql = getSdk<RequestOptions>((document: DocumentNode, variables, options) =>
      this.#run(textOf(document), variables, options ?? {}),
    );
  }

  /** @internal What every request carries. */
  get headers(): Record<string, string> {
    return { "x-api-key": this.#apiKey };
  }

  /**
   * Ends what goes on over its sockets, for good. Needed only where something still goes on: sockets that are idle close
   * by themselves, within a second.
   */
  close(): void {
    this.sockets.close();
  }

  #run<R>(query: string, variables: unknown, options: RequestOptions): Promise<R> | AsyncIterable<R> {
    if (query.startsWith("subscription")) {
      return events(this.sockets, query, variables, options.signal) as AsyncIterable<R>;
    }
    const attempt = (): Promise<R> =>
      options.overSocket
        ? this.sockets.execute<R>(query, variables, options.signal)
        : post<R>(this.address.graphql, this.headers, query, variables, options.signal);
    if (query.startsWith("query")) {
      return repeated(this.patience, attempt, options.signal);
    }
    // What the server itself could not do is for the caller to decide.
    return options.repeatable ? repeated(this.patience, attempt, options.signal, isLost) : attempt();
  }
}

let shared: Wrenn | undefined;

/** The client that the environment describes, made when it is first asked for. */
export function fromEnv(): Wrenn {
  shared ??= new Wrenn();
  return shared;
}

function missing(field: string, variable: string): WrennError {
  return new WrennError("INVALID_INPUT", `no \`${field}\` was given, and ${variable} is not set`, { field });
}

/** Of a runtime that has an environment. */
function fromEnvironment(name: string): string | undefined {
  const process = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process;
  return process?.env?.[name];
}
