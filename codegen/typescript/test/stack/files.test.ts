import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, describe, it } from "node:test";
import { Capsule, type FileEvent } from "@wrenn/sdk";
import { random, sha256 } from "../support/bytes.js";
import { wrenn } from "../support/stack.js";

const MIB = 1024 * 1024;

describe("the files of a capsule", () => {
  let capsule: Capsule;
  before(async () => {
    capsule = await Capsule.create({ wrenn });
  });
  after(async () => {
    await capsule?.kill();
    wrenn.close();
  });

  it("are written and read as streams", async () => {
    const blocks = Array.from({ length: 48 }, () => random(MIB));
    const entry = await capsule.files.write("/srv/new/large", new Blob(blocks as Uint8Array<ArrayBuffer>[]).stream(), {
      parents: true,
      mode: 0o640,
    });
    assert.deepEqual([entry.path, entry.kind, entry.size, entry.mode], ["/srv/new/large", "FILE", 48 * MIB, 0o640]);
    const hash = createHash("sha256");
    for await (const data of await capsule.files.read("/srv/new/large")) {
      hash.update(data);
    }
    assert.equal(hash.digest("hex"), sha256(...blocks));
    const { stdout } = await capsule.exec("sha256sum /srv/new/large");
    assert.equal(stdout.split(" ")[0], sha256(...blocks));
  });

  it("take text, bytes, blobs and whatever yields them", async () => {
    const several = async function* () {
      yield "ä";
      yield new Uint8Array([98]);
    };
    for (const [data, expected] of [
      ["text", "text"],
      [new TextEncoder().encode("bytes"), "bytes"],
      [new Blob(["bl", "ob"]), "blob"],
      [several(), "äb"],
      ["", ""],
    ] as const) {
      await capsule.files.write("small", data);
      assert.equal(await capsule.files.readText("small"), expected);
    }
  });

  it("are read in parts", async () => {
    await capsule.files.write("digits", "0123456789");
    const part = (start?: number, end?: number) => capsule.files.readText("digits", { start, end });
    assert.deepEqual(await Promise.all([part(3), part(3, 5), part(0, 1), part(5, 5), part(99), part(8, 99)]), [
      "3456789",
      "34",
      "0",
      "",
      "",
      "89",
    ]);
  });

  it("can be left half read", async () => {
    const stream = await capsule.files.read("/dev/../srv/new/large");
    const reader = stream.getReader();
    assert.ok((await reader.read()).value?.length);
    await reader.cancel();
  });

  it("are listed, moved and removed", async () => {
    const { files } = capsule;
    assert.equal((await files.mkdir("/srv/a/b")).kind, "DIRECTORY");
    await files.write("/srv/a/file", "12345");
    assert.deepEqual(
      (await files.list("/srv/a")).map(({ name }) => name),
      ["b", "file"],
    );
    const { size, kind, modifiedAt } = await files.stat("/srv/a/file");
    assert.deepEqual([size, kind], [5, "FILE"]);
    assert.ok(Math.abs(modifiedAt.getTime() - Date.now()) < 3_600_000);
    assert.equal((await files.stat("/srv/a/b/")).kind, "DIRECTORY");
    assert.equal((await files.move("/srv/a/file", "/srv/a/b/other")).path, "/srv/a/b/other");
    assert.deepEqual([await files.exists("/srv/a/file"), await files.exists("/srv/a/b/other")], [false, true]);
    await files.remove("/srv/a");
    assert.equal(await files.exists("/srv/a"), false);
    await assert.rejects(files.stat("/srv/a"), { code: "NOT_FOUND", field: "path" });
  });

  it("are watched", async () => {
    await capsule.files.mkdir("/srv/watched/inner");
    const events: FileEvent[] = [];
    for await (const event of capsule.files.watch("/srv/watched", { recursive: true })) {
      events.push(event);
      if (event.type === "ready") {
        await capsule.files.write("/srv/watched/inner/file", "x");
      } else if (event.type === "change" && event.path === "/srv/watched/inner/file") {
        break;
      }
    }
    assert.deepEqual(events[0], { type: "ready" });
  });
});
