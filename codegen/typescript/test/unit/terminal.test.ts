import assert from "node:assert/strict";
import { it } from "node:test";
import { Capsule, Wrenn } from "@wrenn/sdk";
import { FakeServer, refusal } from "../support/server.js";

it("a terminal gets its newest size last, and not all of those before", async () => {
  const server = await FakeServer.start();
  server.lasting = true;
  const wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test" });
  try {
    const sizes: number[] = [];
    server.beforeResize = async (columns) => {
      // The first ones take the longest.
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, 100 - columns)));
      sizes.push(columns);
      if (columns === 11) {
        throw refusal("INVALID_INPUT", "not this one");
      }
    };
    const pty = await (await Capsule.connect(server.id, { wrenn })).pty();
    await Promise.all([10, 20, 30, 40, 50].map((columns) => pty.resize(columns, 24)));
    assert.deepEqual(sizes, [10, 50]);
    await assert.rejects(pty.resize(11, 24), { code: "INVALID_INPUT" });
    // Only the newest has to go well.
    await Promise.all([pty.resize(11, 24), pty.resize(60, 24)]);
    assert.deepEqual(sizes.slice(2), [11, 11, 60]);
    pty.detach();
  } finally {
    wrenn.close();
    await server.stop();
  }
});

it("what ended a terminal was written, although its end is heard first", async () => {
  const server = await FakeServer.start();
  server.lasting = true;
  const wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test" });
  try {
    const pty = await (await Capsule.connect(server.id, { wrenn })).pty();
    let over = false;
    const exited = pty.exited.then((exit) => {
      over = true;
      return exit;
    });
    server.afterInput = async () => {
      server.end({ exitCode: 7, signal: null });
      await exited;
      await new Promise((resolve) => setTimeout(resolve, 50));
    };
    await pty.write("exit 7\n");
    assert.ok(over, "it was heard last");
    assert.deepEqual(await exited, { exitCode: 7, signal: null });
    server.afterInput = () => {};
    await assert.rejects(pty.write("more\n"), { code: "FAILED_PRECONDITION" });
  } finally {
    wrenn.close();
    await server.stop();
  }
});
