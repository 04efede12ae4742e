import { find } from "./client.js";
import { age, printJson, printTable } from "./print.js";
import { type Command, EXIT, exactly } from "./usage.js";

export const ports: Command = {
  name: "ports",
  operands: "CAPSULE",
  summary: "List the ports that something in a capsule listens on",
  options: {},
  async run(given) {
    const [target] = exactly(given, "CAPSULE");
    const found = await (await find(target)).ports.list();
    if (given.flag("json")) {
      await printJson(found);
    } else {
      const rows = found.map(({ number, process, since, public: open }) => {
        return [String(number), process ?? "-", open ? "public" : "private", age(since.toISOString())];
      });
      await printTable(["PORT", "PROCESS", "ACCESS", "AGE"], rows);
    }
    return EXIT.ok;
  },
};
