// GraphiQL against this server: queries and mutations by POST, subscriptions by graphql-transport-ws.
// The key is what stands in the headers editor; it is kept nowhere.
'use strict';

const here = new URL('/graphql', location.href);

async function post(params, headers) {
  const response = await fetch(here, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'application/json', ...headers },
    body: JSON.stringify(params),
  });
  return response.json();
}

// What `connection_init` says of who asks.
function credentials(headers) {
  const byName = Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
  return { apiKey: byName['x-api-key'], authorization: byName.authorization };
}

// One socket for one subscription: it ends with it.
async function* subscribe(params, headers) {
  const url = new URL(here);
  url.protocol = url.protocol.replace('http', 'ws');
  const socket = new WebSocket(url, 'graphql-transport-ws');
  const heard = [];
  let wake = () => {};
  const hear = (item) => {
    heard.push(item);
    wake();
  };
  const say = (message) => socket.send(JSON.stringify(message));
  socket.onopen = () => say({ type: 'connection_init', payload: credentials(headers) });
  socket.onclose = (event) => hear({ type: 'closed', reason: `${event.code} ${event.reason}` });
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.type === 'ping') say({ type: 'pong' });
    else if (message.type === 'connection_ack') say({ type: 'subscribe', id: '1', payload: params });
    else hear(message);
  };
  try {
    for (;;) {
      while (heard.length === 0) await new Promise((resolve) => (wake = resolve));
      const message = heard.shift();
      if (message.type === 'next') yield message.payload;
      else if (message.type === 'error') return yield { errors: message.payload };
      else if (message.type === 'complete') return;
      else if (message.type === 'closed') {
        return yield { errors: [{ message: `the connection was closed: ${message.reason}` }] };
      }
    }
  } finally {
    socket.close(1000);
  }
}

// What GraphiQL has parsed lags behind what is typed. Where it does the text has to say it; a socket takes queries, too.
function isSubscription({ query, operationName }, document) {
  if (document?.loc?.source.body !== query) {
    const text = query.replace(/#.*$/gm, '');
    const named = operationName && new RegExp(`\\bsubscription\\s+${operationName}\\b`).test(text);
    return named || /^[\s,]*subscription\b/.test(text);
  }
  const operations = document.definitions.filter((it) => it.kind === 'OperationDefinition');
  const chosen = operations.find((it) => it.name?.value === operationName);
  return (chosen ?? operations[0])?.operation === 'subscription';
}

function fetcher(params, options) {
  const headers = Object.fromEntries(
    Object.entries(options?.headers ?? {}).filter(([, value]) => value !== ''),
  );
  return isSubscription(params, options?.documentAST) ? subscribe(params, headers) : post(params, headers);
}

ReactDOM.createRoot(document.getElementById('graphiql')).render(
  React.createElement(GraphiQL, {
    fetcher,
    defaultHeaders: JSON.stringify({ 'x-api-key': '' }, null, 2),
    defaultEditorToolsVisibility: 'headers',
    shouldPersistHeaders: false,
  }),
);
