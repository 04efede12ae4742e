import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CLI } from "../support/cli.js";
import "../support/stack.js";

const run = promisify(execFile);
const PACKAGE = fileURLToPath(new URL("../../../", import.meta.url));
const README = await readFile(join(PACKAGE, "README.md"), "utf8");

/** The examples in one language, as they stand. */
function examples(language: string): string[] {
  return [...README.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, "gms"))].map(([, code]) => code ?? "");
}

const COMPILER = {
  compilerOptions: {
    target: "es2022",
    module: "nodenext",
    lib: ["es2023", "esnext.disposable", "dom", "dom.asynciterable"],
    strict: true,
    types: [],
    outDir: "out",
  },
};

describe("the examples of the README", () => {
  const programs = examples("ts");
  let dir: string;
  before(async () => {
    // A project that has the package installed.
    dir = await mkdtemp(join(tmpdir(), "wrenn-readme-"));
    await mkdir(join(dir, "node_modules/@wrenn"), { recursive: true });
    await mkdir(join(dir, "node_modules/.bin"));
    await symlink(PACKAGE, join(dir, "node_modules/@wrenn/sdk"));
    await symlink(CLI, join(dir, "node_modules/.bin/wrenn"));
    await writeFile(join(dir, "package.json"), JSON.stringify({ type: "module", dependencies: { "@wrenn/sdk": "*" } }));
    await writeFile(join(dir, "tsconfig.json"), JSON.stringify(COMPILER));
    await Promise.all(programs.map((code, index) => writeFile(join(dir, `example-${index}.ts`), code)));
    await run(join(PACKAGE, "node_modules/.bin/tsc"), ["-p", dir]).catch((error: { stdout: string }) => {
      throw new Error(error.stdout);
    });
  });
  after(async () => {
    await rm(dir, { recursive: true });
  });

  for (const [index, code] of programs.entries()) {
    const before = README.slice(0, README.indexOf(code));
    const [, title] = /.*^#+ (.*?)$/ms.exec(before) ?? [];
    it(`${title} (${index})`, async () => {
      const { stdout, stderr } = await run(process.execPath, [join(dir, `out/example-${index}.js`)], {
        timeout: 120_000,
      });
      assert.equal(stderr, "");
      const promised = [...code.matchAll(/\/\/ prints (.*)$/gm)].map(([, text]) => text ?? "");
      for (const text of promised) {
        assert.ok(stdout.includes(text), `\`${text}\` in ${stdout}`);
      }
    });
  }

  it("in a terminal", async () => {
    const [script] = examples("sh");
    assert.ok(script);
    const { stdout } = await run("bash", ["-euo", "pipefail", "-c", script], { cwd: dir, timeout: 240_000 });
    assert.match(
      stdout,
      /^cl-\w+\nHello from .+\nworker\nsome text\ncl-\w+\ncl-\w+\nPORT .*\n\[{.*}\]\ncl-\w+\ncl-\w+\n$/,
    );
  });
});
