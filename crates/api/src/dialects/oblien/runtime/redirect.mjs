// The npm package `oblien` calls runtimes at https://workspace.oblien.com and has no setting for another
// host. Loaded before it, this sends those calls to the server of OBLIEN_RUNTIME_URL, or else of
// OBLIEN_BASE_URL:
//
//     NODE_OPTIONS=--import=/path/to/redirect.mjs OBLIEN_BASE_URL=http://127.0.0.1:7070 node program.mjs
//
// WebSockets (`rt.ws()`, `rt.proxy().ws()`) need Node.js 22, or 20 with --experimental-websocket.

const RUNTIME = 'workspace.oblien.com';
const server = process.env.OBLIEN_RUNTIME_URL ?? process.env.OBLIEN_BASE_URL;

if (server) {
  const target = new URL(server);

  const redirected = (address) => {
    const url = new URL(address);
    if (url.host !== RUNTIME) return address;
    url.protocol = url.protocol === 'wss:' ? target.protocol.replace('http', 'ws') : target.protocol;
    url.host = target.host;
    // A host without a port does not take away the one before.
    url.port = target.port;
    return url.href;
  };

  const { fetch, WebSocket } = globalThis;
  globalThis.fetch = (input, init) =>
    input instanceof Request
      ? fetch(input.url === redirected(input.url) ? input : new Request(redirected(input.url), input), init)
      : fetch(redirected(input), init);
  if (WebSocket) {
    globalThis.WebSocket = class extends WebSocket {
      constructor(address, protocols) {
        super(redirected(address), protocols);
      }
    };
  }
}
