import { createReadStream, createWriteStream } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Capsule } from "../index.js";
import { find } from "./client.js";
import { printJson } from "./print.js";
import { type Command, EXIT, exactly, UsageError } from "./usage.js";

export const cp: Command = {
  name: "cp",
  operands: "FROM TO",
  summary: "Copy a file into or out of a capsule",
  details:
    "One of FROM and TO is `CAPSULE:PATH`, the other a path here, or `-` for standard input or output. A path that ends\n" +
    "in a slash (or, here, is a directory) keeps the file's name. A file arrives whole or not at all.",
  options: {
    user: {
      type: "string",
      short: "u",
      value: "USER",
      help: "as whom in the capsule; the template's default if absent",
    },
    mode: { type: "string", value: "OCTAL", help: "permission bits of a file that goes up; its own if absent" },
  },
  async run(given) {
    const [from, to] = exactly(given, "FROM", "TO");
    const [source, target] = [remote(from), remote(to)];
    if ((source === undefined) === (target === undefined)) {
      throw new UsageError("one of FROM and TO is a path in a capsule, CAPSULE:PATH, and the other one here");
    }
    const user = given.text("user");
    if (target !== undefined) {
      const capsule = await find(target.capsule);
      const entry = await upload(capsule, from, target.path, { user, mode: octal(given.text("mode")) });
      given.flag("json") && (await printJson({ path: entry.path, size: entry.size }));
    } else if (source !== undefined) {
      const saved = await download(await find(source.capsule), source.path, to, user);
      given.flag("json") && (await printJson(saved));
    }
    return EXIT.ok;
  },
};

/** `CAPSULE:PATH`; a path here that has a colon is written with a slash before it. */
function remote(text: string): { capsule: string; path: string } | undefined {
  const at = text.indexOf(":");
  if (at <= 0 || text.slice(0, at).includes("/")) {
    return undefined;
  }
  const path = text.slice(at + 1);
  if (path === "") {
    throw new UsageError(`\`${text}\` has no path behind its colon`);
  }
  return { capsule: text.slice(0, at), path };
}

function octal(text: string | undefined): number | undefined {
  if (text !== undefined && !/^[0-7]{1,5}$/.test(text)) {
    throw new UsageError(`--mode takes permission bits in octal, as 644, not \`${text}\``);
  }
  return text === undefined ? undefined : Number.parseInt(text, 8);
}

interface UploadOptions {
  user: string | undefined;
  mode: number | undefined;
}

async function upload(capsule: Capsule, from: string, to: string, { user, mode }: UploadOptions) {
  const parents = true;
  if (from === "-") {
    if (to.endsWith("/")) {
      throw new UsageError("standard input has no name of its own: end TO in one");
    }
    const data = Readable.toWeb(process.stdin) as ReadableStream<Uint8Array>;
    return capsule.files.write(to, data, { user, mode, parents });
  }
  const file = await stat(from);
  if (!file.isFile()) {
    throw new UsageError(`${from} is not a file: one file at a time (pack a directory with tar, and see \`exec\`)`);
  }
  const path = to.endsWith("/") ? to + basename(from) : to;
  const data = Readable.toWeb(createReadStream(from)) as ReadableStream<Uint8Array>;
  return capsule.files.write(path, data, { user, mode: mode ?? file.mode & 0o777, parents });
}

async function download(capsule: Capsule, from: string, to: string, user: string | undefined) {
  const content = Readable.fromWeb(
    (await capsule.files.read(from, { user })) as import("node:stream/web").ReadableStream,
  );
  if (to === "-") {
    await pipeline(content, process.stdout, { end: false });
    return { path: "-" };
  }
  const isDirectory = await stat(to).then(
    (found) => found.isDirectory(),
    () => to.endsWith("/"),
  );
  const path = isDirectory ? join(to, basename(from)) : to;
  const unfinished = `${path}.wrenn-${process.pid}`;
  try {
    const file = createWriteStream(unfinished, { flags: "wx" });
    await pipeline(content, file);
    await rename(unfinished, path);
    return { path, size: file.bytesWritten };
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}
