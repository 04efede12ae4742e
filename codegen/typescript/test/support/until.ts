/** The longest that a test waits for something to become so, in milliseconds. */
export const PATIENCE = 60_000;

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
