import assert from "node:assert/strict";
import { type AddressInfo, createServer } from "node:net";
import { afterEach, beforeEach, describe, it } from "node:test";
import { random } from "../support/bytes.js";
import { CLI, cli, Running } from "../support/cli.js";
import { FakeServer } from "../support/server.js";

describe("the command line", () => {
  let server: FakeServer;
  let environment: Record<string, string>;

  beforeEach(async () => {
    server = await FakeServer.start();
    environment = { WRENN_URL: server.url, WRENN_API_KEY: "wrn_test" };
  });
  afterEach(async () => {
    await server.stop();
  });

  const run = (args: string[], stdin = "") => cli(args, stdin, environment);

  describe("whose output nobody reads any more", () => {
    const unread = async (args: string[]): Promise<Running> => {
      const words = [process.execPath, CLI, ...args].map((word) => `'${word}'`).join(" ");
      const running = new Running(
        "bash",
        ["-c", `${words} | head -c 1 > /dev/null; echo \${PIPESTATUS[0]}`],
        environment,
      );
      running.end();
      assert.equal(await running.ended, 0);
      return running;
    };

    it("ends as other tools do, without a word", async () => {
      server.output = random(1024 * 1024);
      assert.equal((await run(["exec", "-d", "--tag", "noisy", server.id, "fake"])).stdout, "noisy\n");
      for (const args of [
        ["logs", server.id, "noisy"],
        ["logs", "--json", server.id, "noisy"],
      ]) {
        const { stdout, stderr } = await unread(args);
        assert.deepEqual([stdout, stderr], ["141\n", ""], args.join(" "));
      }
    });

    it("hangs up on the command that it runs", async () => {
      server.output = random(1024 * 1024);
      server.lasting = true;
      const { stdout, stderr } = await unread(["exec", "--tag", "noisy", server.id, "fake"]);
      assert.deepEqual([stdout, stderr], ["141\n", ""]);
      assert.equal(server.processes.get("noisy")?.exit.signal, "SIGHUP");
    });
  });

  it("does what it can of several, and says what it could not", async () => {
    const [lost, gone] = ["cl-1", "cl-2"];
    const plain = await run(["rm", lost, server.id, gone]);
    assert.deepEqual([plain.code, plain.stdout], [1, `${server.id}\n`]);
    assert.match(plain.stderr, /^wrenn: cl-1: .* \(NOT_FOUND, field id\)\nwrenn: cl-2: .* \(NOT_FOUND, field id\)\n$/);
    const json = await run(["rm", "--json", lost, server.id]);
    assert.deepEqual([json.code, JSON.parse(json.stdout).id], [1, server.id]);
    const { error } = JSON.parse(json.stderr);
    assert.deepEqual([error.capsule, error.code], [lost, "NOT_FOUND"]);
    const one = await run(["rm", lost]);
    assert.match(one.stderr, /^wrenn: there is no capsule cl-1 \(NOT_FOUND, field id\)\n$/);
  });

  it("tells a shell that its input is at its end", async () => {
    server.lasting = true;
    let [typed, over] = ["", false];
    server.afterInput = () => {
      if (over) {
        return;
      }
      typed = Buffer.concat([...server.processes.values()].flatMap(({ stdin }) => stdin)).toString();
      // Who reads first takes the first end for its own.
      if (typed.split("\x04").length > 2) {
        over = true;
        server.end({ exitCode: 7, signal: null });
      }
    };
    const { code, stderr } = await run(["shell", server.id], "first\nlast");
    assert.deepEqual([code, stderr], [7, ""]);
    assert.equal(typed, "first\nlast\n\x04\x04");
  });

  it("forwards nothing if one of the ports cannot be", async () => {
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve));
    const { port } = taken.address() as AddressInfo;
    const { code, stderr } = await run(["forward", server.id, "0:3000", `${port}:3001`]);
    taken.close();
    assert.equal(code, 2);
    assert.match(stderr, /cannot listen on 127\.0\.0\.1/);
  });
});
