import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Capsule, Wrenn, WrennError } from "@wrenn/sdk";
import { numbers, random, sha256 } from "../support/bytes.js";
import { FakeServer, refusal } from "../support/server.js";

const MIB = 1024 * 1024;

const realSetTimeout = globalThis.setTimeout;

/** Waits of ten seconds and more take a tenth of one. */
function shorten(): void {
  const short = (then: () => void, wait?: number) =>
    realSetTimeout(then, wait !== undefined && wait >= 10_000 ? 100 : wait);
  globalThis.setTimeout = short as typeof setTimeout;
}

describe("streams over connections that break", () => {
  let server: FakeServer;
  let wrenn: Wrenn;
  let capsule: Capsule;

  beforeEach(async () => {
    server = await FakeServer.start();
    wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test", patienceSec: 10 });
    capsule = await Capsule.connect(server.id, { wrenn });
  });
  afterEach(async () => {
    globalThis.setTimeout = realSetTimeout;
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

  it("writes input in turns", async () => {
    const first = await capsule.start("fake");
    const second = capsule.process(first.selector);
    await first.stdin.write("one ");
    await second.stdin.write("two ");
    await first.stdin.write("three ");
    await second.stdin.write("four");
    const stdin = server.processes.get(first.selector)?.stdin ?? [];
    assert.equal(Buffer.concat(stdin).toString(), "one two three four");
  });

  it("notices that somebody else writes input at the same time", async () => {
    const process = await capsule.start("fake");
    const fake = server.processes.get(process.selector);
    assert.ok(fake);
    server.afterInput = () => {
      fake.stdinLength += 1;
    };
    await assert.rejects(process.stdin.write("mine"), { name: "WrennError", code: "CONFLICT" });
  });

  it("fails and kills the process when what it is to read fails", async () => {
    server.lasting = true;
    async function* broken() {
      yield "half";
      throw new RangeError("no more");
    }
    const execution = capsule.exec("fake", { stdin: broken() });
    await assert.rejects(Promise.resolve(execution), RangeError);
    const process = server.processes.get(execution.tag);
    assert.deepEqual(process?.exit, { exitCode: null, signal: "SIGKILL" });
    assert.equal(process?.stdinClosed, false);
    await assert.rejects(async () => {
      for await (const _ of capsule.exec("fake", { stdin: broken() })) {
        // Nothing comes.
      }
    }, RangeError);
  });

  it("does not mind a process that ends before it has read all", async () => {
    let more = true;
    async function* endless() {
      while (more) {
        yield "x";
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      throw new RangeError("too late to matter");
    }
    assert.equal((await capsule.exec("fake", { stdin: endless() })).exitCode, 0);
    more = false;
  });

  it("finds a process that has ended and is not listed any more before it starts another one", async () => {
    server.listing = false;
    server.afterStart = () => server.cut();
    const process = await capsule.start("fake");
    assert.ok(server.processes.has(process.selector));
    assert.equal(server.starts, 1);
  });

  it("runs no command again of which nobody knows what became", async () => {
    let starts = 0;
    server.beforeStart = () => {
      starts++;
      if (starts === 1) {
        server.cut();
      }
      throw refusal("CONFLICT", "there is a process with this tag");
    };
    // The first start is not heard of, the second one finds it, and then it has ended.
    await assert.rejects(Promise.resolve(capsule.exec("fake")), { code: "NOT_FOUND", reason: "PROCESS_FORGOTTEN" });
    assert.equal(starts, 2);
  });

  it("holds little of what a reader does not read, however long", async () => {
    shorten();
    server.output = random(32 * MIB);
    let [held, stood] = [0, false];
    const reading = async (): Promise<void> => {
      for await (const event of capsule.exec("fake")) {
        held += event.type === "output" ? event.data.length : 0;
        if (!stood) {
          stood = true;
          await standstill(() => [...server.processes.values()][0]?.delivered ?? 0);
          await signsOfLife(server, 20);
          server.forgetful = true;
          server.end();
        }
      }
    };
    // What was held is read before it is seen that there is no more.
    await assert.rejects(reading(), { code: "NOT_FOUND" });
    assert.ok(held < 4 * MIB, `${held} bytes waited`);
  });

  it("takes the rest of a process that has ended before it is forgotten", async () => {
    shorten();
    server.output = random(3 * MIB);
    const parts: Uint8Array[] = [];
    for await (const event of capsule.exec("fake")) {
      assert.equal(event.type, "output");
      if (event.type === "output") {
        parts.push(event.data);
      }
      if (parts.length === 1) {
        await standstill(() => [...server.processes.values()][0]?.delivered ?? 0);
        server.end();
        await signsOfLife(server, 1);
        await standstill(() => [...server.processes.values()][0]?.delivered ?? 0);
        server.forgetful = true;
      }
    }
    assert.equal(sha256(...parts), sha256(server.output));
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
    const { id, url } = server;
    await server.stop();
    const lonely = new Wrenn({ url, apiKey: "wrn_test", patienceSec: 0 });
    const unreachable = { name: "WrennError", code: "UNAVAILABLE", reason: "CONNECTION_LOST" };
    await assert.rejects(Capsule.connect(id, { wrenn: lonely }), unreachable);
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

/** Until a reader that is behind has said so many times that it lives. */
async function signsOfLife(server: FakeServer, count: number): Promise<void> {
  const before = server.attachments;
  while (server.attachments < before + count) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
