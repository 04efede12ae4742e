import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Capsule, Wrenn, WrennError } from "@wrenn/sdk";
import { FakeServer } from "../support/server.js";

describe("the content of files over connections that break", () => {
  let server: FakeServer;
  let wrenn: Wrenn;
  let capsule: Capsule;

  beforeEach(async () => {
    server = await FakeServer.start();
    wrenn = new Wrenn({ url: server.url, apiKey: "wrn_test", patienceSec: 10 });
    capsule = await Capsule.connect(server.id, { wrenn });
  });
  afterEach(async () => {
    wrenn.close();
    await server.stop();
  });

  /** Half of what was announced. */
  const breakOff = (response: ServerResponse): void => {
    response.writeHead(200, { "content-length": 10 });
    response.write("01234", () => setTimeout(() => response.destroy(), 20));
  };

  it("is not taken for whole", async () => {
    server.visit = (_, response) => breakOff(response);
    const stream = await capsule.files.read("/srv/digits");
    await assert.rejects(
      async () => {
        for await (const _ of stream) {
          // Half of it.
        }
      },
      (error) => {
        assert.ok(error instanceof WrennError, String(error));
        assert.deepEqual([error.code, error.reason], ["UNAVAILABLE", "CONNECTION_LOST"]);
        assert.match(error.message, /^the content broke off after 5 bytes: /);
        return true;
      },
    );
  });

  it("is asked for anew where it is read as a whole", async () => {
    let asked = 0;
    server.visit = (_, response) => {
      asked++;
      asked === 1 ? breakOff(response) : response.end("0123456789");
    };
    assert.equal(await capsule.files.readText("/srv/digits"), "0123456789");
    assert.equal(asked, 2);
  });

  it("fails as the signal says", async () => {
    server.visit = (_, response) => void response.writeHead(200, { "content-length": 10 }).write("01234");
    const controller = new AbortController();
    const stream = await capsule.files.read("/srv/digits", { signal: controller.signal });
    const reader = stream.getReader();
    await reader.read();
    controller.abort();
    await assert.rejects(reader.read(), { name: "AbortError" });
  });

  it("is written for as long as it is there", async () => {
    server.visit = (request, response) => void request.resume().on("end", () => response.end("{}"));
    const broken = () =>
      new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(new Uint8Array(10));
          controller.error(new RangeError("no more"));
        },
      });
    await assert.rejects(capsule.files.write("/srv/file", broken()), RangeError);
    async function* failing() {
      yield "half";
      throw new RangeError("no more");
    }
    await assert.rejects(capsule.files.write("/srv/file", failing()), RangeError);
  });

  it("is not known to be written when the answer is cut", async () => {
    server.visit = (request, response) => void request.resume().on("end", () => breakOff(response));
    const data = new Blob(["data"]).stream();
    await assert.rejects(capsule.files.write("/srv/file", data), { name: "WrennError", reason: "CONNECTION_LOST" });
  });
});
