import { type ParseArgsConfig, parseArgs } from "node:util";

/** The user's mistake: the message says what was wrong and what would be right. */
export class UsageError extends Error {}

/** Exit codes besides those of commands that run in capsules. `unread`: as of a tool that SIGPIPE ends. */
export const EXIT = { ok: 0, failed: 1, usage: 2, lost: 125, unread: 141 } as const;

type OptionTypes = NonNullable<ParseArgsConfig["options"]>;

export interface OptionText {
  type: "string" | "boolean";
  short?: string;
  multiple?: boolean;
  /** What stands for the value in the help, as `SECONDS`. */
  value?: string;
  help: string;
}

/** What a command is given. */
export interface Given {
  operands: string[];
  flag(name: string): boolean;
  text(name: string): string | undefined;
  texts(name: string): string[];
  number(name: string): number | undefined;
}

export interface Command {
  name: string;
  /** Of the operands, as `CAPSULE COMMAND…`. */
  operands: string;
  summary: string;
  /** More to say in its own help. */
  details?: string;
  options: Record<string, OptionText>;
  /** Everything after the operands that come first belongs to somebody else, dashes included. */
  passthrough?: number;
  /** The exit code. */
  run(given: Given): Promise<number>;
}

const COMMON: Record<string, OptionText> = {
  json: { type: "boolean", help: "print JSON for programs" },
  help: { type: "boolean", short: "h", help: "show this help" },
};

export function helpOf(command: Command): string {
  const options = Object.entries({ ...command.options, ...COMMON }).map(([name, option]) => {
    const short = option.short ? `-${option.short}, ` : "    ";
    return [`  ${short}--${name}${option.value ? ` ${option.value}` : ""}`, option.help] as const;
  });
  const usage = `Usage: wrenn ${command.name} [OPTION…] ${command.operands}`.trimEnd();
  const details = command.details ? `\n${command.details}\n` : "";
  return `${usage}\n\n${command.summary}\n${details}\nOptions:\n${columns(options)}\n`;
}

/** Two columns, the second aligned. */
export function columns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([first]) => first.length));
  return rows.map(([first, second]) => `${first.padEnd(width)}  ${second}`).join("\n");
}

/** The arguments behind a command's name, sorted out. */
export function parse(command: Command, argv: string[]): Given {
  const options = { ...command.options, ...COMMON };
  const types: OptionTypes = Object.fromEntries(
    Object.entries(options).map(([name, { type, short, multiple }]) => [
      name,
      { type, ...(short && { short }), ...(multiple && { multiple }) },
    ]),
  );
  const [own, rest] = split(argv, types, command.passthrough);
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({ args: own, options: types, allowPositionals: true, strict: true });
  } catch (error) {
    throw new UsageError(`${(error as Error).message.split(". To specify")[0]}`);
  }
  const { values, positionals } = parsed;
  const text = (name: string): string | undefined => values[name] as string | undefined;
  return {
    operands: [...positionals, ...rest],
    flag: (name) => values[name] === true,
    text,
    texts: (name) => (values[name] as string[] | undefined) ?? [],
    number: (name) => {
      const value = text(name);
      return value === undefined ? undefined : wholeNumber(`--${name}`, value);
    },
  };
}

export function wholeNumber(what: string, text: string): number {
  if (!/^\d{1,10}$/.test(text)) {
    throw new UsageError(`${what} takes a whole number, not \`${text}\``);
  }
  return Number(text);
}

/** The command's own arguments, and those behind its first `count` operands (or behind `--`). */
function split(argv: string[], types: OptionTypes, count: number | undefined): [string[], string[]] {
  if (count === undefined) {
    return [argv, []];
  }
  let operands = 0;
  for (let index = 0; index < argv.length; index++) {
    const word = argv[index] as string;
    if (word === "--") {
      return [argv.slice(0, index), argv.slice(index + 1)];
    }
    if (!word.startsWith("-") || word === "-") {
      if (operands === count) {
        return [argv.slice(0, index), argv.slice(index)];
      }
      operands++;
    } else if (takesNext(word, types)) {
      index++;
    }
  }
  return [argv, []];
}

function takesNext(word: string, types: OptionTypes): boolean {
  const option = word.startsWith("--")
    ? types[word.slice(2)]
    : Object.values(types).find(({ short }) => short === word.slice(1));
  return option?.type === "string";
}

/** The operands, of which there must be as many as names. */
export function exactly<const Names extends readonly string[]>(
  given: Given,
  ...names: Names
): { [Index in keyof Names]: string } {
  const [missing, extra] = [names[given.operands.length], given.operands[names.length]];
  if (missing !== undefined) {
    throw new UsageError(`${missing} is missing`);
  }
  if (extra !== undefined) {
    throw new UsageError(`\`${extra}\` is one operand too many`);
  }
  return given.operands as unknown as { [Index in keyof Names]: string };
}

/** `NAME=VALUE`, or `NAME` for the value it has here. */
export function assignments(texts: readonly string[]): Record<string, string> | undefined {
  if (texts.length === 0) {
    return undefined;
  }
  return Object.fromEntries(
    texts.map((text) => {
      const at = text.indexOf("=");
      const name = at < 0 ? text : text.slice(0, at);
      const value = at < 0 ? process.env[name] : text.slice(at + 1);
      if (value === undefined) {
        throw new UsageError(`\`${text}\`: ${name} is not set here; write NAME=VALUE`);
      }
      return [name, value];
    }),
  );
}
