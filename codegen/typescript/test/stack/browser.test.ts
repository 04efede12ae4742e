import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, it } from "node:test";
import { Capsule } from "@wrenn/sdk";
import { type Browser, chromium } from "playwright-core";
import { LAUNCH, newPage } from "../support/browser.js";
import { apiKey, until, url, wrenn } from "../support/stack.js";
import { FINDINGS, tour } from "../support/tour.js";

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
  const page = await newPage(browser);
  const origin = new URL(url).origin;
  const failures: string[] = [];
  page.on("pageerror", (error) => failures.push(String(error)));
  // A page of the server's own origin, as the browser sees it.
  await page.route(`${origin}/page`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await page.route(`${origin}/sdk.js`, async (route) => {
    await route.fulfill({ contentType: "text/javascript", body: await readFile(BUNDLE, "utf8") });
  });
  await page.goto(`${origin}/page`);
  const given = [url, apiKey].map((text) => JSON.stringify(text)).join(", ");
  const seen = await page.evaluate(`import("${origin}/sdk.js").then((sdk) => (${String(tour)})(sdk, ${given}))`);
  assert.deepEqual(seen, FINDINGS);
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
  const page = await newPage(browser);
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
