import { concat, toBase64, toBytes } from "./bytes.js";
import { WrennError } from "./errors.js";
import { repeated } from "./retry.js";

/** Bytes sent at once. */
const PIECE = 64 * 1024;

/** Sends `data` (base64), whose first byte has the offset `sequence` (decimal digits) in the whole input. */
export type SendInput = (sequence: string, data: string, signal: AbortSignal) => Promise<void>;

interface Waiting {
  /** Offset behind the last byte. */
  end: number;
  resolve(): void;
  reject(error: unknown): void;
}

/**
 * The input of a process or a terminal: in order and exactly once, over any number of connections.
 *
 * One piece is under way at a time, and what is written meanwhile joins the next. A piece whose answer got lost is sent
 * again with the same offset, of which the server takes what it does not have.
 */
export class Input {
  readonly #send: SendInput;
  readonly #patience: number;
  readonly #abandoned = new AbortController();
  #parts: Uint8Array[] = [];
  #waiting: Waiting[] = [];
  /** Offset behind what was written to this object. */
  #written: number;
  /** Offset behind what the server took. */
  #sent: number;
  #sending: Promise<void> | undefined;
  #failure: { error: unknown } | undefined;

  constructor(send: SendInput, patience: number, from = 0) {
    this.#send = send;
    this.#patience = patience;
    this.#written = from;
    this.#sent = from;
  }

  /** Resolves when the data is where the process can read it. */
  write(data: string | Uint8Array): Promise<void> {
    if (this.#failure !== undefined) {
      return Promise.reject(this.#failure.error);
    }
    // A copy: the caller may use its buffer again.
    const bytes = toBytes(data).slice();
    if (bytes.length === 0) {
      return this.#sending ?? Promise.resolve();
    }
    this.#parts.push(bytes);
    this.#written += bytes.length;
    const end = this.#written;
    const written = new Promise<void>((resolve, reject) => {
      this.#waiting.push({ end, resolve, reject });
    });
    this.#sending ??= this.#run();
    return written;
  }

  /** Resolves when everything that was written has been taken. */
  async drained(): Promise<void> {
    await this.#sending;
    if (this.#failure !== undefined) {
      throw this.#failure.error;
    }
  }

  /** Aborted when nothing is to be written any more. */
  get abandoned(): AbortSignal {
    return this.#abandoned.signal;
  }

  /** Ends what is under way. */
  abandon(): void {
    this.#abandoned.abort(new WrennError("FAILED_PRECONDITION", "the input is not written any more"));
  }

  async #run(): Promise<void> {
    const { signal } = this.#abandoned;
    try {
      while (this.#parts.length > 0) {
        const piece = this.#nextPiece();
        const sequence = String(this.#sent);
        const data = toBase64(piece);
        await repeated(this.#patience, () => this.#send(sequence, data, signal), signal);
        this.#sent += piece.length;
        this.#settle();
      }
    } catch (error) {
      this.#failure = { error };
      for (const waiting of this.#waiting.splice(0)) {
        waiting.reject(error);
      }
    }
    this.#sending = undefined;
  }

  #nextPiece(): Uint8Array {
    const whole = this.#parts.length === 1 ? (this.#parts[0] as Uint8Array) : concat(this.#parts);
    const rest = whole.subarray(PIECE);
    this.#parts = rest.length > 0 ? [rest] : [];
    return whole.subarray(0, PIECE);
  }

  #settle(): void {
    const first = this.#waiting.findIndex((waiting) => waiting.end > this.#sent);
    for (const waiting of this.#waiting.splice(0, first < 0 ? this.#waiting.length : first)) {
      waiting.resolve();
    }
  }
}
