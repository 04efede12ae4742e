import { find } from "./client.js";
import { exitCodeOf } from "./exec.js";
import { age, printJson, printTable, write } from "./print.js";
import { type Command, EXIT, UsageError } from "./usage.js";

export const logs: Command = {
  name: "logs",
  operands: "CAPSULE [PROCESS]",
  summary: "Follow a process's output to its end, or list the processes",
  details:
    "PROCESS is a pid or a tag. What the capsule still holds of its output (up to 1 MiB of each stream) comes first.\n" +
    "Ctrl-C stops following; the process goes on.",
  options: {},
  async run(given) {
    const [target, selector, extra] = given.operands;
    if (target === undefined || extra !== undefined) {
      throw new UsageError(target === undefined ? "CAPSULE is missing" : `\`${extra}\` is one operand too many`);
    }
    const capsule = await find(target);
    const json = given.flag("json");
    if (selector === undefined) {
      const processes = await capsule.processes();
      if (json) {
        await printJson(processes);
      } else {
        const rows = processes.map((it) => {
          const state = it.running ? "running" : `exited ${exitCodeOf({ exitCode: it.exitCode, signal: it.signal })}`;
          return [String(it.pid), it.tag, it.user, state, age(it.startedAt), it.command.replaceAll("\n", "↵")];
        });
        await printTable(["PID", "TAG", "USER", "STATE", "AGE", "COMMAND"], rows);
      }
      return EXIT.ok;
    }
    const following = capsule.process(selector).follow({ acrossPauses: true });
    for await (const event of following) {
      if (json) {
        const data = event.type === "output" ? { data: Buffer.from(event.data).toString("base64") } : {};
        await printJson({ ...event, ...data });
      } else if (event.type === "output") {
        await write(event.stream === "stderr" ? process.stderr : process.stdout, event.data);
      } else {
        process.stderr.write(`wrenn: ${event.to - event.from} bytes of ${event.stream} are not held any more\n`);
      }
    }
    if (json) {
      await printJson({ type: "exit", ...(await following.exited) });
    }
    return EXIT.ok;
  },
};
