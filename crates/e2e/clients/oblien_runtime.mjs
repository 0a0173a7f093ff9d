// Drives runtimes by the unmodified npm package `oblien` against SKERRY_URL. Its hard-coded host is redirected
// by the server's own /runtime/redirect.mjs, which the test loads before this.
import { strict as assert } from 'node:assert';
import { gunzipSync, gzipSync } from 'node:zlib';
import Oblien from 'oblien';
import { Runtime } from 'oblien/runtime';

const baseUrl = process.env.SKERRY_URL;
const client = new Oblien({ clientId: 'admin', clientSecret: process.env.SKERRY_KEY, baseUrl });
const { workspaces } = client;

// Each answer is the guest's; the bound is for a machine that hangs.
const BOUND = 240_000;
const within = (promise, what) => {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`never: ${what}`)), BOUND);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};
const text = (base64) => Buffer.from(base64, 'base64').toString();

const box = await workspaces.create({
  name: 'inside',
  image: 'node-20',
  mode: 'permanent',
  config: { memory_mb: 512, env: [{ key: 'GREETING', value: 'hello' }] },
});

// Access, and the runtime as the package finds it.
const { apiAccess } = workspaces;
assert.deepEqual(await apiAccess.status(box.id).then(({ enabled, running }) => [enabled, running]), [false, false]);
const rt = await workspaces.runtime(box.id);
assert.equal(await rt.health(), true);
assert.deepEqual(await rt.info().then(({ os, home, cpus }) => [os, home, cpus]), ['linux', '/root', 1]);
assert.equal((await rt.targets()).default_target, 'default');
assert.equal((await rt.forTarget('local').info()).os, 'linux');
assert.equal(await client.workspace(box.id).runtime(), rt);
assert.equal((await apiAccess.status(box.id)).enabled, true);
const { token } = await apiAccess.getToken(box.id);
const direct = new Runtime({ token, baseUrl });
assert.equal((await direct.info()).os, 'linux');
await assert.rejects(new Runtime({ token: 'rt_wrong', baseUrl }).info(), (e) => e.constructor.name === 'AuthenticationError');

// Commands.
const ran = await rt.exec.run(['sh', '-c', 'echo $GREETING; pwd; id -u; echo no >&2; exit 3']);
assert.deepEqual([ran.stdout, ran.stderr, ran.exit_code, ran.status], ['hello\n/root\n0\n', 'no\n', 3, 'exited']);
assert.equal((await rt.exec.run(['echo a | tr a b'])).stdout, 'b\n');
assert.equal((await rt.exec.run(['echo', '$HOME'], { execMode: 'direct' })).stdout, '$HOME\n');
const late = await rt.exec.run(['sleep', '1000'], { timeoutSeconds: 1 });
assert.deepEqual([late.status, late.exit_code], ['failed', 124]);
await assert.rejects(rt.exec.run(['no-such-program']), (e) => e.status === 500 && e.code === 'start_failed');
await assert.rejects(rt.exec.run([]), (e) => e.status === 400);
const large = await rt.exec.run(['sh', '-c', 'head -c 3000000 /dev/zero | tr "\\0" x']);
assert.equal(large.stdout.length, 3_000_000);

// Output comes before the end: the command waits for what is said to it after that.
let task;
let printed = '';
let exit;
const conversation = async () => {
  for await (const event of rt.exec.stream(['sh', '-c', 'echo ready; read line; echo "got $line"; exit 4'])) {
    if (event.event === 'task_id') task = event.task_id;
    if (event.event === 'stdout') {
      printed += text(event.data);
      if (printed === 'ready\n') {
        const { status } = await rt.exec.get(task);
        assert.equal(status, 'running');
        assert.equal((await rt.exec.input(task, Buffer.from('line\n'))).bytes_written, 5);
      }
    }
    if (event.event === 'exit') exit = event.exit_code;
  }
};
await within(conversation(), 'the end of a conversation');
assert.deepEqual([printed, exit], ['ready\ngot line\n', 4]);
const replayed = [];
for await (const event of rt.exec.subscribe(task)) replayed.push(event);
assert.deepEqual(replayed.at(-2), { event: 'output', stdout: 'ready\ngot line\n', stderr: '' });
assert.equal(replayed.at(-1).exit_code, 4);

// One that is killed ends, with what it has begun.
const killed = async () => {
  for await (const event of rt.exec.stream(['sh', '-c', 'sleep 1000 & echo $!; wait'])) {
    if (event.event === 'task_id') task = event.task_id;
    if (event.event === 'stdout') {
      printed = text(event.data).trim();
      assert.equal((await rt.exec.kill(task)).success, true);
    }
    if (event.event === 'exit') return event.exit_code;
  }
};
assert.equal(await within(killed(), 'the end of what was killed'), 137);
const gone = `while kill -0 ${Number(printed)} 2>/dev/null; do sleep 0.1; done`;
assert.equal((await rt.exec.run(['sh', '-c', gone], { timeoutSeconds: 200 })).exit_code, 0);
await assert.rejects(rt.exec.get(task), (e) => e.constructor.name === 'NotFoundError');
assert.ok((await rt.exec.list()).length >= 4);
assert.ok((await rt.exec.deleteAll()).deleted >= 4);
assert.deepEqual(await rt.exec.list(), []);

// Files.
assert.equal((await rt.files.write({ fullPath: '/app/src/a.txt', content: 'one\ntwo\n', createDirs: true })).size, 8);
await assert.rejects(rt.files.write({ fullPath: '/none/a', content: '' }), (e) => e.constructor.name === 'NotFoundError');
await rt.files.write({ fullPath: '/app/src/a.txt', content: 'three\n', append: true });
await rt.files.write({ fullPath: '/app/run.sh', content: '#!/bin/sh\necho ran\n', mode: '0755' });
await rt.files.write({ fullPath: '/app/run.sh', content: '#!/bin/sh\necho ran again\n' });
assert.equal((await rt.exec.run(['/app/run.sh'])).stdout, 'ran again\n');
const read = await rt.files.read({ filePath: '/app/src/a.txt', startLine: 2, endLine: 3, withLineNumbers: true });
assert.deepEqual([read.content, read.lines, read.size], ['     2\ttwo\n     3\tthree\n', 3, 14]);
await assert.rejects(rt.files.read({ filePath: '/app/none' }), (e) => e.constructor.name === 'NotFoundError');
await rt.files.mkdir({ path: '/app/deep/er' });
await rt.exec.run(['ln', '-s', 'a.txt', '/app/src/link']);
const stat = await rt.files.stat({ path: '/app/src/link' });
assert.deepEqual([stat.type, stat.symlink_target], ['symlink', 'a.txt']);
assert.equal((await rt.files.stat({ path: '/app/run.sh' })).permissions, '0755');
const { entries } = await rt.files.list({ dirPath: '/app' });
assert.deepEqual(entries.map(({ name, type }) => [name, type]), [['deep', 'directory'], ['run.sh', 'file'], ['src', 'directory']]);
const tree = await rt.files.list({ dirPath: '/app', nested: true, includeHash: true, includeContent: true });
const inside = tree.entries.find(({ name }) => name === 'src').children;
assert.deepEqual(inside.map(({ name, content }) => [name, content]), [['a.txt', 'one\ntwo\nthree\n'], ['link', undefined]]);
assert.match(inside[0].hash, /^[0-9a-f]{64}$/);
const streamed = [];
for await (const entry of rt.files.stream({ dirPath: '/app', light: true })) streamed.push(entry.path);
assert.deepEqual(streamed, ['/app/deep', '/app/run.sh', '/app/src', '/app/deep/er', '/app/src/a.txt', '/app/src/link']);
await rt.files.delete({ path: '/app/deep' });
await assert.rejects(rt.files.delete({ path: '/etc' }), (e) => e.status === 403);
await assert.rejects(rt.files.stat({ path: '/app/deep' }), (e) => e.status === 404);

// Search.
await rt.files.write({ fullPath: '/app/.gitignore', content: 'built/\n' });
await rt.files.write({ fullPath: '/app/built/a.js', content: 'needle\n', createDirs: true });
await rt.files.write({ fullPath: '/app/src/b.js', content: 'x\n  needle(1)\n' });
assert.equal((await rt.search.status()).installed, true);
assert.equal((await rt.search.init()).success, true);
const found = await rt.search.content({ query: 'NEEDLE', path: '/app' });
assert.deepEqual(found.results, { '/app/src/b.js': [{ line: 2, column: 3, text: '  needle(1)' }] });
assert.equal((await rt.search.content({ query: 'needle\\(\\d', path: '/app', regex: true })).total_matches, 1);
assert.deepEqual((await rt.search.files({ query: 'B.JS', path: '/app' })).files, ['/app/src/b.js']);

// Archives: what was downloaded is unpacked elsewhere and the same.
await rt.exec.run(['sh', '-c', 'head -c 2000000 /dev/urandom > /app/src/blob; mkdir /app/src/.git; echo x > /app/src/.git/x']);
const progress = [];
const answer = await rt.transfer.download({
  paths: ['/app/src', '/app/run.sh'],
  excludePatterns: ['.git'],
  onProgress: ({ loadedBytes }) => progress.push(loadedBytes),
});
const archive = Buffer.from(await answer.arrayBuffer());
assert.equal(progress.at(-1), archive.length);
const sent = await rt.transfer.upload({ body: archive, dest: '/copy', onProgress: () => {} });
assert.ok(sent.files_extracted >= 5, JSON.stringify(sent));
const same = await rt.exec.run(['sh', '-c', 'rm -r /app/src/.git; diff -r /app/src /copy/src && cmp /app/run.sh /copy/run.sh && stat -c %a /copy/run.sh']);
assert.deepEqual([same.stdout, same.exit_code], ['755\n', 0], JSON.stringify(same));
const again = await rt.transfer.upload({ body: gzipSync(gunzipSync(archive)), dest: '/copy' });
assert.equal(again.files_extracted, sent.files_extracted);
await assert.rejects(rt.transfer.upload({ body: Buffer.from('none') }), (e) => e.status === 400);
await assert.rejects(rt.transfer.download({ paths: ['/nowhere'] }), (e) => e.status === 404);

// Terminals over the WebSocket.
const screen = { text: '', waiting: [] };
const exits = [];
const shows = (wanted) =>
  within(new Promise((resolve) => screen.waiting.push([wanted, resolve])), `${wanted} on the screen`);
const look = () => {
  screen.waiting = screen.waiting.filter(([wanted, resolve]) => {
    if (!wanted.test(screen.text)) return true;
    resolve();
    return false;
  });
};
const connected = () => {
  const ws = rt.ws({ reconnect: false });
  ws.onTerminalOutput((id, data) => {
    assert.equal(id, term.id);
    screen.text += Buffer.from(data).toString();
    look();
  });
  ws.onTerminalExit((id, code) => {
    exits.push([id, code]);
    screen.text += `exit ${code}`;
    look();
  });
  const open = new Promise((resolve) => ws.onOpen(resolve));
  ws.connect();
  return within(open, 'a WebSocket').then(() => ws);
};
const term = await rt.terminal.create({ shell: '/bin/sh', cols: 100, rows: 30 });
assert.deepEqual([term.id, term.cols, term.rows], ['1', 100, 30]);
let ws = await connected();
const types = (input, wanted) => {
  const shown = shows(wanted);
  ws.writeTerminalInput(term.id, input);
  return shown;
};
await types('stty size\n', /30 100/);
ws.resizeTerminal(term.id, 160, 50);
await types('stty size\n', /50 160/);
await types('echo mar""ker\n', /marker/);
const closed = new Promise((resolve) => ws.onClose(resolve));
ws.close();
await within(closed, 'the end of a WebSocket');
// Who comes back is told what was said.
screen.text = '';
const told = shows(/marker/);
ws = await connected();
await told;
assert.match(text((await rt.terminal.scrollback(term.id)).scrollback), /marker/);
assert.deepEqual((await rt.terminal.list()).map(({ id, alive }) => [id, alive]), [['1', true]]);
await types('exit 7\n', /exit 7$/);
assert.deepEqual(exits, [['1', 7]]);
assert.equal((await rt.terminal.scrollback(term.id, { bytes: 4 })).exit_code, 7);
assert.equal((await rt.terminal.close(term.id)).success, true);
assert.deepEqual(await rt.terminal.list(), []);
ws.close();

// A port of the loopback, with streams and WebSockets.
await rt.files.write({
  fullPath: '/app/server.mjs',
  content: `
    import { createHash } from 'node:crypto';
    import { createServer } from 'node:http';
    const server = createServer((request, response) => {
      let body = '';
      request.on('data', (piece) => (body += piece));
      request.on('end', () => {
        response.statusCode = 418;
        response.end(JSON.stringify({ url: request.url, method: request.method, headers: request.headers, body }));
      });
    });
    server.on('upgrade', (request, socket) => {
      const accept = createHash('sha1')
        .update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11')
        .digest('base64');
      socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n' +
        'Sec-WebSocket-Accept: ' + accept + '\\r\\n\\r\\n');
      socket.write(Buffer.from([0x81, request.url.length, ...Buffer.from(request.url)]));
    });
    server.listen(3000, '127.0.0.1', () => console.log('listening'));
  `,
});
const listening = async () => {
  for await (const event of rt.exec.stream(['node', '/app/server.mjs'])) {
    if (event.event === 'stdout' && text(event.data).includes('listening')) return;
    assert.notEqual(event.event, 'exit', JSON.stringify(event));
  }
};
await within(listening(), 'a server inside');
const proxied = await rt.proxy(3000).fetch('/api/users?limit=10', { method: 'POST', body: 'hi' });
assert.equal(proxied.status, 418);
const seen = await proxied.json();
assert.deepEqual([seen.url, seen.method, seen.body], ['/api/users?limit=10', 'POST', 'hi']);
assert.ok(!JSON.stringify(seen).includes('rt_') && !('x-oblien-proxy-target' in seen.headers), JSON.stringify(seen));
const socket = rt.proxy(3000, '127.0.0.1').ws('/socket?a=b');
const message = await within(new Promise((resolve) => { socket.onmessage = resolve; }), 'a message');
assert.equal(message.data, '/socket?a=b');
socket.close();
assert.equal((await rt.proxy(4000).fetch('/')).status, 502);

// What is not here says so.
await assert.rejects(rt.watcher.create({ path: '/app' }), (e) => e.status === 501);
await assert.rejects(apiAccess.rawToken(box.id), (e) => e.status === 501);
assert.equal((await rt.desktop.status()).supported, false);

// Tokens end when they are replaced, and with the access.
const { token: fresh } = await apiAccess.rotateToken(box.id);
await assert.rejects(direct.info(), (e) => e.status === 401);
assert.equal((await new Runtime({ token: fresh, baseUrl }).info()).os, 'linux');
workspaces.invalidateRuntime(box.id);
const renewed = await workspaces.runtime(box.id);
await workspaces.stop(box.id);
await assert.rejects(renewed.exec.run(['true']), (e) => e.status === 409 && e.code === 'vm_not_running');
assert.equal((await apiAccess.disable(box.id)).success, true);
await assert.rejects(renewed.info(), (e) => e.status === 401);
await assert.rejects(apiAccess.getToken(box.id), (e) => e.status === 403);
await workspaces.delete(box.id);
console.log('oblien runtime: ok');
