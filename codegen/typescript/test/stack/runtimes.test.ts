import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { it } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import "../support/stack.js";
import { FINDINGS } from "../support/tour.js";

const run = promisify(execFile);
const PROGRAM = fileURLToPath(new URL("../programs/tour.js", import.meta.url));
const BIN = fileURLToPath(new URL("../../../node_modules/.bin/", import.meta.url));

/** Each with as little as the package needs. */
const RUNTIMES = {
  bun: ["run"],
  deno: ["run", "--no-prompt", "--allow-net", "--allow-env=WRENN_URL,WRENN_API_KEY"],
};

for (const [name, options] of Object.entries(RUNTIMES)) {
  it(`works in ${name}`, async () => {
    const { stdout, stderr } = await run(BIN + name, [...options, PROGRAM], { timeout: 120_000 });
    assert.equal(stderr, "");
    assert.deepEqual(JSON.parse(stdout), FINDINGS);
  });
}
