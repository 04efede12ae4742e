// The client that most programs use, and the bare protocol, against a running server.
//
// WRENN_URL (http://…), WRENN_API_KEY, WRENN_CAPSULE (one that runs) and WRENN_FLOOD (a shell line that writes
// WRENN_FLOOD_BYTES bytes to its standard output) say against what.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const { WRENN_URL, WRENN_API_KEY, WRENN_CAPSULE, WRENN_FLOOD, WRENN_FLOOD_BYTES } = process.env;
for (const [name, value] of Object.entries({ WRENN_URL, WRENN_API_KEY, WRENN_CAPSULE, WRENN_FLOOD, WRENN_FLOOD_BYTES }))
  if (!value) throw new Error(`${name} is not set`);
const url = `${WRENN_URL.replace(/^http/, "ws")}/graphql`;
const VIEWER = "{ viewer { team { id } } }";
const CAPSULE = "subscription($id: ID!) { capsule(id: $id) { state timeoutSec } }";

/** A client with the key; closed at the end of its test. */
function connect(t, options = {}) {
  const client = createClient({
    url,
    webSocketImpl: WebSocket,
    connectionParams: { apiKey: WRENN_API_KEY },
    retryAttempts: 0,
    ...options,
  });
  t.after(() => client.dispose());
  return client;
}

async function one(client, query, variables) {
  for await (const answer of client.iterate({ query, variables })) return answer;
  assert.fail("no answer");
}

async function setTimeoutSec(seconds) {
  const query = "mutation($id: ID!, $s: Int!) { setCapsuleTimeout(id: $id, timeoutSec: $s) { capsule { id } } }";
  const answer = await fetch(`${WRENN_URL}/graphql`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": WRENN_API_KEY },
    body: JSON.stringify({ query, variables: { id: WRENN_CAPSULE, s: seconds } }),
  });
  const body = await answer.json();
  assert.equal(body.errors, undefined, JSON.stringify(body));
}

test("queries run side by side on one connection", async (t) => {
  let connections = 0;
  const client = connect(t, { on: { connected: () => connections++ }, lazyCloseTimeout: 10_000 });
  const answers = await Promise.all(Array.from({ length: 50 }, () => one(client, VIEWER)));
  for (const answer of answers) assert.match(answer.data.viewer.team.id, /^team-/);
  assert.equal(connections, 1);
});

test("a document that is refused is an error, and the connection goes on", async (t) => {
  const client = connect(t, { lazyCloseTimeout: 10_000 });
  await assert.rejects(one(client, "{ nothing }"), (errors) => /nothing/.test(errors[0].message));
  const answer = await one(client, CAPSULE, { id: "cl-0000000000000000000000001" });
  assert.equal(answer.errors[0].extensions.code, "NOT_FOUND");
  assert.ok((await one(client, VIEWER)).data);
});

test("a subscription shows the present, then changes, until it is let go", async (t) => {
  const closed = deferred();
  const client = connect(t, { on: { closed: closed.resolve } });
  const seen = client.iterate({ query: CAPSULE, variables: { id: WRENN_CAPSULE } });
  assert.equal((await seen.next()).value.data.capsule.state, "RUNNING");
  await setTimeoutSec(1001);
  let latest;
  do latest = (await seen.next()).value.data.capsule;
  while (latest.timeoutSec !== 1001);
  await seen.return();
  // With nothing left to do the client closes, as it should: normally.
  assert.equal((await closed.promise).code, 1000);
});

test("a wrong key is refused", async (t) => {
  const client = connect(t, { connectionParams: { apiKey: "wrn_wrong" } });
  await assert.rejects(one(client, VIEWER), (close) => close.code === 4403);
});

test("a flood starves neither pings nor other operations of its connection", async (t) => {
  const waiting = [];
  let pongs = 0;
  const client = connect(t, {
    keepAlive: 50,
    lazyCloseTimeout: 10_000,
    on: {
      ping: (received) => received || waiting.push(Date.now()),
      pong: (received) => received && waiting.shift() && pongs++,
    },
  });
  const query = `subscription($input: ExecInput!) { exec(input: $input) {
    __typename ... on ProcessOutput { sequence data } ... on ProcessExited { exitCode } } }`;
  const flood = client.iterate({ query, variables: { input: { capsuleId: WRENN_CAPSULE, command: WRENN_FLOOD } } });
  let bytes = 0;
  let queries = 0;
  let over = false;
  const asking = (async () => {
    while (!over) {
      assert.ok((await one(client, VIEWER)).data);
      queries++;
    }
  })();
  for await (const { data, errors } of flood) {
    assert.equal(errors, undefined);
    const event = data.exec;
    if (event.__typename === "ProcessOutput") {
      assert.equal(Number(event.sequence), bytes);
      bytes += Buffer.from(event.data, "base64").length;
    } else if (event.__typename === "ProcessExited") assert.equal(event.exitCode, 0);
  }
  over = true;
  await asking;
  assert.equal(bytes, Number(WRENN_FLOOD_BYTES));
  assert.ok(queries > 0 && waiting.length <= 1, `${queries} queries, ${pongs} pongs, ${waiting.length} unanswered`);
});

/** Between client and server; everything that goes through it can be cut. */
async function chopper(t) {
  const target = new URL(WRENN_URL);
  const open = new Set();
  const server = net.createServer((near) => {
    const far = net.connect(Number(target.port), target.hostname);
    for (const [from, to] of [[near, far], [far, near]]) {
      open.add(from);
      from.on("error", () => {});
      from.on("close", () => { open.delete(from); to.destroy(); });
      from.pipe(to);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => { server.close(); cut(); });
  const cut = () => { for (const socket of open) socket.destroy(); };
  return { url: `ws://127.0.0.1:${server.address().port}/graphql`, cut };
}

test("a client whose connection breaks is back by itself and misses no present", async (t) => {
  const { url, cut } = await chopper(t);
  let connected = 0;
  const client = connect(t, {
    url,
    retryAttempts: Infinity,
    retryWait: async () => {},
    shouldRetry: () => true,
    on: { connected: () => connected++ },
  });
  const seen = client.iterate({ query: CAPSULE, variables: { id: WRENN_CAPSULE } });
  assert.equal((await seen.next()).value.data.capsule.state, "RUNNING");
  const ROUNDS = 25;
  for (let round = 1; round <= ROUNDS; round++) {
    cut();
    // Made while nobody is connected, or hardly so.
    await setTimeoutSec(2000 + round);
    let latest;
    do latest = (await seen.next()).value.data.capsule;
    while (latest.timeoutSec !== 2000 + round);
  }
  assert.ok(connected > ROUNDS, `${connected} connections`);
  await seen.return();
});

/** The bare protocol: what is said, and the code that the server closes with. */
async function closedWith(messages, { protocol = "graphql-transport-ws", headers = {} } = {}) {
  const socket = new WebSocket(url, protocol, { headers });
  const closed = once(socket, "close");
  // A socket that does not open fails below, and is not awaited here.
  closed.catch(() => {});
  await once(socket, "open");
  for (const message of messages) {
    if (message === "ack") await once(socket, "message");
    else socket.send(typeof message === "string" || message instanceof Buffer ? message : JSON.stringify(message));
  }
  const [code, reason] = await closed;
  return [code, reason.toString()];
}

test("each mistake has its code", async () => {
  const init = { type: "connection_init", payload: { apiKey: WRENN_API_KEY } };
  const silence = { id: "1", type: "subscribe", payload: { query: CAPSULE, variables: { id: WRENN_CAPSULE } } };
  for (const [messages, code] of [
    [[silence], 4401],
    [[{ type: "connection_init", payload: { apiKey: "wrn_wrong" } }], 4403],
    [[{ type: "connection_init" }], 4403],
    [[init, init], 4429],
    [[init, "ack", init], 4429],
    [[init, "ack", silence, silence], 4409],
    [[init, "ack", "{"], 4400],
    [[init, "ack", { type: "start", id: "1" }], 4400],
    [[init, "ack", Buffer.from("{}")], 4400],
    [["x".repeat(3 * 1024 * 1024)], 1009],
  ])
    assert.equal((await closedWith(messages))[0], code, JSON.stringify(messages).slice(0, 200));
  assert.deepEqual(await closedWith([], { protocol: "graphql-ws" }).catch((error) => error.message),
    "Server sent no subprotocol");
  // The key may come in a header as well; what the message says counts before it.
  const headers = { "x-api-key": WRENN_API_KEY };
  assert.equal((await closedWith([{ type: "connection_init" }, "ack", "{"], { headers }))[0], 4400);
  assert.equal((await closedWith([{ type: "connection_init", payload: { apiKey: "wrn_wrong" } }], { headers }))[0], 4403);
});

function deferred() {
  const it = {};
  it.promise = new Promise((resolve, reject) => Object.assign(it, { resolve, reject }));
  return it;
}
