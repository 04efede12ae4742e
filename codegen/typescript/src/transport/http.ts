import { connectionLost, fromServer, type ServerError, WrennError } from "../errors.js";

interface Body {
  data?: unknown;
  errors?: ServerError[];
}

/** `fetch`, whose failures are {@link WrennError}s; the caller looks at the status. */
export async function send(url: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, init);
  } catch (error) {
    if (init.signal?.aborted) {
      throw error;
    }
    throw connectionLost(`${new URL(url).host} cannot be reached: ${reasonOf(error)}`, error);
  }
}

/** Runs one operation; `data` of the answer. */
export async function post<T>(
  url: string,
  headers: Record<string, string>,
  query: string,
  variables: unknown,
  signal?: AbortSignal,
): Promise<T> {
  const response = await send(url, {
    method: "POST",
    headers: { ...headers, "content-type": "application/json", accept: "application/graphql-response+json" },
    body: JSON.stringify({ query, variables }),
    ...(signal ? { signal } : {}),
  });
  const body = await json<Body>(response);
  if (body.errors !== undefined) {
    throw fromServer(body.errors);
  }
  if (body.data === undefined || body.data === null) {
    throw new WrennError("INTERNAL", "the server answered with neither data nor errors");
  }
  return body.data as T;
}

/** Throws what a response other than 2xx says. */
export async function refuse(response: Response): Promise<never> {
  const body = await json<Body>(response);
  throw body.errors ? fromServer(body.errors) : new WrennError("INTERNAL", `the server answered ${response.status}`);
}

/** A response's bytes as they come, whose failures are {@link WrennError}s; `signal`: with which it was sent. */
export function content(response: Response, signal?: AbortSignal): ReadableStream<Uint8Array<ArrayBuffer>> {
  const reader = (response.body ?? new Blob([]).stream()).getReader();
  let received = 0;
  const pull = async (controller: ReadableStreamDefaultController): Promise<void> => {
    try {
      const { done, value } = await reader.read();
      if (done) {
        controller.close();
      } else {
        received += value.length;
        controller.enqueue(value);
      }
    } catch (error) {
      if (signal?.aborted) {
        throw error;
      }
      throw connectionLost(`the content broke off after ${received} bytes: ${reasonOf(error)}`, error);
    }
  };
  // Read only when it is asked for.
  return new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }, { highWaterMark: 0 });
}

/** What a response says as JSON. */
export async function json<T>(response: Response): Promise<T> {
  let text: string;
  try {
    text = await response.text();
  } catch (error) {
    throw connectionLost(`the connection broke in the middle of an answer: ${reasonOf(error)}`, error);
  }
  try {
    return JSON.parse(text) as T;
  } catch (cause) {
    throw unexpected(response, cause);
  }
}

/** An answer that is not this server's, but of something before it. */
function unexpected(response: Response, cause: unknown): WrennError {
  const message = `an answer that is not Wrenn's, with status ${response.status}: is the URL right?`;
  if ([502, 503, 504].includes(response.status)) {
    return connectionLost(`something before the server answered ${response.status}`, cause);
  }
  return new WrennError(response.status >= 500 ? "UNAVAILABLE" : "INTERNAL", message, { reason: "NOT_WRENN", cause });
}

/** The innermost message: `fetch` itself only says that it failed. */
function reasonOf(error: unknown): string {
  let message = String(error);
  for (let inner = error; inner instanceof Error; inner = inner.cause) {
    const code = (inner as { code?: unknown }).code;
    message = inner.message || (typeof code === "string" ? code : message);
  }
  return message;
}
