import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Capsule, Wrenn } from "@wrenn/sdk";
import { FakeServer } from "../support/server.js";

describe("what waits for a capsule to be resumed", () => {
  let server: FakeServer;
  let wrenn: Wrenn;
  let capsule: Capsule;

  beforeEach(async () => {
    server = await FakeServer.start();
    server.lasting = true;
    wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test", patienceSec: 10 });
    capsule = await Capsule.connect(server.id, { wrenn });
  });
  afterEach(async () => {
    wrenn.close();
    await server.stop();
  });

  /** What the server has sent so far is here when it answers, and looked at in the turn after that. */
  const waiting = async (): Promise<void> => {
    await server.watched();
    await wrenn.graphql.capsule({ id: server.id }, { overSocket: true });
    await new Promise((resolve) => setImmediate(resolve));
  };

  it("stops following at once", async () => {
    const process = await capsule.start("fake");
    server.pause();
    const following = process.follow({ acrossPauses: true });
    const reading = following[Symbol.asyncIterator]().next();
    await waiting();
    following.stop();
    await soon(assert.rejects(reading, { name: "WrennError", code: "FAILED_PRECONDITION" }));
    await soon(assert.rejects(following.exited));
  });

  it("leaves a terminal at once, with what is typed into it and its size", async () => {
    const pty = await capsule.pty({ acrossPauses: true });
    server.pause();
    const typed = pty.write("typed while paused");
    const resized = pty.resize(100, 40);
    await waiting();
    pty.detach();
    await soon(assert.rejects(typed, { code: "FAILED_PRECONDITION" }));
    await soon(assert.rejects(resized, { code: "FAILED_PRECONDITION" }));
    await soon(assert.rejects(pty.exited));
  });

  it("leaves what is watched at once", async () => {
    const controller = new AbortController();
    const states = capsule.watch({ signal: controller.signal });
    assert.equal((await states.next()).value?.state, "RUNNING");
    const next = states.next();
    controller.abort();
    await soon(assert.rejects(next, { name: "AbortError" }));
  });
});

/** Not when the next event comes, which is never. */
async function soon(outcome: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("it waits on")), 5_000);
  });
  await Promise.race([outcome, late]).finally(() => clearTimeout(timer));
}
