/*
 * Follows output and writes input while somebody else kills and starts the server and its host: at each of ten marks it
 * says `mark N` and goes on when it is told `on`. At its end it says what it got, and what the capsule got.
 */
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { Capsule } from "@wrenn/sdk";
import { random, sha256 } from "../support/bytes.js";
import { wrenn } from "../support/stack.js";

const MIB = 1024 * 1024;
const MARKS = 10;
const BLOCKS_PER_MARK = 8;

const orders = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

await using capsule = await Capsule.create({ wrenn });
const block = random(MIB);
await capsule.files.write("/run/block", block);
const count = MARKS * BLOCKS_PER_MARK + 1;
const output = capsule.exec(`i=0; while [ $i -lt ${count} ]; do cat /run/block; echo $i; i=$((i+1)); done`);
const taking = await capsule.start("cat > /run/input");

const expected = createHash("sha256");
for (let index = 0; index < count; index++) {
  expected.update(block).update(`${index}\n`);
}

const [got, written] = [createHash("sha256"), [] as Uint8Array[]];
let [due, mark] = [0, 0];
for await (const event of output) {
  if (event.type !== "output" || event.offset !== due) {
    throw new Error(`${event.type} where ${due} was due`);
  }
  got.update(event.data);
  due += event.data.length;
  if (mark < MARKS && due > (mark + 1) * BLOCKS_PER_MARK * MIB) {
    mark++;
    const piece = random(50_000);
    written.push(piece);
    // Under way while everything dies.
    const writing = taking.stdin.write(piece);
    console.log(`mark ${mark}`);
    await orders.next();
    await writing;
  }
}
await taking.stdin.close();
await taking.wait();
const { stdout } = await capsule.exec("sha256sum < /run/input");
console.log(`output ${got.digest("hex") === expected.digest("hex")}`);
console.log(`input ${stdout.split(" ")[0] === sha256(...written)}`);
process.stdin.destroy();
