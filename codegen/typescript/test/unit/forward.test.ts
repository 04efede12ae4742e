import assert from "node:assert/strict";
import { type IncomingMessage, request } from "node:http";
import { after, before, describe, it } from "node:test";
import { CLI, Running } from "../support/cli.js";
import { echoed } from "../support/echo.js";
import { FakeServer } from "../support/server.js";

for (const form of ["path", "host"] as const) {
  describe(`a port that the server has by ${form}`, () => {
    let server: FakeServer;
    let running: Running;
    let local: URL;
    /** What the service calls itself. */
    let there: URL;
    let prefix = "";
    /** What came to the server last. */
    let got: IncomingMessage;

    before(async () => {
      server = await FakeServer.start();
      const { port } = new URL(server.url);
      if (form === "host") {
        server.portUrl = (number) => `http://${number}-${server.id}.localhost:${port}/`;
      }
      there = new URL(server.portUrl(3000));
      prefix = there.pathname.replace(/\/$/, "");
      server.visit = (asked, response) => {
        got = asked;
        response.writeHead(302, { location: `${prefix}/there?x=1`, "set-cookie": `a=b; Path=${prefix}/; HttpOnly` });
        response.end(`${asked.method} ${asked.url}`);
      };
      server.upgrade = (asked, socket) => {
        got = asked;
        socket.write("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        socket.pipe(socket).on("error", () => {});
      };
      const environment = { WRENN_URL: server.url, WRENN_API_KEY: "wrn_test" };
      running = new Running(process.execPath, [CLI, "forward", "--json", server.id, "0:3000"], environment);
      await running.says("}\n");
      const { address, port: own } = JSON.parse(running.stdout);
      local = new URL(`http://${address}:${own}`);
    });
    after(async () => {
      running.signal("SIGINT");
      assert.equal(await running.ended, 0);
      await server.stop();
    });

    it("is asked as if it were here", async () => {
      const answer = await fetch(`${local.origin}/a/b?c=d`, { redirect: "manual" });
      assert.equal(await answer.text(), `GET ${prefix}/a/b?c=d`);
      assert.equal(got.headers["x-api-key"], "wrn_test");
      assert.equal(answer.headers.get("location"), "/there?x=1");
      assert.equal(answer.headers.get("set-cookie"), "a=b; Path=/; HttpOnly");
    });

    it("is told that pages from here are its own, and others are not", async () => {
      const headers = { origin: local.origin, referer: `${local.origin}/page?x` };
      await fetch(`${local.origin}/x`, { method: "POST", body: "sent", redirect: "manual", headers });
      const { host, origin, referer } = got.headers;
      assert.deepEqual([host, origin, referer], [there.host, there.origin, `${there.origin}${prefix}/page?x`]);
      const foreign = { origin: "https://other.example", referer: `${local.origin}.other.example/` };
      await fetch(`${local.origin}/x`, { redirect: "manual", headers: foreign });
      assert.deepEqual([got.headers.origin, got.headers.referer], [foreign.origin, foreign.referer]);
    });

    it("answers to names of this machine alone", async () => {
      const asked = (host: string, upgrade: Record<string, string> = {}) =>
        new Promise<number | undefined>((resolve, reject) => {
          const sent = request(local, { headers: { host, origin: `http://${host}`, ...upgrade } });
          sent.on("response", (answer) => resolve(answer.resume().statusCode)).on("error", reject);
          sent.end();
        });
      assert.equal(await asked(`localhost:${local.port}`), 302);
      assert.equal(await asked(`[::1]:${local.port}`), 302);
      assert.equal(await asked(`rebound.example:${local.port}`), 403);
      assert.equal(await asked("rebound.example", { connection: "upgrade", upgrade: "websocket" }), 403);
    });

    it("has WebSockets of pages from here", async () => {
      assert.equal(await echoed(local.origin, "through a socket", { origin: local.origin }), "through a socket");
      assert.deepEqual([got.url, got.headers.host, got.headers.origin], [`${prefix}/socket`, there.host, there.origin]);
    });
  });
}
