import { Input } from "./input.js";
import { acrossPauses } from "./pauses.js";
import type { Wrenn } from "./wrenn.js";

/** The standard input of a process. One writer at a time: a second one would not know where the first one is. */
export class Stdin {
  readonly #wrenn: Wrenn;
  readonly #capsuleId: string;
  readonly #selector: string;
  readonly #input: Input;

  /** `across`: wait while the capsule is paused. */
  constructor(wrenn: Wrenn, capsuleId: string, selector: string, across = false) {
    this.#wrenn = wrenn;
    this.#capsuleId = capsuleId;
    this.#selector = selector;
    this.#input = new Input(async (sequence, data, signal) => {
      const variables = { capsuleId, selector, sequence, data };
      const send = () => wrenn.graphql.writeStdin(variables, { overSocket: true, signal });
      await (across ? acrossPauses(wrenn, capsuleId, signal, send) : send());
    }, wrenn.patience);
  }

  /** Resolves when the process can read it. What is written meanwhile joins the next piece. */
  write(data: string | Uint8Array): Promise<void> {
    return this.#input.write(data);
  }

  /** End of file, after everything that was written. */
  async close(): Promise<void> {
    await this.#input.drained();
    await this.#wrenn.graphql.closeStdin(
      { capsuleId: this.#capsuleId, selector: this.#selector },
      { overSocket: true, repeatable: true, signal: this.#input.abandoned },
    );
  }

  /** Ends what is under way. */
  abandon(): void {
    this.#input.abandon();
  }
}
