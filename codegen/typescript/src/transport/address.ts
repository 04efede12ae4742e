import { WrennError } from "../errors.js";

/** Where a server's parts are. */
export interface Address {
  /** Without a slash at its end. */
  base: string;
  graphql: string;
  socket: string;
}

/** From a server's URL, with or without `/graphql` at its end. */
export function parseAddress(url: string): Address {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch (cause) {
    throw new WrennError("INVALID_INPUT", `\`${url}\` is not a URL, as http://127.0.0.1:8080`, { field: "url", cause });
  }
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:") {
    throw new WrennError("INVALID_INPUT", `\`${url}\` begins with neither http:// nor https://`, { field: "url" });
  }
  const path = parsed.pathname.replace(/\/+$/, "").replace(/\/graphql$/, "");
  const base = `${parsed.protocol}//${parsed.host}${path}`;
  return { base, graphql: `${base}/graphql`, socket: `${base.replace(/^http/, "ws")}/graphql` };
}
