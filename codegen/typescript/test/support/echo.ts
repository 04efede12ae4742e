import { type OutgoingHttpHeaders, request } from "node:http";

/** What of `text` comes back from `/socket` after an upgrade. */
export function echoed(origin: string, text: string, more: OutgoingHttpHeaders = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const headers = {
      connection: "Upgrade",
      upgrade: "websocket",
      "sec-websocket-version": "13",
      "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
      ...more,
    };
    const asking = request(new URL("/socket", origin), { headers });
    asking.on("error", reject).on("response", ({ statusCode }) => reject(new Error(`answered ${statusCode}`)));
    asking.on("upgrade", (_, socket) => {
      let back = "";
      socket.write(text);
      socket.on("error", reject).on("data", (data) => {
        back += data;
        if (back.length >= text.length) {
          socket.destroy();
          resolve(back);
        }
      });
    });
    asking.end();
  });
}
