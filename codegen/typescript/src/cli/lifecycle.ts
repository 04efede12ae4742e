import { Capsule, type CapsuleInfo, type CapsuleState, WrennError } from "../index.js";
import { client, find } from "./client.js";
import { explain } from "./failure.js";
import { age, print, printJson, printTable } from "./print.js";
import { assignments, type Command, EXIT, exactly, type Given, UsageError } from "./usage.js";

const STATES = "PENDING STARTING RUNNING PAUSING PAUSED RESUMING SNAPSHOTTING STOPPING STOPPED MISSING ERROR".split(
  " ",
);

export const create: Command = {
  name: "create",
  operands: "",
  summary: "Make a capsule and print its id",
  options: {
    template: { type: "string", short: "t", value: "TEMPLATE", help: "id or name; `minimal` if absent" },
    name: { type: "string", short: "n", value: "NAME", help: "what to call it" },
    vcpus: { type: "string", value: "N", help: "virtual processors" },
    memory: { type: "string", value: "MIB", help: "memory" },
    disk: { type: "string", value: "MIB", help: "disk" },
    timeout: { type: "string", value: "SECONDS", help: "pause it after this long without activity" },
    env: {
      type: "string",
      short: "e",
      multiple: true,
      value: "NAME[=VALUE]",
      help: "a variable of its processes; repeatable",
    },
    label: { type: "string", short: "l", multiple: true, value: "NAME=VALUE", help: "a label; repeatable" },
  },
  async run(given) {
    exactly(given);
    const capsule = await Capsule.create({
      wrenn: client(),
      template: given.text("template"),
      name: given.text("name"),
      vcpus: given.number("vcpus"),
      memoryMib: given.number("memory"),
      diskMib: given.number("disk"),
      timeoutSec: given.number("timeout"),
      env: assignments(given.texts("env")),
      labels: assignments(given.texts("label")),
    });
    await printCapsule(capsule.info, given);
    return EXIT.ok;
  },
};

export const ls: Command = {
  name: "ls",
  operands: "",
  summary: "List capsules",
  options: {
    all: { type: "boolean", short: "a", help: "those that are stopped, too" },
    state: { type: "string", multiple: true, value: "STATE", help: "only those in this state; repeatable" },
    label: {
      type: "string",
      short: "l",
      multiple: true,
      value: "NAME=VALUE",
      help: "only those with this label; repeatable",
    },
    quiet: { type: "boolean", short: "q", help: "ids only" },
  },
  async run(given) {
    exactly(given);
    const asked = given.texts("state").map((text) => stateOf(text));
    const states = asked.length > 0 ? asked : given.flag("all") ? (STATES as CapsuleState[]) : undefined;
    const found: CapsuleInfo[] = [];
    for await (const capsule of Capsule.list(
      { states, labels: assignments(given.texts("label")) },
      { wrenn: client() },
    )) {
      found.push(capsule.info);
    }
    if (given.flag("json")) {
      await printJson(found);
    } else if (given.flag("quiet")) {
      await print(found.map(({ id }) => `${id}\n`).join(""));
    } else {
      await printTable(
        ["ID", "NAME", "STATE", "TEMPLATE", "VCPUS", "MEMORY", "AGE"],
        found.map((it) => [
          it.id,
          it.name ?? "-",
          it.cause ? `${it.state} (${it.cause.code})` : it.state,
          it.template.name,
          String(it.vcpus),
          `${it.memoryMib} MiB`,
          age(it.createdAt),
        ]),
      );
    }
    return EXIT.ok;
  },
};

function stateOf(text: string): CapsuleState {
  const state = text.toUpperCase();
  if (!STATES.includes(state)) {
    throw new UsageError(`\`${text}\` is no state; those are ${STATES.join(" ")}`);
  }
  return state as CapsuleState;
}

export const pause: Command = {
  name: "pause",
  operands: "CAPSULE…",
  summary: "Put capsules to disk with everything in their memory",
  options: {},
  run: (given) => each(given, async (capsule) => [(await capsule.pause()).info]),
};

export const resume: Command = {
  name: "resume",
  operands: "CAPSULE…",
  summary: "Let paused capsules go on",
  options: {},
  run: (given) => each(given, async (capsule) => [(await capsule.resume()).info]),
};

export const fork: Command = {
  name: "fork",
  operands: "CAPSULE",
  summary: "Make running copies of a capsule and print their ids",
  options: {
    count: { type: "string", short: "n", value: "N", help: "how many; 1 if absent" },
    secrets: { type: "boolean", help: "with the capsule's secret variables" },
  },
  run(given) {
    exactly(given, "CAPSULE");
    const options = { count: given.number("count"), inheritSecrets: given.flag("secrets") };
    return each(given, async (capsule) => (await capsule.fork(options)).map(({ info }) => info));
  },
};

export const rm: Command = {
  name: "rm",
  operands: "CAPSULE…",
  summary: "Remove capsules with their disks and memory, for good",
  options: {},
  run: (given) =>
    each(given, async (capsule) => {
      await capsule.kill();
      return [capsule.info];
    }),
};

/** Does something to each capsule that was named, whatever became of the others, and prints what came of it. */
async function each(given: Given, act: (capsule: Capsule) => Promise<CapsuleInfo[]>): Promise<number> {
  if (given.operands.length === 0) {
    throw new UsageError("CAPSULE is missing");
  }
  let code: number = EXIT.ok;
  for (const operand of given.operands) {
    try {
      for (const info of await act(await find(operand))) {
        await printCapsule(info, given);
      }
    } catch (error) {
      if (given.operands.length === 1 || !(error instanceof WrennError)) {
        throw error;
      }
      explain(error, given.flag("json"), operand);
      code = EXIT.failed;
    }
  }
  return code;
}

function printCapsule(info: CapsuleInfo, given: Given): Promise<void> {
  return given.flag("json") ? printJson(info) : print(`${info.id}\n`);
}
