import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { until } from "./until.js";

export const CLI = fileURLToPath(new URL("../../../dist/cli/main.js", import.meta.url));

/** A program that is running, and what it has said. */
export class Running {
  readonly #child: ChildProcessWithoutNullStreams;
  stdout = "";
  stderr = "";
  readonly ended: Promise<number>;

  constructor(program: string, args: string[], environment: Record<string, string> = {}) {
    this.#child = spawn(program, args, { env: { ...process.env, ...environment } });
    this.#child.stdout.setEncoding("utf8").on("data", (data: string) => {
      this.stdout += data;
    });
    this.#child.stderr.setEncoding("utf8").on("data", (data: string) => {
      this.stderr += data;
    });
    // One that has ended reads no more.
    this.#child.stdin.on("error", () => {});
    this.ended = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("close", (code, signal) =>
        code === null ? reject(new Error(`killed by ${signal}`)) : resolve(code),
      );
    });
  }

  type(text: string | Uint8Array): void {
    this.#child.stdin.write(text);
  }

  end(text: string | Uint8Array = ""): void {
    this.#child.stdin.end(text);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Waits until it has said this. */
  async says(what: string | RegExp): Promise<string> {
    const has = () => (typeof what === "string" ? this.stdout.includes(what) : what.test(this.stdout)) && this.stdout;
    return until(`\`${what}\` in ${JSON.stringify(this.stdout)}`, async () => has());
  }
}

export interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs the command line to its end. */
export async function cli(
  args: string[],
  stdin: string | Uint8Array = "",
  environment: Record<string, string> = {},
): Promise<Outcome> {
  const running = new Running(process.execPath, [CLI, ...args], environment);
  running.end(stdin);
  const code = await running.ended;
  return { code, stdout: running.stdout, stderr: running.stderr };
}

/** The command line in a terminal of its own, which says its name first. */
export function inTerminal(args: string[], environment: Record<string, string> = {}): Running {
  const words = [process.execPath, CLI, ...args].map((word) => `'${word}'`).join(" ");
  return new Running("script", ["-qefc", `stty rows 33 cols 99; tty; exec ${words}`, "/dev/null"], environment);
}
