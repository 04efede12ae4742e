import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Capsule, type OutputEvent, WrennError } from "@wrenn/sdk";
import { until, wrenn } from "../support/stack.js";

const text = (data: Uint8Array): string => new TextDecoder().decode(data);

describe("a capsule", () => {
  let capsule: Capsule;
  before(async () => {
    capsule = await Capsule.create({ wrenn, name: "sdk", labels: { made: "by-tests" }, env: { GREETING: "hello" } });
  });
  after(async () => {
    await capsule?.kill();
    wrenn.close();
  });

  it("runs a command to its end", async () => {
    const result = await capsule.exec('echo "$GREETING $NAME"; pwd; cat; echo oops >&2; exit 3', {
      env: { NAME: "world" },
      cwd: "/tmp",
      stdin: "from here",
    });
    assert.equal(result.stdout, "hello world\n/tmp\nfrom here");
    assert.equal(result.stderr, "oops\n");
    assert.deepEqual([result.exitCode, result.signal, result.truncated], [3, null, false]);
    assert.ok(result.pid > 1);
  });

  it("runs a program with its arguments, and bytes that are no text", async () => {
    const result = await capsule.exec(["printf", "a b\\0\\377"]);
    assert.deepEqual([...result.stdoutBytes], [97, 32, 98, 0, 255]);
  });

  it("gives output as it comes", async () => {
    const execution = capsule.exec("echo one; read x; echo two $x", { stdin: lines() });
    let release = (): void => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    async function* lines() {
      await released;
      yield "three\n";
    }
    const seen: OutputEvent[] = [];
    for await (const event of execution) {
      seen.push(event);
      release();
    }
    const outputs = seen.map((event) => (event.type === "output" ? text(event.data) : "gap"));
    assert.deepEqual(outputs, ["one\n", "two three\n"]);
    assert.equal((await execution).stdout, "one\ntwo three\n");
  });

  it("keeps only so much, and says so", async () => {
    const result = await capsule.exec("yes | head -c 3000000", { maxBytes: 1_000_000 });
    assert.deepEqual([result.stdoutBytes.length, result.truncated], [1_000_000, true]);
  });

  it("kills what is aborted", async () => {
    const controller = new AbortController();
    const execution = capsule.exec("exec sleep 1000", { signal: controller.signal });
    await execution.pid;
    controller.abort();
    assert.equal((await execution).signal, "SIGKILL");
  });

  it("kills what cannot read to its end", async () => {
    async function* broken() {
      yield "half";
      throw new RangeError("no more");
    }
    const execution = capsule.exec("exec cat", { stdin: broken() });
    await assert.rejects(Promise.resolve(execution), RangeError);
    const killed = await until("it is killed", async () => {
      const found = (await capsule.processes()).find(({ tag }) => tag === execution.tag);
      return found && !found.running && found;
    });
    assert.equal(killed.signal, "SIGKILL");
  });

  it("says what is wrong", async () => {
    const wrong = (code: string, field?: string) => (error: unknown) => {
      assert.ok(error instanceof WrennError, String(error));
      assert.deepEqual([error.code, error.field], [code, field]);
      return true;
    };
    await assert.rejects(Promise.resolve(capsule.exec(" ")), wrong("INVALID_INPUT", "command"));
    await assert.rejects(Promise.resolve(capsule.exec("true", { cwd: "/missing" })), wrong("INVALID_INPUT", "cwd"));
    await assert.rejects(Capsule.connect("tpl-1", { wrenn }), wrong("INVALID_INPUT", "id"));
    await assert.rejects(Capsule.create({ wrenn, memoryMib: 1 }), wrong("INVALID_INPUT", "memoryMib"));
    await assert.rejects(capsule.files.read("/missing"), wrong("NOT_FOUND", "path"));
  });

  it("runs processes in the background", async () => {
    const process = await capsule.start("while read line; do echo got $line; done; exit 5", { tag: "reader" });
    const running = (await capsule.processes()).find(({ tag }) => tag === "reader");
    assert.ok(running?.running && process.selector === "reader");
    await process.stdin.write("a\n");
    await capsule.process("reader").stdin.write("b\n");
    await process.stdin.write("c\n");
    await process.stdin.close();
    const following = process.follow({ after: { stdout: 0 } });
    let all = "";
    for await (const event of following) {
      all += event.type === "output" ? text(event.data) : "gap";
    }
    assert.equal(all, "got a\ngot b\ngot c\n");
    assert.deepEqual(await following.exited, { exitCode: 5, signal: null });
    assert.deepEqual(following.cursor.stdout, all.length);

    const sleeper = await capsule.start(["sleep", "1000"]);
    const ended = sleeper.wait();
    await sleeper.signal("SIGTERM");
    assert.deepEqual(await ended, { exitCode: null, signal: "SIGTERM" });
  });

  it("opens terminals", async () => {
    const pty = await capsule.pty({
      command: "stty -echo; echo ready; while read x; do eval $x; done",
      columns: 90,
      rows: 30,
    });
    let shown = "";
    const reading = (async () => {
      for await (const data of pty) {
        shown += text(data);
      }
    })();
    const shows = (what: string) => until(what, async () => shown.includes(what));
    await shows("ready");
    await pty.write("stty size\n");
    await shows("30 90");
    await pty.resize(100, 40);
    await pty.write("stty size\n");
    await shows("40 100");

    // Another one sees what was shown, and types on where the first one was.
    const second = await capsule.attach(pty.tag, { after: 0 });
    let again = "";
    const readingAgain = (async () => {
      for await (const data of second) {
        again += text(data);
      }
    })();
    await second.write("echo from-the-second\n");
    await shows("from-the-second");
    await second.write("exit 7\n");
    await Promise.all([reading, readingAgain]);
    assert.equal(again, shown);
    assert.deepEqual(await pty.exited, { exitCode: 7, signal: null });
  });

  it("shows ports and metrics", async () => {
    const listener =
      "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8123, Listen => 5) or die; sleep 1000";
    const process = await capsule.start(["perl", "-e", listener]);
    const [port] = await until("a port", async () => {
      const ports = await capsule.ports.list();
      return ports.length > 0 && ports;
    });
    assert.deepEqual([port?.number, port?.public], [8123, false]);
    assert.ok(port && port.since.getTime() > Date.parse("2024-01-01"));
    await process.kill();
    const points = await until("points", async () => {
      const points = await capsule.metrics("M5");
      return points.length > 1 && points;
    });
    assert.ok(points.every(({ memoryBytes, at }) => memoryBytes > 1_000_000 && at.getTime() > 0));
    let live = 0;
    for await (const point of capsule.watchMetrics("M5")) {
      live++;
      if (point.at > (points.at(-1)?.at ?? 0)) {
        break;
      }
    }
    assert.ok(live > 1);
  });

  it("is found again", async () => {
    const other = await Capsule.connect(capsule.id, { wrenn });
    assert.deepEqual([other.name, other.state, other.info.labels], ["sdk", "RUNNING", { made: "by-tests" }]);
    const ids = [];
    for await (const { id } of Capsule.list({ labels: { made: "by-tests" } }, { wrenn })) {
      ids.push(id);
    }
    assert.deepEqual(ids, [capsule.id]);
    await capsule.setTimeout(3600);
    assert.equal((await other.refresh()).timeoutSec, 3600);
    await capsule.ping();
  });

  it("goes on after a pause", async () => {
    const states: string[] = [];
    const watching = (async () => {
      for await (const { state } of capsule.watch()) {
        states.push(state);
        if (state === "RUNNING" && states.includes("PAUSED")) {
          return;
        }
      }
    })();
    await until("the first state", async () => states.length > 0);
    const line = "i=0; while [ $i -lt 40 ] || ! [ -e /tmp/resumed ]; do echo $i; i=$((i+1)); sleep 0.05; done";
    const failing = capsule.exec(line);
    const waiting = capsule.exec(line, { acrossPauses: true });
    const pty = await capsule.pty({ command: "stty -echo; cat", acrossPauses: true });
    await Promise.all([failing.pid, waiting.pid]);
    await capsule.pause();
    assert.equal(capsule.state, "PAUSED");
    await assert.rejects(Promise.resolve(failing), { code: "UNAVAILABLE", reason: "CAPSULE_PAUSED" });
    const typed = pty.write("typed while paused\n");
    await capsule.resume();
    await capsule.files.write("/tmp/resumed", "");
    const { stdout } = await waiting;
    const length = stdout.split("\n").length - 1;
    assert.ok(length >= 40);
    assert.equal(stdout, Array.from({ length }, (_, index) => `${index}\n`).join(""));
    await typed;
    for await (const data of pty) {
      assert.equal(text(data).trimEnd(), "typed while paused");
      break;
    }
    await pty.close();
    await watching;
    // The process itself went on all the same.
    const process = capsule.process(failing.tag);
    assert.deepEqual(await process.wait(), { exitCode: 0, signal: null });
  });

  it("is copied, and ends with its block", async () => {
    await capsule.files.write("/root/moment", "now");
    const [one, two] = await capsule.fork({ count: 2 });
    assert.ok(one && two);
    await one.files.write("/root/moment", "later");
    assert.equal(await two.files.readText("/root/moment"), "now");
    assert.equal(await capsule.files.readText("/root/moment"), "now");

    const name = `sdk-${Date.now()}`;
    const template = await capsule.snapshot(name);
    assert.deepEqual([template.name, template.kind, template.sourceCapsuleId], [name, "SNAPSHOT", capsule.id]);
    {
      await using copy = await Capsule.create({ wrenn, template: name });
      assert.equal(await copy.files.readText("/root/moment"), "now");
      await using same = await Capsule.connect(copy.id, { wrenn });
      assert.equal(same.id, copy.id);
    }
    const left = [];
    for await (const { id } of Capsule.list({ template: name }, { wrenn })) {
      left.push(id);
    }
    assert.deepEqual(left, []);
    await Promise.all([one.kill(), two.kill()]);
    await wrenn.graphql.deleteTemplate({ id: template.id });
  });

  it("ends its streams when it ends", async () => {
    const mortal = await Capsule.create({ wrenn });
    const execution = mortal.exec("exec sleep 1000");
    await execution.pid;
    const ended = assert.rejects(Promise.resolve(execution), WrennError);
    await mortal.kill();
    await ended;
    assert.equal(mortal.state, "STOPPED");
  });
});
