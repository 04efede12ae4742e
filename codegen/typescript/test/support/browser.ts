import type { Browser, Page } from "playwright-core";
import { PATIENCE } from "./until.js";

/** Debian's; without its background services, which have nobody to talk to here. */
export const LAUNCH = {
  executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // Some pages are made up by the tests, so the browser does not know that they come from where the server is.
    "--disable-features=LocalNetworkAccessChecks",
  ],
  timeout: PATIENCE,
};

/** A page with patience for what it shows under load. */
export async function newPage(browser: Browser): Promise<Page> {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  return page;
}
