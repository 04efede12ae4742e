import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Capsule, Wrenn, WrennError } from "@wrenn/sdk";
import { numbers, random, sha256 } from "../support/bytes.js";
import { FakeServer } from "../support/server.js";

const ID = "cl-2e5glxi4g3qnhwci95qev0cg0";
const MIB = 1024 * 1024;

describe("streams over connections that break", () => {
  let server: FakeServer;
  let wrenn: Wrenn;
  let capsule: Capsule;

  beforeEach(async () => {
    server = await FakeServer.start();
    wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test", patienceSec: 10 });
    capsule = await Capsule.connect(ID, { wrenn });
  });
  afterEach(async () => {
    wrenn.close();
    await server.stop();
  });

  it("gives the result of a process", async () => {
    server.output = new TextEncoder().encode("hello\n");
    const result = await capsule.exec("fake");
    assert.deepEqual([result.stdout, result.exitCode, result.signal, result.truncated], ["hello\n", 0, null, false]);
    assert.equal(server.starts, 1);
  });

  it("loses and doubles nothing when the connection breaks in random places", async () => {
    server.output = random(12 * MIB);
    const next = numbers(7);
    let cuts = 0;
    server.beforeEvent = () => {
      if (next() < 0.05) {
        cuts++;
        server.cut();
      }
    };
    const parts: Uint8Array[] = [];
    let due = 0;
    for await (const event of capsule.exec("fake")) {
      assert.ok(event.type === "output" && event.offset === due);
      due += event.data.length;
      parts.push(event.data);
    }
    assert.equal(sha256(...parts), sha256(server.output));
    assert.equal(server.starts, 1);
    assert.ok(cuts > 10, `${cuts} cuts`);
  });

  it("starts a process once although nobody heard that it was started", async () => {
    server.output = new TextEncoder().encode("once");
    server.afterStart = () => server.cut();
    assert.equal((await capsule.exec("fake")).stdout, "once");
    const process = await capsule.start("fake");
    assert.ok(server.processes.has(process.selector));
    assert.equal(server.starts, 2);
  });

  it("writes input exactly once although the answers get lost", async () => {
    server.output = random(MIB);
    const next = numbers(3);
    server.afterInput = () => {
      if (next() < 0.3) {
        server.cut();
      }
    };
    const process = await capsule.start("fake");
    const written = random(3 * MIB);
    const writes: Promise<void>[] = [];
    for (let at = 0; at < written.length;) {
      const end = at + 1 + Math.floor(next() * 50_000);
      writes.push(process.stdin.write(written.subarray(at, end)));
      at = end;
    }
    await Promise.all(writes);
    await process.stdin.close();
    const taken = server.processes.get(process.selector);
    assert.equal(sha256(...(taken?.stdin ?? [])), sha256(written));
    assert.ok(taken?.stdinClosed);
  });

  it("holds back what a reader does not read", async () => {
    server.output = random(32 * MIB);
    const parts: Uint8Array[] = [];
    const delivered = () => [...server.processes.values()][0]?.delivered ?? 0;
    for await (const event of capsule.exec("fake")) {
      assert.equal(event.type, "output");
      if (event.type === "output") {
        parts.push(event.data);
      }
      if (parts.length === 1) {
        await standstill(delivered);
        assert.ok(delivered() < 16 * MIB, `${delivered()} bytes came although nobody read`);
      }
    }
    assert.equal(sha256(...parts), sha256(server.output));
    assert.ok(server.attachments > 1);
  });

  it("says what nobody holds any more", async () => {
    server.output = random(MIB);
    const process = await capsule.start("fake");
    const fake = server.processes.get(process.selector);
    assert.ok(fake);
    fake.oldest = 1000;
    const events = [];
    for await (const event of process.follow({ after: { stdout: 10 } })) {
      events.push(event);
    }
    assert.deepEqual(events[0], { type: "gap", stream: "stdout", from: 10, to: 1000 });
    assert.equal(events[1]?.type === "output" && events[1].offset, 1000);
  });

  it("cuts lines where they end", async () => {
    server.output = new TextEncoder().encode("ä\r\nb\n\nlast");
    const lines = [];
    for await (const { text } of capsule.exec("fake").lines()) {
      lines.push(text);
    }
    assert.deepEqual(lines, ["ä", "b", "", "last"]);
  });

  it("carries what the server says about an error", async () => {
    await assert.rejects(wrenn.graphql.viewer(), (error) => {
      assert.ok(error instanceof WrennError);
      assert.deepEqual(
        [error.code, error.field, error.reason, error.requestId, error.message],
        ["INVALID_INPUT", "name", "BECAUSE", "r-1", "not so"],
      );
      return true;
    });
  });

  it("fails in the end where nobody is", async () => {
    const { url } = server;
    await server.stop();
    const lonely = new Wrenn({ url, apiKey: "wrn_test", patienceSec: 0 });
    const unreachable = { name: "WrennError", code: "UNAVAILABLE", reason: "CONNECTION_LOST" };
    await assert.rejects(Capsule.connect(ID, { wrenn: lonely }), unreachable);
    server = await FakeServer.start();
  });
});

/** Until a number has not changed for five looks. */
async function standstill(look: () => number): Promise<void> {
  let [last, same] = [-1, 0];
  while (same < 5) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const now = look();
    same = now === last ? same + 1 : 0;
    last = now;
  }
}
