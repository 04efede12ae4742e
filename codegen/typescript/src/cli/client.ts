import { Capsule, Wrenn, WrennError } from "../index.js";
import { UsageError } from "./usage.js";

let made: Wrenn | undefined;

/** The client that the environment describes. */
export function client(): Wrenn {
  if (made === undefined) {
    for (const variable of ["WRENN_URL", "WRENN_API_KEY"]) {
      if (!process.env[variable]) {
        throw new UsageError(`${variable} is not set: \`make up\` writes it to .wrenn/env`);
      }
    }
    made = new Wrenn();
  }
  return made;
}

/** Lets the process end without waiting for idle sockets. */
export function close(): void {
  made?.close();
}

/** A capsule by its id or its name. */
export async function find(text: string): Promise<Capsule> {
  const wrenn = client();
  if (/^cl-[0-9a-z]+$/.test(text)) {
    return Capsule.connect(text, { wrenn });
  }
  const named: Capsule[] = [];
  for await (const capsule of Capsule.list({ search: text }, { wrenn })) {
    if (capsule.name === text) {
      named.push(capsule);
    }
  }
  const [first, second] = named;
  if (first === undefined) {
    throw new WrennError("NOT_FOUND", `no capsule is called \`${text}\``);
  }
  if (second !== undefined) {
    const ids = named.map(({ id }) => id).join(" ");
    throw new WrennError("CONFLICT", `more than one capsule is called \`${text}\`: ${ids}`);
  }
  return first;
}
