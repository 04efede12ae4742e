import { Input, type SendInput } from "./input.js";
import { acrossPauses } from "./pauses.js";
import { repeated } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

export interface StdinOptions {
  /** Wait while the capsule is paused. */
  across?: boolean | undefined;
  /** Nobody else has written, or will. */
  alone?: boolean | undefined;
}

/**
 * The standard input of a process. One writer at a time, in turn with others; where it is seen that somebody else wrote
 * at the same time, it fails with `CONFLICT`.
 */
export class Stdin {
  readonly #close: () => Promise<void>;
  readonly #input: Input;

  constructor(wrenn: Wrenn, capsuleId: string, selector: string, { across, alone }: StdinOptions) {
    const { graphql, patience } = wrenn;
    const carried = <T>(signal: AbortSignal, send: () => Promise<T>): Promise<T> =>
      acrossPauses(wrenn, capsuleId, { across, signal }, send);
    const write: SendInput = async (sequence, data, signal) => {
      const variables = { capsuleId, selector, sequence, data };
      const send = () => graphql.writeStdin(variables, { overSocket: true, signal });
      return (await carried(signal, send)).writeStdin.nextSequence;
    };
    this.#input = new Input(write, patience, alone ? { stands: 0, trust: Number.POSITIVE_INFINITY } : { trust: 0 });
    const signal = this.#input.abandoned;
    const close = () => graphql.closeStdin({ capsuleId, selector }, { overSocket: true, signal });
    this.#close = async () => {
      await repeated(patience, () => carried(signal, close), signal);
    };
  }

  /** Resolves when the process can read it. What is written meanwhile joins the next piece. */
  write(data: string | Uint8Array): Promise<void> {
    return this.#input.write(data);
  }

  /** End of file, after everything that was written. */
  async close(): Promise<void> {
    await this.#input.drained();
    await this.#close();
  }

  /** Ends what is under way. */
  abandon(): void {
    this.#input.abandon();
  }
}
