import { concat, toBase64, toBytes } from "./bytes.js";
import { WrennError } from "./errors.js";
import { repeated } from "./retry.js";

/** Bytes sent at once. */
const PIECE = 64 * 1024;

/** Milliseconds for the answer about what is under way when its reader has ended. */
const LAST_ANSWER = 2_000;

/**
 * Sends `data` (base64), whose first byte has the offset `sequence` (decimal digits) in the whole input. Answers with the
 * offset behind all that was ever taken.
 */
export type SendInput = (sequence: string, data: string, signal: AbortSignal) => Promise<string>;

interface Waiting {
  /** Bytes that were written up to the last one of it. */
  end: number;
  resolve(): void;
  reject(error: unknown): void;
}

/**
 * The input of a process or a terminal: in order and exactly once, over any number of connections.
 *
 * One piece is under way at a time, and what is written meanwhile joins the next. A piece whose answer got lost is sent
 * again with the same offset, of which the server takes what it does not have. So what somebody else writes at the same
 * time cannot be told from a repeat: where an answer shows that somebody did, writing fails. Who wrote before is no
 * trouble: where the input stands is asked for when that was not heard lately.
 */
export class Input {
  readonly #send: SendInput;
  readonly #patience: number;
  readonly #abandoned = new AbortController();
  #parts: Uint8Array[] = [];
  #waiting: Waiting[] = [];
  readonly #trust: number;
  /** Offset behind all that the server took from anybody, and when it said so. */
  #stands: number | undefined;
  #heard = Date.now();
  /** Bytes that were written to this object. */
  #written = 0;
  /** Bytes of these that the server took. */
  #sent = 0;
  #sending: Promise<void> | undefined;
  #failure: { error: unknown } | undefined;

  /** `stands`: the offset where the input is now, if that is known. `trust`: for how many milliseconds it stays known. */
  constructor(send: SendInput, patience: number, { stands, trust }: { stands?: number | undefined; trust: number }) {
    this.#send = send;
    this.#patience = patience;
    this.#stands = stands;
    this.#trust = trust;
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

  /**
   * The reader has ended. What is under way may be what it ended of: that this was taken is then on its way, and only
   * heard later.
   */
  end(): void {
    if (this.#sending === undefined) {
      return this.abandon();
    }
    const abandon = (): void => this.abandon();
    const timer = setTimeout(abandon, LAST_ANSWER);
    void this.#sending.then(() => clearTimeout(timer)).then(abandon);
  }

  /** Ends what is under way. */
  abandon(): void {
    this.#abandoned.abort(new WrennError("FAILED_PRECONDITION", "the input is not written any more"));
  }

  async #run(): Promise<void> {
    try {
      if (this.#stands === undefined || Date.now() - this.#heard >= this.#trust) {
        // Nothing, at the beginning: a repeat, which is answered with where the input stands.
        this.#stands = await this.#carry(0, "");
      }
      while (this.#parts.length > 0) {
        const piece = this.#nextPiece();
        const end: number = this.#stands + piece.length;
        this.#stands = await this.#carry(this.#stands, toBase64(piece));
        if (this.#stands !== end) {
          throw new WrennError(
            "CONFLICT",
            "somebody else writes this input as well: what was written here may be lost",
          );
        }
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

  async #carry(sequence: number, data: string): Promise<number> {
    const { signal } = this.#abandoned;
    const stands = await repeated(this.#patience, () => this.#send(String(sequence), data, signal), signal);
    this.#heard = Date.now();
    return Number(stands);
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
