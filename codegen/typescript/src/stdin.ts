import { Input } from "./input.js";
import { acrossPauses } from "./pauses.js";
import { repeated } from "./retry.js";
import type { Wrenn } from "./wrenn.js";

/** The standard input of a process. One writer at a time: a second one would not know where the first one is. */
export class Stdin {
  readonly #close: () => Promise<void>;
  readonly #input: Input;

  /** `across`: wait while the capsule is paused. */
  constructor(wrenn: Wrenn, capsuleId: string, selector: string, across = false) {
    const { graphql, patience } = wrenn;
    const carried = async (signal: AbortSignal, send: () => Promise<unknown>): Promise<void> => {
      await (across ? acrossPauses(wrenn, capsuleId, signal, send) : send());
    };
    this.#input = new Input(async (sequence, data, signal) => {
      const variables = { capsuleId, selector, sequence, data };
      await carried(signal, () => graphql.writeStdin(variables, { overSocket: true, signal }));
    }, patience);
    const signal = this.#input.abandoned;
    const close = () => graphql.closeStdin({ capsuleId, selector }, { overSocket: true, signal });
    this.#close = () => repeated(patience, () => carried(signal, close), signal);
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
