import { WrennError } from "../index.js";
import { close } from "./client.js";
import { cp } from "./cp.js";
import { exec } from "./exec.js";
import { complain, explain, isBrokenPipe } from "./failure.js";
import { forward } from "./forward.js";
import { create, fork, ls, pause, resume, rm } from "./lifecycle.js";
import { logs } from "./logs.js";
import { ports } from "./ports.js";
import { print } from "./print.js";
import { shell } from "./shell.js";
import { type Command, columns, EXIT, helpOf, parse, UsageError } from "./usage.js";

const COMMANDS: Command[] = [create, ls, exec, shell, cp, logs, ports, forward, pause, resume, fork, rm];

function help(): string {
  const rows = COMMANDS.map(({ name, operands, summary }) => [`  ${name} ${operands}`.trimEnd(), summary] as const);
  return `Usage: wrenn COMMAND …

Capsules (microVMs) from a terminal. CAPSULE is an id, \`cl-…\`, or a capsule's name.

Commands:
${columns(rows)}

Each takes --help, and --json for output that programs read.
The server and the key come from WRENN_URL and WRENN_API_KEY.

Exit codes: 0 done, 1 failed, 2 used wrongly; \`exec\` and \`shell\` exit as what they ran did (128 + N after signal N),
and with 125 if its end is not known.
`;
}

/** Carries out one command line; the exit code. */
export async function run(argv: string[]): Promise<number> {
  for (const stream of [process.stdout, process.stderr]) {
    // Whoever writes and waits for it is told.
    stream.on("error", () => {});
  }
  const [name, ...rest] = argv;
  const command = COMMANDS.find((candidate) => candidate.name === name);
  let json = false;
  try {
    if (name === undefined || name === "help" || name === "--help" || name === "-h") {
      await print(help());
      return name === undefined ? EXIT.usage : EXIT.ok;
    }
    if (command === undefined) {
      complain(`there is no command \`${name}\`: \`wrenn --help\` lists them`);
      return EXIT.usage;
    }
    const given = parse(command, rest);
    json = given.flag("json");
    if (given.flag("help")) {
      await print(helpOf(command));
      return EXIT.ok;
    }
    return await command.run(given);
  } catch (error) {
    return failed(command, error, json);
  } finally {
    close();
  }
}

function failed(command: Command | undefined, error: unknown, json: boolean): number {
  if (isBrokenPipe(error)) {
    return EXIT.unread;
  }
  if (error instanceof UsageError) {
    complain(`${error.message}\nUsage: wrenn ${command?.name} [OPTION…] ${command?.operands}`);
    return EXIT.usage;
  }
  if (!(error instanceof WrennError)) {
    complain(error instanceof Error ? error.message : String(error));
    return EXIT.failed;
  }
  explain(error, json);
  return command?.name === "exec" || command?.name === "shell" ? EXIT.lost : EXIT.failed;
}
