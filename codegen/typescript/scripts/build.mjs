// From src/ to dist/: modules with their types for every runtime, one file for pages, the CLI.
import { execFileSync } from "node:child_process";
import { chmodSync, rmSync } from "node:fs";
import { build } from "esbuild";

process.chdir(new URL("..", import.meta.url).pathname);
rmSync("dist", { recursive: true, force: true });
for (const project of ["tsconfig.json", "tsconfig.node.json"]) {
  execFileSync("node_modules/.bin/tsc", ["-p", project], { stdio: "inherit" });
}
chmodSync("dist/cli/main.js", 0o755);
await build({
  entryPoints: ["dist/index.js"],
  outfile: "dist/browser.js",
  bundle: true,
  minify: true,
  format: "esm",
  platform: "browser",
  target: "es2022",
  legalComments: "none",
});
