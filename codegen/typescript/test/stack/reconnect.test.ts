import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, describe, it } from "node:test";
import { Capsule, Wrenn } from "@wrenn/sdk";
import { numbers, random, sha256 } from "../support/bytes.js";
import { Cutter } from "../support/cutter.js";
import { apiKey, url, wrenn } from "../support/stack.js";

const MIB = 1024 * 1024;

/** A random MiB, again and again with a number between: any byte that is lost, doubled or out of order changes the hash. */
const line = (count: number) => `i=0; while [ $i -lt ${count} ]; do echo block $i; cat /run/block; i=$((i+1)); done`;

/** 32 times the MiB, in pieces. */
const SLOWLY =
  "i=0; while [ $i -lt 512 ]; do dd if=/run/block bs=64k skip=$((i%16)) count=1 2>/dev/null; sleep 0.005; i=$((i+1)); done";

function expected(block: Uint8Array, count: number): string {
  const hash = createHash("sha256");
  for (let index = 0; index < count; index++) {
    hash.update(`block ${index}\n`).update(block);
  }
  return hash.digest("hex");
}

describe("over connections that break in random places", () => {
  const block = random(MIB);
  let capsule: Capsule;
  let cutter: Cutter;
  let broken: Wrenn;
  let through: Capsule;

  before(async () => {
    capsule = await Capsule.create({ wrenn });
    await capsule.files.write("/run/block", block);
    cutter = await Cutter.start(url);
    broken = new Wrenn({ url: cutter.url, apiKey });
    through = await Capsule.connect(capsule.id, { wrenn: broken });
  });
  after(async () => {
    broken?.close();
    await cutter?.stop();
    await capsule?.kill();
    wrenn.close();
  });

  it("output arrives whole", async () => {
    const next = numbers(11);
    cutter.allowance = () => next() * 0.75 * MIB;
    const before = cutter.cuts;
    const hash = createHash("sha256");
    let due = 0;
    // Not faster than it is read: what lies in buffers of the network when it breaks is more than a capsule can repeat.
    for await (const event of through.exec(SLOWLY)) {
      assert.ok(event.type === "output" && event.offset === due, `${event.type} where ${due} was due`);
      hash.update(event.data);
      due += event.data.length;
    }
    cutter.allowance = () => Number.NaN;
    assert.equal(hash.digest("hex"), sha256(...Array<Uint8Array>(32).fill(block)));
    assert.ok(cutter.cuts - before >= 50, `${cutter.cuts - before} cuts`);
  });

  it("a reader that stops for a while misses nothing", async () => {
    const hash = createHash("sha256");
    let [due, stops] = [0, 0];
    for await (const event of through.exec(line(64))) {
      assert.ok(event.type === "output" && event.offset === due, `${JSON.stringify(event)} where ${due} was due`);
      hash.update(event.data);
      due += event.data.length;
      if (due > (stops + 1) * 16 * MIB) {
        stops++;
        // The first time longer than a process waits for a reader that shows no sign of life.
        await new Promise((resolve) => setTimeout(resolve, stops === 1 ? 35_000 : 1_000));
      }
    }
    assert.equal(hash.digest("hex"), expected(block, 64));
    assert.ok(stops >= 3);
  });

  it("input is taken exactly once", async () => {
    const next = numbers(5);
    const process = await through.start("cat > /run/input");
    const written = random(4 * MIB);
    const writes: Promise<void>[] = [];
    for (let at = 0; at < written.length;) {
      const end = at + 1 + Math.floor(next() * 60_000);
      const write = process.stdin.write(written.subarray(at, end));
      writes.push(write);
      if (next() < 0.3) {
        await write;
      }
      if (next() < 0.3) {
        cutter.cut();
      }
      at = end;
    }
    await Promise.all(writes);
    await process.stdin.close();
    assert.deepEqual(await process.wait(), { exitCode: 0, signal: null });
    assert.equal((await capsule.exec("sha256sum < /run/input")).stdout.split(" ")[0], sha256(written));
  });

  it("a terminal echoes each key once", async () => {
    const next = numbers(9);
    const pty = await through.pty({ command: "stty -echo raw; echo ready; exec cat" });
    const typed = Array.from({ length: 300 }, (_, index) => `${index},`).join("");
    let shown = "";
    let typing: Promise<void> | undefined;
    const type = async (): Promise<void> => {
      for (const key of typed) {
        const written = pty.write(key);
        if (next() < 0.05) {
          cutter.cut();
          await written;
        }
      }
    };
    for await (const data of pty) {
      shown += new TextDecoder().decode(data);
      if (typing === undefined && shown.includes("ready\n")) {
        shown = "";
        typing = type();
      }
      if (shown.length >= typed.length) {
        break;
      }
    }
    await typing;
    assert.equal(shown, typed);
    await pty.close();
  });

  it("commands are carried out once", async () => {
    const next = numbers(13);
    for (let index = 0; index < 30; index++) {
      const running = through.exec(`echo ${index} >> /run/commands; echo done`);
      await new Promise((resolve) => setTimeout(resolve, next() * 20));
      cutter.cut();
      assert.equal((await running).stdout, "done\n");
    }
    const said = await capsule.files.readText("/run/commands");
    assert.equal(said, Array.from({ length: 30 }, (_, index) => `${index}\n`).join(""));
  });
});
