import { present } from "./live.js";
import { type SignedUrl, signed } from "./signed.js";
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

/** Seconds. */
const HOUR = 3600;

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

  /** Where a service on this port is reached from outside: by a member of the team, or by anybody if it is public. */
  async url(port: number): Promise<string> {
    const { capsule } = await this.#wrenn.graphql.portUrl({ id: this.#id, port });
    return present(capsule, this.#id).url;
  }

  /** A URL for whoever has it; good for an hour unless another time (at most a week) is given. */
  async previewUrl(
    port: number,
    { expiresInSec = HOUR }: { expiresInSec?: number | undefined } = {},
  ): Promise<SignedUrl> {
    const variables = { capsuleId: this.#id, port, expiresInSec };
    const { createPreviewUrl } = await this.#wrenn.graphql.createPreviewUrl(variables, { repeatable: true });
    return signed(createPreviewUrl);
  }

  /** Lets anybody reach a port, or only members of the team again. */
  async setPublic(port: number, open: boolean): Promise<void> {
    const variables = { capsuleId: this.#id, port, public: open };
    await this.#wrenn.graphql.setPortPublic(variables, { repeatable: true });
  }
}
