import { concat, toBytes } from "./bytes.js";
import { isLost, WrennError } from "./errors.js";
import type { FileChangeKind, FileEntryFragment, FileKind, FileMethod } from "./generated/graphql.js";
import { live, type LiveOptions, present } from "./live.js";
import { repeated } from "./retry.js";
import { type SignedUrl, signed } from "./signed.js";
import { asStream, type Data, pour } from "./sources.js";
import { content, json, refuse, send } from "./transport/http.js";
import type { Wrenn } from "./wrenn.js";

export type { FileChangeKind, FileKind } from "./generated/graphql.js";

/** Something in a capsule's file system. */
export interface FileEntry {
  name: string;
  /** Absolute. */
  path: string;
  kind: FileKind;
  /** Bytes. */
  size: number;
  /** Permission bits, as in chmod. */
  mode: number;
  owner: string;
  group: string;
  modifiedAt: Date;
  symlinkTarget: string | null;
}

/** What happens below a directory that is watched. */
export type FileEvent =
  /** What happens from now on is told. */
  | { type: "ready" }
  | { type: "change"; kind: FileChangeKind; path: string; fileKind: FileKind; movedFrom: string | null }
  /** Changes were lost: look anew. */
  | { type: "overflow" };

export interface AsUser {
  /** A name or a numeric uid; the template's default if absent. */
  user?: string | undefined;
}

export interface ReadOptions extends AsUser {
  /** The first byte, counted from 0. */
  start?: number | undefined;
  /** The first byte not wanted. */
  end?: number | undefined;
  signal?: AbortSignal | undefined;
}

export interface WriteOptions extends AsUser {
  /** Permission bits, as `0o644`. */
  mode?: number | undefined;
  /** Make missing directories above it. */
  parents?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface WatchOptions extends AsUser, LiveOptions {
  /** Also in all directories below it. */
  recursive?: boolean | undefined;
}

export interface UrlOptions extends AsUser {
  method?: FileMethod | undefined;
  /** At most a week. */
  expiresInSec?: number | undefined;
}

/** The files of one capsule. Paths are absolute, or relative to the user's home. */
export class Files {
  readonly #wrenn: Wrenn;
  readonly #id: string;

  constructor(wrenn: Wrenn, capsuleId: string) {
    this.#wrenn = wrenn;
    this.#id = capsuleId;
  }

  /**
   * A file's content as it comes; read only as fast as the stream is. To cancel it ends the reading in the capsule. It
   * fails with `CONNECTION_LOST` as its reason when it breaks off: the file may be another one by now, so only the caller
   * can tell whether to go on from `start`.
   */
  async read(path: string, options: ReadOptions = {}): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> {
    const { start = 0, end, user, signal } = options;
    const ranged = start > 0 || end !== undefined;
    if (end !== undefined && end <= start) {
      return new Blob([]).stream();
    }
    const range = ranged ? { range: `bytes=${start}-${end === undefined ? "" : end - 1}` } : {};
    const init = { headers: { ...this.#wrenn.headers, ...range }, ...(signal ? { signal } : {}) };
    const attempt = async (): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> => {
      const response = await send(this.#address(path, { user }), init);
      if (response.status === 416) {
        // Nothing lies behind the end.
        await response.body?.cancel();
        return new Blob([]).stream();
      }
      if (!response.ok) {
        return refuse(response);
      }
      return content(response, signal);
    };
    return repeated(this.#wrenn.patience, attempt, signal);
  }

  async readBytes(path: string, options: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const attempt = async (): Promise<Uint8Array<ArrayBuffer>> => {
      const parts: Uint8Array[] = [];
      await pour(await this.read(path, options), async (bytes) => void parts.push(bytes));
      return concat(parts);
    };
    return repeated(this.#wrenn.patience, attempt, options.signal, isLost);
  }

  /** Decoded as UTF-8. */
  async readText(path: string, options: ReadOptions = {}): Promise<string> {
    return new TextDecoder().decode(await this.readBytes(path, options));
  }

  /**
   * Writes a file, whole or not at all. Streams are sent as they come; a browser cannot do that and gathers them first:
   * give it a `Blob`. If what yields the data fails, this fails with that error.
   */
  async write(path: string, data: Data, options: WriteOptions = {}): Promise<FileEntry> {
    const { mode, parents, user, signal } = options;
    let broken: { error: unknown } | undefined;
    const body = await bodyOf(data, (error) => {
      broken = { error };
    });
    const address = this.#address(path, { user, mode: mode?.toString(8), parents: parents && "true" });
    const attempt = async (): Promise<FileEntry> => {
      const response = await send(address, {
        method: "PUT",
        headers: this.#wrenn.headers,
        body,
        ...(body instanceof ReadableStream ? { duplex: "half" } : {}),
        ...(signal ? { signal } : {}),
      } as RequestInit);
      if (!response.ok) {
        return refuse(response);
      }
      return entryOf((await json<{ entry: FileEntryFragment }>(response)).entry);
    };
    if (body instanceof ReadableStream) {
      // It can be sent once. Where it fails itself, that is why the sending does.
      return attempt().catch((error: unknown) => {
        throw broken === undefined ? error : broken.error;
      });
    }
    return repeated(this.#wrenn.patience, attempt, signal, isLost);
  }

  /** What is in a directory, ordered by name. */
  async list(path: string): Promise<FileEntry[]> {
    const { capsule } = await this.#wrenn.graphql.listDirectory({ id: this.#id, path });
    return present(capsule, this.#id).files.map(entryOf);
  }

  /** What is at a path; a symbolic link itself, not what it points to. Fails with `NOT_FOUND` if nothing is. */
  async stat(path: string): Promise<FileEntry> {
    const [, parent = "", name = ""] = /^(.*?)([^/]*)\/*$/.exec(path) ?? [];
    if (name === "" || name === "." || name === "..") {
      throw new WrennError("INVALID_INPUT", `\`${path}\` does not end in a name`, { field: "path" });
    }
    const found = (await this.list(parent || ".")).find((entry) => entry.name === name);
    if (found === undefined) {
      throw new WrennError("NOT_FOUND", `there is nothing at ${path}`, { field: "path" });
    }
    return found;
  }

  /** Whether there is something at a path. */
  async exists(path: string): Promise<boolean> {
    try {
      await this.stat(path);
      return true;
    } catch (error) {
      if (error instanceof WrennError && error.code === "NOT_FOUND") {
        return false;
      }
      throw error;
    }
  }

  /** Makes a directory with all that is missing above it. One that is there already is fine. */
  async mkdir(path: string, { user }: AsUser = {}): Promise<FileEntry> {
    const { makeDir } = await this.#wrenn.graphql.makeDir({ capsuleId: this.#id, path, user }, { repeatable: true });
    return entryOf(made(makeDir.entry));
  }

  /** Moves or renames. A file in the way is replaced, a directory is not. */
  async move(from: string, to: string, { user }: AsUser = {}): Promise<FileEntry> {
    const { movePath } = await this.#wrenn.graphql.movePath({ capsuleId: this.#id, from, to, user });
    return entryOf(made(movePath.entry));
  }

  /** Removes a file, or a directory with all that is in it. What is not there is removed already. */
  async remove(path: string, { user }: AsUser = {}): Promise<void> {
    await this.#wrenn.graphql.removePath({ capsuleId: this.#id, path, user }, { repeatable: true });
  }

  /** What happens in a directory from `ready` on. After a connection was lost, `overflow` says that something may have been missed. */
  watch(path: string, { recursive, user, signal }: WatchOptions = {}): AsyncGenerator<FileEvent, void, void> {
    const { graphql } = this.#wrenn;
    const variables = { capsuleId: this.#id, path, recursive, user };
    const open = async function* (): AsyncGenerator<FileEvent, void, void> {
      for await (const { event } of graphql.watchDirectory(variables, { signal })) {
        switch (event.__typename) {
          case "WatchReady":
            yield { type: "ready" };
            break;
          case "WatchOverflow":
            yield { type: "overflow" };
            break;
          case "FileChange": {
            const { kind, path, fileKind, movedFrom } = event;
            yield { type: "change", kind, path, fileKind, movedFrom };
          }
        }
      }
    };
    return live(this.#wrenn, { open, signal, resumed: (): FileEvent => ({ type: "overflow" }) });
  }

  /** A URL with which one file is read (`GET`) or written (`PUT`) without a key; good for 5 minutes unless told otherwise. */
  async url(path: string, { method = "GET", expiresInSec = 300, user }: UrlOptions = {}): Promise<SignedUrl> {
    const variables = { capsuleId: this.#id, path, method, expiresInSec, user };
    return signed((await this.#wrenn.graphql.createFileUrl(variables, { repeatable: true })).createFileUrl);
  }

  #address(path: string, parameters: Record<string, string | false | undefined>): string {
    const query = new URLSearchParams({ path });
    for (const [name, value] of Object.entries(parameters)) {
      if (value) {
        query.set(name, value);
      }
    }
    return `${this.#wrenn.address.base}/files/${encodeURIComponent(this.#id)}?${query}`;
  }
}

function entryOf(entry: FileEntryFragment): FileEntry {
  const { name, path, kind, size, mode, owner, group, modifiedAt, symlinkTarget } = entry;
  const modified = new Date(modifiedAt);
  return { name, path, kind, size: Number(size), mode, owner, group, modifiedAt: modified, symlinkTarget };
}

function made(entry: FileEntryFragment | null): FileEntryFragment {
  if (entry === null) {
    throw new WrennError("INTERNAL", "the server did not say what is there now");
  }
  return entry;
}

/** Browsers send streams over HTTP/2 at best, and most not at all. */
const isBrowser = "window" in globalThis || "importScripts" in globalThis;

async function bodyOf(
  data: Data,
  broken: (error: unknown) => void,
): Promise<Blob | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array>> {
  if (typeof data === "string" || data instanceof Uint8Array) {
    return toBytes(data) as Uint8Array<ArrayBuffer>;
  }
  if (data instanceof Blob) {
    return data;
  }
  const stream = asStream(data, broken);
  return isBrowser ? new Response(stream as ReadableStream<Uint8Array<ArrayBuffer>>).blob() : stream;
}
