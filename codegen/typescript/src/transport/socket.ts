import { type Client, createClient } from "graphql-ws/client";
import { SocketImplementation } from "#websocket";
import { connectionLost, fromServer, type ServerError, WrennError } from "../errors.js";

/** Operations on one socket; the server allows 100 unless it is told otherwise. */
const OPERATIONS_PER_SOCKET = 64;

/** Milliseconds that a socket without operations stays open, so that the next one finds it. */
const LINGER = 1_000;

/** Milliseconds of silence before the server is asked whether it is there. */
const KEEP_ALIVE = 10_000;

/** Milliseconds it has to answer with anything at all. */
const KEEP_ALIVE_ANSWER = 10_000;

/** Milliseconds a new socket has until it is acknowledged. */
const ACKNOWLEDGEMENT = 15_000;

/** Forbidden: the credentials were refused, or no longer stand. */
const FORBIDDEN = 4403;

/** Milliseconds to wait for the last of an operation that was given up. */
const LAST_WORDS = 30_000;

/** An operation that was begun. */
export interface Operation {
  /** Ends it; nothing is told after that. */
  end(): void;
  /** Asks the server to send no more, while what is under way still comes; resolves when nothing can come any more. */
  finish(): Promise<void>;
}

/** Of what an operation is told. Exactly one of `complete` and `error` is the last. */
export interface Sink {
  next(data: unknown): void;
  error(error: unknown): void;
  complete(): void;
}

/**
 * The sockets to one server, opened when something is to be sent and closed when nothing is under way.
 *
 * A socket that is lost ends its operations with `CONNECTION_LOST`. Nothing is sent again here: only who asked knows
 * where to go on.
 */
export class Sockets {
  readonly #url: string;
  readonly #parameters: Record<string, unknown>;
  #links: Link[] = [];
  #closed = false;

  constructor(url: string, parameters: Record<string, unknown>) {
    this.#url = url;
    this.#parameters = parameters;
  }

  /** Begins an operation. */
  subscribe(query: string, variables: unknown, sink: Sink): Operation {
    if (this.#closed) {
      throw closed();
    }
    this.#links = this.#links.filter((link) => !link.lost);
    let link = this.#links.find((candidate) => candidate.operations < OPERATIONS_PER_SOCKET);
    if (link === undefined) {
      link = new Link(this.#url, this.#parameters);
      this.#links.push(link);
    }
    return link.subscribe(query, variables, sink);
  }

  /** Runs an operation that has one answer. */
  execute<T>(query: string, variables: unknown, signal?: AbortSignal): Promise<T> {
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        operation.end();
        reject(signal?.reason);
      };
      const done = (): void => signal?.removeEventListener("abort", abort);
      const operation = this.subscribe(query, variables, {
        next: (data) => resolve(data as T),
        error: (error) => {
          done();
          reject(error);
        },
        complete: () => {
          done();
          // Of no effect where there was an answer.
          reject(new WrennError("INTERNAL", "the server completed an operation without an answer"));
        },
      });
      signal?.aborted ? abort() : signal?.addEventListener("abort", abort);
    });
  }

  /** Closes all sockets, and with them what is under way, for good. */
  close(): void {
    this.#closed = true;
    for (const link of this.#links.splice(0)) {
      link.close();
    }
  }
}

interface Result {
  data?: unknown;
  errors?: readonly ServerError[];
}

/** One socket's life. The client below would open another one by itself and send operations twice: it gets no chance to. */
class Link {
  readonly #client: Client;
  /** Why it is no more. */
  lost: WrennError | undefined;
  operations = 0;
  #silence: ReturnType<typeof setTimeout> | undefined;
  #socket: WebSocket | undefined;
  #begun = 0;
  #barriers = 0;
  /** Who is told what still comes of operations that were given up. */
  readonly #finishing = new Map<string, (result: Result) => void>();
  /** Who waits for the answer to which ping. */
  readonly #pings = new Map<number, () => void>();

  constructor(url: string, parameters: Record<string, unknown>) {
    if (SocketImplementation === undefined) {
      throw new WrennError("FAILED_PRECONDITION", "this runtime has no WebSocket");
    }
    this.#client = createClient({
      url,
      webSocketImpl: SocketImplementation,
      connectionParams: parameters,
      retryAttempts: 0,
      lazyCloseTimeout: LINGER,
      keepAlive: KEEP_ALIVE,
      connectionAckWaitTimeout: ACKNOWLEDGEMENT,
      generateID: () => String(this.#begun),
      on: {
        connected: (socket) => {
          this.#socket = socket as WebSocket;
        },
        pong: (received, payload) => {
          if (received) {
            this.#passed(payload?.["barrier"]);
          }
        },
        ping: (received) => {
          if (!received) {
            this.#expectAnswer();
          }
        },
        message: (message) => {
          this.#heard();
          if (message.type === "next") {
            this.#finishing.get(message.id)?.(message.payload as Result);
          }
        },
        error: (error) => this.#end(lossOf(error)),
        closed: (event) => this.#end(lossOf(event)),
      },
    });
  }

  subscribe(query: string, variables: unknown, sink: Sink): Operation {
    this.operations++;
    this.#begun++;
    const id = String(this.#begun);
    let open = true;
    let settled = false;
    const last = (tell: () => void): void => {
      if (open) {
        open = false;
        this.operations--;
        tell();
      }
    };
    // Not at once: the server's own `complete` may be the next message, and the client below counts both.
    const leave = (): void => {
      setTimeout(() => {
        if (!settled) {
          end();
        }
      }, 0);
    };
    const take = ({ data, errors }: Result): void => {
      if (!open) {
        return;
      }
      if (errors !== undefined && errors.length > 0) {
        last(() => sink.error(fromServer(errors)));
        leave();
      } else {
        sink.next(data);
      }
    };
    const end = this.#client.subscribe(
      { query, variables: variables as Record<string, unknown> },
      {
        next: (result) => take(result as Result),
        error: (error) => {
          settled = true;
          last(() => sink.error(Array.isArray(error) ? fromServer(error) : lossOf(error)));
        },
        complete: () => {
          settled = true;
          last(() => (this.lost ? sink.error(this.lost) : sink.complete()));
        },
      },
    );
    return {
      end: () => {
        last(() => {});
        leave();
      },
      finish: async () => {
        await new Promise((resolve) => setTimeout(resolve, 0));
        if (!settled) {
          // The client below forgets the operation now.
          this.#finishing.set(id, take);
          end();
          await this.#barrier();
          this.#finishing.delete(id);
        }
        last(() => {});
      },
    };
  }

  /** Until everything that the server has sent so far is here: its answer to a ping comes after that. */
  #barrier(): Promise<void> {
    const number = ++this.#barriers;
    return new Promise((resolve) => {
      const over = (): void => {
        clearTimeout(timer);
        this.#pings.delete(number);
        resolve();
      };
      // An answer may be left out for the one to a later ping.
      const timer = setTimeout(over, LAST_WORDS);
      this.#pings.set(number, over);
      if (this.lost || this.#socket?.readyState !== this.#socket?.OPEN) {
        over();
      } else {
        this.#socket?.send(JSON.stringify({ type: "ping", payload: { barrier: number } }));
      }
    });
  }

  #passed(barrier: unknown): void {
    for (const [number, over] of this.#pings) {
      if (typeof barrier === "number" && number <= barrier) {
        over();
      }
    }
  }

  close(): void {
    this.#end(closed());
  }

  #expectAnswer(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#client.terminate(), KEEP_ALIVE_ANSWER);
  }

  #heard(): void {
    clearTimeout(this.#silence);
    this.#silence = undefined;
  }

  #end(why: WrennError): void {
    this.lost ??= why;
    this.#heard();
    this.#passed(Number.POSITIVE_INFINITY);
    // Keeps the client from connecting again for what is under way.
    void Promise.resolve(this.#client.dispose()).catch(() => {});
  }
}

function closed(): WrennError {
  return new WrennError("FAILED_PRECONDITION", "the client was closed");
}

/** From a close event, an error event, or an error. */
function lossOf(event: unknown): WrennError {
  if (event instanceof WrennError) {
    return event;
  }
  const { code, reason, message } = event as { code?: unknown; reason?: unknown; message?: unknown };
  if (code === FORBIDDEN) {
    return new WrennError("UNAUTHENTICATED", "the server does not accept these credentials (any more)", {
      cause: event,
    });
  }
  const said = [code, reason || message].filter((part) => part !== undefined && part !== "").join(" ");
  return connectionLost(`the connection to the server broke${said ? `: ${said}` : ""}`, event);
}
