import { constants } from "node:os";
import { Readable } from "node:stream";
import type { Exit } from "../index.js";
import { find } from "./client.js";
import { isBrokenPipe } from "./failure.js";
import { print, printJson, write } from "./print.js";
import { assignments, type Command, EXIT, UsageError } from "./usage.js";

export const exec: Command = {
  name: "exec",
  operands: "CAPSULE [--] COMMAND…",
  summary: "Run a command, follow its output, and exit as it does",
  details:
    "One COMMAND is a shell line; several are a program with its arguments. Standard input is passed on unless it is a\n" +
    "terminal (for that see `shell`). Ctrl-C is passed on to the command.",
  passthrough: 1,
  options: {
    cwd: { type: "string", short: "w", value: "DIR", help: "where to run it; the user's home if absent" },
    env: { type: "string", short: "e", multiple: true, value: "NAME[=VALUE]", help: "a variable; repeatable" },
    user: { type: "string", short: "u", value: "USER", help: "as whom; the template's default if absent" },
    timeout: { type: "string", value: "SECONDS", help: "kill it after this" },
    tag: { type: "string", value: "TAG", help: "a name for it, for `logs`" },
    detach: { type: "boolean", short: "d", help: "start it in the background and print its tag" },
  },
  async run(given) {
    const [target, ...words] = given.operands;
    if (target === undefined || words.length === 0) {
      throw new UsageError(target === undefined ? "CAPSULE is missing" : "COMMAND is missing");
    }
    const command = words.length === 1 ? (words[0] as string) : words;
    const options = {
      cwd: given.text("cwd"),
      env: assignments(given.texts("env")),
      user: given.text("user"),
      timeoutSec: given.number("timeout"),
      tag: given.text("tag"),
    };
    const capsule = await find(target);
    if (given.flag("detach")) {
      const { selector } = await capsule.start(command, options);
      await (given.flag("json") ? printJson({ tag: selector }) : print(`${selector}\n`));
      return EXIT.ok;
    }
    const stdin = process.stdin.isTTY ? undefined : Readable.toWeb(process.stdin);
    const execution = capsule.exec(command, {
      ...options,
      stdin: stdin as ReadableStream<Uint8Array> | undefined,
      acrossPauses: true,
    });
    let asked = false;
    const interrupt = (signal: NodeJS.Signals) => {
      const passed = signal === "SIGINT" ? "SIGINT" : "SIGTERM";
      if (asked) {
        // Whoever asks twice does not want to wait for an answer.
        process.exit(128 + constants.signals[passed]);
      }
      asked = true;
      capsule
        .process(execution.tag)
        .signal(passed)
        .catch(() => {});
    };
    process.on("SIGINT", interrupt).on("SIGTERM", interrupt);
    try {
      if (given.flag("json")) {
        const { pid, exitCode, signal, stdout, stderr, truncated } = await execution;
        await printJson({ pid, tag: execution.tag, exitCode, signal, stdout, stderr, truncated });
        return exitCodeOf({ exitCode, signal });
      }
      for await (const event of execution) {
        if (event.type === "output") {
          await write(event.stream === "stderr" ? process.stderr : process.stdout, event.data);
        } else {
          process.stderr.write(`wrenn: ${event.to - event.from} bytes of ${event.stream} were lost\n`);
        }
      }
      return exitCodeOf(await execution);
    } catch (error) {
      if (isBrokenPipe(error)) {
        // As when a line breaks.
        await capsule
          .process(execution.tag)
          .signal("SIGHUP")
          .catch(() => {});
      }
      throw error;
    } finally {
      process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
      process.stdin.destroy();
    }
  },
};

/** As shells have it: 128 and the signal's number. */
export function exitCodeOf({ exitCode, signal }: Exit): number {
  if (exitCode !== null) {
    return exitCode;
  }
  const number = constants.signals[signal as NodeJS.Signals] as number | undefined;
  return number === undefined ? EXIT.lost : 128 + number;
}
