import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Capsule } from "@wrenn/sdk";
import { CLI, cli, Running } from "../support/cli.js";
import { echoed } from "../support/echo.js";
import { until, wrenn } from "../support/stack.js";

/** Says path and body, redirects, and echoes what comes after an upgrade. */
const SERVICE = `
use IO::Socket::INET; $SIG{CHLD} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalPort => 3000, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
  next if fork;
  my ($head, $length, $body) = ('', 0, '');
  while (my $line = <$client>) { $head .= $line; $length = $1 if $line =~ /^content-length: (\\d+)/i; last if $line eq "\\r\\n" }
  my ($path) = $head =~ m{^\\S+ (\\S+)};
  if ($head =~ /^upgrade: websocket/im) {
    syswrite $client, "HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n" .
      "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\\r\\n\\r\\n";
    while (sysread $client, my $data, 4096) { syswrite $client, $data }
    exit;
  }
  if ($path eq '/redirect') {
    print $client "HTTP/1.1 302 Found\\r\\nLocation: /there?x=1\\r\\nSet-Cookie: a=b; Path=/; HttpOnly\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
    exit;
  }
  read $client, $body, $length if $length;
  my $answer = "$path $body";
  print $client "HTTP/1.1 200 OK\\r\\nContent-Length: " . length($answer) . "\\r\\nConnection: close\\r\\n\\r\\n$answer";
  exit;
}`;

describe("ports from outside", () => {
  let capsule: Capsule;
  before(async () => {
    capsule = await Capsule.create({ wrenn });
    await capsule.start(["perl", "-e", SERVICE]);
    await until("the port", async () => (await capsule.ports.list()).some(({ number }) => number === 3000));
  });
  after(async () => {
    await capsule?.kill();
    wrenn.close();
  });

  it("are forwarded to this machine", async () => {
    const running = new Running(process.execPath, [CLI, "forward", "--json", capsule.id, "0:3000"]);
    await running.says("}\n");
    const { address, port, remote } = JSON.parse(running.stdout);
    assert.deepEqual([address, remote], ["127.0.0.1", 3000]);
    const base = `http://${address}:${port}`;
    assert.equal(await (await fetch(`${base}/a/b?c=d`)).text(), "/a/b?c=d ");
    assert.equal(await (await fetch(`${base}/x`, { method: "POST", body: "sent" })).text(), "/x sent");
    const redirect = await fetch(`${base}/redirect`, { redirect: "manual" });
    assert.equal(redirect.headers.get("location"), "/there?x=1");
    assert.match(redirect.headers.get("set-cookie") ?? "", /a=b; Path=\/; HttpOnly/);
    assert.equal(await echoed(`http://127.0.0.1:${port}`, "through a socket"), "through a socket");
    running.signal("SIGINT");
    assert.equal(await running.ended, 0);
  });

  it("have URLs", async () => {
    const url = await capsule.ports.url(3000);
    assert.match(url, /3000/);
    const { url: signed, expiresAt } = await capsule.ports.previewUrl(3000, { expiresInSec: 600 });
    assert.ok(signed.startsWith("http") && expiresAt.getTime() > Date.now());
    await capsule.ports.setPublic(3000, true);
    assert.ok((await capsule.ports.list()).some((port) => port.number === 3000 && port.public));
  });

  it("are refused with reasons", async () => {
    const { code, stderr } = await cli(["forward", capsule.id, "eighty:3000"]);
    assert.equal(code, 2);
    assert.match(stderr, /`eighty:3000` is not \[\[ADDRESS:\]LOCAL:\]PORT/);
  });
});

describe("files from outside", () => {
  it("have URLs that need no key", async () => {
    await using capsule = await Capsule.create({ wrenn });
    const put = await capsule.files.url("/srv/file", { method: "PUT" });
    assert.ok((await fetch(put.url, { method: "PUT", body: "signed" })).ok);
    const get = await capsule.files.url("/srv/file");
    assert.equal(await (await fetch(get.url)).text(), "signed");
    assert.equal((await fetch(get.url, { method: "PUT", body: "x" })).ok, false);
  });
});
