import { Wrenn } from "@wrenn/sdk";

/** What the environment names; without it nothing can be tested, which counts as a failure. */
export const url = wanted("WRENN_URL");
export const apiKey = wanted("WRENN_API_KEY");
export const wrenn = new Wrenn({ url, apiKey });

/** The longest that a test waits for something to become so, in milliseconds. */
const PATIENCE = 60_000;

function wanted(name: string): string {
  const value = process.env[name];
  if (!value) {
    throw new Error(`these tests need a running server: ${name} is not set (\`make up\` writes it to .wrenn/env)`);
  }
  return value;
}

/** Looks until something is there. */
export async function until<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== false) {
      return found;
    }
    if (Date.now() > deadline) {
      throw new Error(`${what}: not within ${PATIENCE / 1000} s`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
