import { Wrenn } from "@wrenn/sdk";

export { until } from "./until.js";

/** What the environment names; without it nothing can be tested, which counts as a failure. */
export const url = wanted("WRENN_URL");
export const apiKey = wanted("WRENN_API_KEY");
export const wrenn = new Wrenn({ url, apiKey });

function wanted(name: string): string {
  const value = process.env[name];
  if (!value) {
    throw new Error(`these tests need a running server: ${name} is not set (\`make up\` writes it to .wrenn/env)`);
  }
  return value;
}
