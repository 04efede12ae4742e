import { find } from "./client.js";
import { exitCodeOf } from "./exec.js";
import { printJson, write } from "./print.js";
import { assignments, type Command, EXIT, UsageError } from "./usage.js";

/** Ctrl-], as telnet and virsh have it. */
const DETACH = 0x1d;

/** Of a terminal whose size is not known. */
const [COLUMNS, ROWS] = [80, 24];

export const shell: Command = {
  name: "shell",
  operands: "CAPSULE [--] [COMMAND]",
  summary: "Open a terminal in a capsule",
  details:
    "Ctrl-] leaves it open and goes; --attach TAG comes back to it, from anywhere. A lost connection is taken up again\n" +
    "by itself, and so is a capsule that was paused, once it runs again.",
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
      given.flag("json") ? printJson({ tag: pty.tag }) : stdout.write(`${pty.tag}\n`);
      return EXIT.ok;
    }

    let left = false;
    const type = (data: Buffer): void => {
      const at = stdin.isTTY ? data.indexOf(DETACH) : -1;
      const typed = at < 0 ? data : data.subarray(0, at);
      // The output says how it went; one that ended takes no more input.
      const typing = pty.write(typed).catch(() => {});
      if (at >= 0) {
        left = true;
        void typing.then(() => pty.detach());
      }
    };
    const resize = (): void => {
      void pty.resize(stdout.columns || COLUMNS, stdout.rows || ROWS).catch(() => {});
    };
    if (stdin.isTTY) {
      stdin.setRawMode(true);
    }
    stdin.on("data", type);
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
        throw error;
      }
      process.stderr.write(`\r\n[left open: wrenn shell ${capsule.id} --attach ${pty.tag}]\r\n`);
      return EXIT.ok;
    } finally {
      stdin.off("data", type);
      stdout.off("resize", resize);
      if (stdin.isTTY) {
        stdin.setRawMode(false);
      }
      stdin.destroy();
    }
  },
};
