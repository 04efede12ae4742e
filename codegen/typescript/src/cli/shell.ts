import { setTimeout as sleep } from "node:timers/promises";
import { type Pty, WrennError } from "../index.js";
import { find } from "./client.js";
import { exitCodeOf } from "./exec.js";
import { print, printJson, write } from "./print.js";
import { assignments, type Command, EXIT, UsageError } from "./usage.js";

/** Ctrl-], as telnet and virsh have it. */
const DETACH = 0x1d;

/** Milliseconds that what was typed before it may take to arrive: it cannot while the capsule is paused. */
const LAST_KEYS = 1_000;

/** Ctrl-D, with which a terminal tells that input is at its end. */
const END = "\x04";

/** Milliseconds until it is told again: one program after another may read. */
const END_AGAIN = 1_000;

/** Of a terminal whose size is not known. */
const [COLUMNS, ROWS] = [80, 24];

export const shell: Command = {
  name: "shell",
  operands: "CAPSULE [--] [COMMAND]",
  summary: "Open a terminal in a capsule",
  details:
    "Ctrl-] leaves it open and goes; --attach TAG comes back to it, from anywhere. A lost connection is taken up again\n" +
    "by itself, and so is a capsule that was paused, once it runs again. Where standard input is not a terminal, its end\n" +
    "is told to the programs in the terminal by Ctrl-D, and ends the shell when it has read what came before; without\n" +
    "any input, --attach only looks on.",
  passthrough: 1,
  options: {
    attach: { type: "string", short: "a", value: "TAG", help: "an open terminal instead of a new one" },
    cwd: { type: "string", short: "w", value: "DIR", help: "where to begin; the user's home if absent" },
    env: { type: "string", short: "e", multiple: true, value: "NAME[=VALUE]", help: "a variable; repeatable" },
    user: { type: "string", short: "u", value: "USER", help: "as whom; the template's default if absent" },
    tag: { type: "string", value: "TAG", help: "a name for it, for --attach" },
    detach: { type: "boolean", short: "d", help: "open it and print its tag, no more" },
  },
  async run(given) {
    const [target, ...words] = given.operands;
    if (target === undefined) {
      throw new UsageError("CAPSULE is missing");
    }
    const { stdin, stdout } = process;
    const capsule = await find(target);
    const attached = given.text("attach");
    const size = { columns: stdout.columns || COLUMNS, rows: stdout.rows || ROWS };
    const pty =
      attached === undefined
        ? await capsule.pty({
            ...size,
            command: words.length > 0 ? words.join(" ") : undefined,
            cwd: given.text("cwd"),
            env: assignments(given.texts("env")),
            user: given.text("user"),
            tag: given.text("tag"),
            acrossPauses: true,
          })
        : await capsule.attach(attached, { acrossPauses: true });
    if (given.flag("detach")) {
      pty.detach();
      await (given.flag("json") ? printJson({ tag: pty.tag }) : print(`${pty.tag}\n`));
      return EXIT.ok;
    }

    let left = false;
    let overtaken: WrennError | undefined;
    const refused = (error: unknown): void => {
      // Otherwise the output says how it went; one that ended takes no more input.
      if (error instanceof WrennError && error.code === "CONFLICT") {
        overtaken = error;
        pty.detach();
      }
    };
    let lineOpen = false;
    // Who only looks on at somebody's terminal has no input that could end.
    let typing = attached === undefined;
    const type = (data: Buffer): void => {
      const at = stdin.isTTY ? data.indexOf(DETACH) : -1;
      const typed = at < 0 ? data : data.subarray(0, at);
      lineOpen = ![0x0a, 0x0d].includes(typed.at(-1) ?? 0x0a);
      typing = true;
      const taken = pty.write(typed).catch(refused);
      if (at >= 0) {
        left = true;
        void Promise.race([taken, sleep(LAST_KEYS, undefined, { ref: false })]).then(() => pty.detach());
      }
    };
    const end = (): void => {
      if (typing) {
        void endInput(pty, lineOpen).catch(refused);
      }
    };
    const resize = (): void => {
      void pty.resize(stdout.columns || COLUMNS, stdout.rows || ROWS).catch(() => {});
    };
    if (stdin.isTTY) {
      stdin.setRawMode(true);
    }
    stdin.on("data", type).on("end", end);
    stdout.on("resize", resize);
    try {
      if (attached !== undefined && stdout.isTTY) {
        resize();
      }
      for await (const data of pty) {
        await write(stdout, data);
      }
      return exitCodeOf(await pty.exited);
    } catch (error) {
      if (!left) {
        throw overtaken ?? error;
      }
      process.stderr.write(`\r\n[left open: wrenn shell ${capsule.id} --attach ${pty.tag}]\r\n`);
      return EXIT.ok;
    } finally {
      stdin.off("data", type).off("end", end);
      stdout.off("resize", resize);
      if (stdin.isTTY) {
        stdin.setRawMode(false);
      }
      stdin.destroy();
    }
  },
};

/** Tells whoever reads from a terminal that there is no more input, until it ends and takes none. */
async function endInput(pty: Pty, lineOpen: boolean): Promise<void> {
  // Ctrl-D means that only where a line begins.
  await pty.write(lineOpen ? `\n${END}` : END);
  for (;;) {
    await sleep(END_AGAIN, undefined, { ref: false });
    await pty.write(END);
  }
}
