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

/** As what `fetch` sends. */
export function asStream(data: Data): ReadableStream<Uint8Array> {
  if (data instanceof ReadableStream) {
    return data;
  }
  const iterator = pieces(data)[Symbol.asyncIterator]();
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await iterator.next();
      done ? controller.close() : controller.enqueue(toBytes(value));
    },
    async cancel() {
      await iterator.return?.();
    },
  });
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
