/**
 * Some of everything, on whatever runtime: its source is also sent to pages, so it names nothing but what it is given
 * and what all runtimes have.
 */
export async function tour(sdk: typeof import("@wrenn/sdk"), url: string, apiKey: string) {
  const wrenn = new sdk.Wrenn({ url, apiKey });
  const capsule = await sdk.Capsule.create({ wrenn });
  try {
    const { stdout, exitCode } = await capsule.exec("cat; exit 3", { stdin: "ä from afar" });
    const lines: string[] = [];
    for await (const { text } of capsule.exec("echo one; echo two").lines()) {
      lines.push(text);
    }
    const stream = new Blob(["a stream ", "of bytes"]).stream();
    const { size } = await capsule.files.write("/srv/page", stream, { parents: true });
    const content = await capsule.files.readText("/srv/page");
    const large = await capsule.exec("head -c 3000000 /dev/zero");
    const copied = await capsule.files.write("/srv/large", large.stdoutBytes);
    let read = 0;
    for await (const piece of await capsule.files.read("/srv/large", { start: 1 })) {
      read += piece.length;
    }
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
    return {
      stdout,
      exitCode,
      lines,
      size,
      content,
      large: large.stdoutBytes.length,
      copied: copied.size,
      read,
      shown: shown.trim(),
      code,
    };
  } finally {
    await capsule.kill();
    wrenn.close();
  }
}

/** What it finds everywhere. */
export const FINDINGS: Awaited<ReturnType<typeof tour>> = {
  stdout: "ä from afar",
  exitCode: 3,
  lines: ["one", "two"],
  size: 17,
  content: "a stream of bytes",
  large: 3_000_000,
  copied: 3_000_000,
  read: 2_999_999,
  shown: "ready\r\ngot-key",
  code: "NOT_FOUND",
};
