/** The platform's own: browsers, Bun, Deno, and Node from version 22 on. */
export const SocketImplementation: typeof WebSocket | undefined = globalThis.WebSocket;
