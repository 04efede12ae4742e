import assert from "node:assert/strict";
import { after, before, it } from "node:test";
import { Capsule } from "@wrenn/sdk";
import { type Browser, chromium, type Page } from "playwright-core";
import { LAUNCH, newPage } from "../support/browser.js";
import { apiKey, url, wrenn } from "../support/stack.js";
import { PATIENCE } from "../support/until.js";

let browser: Browser;
let capsule: Capsule;
before(async () => {
  [browser, capsule] = await Promise.all([chromium.launch(LAUNCH), Capsule.create({ wrenn })]);
});
after(async () => {
  await browser?.close();
  await capsule?.kill();
  wrenn.close();
});

/** Puts a text in place of what an editor holds. */
async function fill(page: Page, editor: string, text: string): Promise<void> {
  await page.locator(editor).click();
  await page.keyboard.press("Control+A");
  await page.keyboard.insertText(text);
}

it("follows subscriptions", { timeout: 10 * PATIENCE }, async () => {
  const page = await newPage(browser);
  const failures: string[] = [];
  page.on("pageerror", (error) => failures.push(String(error)));
  await page.goto(new URL("/graphiql", url).href);
  const shows = (text: string) => page.locator(".result-window", { hasText: text }).waitFor();

  await fill(page, ".graphiql-query-editor .CodeMirror", `subscription { capsule(id: "${capsule.id}") { id state } }`);
  await page.locator(".graphiql-execute-button").click();
  // As the socket is closed to those who show no key.
  await shows("the connection was closed: 4403");

  await fill(
    page,
    ".graphiql-editor-tool .graphiql-editor:not(.hidden) .CodeMirror",
    JSON.stringify({ "X-API-Key": apiKey }),
  );
  await page.locator(".graphiql-execute-button").click();
  await shows('"state": "RUNNING"');
  assert.ok((await page.locator(".result-window").textContent())?.includes(capsule.id));
  await capsule.pause();
  await shows('"state": "PAUSED"');

  // The same button ends it; then a query goes its own way.
  await page.locator(".graphiql-execute-button").click();
  await fill(page, ".graphiql-query-editor .CodeMirror", "{ viewer { __typename } }");
  await page.locator(".graphiql-execute-button").click();
  await shows('"viewer"');
  assert.deepEqual(failures, []);
});
