import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { random, sha256 } from "../support/bytes.js";
import { CLI, cli, inTerminal, Running } from "../support/cli.js";
import { Cutter } from "../support/cutter.js";
import { until, url, wrenn } from "../support/stack.js";

const MIB = 1024 * 1024;

/** Ends well if there is a `sleep` in the foreground of its terminal (proc_pid_stat(5)). */
const SLEEPS = `for stat in /proc/[0-9]*/stat; do read -r _ name _ _ group _ _ foreground _ < $stat || continue
  [ "$name" = "(sleep)" ] && [ $group = $foreground ] && exit 0; done 2> /dev/null; exit 1`;

async function fine(args: string[], stdin: string | Uint8Array = ""): Promise<string> {
  const { code, stdout, stderr } = await cli(args, stdin);
  assert.deepEqual([code, stderr], [0, ""], `wrenn ${args.join(" ")}`);
  return stdout;
}

describe("the command line", () => {
  const name = `cli-${process.pid}`;
  let id: string;
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), "wrenn-sdk-"));
    id = (await fine(["create", "--name", name, "--label", "made=by-cli", "-e", "GREETING=hi there"])).trim();
  });
  after(async () => {
    await rm(dir, { recursive: true });
    await cli(["rm", id]);
    wrenn.close();
  });

  it("lists capsules", async () => {
    const table = await fine(["ls", "--label", "made=by-cli"]);
    assert.match(table, new RegExp(`^ID +NAME +STATE.*\n${id} +${name} +RUNNING +minimal +`));
    const [capsule, ...others] = JSON.parse(await fine(["ls", "-l", "made=by-cli", "--json"]));
    assert.deepEqual([capsule.id, capsule.state, others.length], [id, "RUNNING", 0]);
    assert.equal(await fine(["ls", "-q", "--label", "made=by-cli"]), `${id}\n`);
  });

  it("runs commands, and exits as they do", async () => {
    assert.equal(await fine(["exec", name, "echo $GREETING"]), "hi there\n");
    assert.equal(await fine(["exec", id, "-w", "/tmp", "--", "sh", "-c", "pwd"]), "/tmp\n");
    const { code, stdout, stderr } = await cli(["exec", id, "cat; echo oops >&2; exit 42"], "from outside");
    assert.deepEqual([code, stdout, stderr], [42, "from outside", "oops\n"]);
    assert.equal((await cli(["exec", id, "kill -9 $$"])).code, 128 + 9);
    const json = await cli(["exec", "--json", id, "echo a; exit 3"]);
    const { exitCode, stdout: said } = JSON.parse(json.stdout);
    assert.deepEqual([json.code, exitCode, said], [3, 3, "a\n"]);
    const large = random(3 * MIB);
    const sum = await fine(["exec", id, "sha256sum"], large);
    assert.equal(sum.split(" ")[0], sha256(large));
  });

  it("passes Ctrl-C on", async () => {
    const running = new Running(process.execPath, [CLI, "exec", id, "echo ready; exec sleep 1000"]);
    await running.says("ready");
    running.signal("SIGINT");
    assert.equal(await running.ended, 128 + 2);
  });

  it("follows what runs in the background", async () => {
    const tag = (await fine(["exec", "-d", "--tag", "counter", id, "for i in 1 2 3; do echo $i; done; exit 9"])).trim();
    assert.equal(tag, "counter");
    assert.equal(await fine(["logs", id, tag]), "1\n2\n3\n");
    assert.match(await fine(["logs", id]), /counter .*exited 9 .*for i in 1 2 3/);
    const events = (await fine(["logs", "--json", id, tag]))
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    assert.deepEqual(events.at(-1), { type: "exit", exitCode: 9, signal: null });
  });

  it("copies files both ways", async () => {
    const content = random(20 * MIB);
    const [there, back] = [join(dir, "there"), join(dir, "back")];
    await writeFile(there, content, { mode: 0o640 });
    await fine(["cp", there, `${id}:/srv/new/`]);
    assert.equal((await fine(["exec", id, "stat -c %a:%s /srv/new/there"])).trim(), `640:${content.length}`);
    const saved = JSON.parse(await fine(["cp", "--json", `${name}:/srv/new/there`, back]));
    assert.deepEqual(saved, { path: back, size: content.length });
    assert.equal(sha256(await readFile(back)), sha256(content));
    await fine(["cp", "-", `${id}:/srv/typed`], "typed");
    assert.equal(await fine(["cp", `${id}:/srv/typed`, "-"]), "typed");
    const missing = await cli(["cp", `${id}:/srv/missing`, join(dir, "never")]);
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /^wrenn: .*\(NOT_FOUND, field path\)\n$/);
  });

  it("opens a shell in a terminal, and comes back to it", async () => {
    const first = inTerminal(["shell", name, "--tag", "my-shell"]);
    const [, terminal = ""] = /(\/dev\/pts\/\d+)/.exec(await first.says(/\/dev\/pts\/\d+/)) ?? [];
    first.type("stty size; echo $((6*7))-answer\r");
    await first.says("33 99");
    await first.says("42-answer");
    execFileSync("stty", ["-F", terminal, "rows", "44", "cols", "111"]);
    await until("the new size", async () => {
      first.type("stty size\r");
      return first.stdout.includes("44 111");
    });
    // Ctrl-C is the shell's.
    first.type("sleep 1000\r");
    await until("`sleep` in the foreground", async () => (await cli(["exec", id, SLEEPS])).code === 0);
    first.type("\x03");
    first.type("kept=here\r");
    first.type("echo $((1+1))-alive\r");
    await first.says("2-alive");
    first.type("\x1d");
    assert.equal(await first.ended, 0);
    assert.match(first.stdout, /left open: wrenn shell cl-\w+ --attach my-shell/);

    const second = inTerminal(["shell", id, "--attach", "my-shell"]);
    await second.says("42-answer");
    second.type("echo $kept-still; exit 6\r");
    await second.says("here-still");
    assert.equal(await second.ended, 6);
  });

  it("keeps a shell over lost connections and a pause", async () => {
    const cutter = await Cutter.start(url);
    try {
      const shell = inTerminal(["shell", id], { WRENN_URL: cutter.url });
      for (let round = 1; round <= 5; round++) {
        shell.type(`echo $((${round}*1000))-round\r`);
        await shell.says(`${round}000-round`);
        cutter.cut();
      }
      await fine(["pause", id]);
      shell.type("echo $((90+9))-after-pause\r");
      await fine(["resume", id]);
      await shell.says("99-after-pause");
      shell.type("exit 0\r");
      assert.equal(await shell.ended, 0);
      assert.ok(cutter.cuts >= 5);
    } finally {
      await cutter.stop();
    }
  });

  it("takes commands for a shell from a pipe", async () => {
    const { code, stdout, stderr } = await cli(["shell", id], "echo $((6*7))-piped\necho $((6*8))-last");
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /42-piped[^]*48-last/);
  });

  it("leaves a shell at once while the capsule is paused", async () => {
    const shell = inTerminal(["shell", id]);
    shell.type("echo $((6*7))-here\r");
    await shell.says("42-here");
    await fine(["pause", id]);
    shell.type("typed while paused\x1d");
    assert.equal(await shell.ended, 0);
    assert.match(shell.stdout, /left open/);
    await fine(["resume", id]);
  });

  it("pauses, resumes, forks and removes", async () => {
    assert.equal(JSON.parse(await fine(["pause", "--json", id])).state, "PAUSED");
    assert.equal(await fine(["resume", name]), `${id}\n`);
    const copies = (await fine(["fork", "-n", "2", id])).trim().split("\n");
    assert.equal(copies.length, 2);
    assert.equal(await fine(["rm", ...copies]), `${copies.join("\n")}\n`);
    const gone = JSON.parse(await fine(["ls", "--all", "--json"])).filter((it: { id: string }) =>
      copies.includes(it.id),
    );
    assert.deepEqual(
      gone.map((it: { state: string }) => it.state),
      ["STOPPED", "STOPPED"],
    );
  });

  it("lists ports", async () => {
    const listener =
      "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8200, Listen => 5) or die; sleep 1000";
    await fine(["exec", "-d", id, "--", "perl", "-e", listener]);
    await until("the port", async () => (await fine(["ports", id])).includes("8200"));
    assert.deepEqual(
      JSON.parse(await fine(["ports", "--json", id])).map((port: { number: number }) => port.number),
      [8200],
    );
  });

  it("says what was wrong", async () => {
    for (const [args, code, message] of [
      [[], 2, ""],
      [["fly"], 2, "wrenn: there is no command `fly`: `wrenn --help` lists them\n"],
      [["exec", id], 2, "wrenn: COMMAND is missing\nUsage: wrenn exec [OPTION…] CAPSULE [--] COMMAND…\n"],
      [["pause"], 2, "wrenn: CAPSULE is missing\nUsage: wrenn pause [OPTION…] CAPSULE…\n"],
      [["ls", "--lable", "x"], 2, /^wrenn: Unknown option '--lable'/],
      [["create", "--memory", "much"], 2, /^wrenn: --memory takes a whole number, not `much`\n/],
      [["pause", "nobody"], 1, "wrenn: no capsule is called `nobody` (NOT_FOUND)\n"],
      [["exec", "nobody", "true"], 125, "wrenn: no capsule is called `nobody` (NOT_FOUND)\n"],
    ] as const) {
      const outcome = await cli([...args]);
      assert.equal(outcome.code, code, outcome.stderr);
      message instanceof RegExp ? assert.match(outcome.stderr, message) : assert.equal(outcome.stderr, message);
    }
    const { code, stderr } = await cli(["pause", "--json", "nobody"]);
    assert.deepEqual([code, JSON.parse(stderr).error.code], [1, "NOT_FOUND"]);
  });
});
