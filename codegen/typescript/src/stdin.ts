import { Input } from "./input.js";
import type { Wrenn } from "./wrenn.js";

/** The standard input of a process. One writer at a time: a second one would not know where the first one is. */
export class Stdin {
  readonly #wrenn: Wrenn;
  readonly #capsuleId: string;
  readonly #selector: string;
  readonly #input: Input;

  /** `from`: how many bytes were written to it before. */
  constructor(wrenn: Wrenn, capsuleId: string, selector: string, from = 0) {
    this.#wrenn = wrenn;
    this.#capsuleId = capsuleId;
    this.#selector = selector;
    this.#input = new Input(
      async (sequence, data, signal) => {
        await wrenn.graphql.writeStdin({ capsuleId, selector, sequence, data }, { overSocket: true, signal });
      },
      wrenn.patience,
      from,
    );
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
      { overSocket: true, repeatable: true },
    );
  }

  /** Ends what is under way. */
  abandon(): void {
    this.#input.abandon();
  }
}
