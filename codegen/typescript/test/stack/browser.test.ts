import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, it } from "node:test";
import { Capsule } from "@wrenn/sdk";
import { type Browser, chromium } from "playwright-core";
import { LAUNCH } from "../support/browser.js";
import { apiKey, until, url, wrenn } from "../support/stack.js";

const BUNDLE = new URL("../../../dist/browser.js", import.meta.url);

let browser: Browser;
before(async () => {
  browser = await chromium.launch(LAUNCH);
});
after(async () => {
  await browser?.close();
  wrenn.close();
});

it("works in a page", async () => {
  const page = await browser.newPage();
  const origin = new URL(url).origin;
  const failures: string[] = [];
  page.on("pageerror", (error) => failures.push(String(error)));
  // A page of the server's own origin, as the browser sees it.
  await page.route(`${origin}/page`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await page.route(`${origin}/sdk.js`, async (route) => {
    await route.fulfill({ contentType: "text/javascript", body: await readFile(BUNDLE, "utf8") });
  });
  await page.goto(`${origin}/page`);
  const seen = await page.evaluate(
    async ({ sdk, url, apiKey }) => {
      const { Capsule, Wrenn } = (await import(sdk)) as typeof import("@wrenn/sdk");
      const wrenn = new Wrenn({ url, apiKey });
      const capsule = await Capsule.create({ wrenn });
      try {
        const { stdout, exitCode } = await capsule.exec("cat; exit 3", { stdin: "ä from a page" });
        const lines: string[] = [];
        for await (const { text } of capsule.exec("echo one; echo two").lines()) {
          lines.push(text);
        }
        const stream = new Blob(["a stream ", "of a page"]).stream();
        const { size } = await capsule.files.write("/srv/page", stream, { parents: true });
        const content = await capsule.files.readText("/srv/page");
        const large = await capsule.exec("head -c 3000000 /dev/zero");
        const pty = await capsule.pty({ command: "stty -echo; echo ready; read x; echo got-$x" });
        let shown = "";
        let typed = false;
        for await (const data of pty) {
          shown += new TextDecoder().decode(data);
          // What is typed before the echo is off is shown.
          if (!typed && shown.includes("ready")) {
            typed = true;
            await pty.write("key\n");
          }
        }
        const failure = await capsule.files.read("/missing").catch((error: unknown) => error as { code: string });
        const code = "code" in failure ? failure.code : "none";
        return { stdout, exitCode, lines, size, content, large: large.stdoutBytes.length, shown: shown.trim(), code };
      } finally {
        await capsule.kill();
        wrenn.close();
      }
    },
    { sdk: `${origin}/sdk.js`, url, apiKey },
  );
  assert.deepEqual(seen, {
    stdout: "ä from a page",
    exitCode: 3,
    lines: ["one", "two"],
    size: 18,
    content: "a stream of a page",
    large: 3_000_000,
    shown: "ready\r\ngot-key",
    code: "NOT_FOUND",
  });
  assert.deepEqual(failures, []);
});

/** A page, and a service worker that wants to answer for the whole origin. */
const SERVICE = `
use IO::Socket::INET; $SIG{CHLD} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalPort => 3000, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
  next if fork;
  my ($path) = <$client> =~ m{^\\S+ (\\S+)};
  while (my $line = <$client>) { last if $line eq "\\r\\n" }
  my ($type, $body) = $path eq '/worker.js' ? ('text/javascript', '// It does nothing.') : ('text/html', '<!doctype html>');
  print $client "HTTP/1.1 200 OK\\r\\nContent-Type: $type\\r\\nService-Worker-Allowed: /\\r\\nContent-Length: " .
    length($body) . "\\r\\nConnection: close\\r\\n\\r\\n$body";
  exit;
}`;

it("keeps service workers of capsules below their paths", async () => {
  await using capsule = await Capsule.create({ wrenn });
  await capsule.start(["perl", "-e", SERVICE]);
  await until("the port", async () => (await capsule.ports.list()).some(({ number }) => number === 3000));
  const { search } = new URL((await capsule.ports.previewUrl(3000)).url);
  const home = new URL(`/proxy/${capsule.id}/3000/`, url).href;
  const page = await browser.newPage();
  await page.goto(home + search);
  assert.equal(page.url(), home);
  const registered = await page.evaluate(async () => {
    const register = async (scope?: string) => {
      const options = scope === undefined ? {} : { scope };
      return navigator.serviceWorker.register("worker.js", options).then(
        (registration) => registration.scope,
        (error: Error) => error.name,
      );
    };
    return [await register("/"), await register("/proxy/"), await register()];
  });
  assert.deepEqual(registered, ["SecurityError", "SecurityError", home]);
});
