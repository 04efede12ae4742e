import { present } from "./live.js";
import type { Wrenn } from "./wrenn.js";

/** A TCP port that something in a capsule listens on. */
export interface Port {
  number: number;
  /** The command name of who listens, where it can be told. */
  process: string | null;
  /** When it was first seen. */
  since: Date;
  /** Whether it can be reached from outside without credentials. */
  public: boolean;
}

/** The ports of one capsule. */
export class Ports {
  readonly #wrenn: Wrenn;
  readonly #id: string;

  constructor(wrenn: Wrenn, capsuleId: string) {
    this.#wrenn = wrenn;
    this.#id = capsuleId;
  }

  /** What listens in the capsule; nothing while it is not running. */
  async list(): Promise<Port[]> {
    const { capsule } = await this.#wrenn.graphql.ports({ id: this.#id });
    return present(capsule, this.#id).ports.map(({ since, number, process, public: open }) => {
      return { number, process, since: new Date(since), public: open };
    });
  }
}
