import { WebSocket as NodeWebSocket } from "ws";

/** Node 20 has none of its own. */
export const SocketImplementation = NodeWebSocket as unknown as typeof WebSocket;
