import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** A way to a server whose connections break: each after as many bytes of answers as it is told. */
export class Cutter {
  readonly #server: Server;
  readonly #open = new Set<Socket>();
  readonly #target: URL;
  /** How many bytes the next connection lets through; all of them if not a number. */
  allowance: () => number = () => Number.NaN;
  cuts = 0;

  private constructor(target: string) {
    this.#target = new URL(target);
    this.#server = createServer((near) => this.#join(near));
  }

  static async start(target: string): Promise<Cutter> {
    const cutter = new Cutter(target);
    await new Promise<void>((resolve) => cutter.#server.listen(0, "127.0.0.1", resolve));
    return cutter;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Every connection breaks now. */
  cut(): void {
    for (const socket of this.#open) {
      this.cuts++;
      socket.destroy();
    }
  }

  async stop(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.cut();
    await closed;
  }

  #join(near: Socket): void {
    const far = connect(Number(this.#target.port || 80), this.#target.hostname);
    let left = this.allowance();
    this.#open.add(near);
    const end = (): void => {
      this.#open.delete(near);
      near.destroy();
      far.destroy();
    };
    for (const socket of [near, far]) {
      socket.on("error", end).on("close", end);
    }
    near.pipe(far);
    far.on("data", (data) => {
      left -= data.length;
      if (left < 0) {
        this.cuts++;
        end();
      } else if (!near.write(data)) {
        far.pause();
        near.once("drain", () => far.resume());
      }
    });
  }
}
