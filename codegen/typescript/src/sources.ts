import { toBytes } from "./bytes.js";

/** Bytes from wherever they come; text is UTF-8. */
export type Data =
  | string
  | Uint8Array
  | Blob
  | ReadableStream<Uint8Array>
  | AsyncIterable<string | Uint8Array>
  | Iterable<string | Uint8Array>;

/** Hands the data over piece by piece, each when the one before was taken. */
export async function pour(data: Data, take: (bytes: Uint8Array) => Promise<void>): Promise<void> {
  for await (const piece of pieces(data)) {
    await take(toBytes(piece));
  }
}

/** As what `fetch` sends. `broken` is told why the data could not be had. */
export function asStream(data: Data, broken: (error: unknown) => void): ReadableStream<Uint8Array> {
  const source = opened(data);
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { done, value } = await source.next();
        done ? controller.close() : controller.enqueue(toBytes(value));
      } catch (error) {
        broken(error);
        throw error;
      }
    },
    async cancel(reason) {
      await source.cancel(reason);
    },
  });
}

interface Opened {
  next(): Promise<IteratorResult<string | Uint8Array, unknown>>;
  cancel(reason: unknown): Promise<unknown>;
}

/** A stream can be cancelled while it is waited for; an iteration ends when its next piece is there. */
function opened(data: Data): Opened {
  if (data instanceof ReadableStream) {
    const reader = data.getReader();
    return { next: () => reader.read(), cancel: (reason) => reader.cancel(reason) };
  }
  const iterator = pieces(data);
  return { next: () => iterator.next(), cancel: () => iterator.return() };
}

async function* pieces(data: Data): AsyncGenerator<string | Uint8Array, void, void> {
  if (typeof data === "string" || data instanceof Uint8Array) {
    yield data;
  } else if (data instanceof Blob) {
    yield* read(data.stream());
  } else if (data instanceof ReadableStream) {
    yield* read(data);
  } else {
    yield* data;
  }
}

/** Not every browser can iterate over a stream by itself. */
async function* read(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array, void, void> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      yield value;
    }
  } finally {
    await reader.cancel();
  }
}
