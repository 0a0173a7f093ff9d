// Drives the runtime commands of the unmodified npm package `oblien` against SKERRY_URL, each call a process.
// The server's redirect.mjs stands in NODE_OPTIONS, as a user would put it there.
import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const command = fileURLToPath(new URL('node_modules/.bin/oblien', import.meta.url));
const env = {
  ...process.env,
  OBLIEN_BASE_URL: process.env.SKERRY_URL,
  OBLIEN_CLIENT_ID: 'admin',
  OBLIEN_CLIENT_SECRET: process.env.SKERRY_KEY,
};

function oblien(...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { env, encoding: 'utf8' });
  assert.equal(status, 0, `${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
}

const answer = (...args) => JSON.parse(oblien(...args, '--json'));

const { id } = answer('ws', 'create', '--image', 'base', '--name', 'inside', '--cpus', '1', '--memory', '512', '--disk', '200');
assert.equal(answer('exec', id, '--', 'uname').stdout, 'Linux\n');
oblien('files', 'write', id, '/srv/dir/hello.txt', '--content', 'hello there');
assert.equal(oblien('files', 'cat', id, '/srv/dir/hello.txt'), 'hello there');
assert.match(oblien('files', 'ls', id, '/srv/dir'), /hello\.txt/);
assert.equal(answer('files', 'stat', id, '/srv/dir/hello.txt').size, 11);
oblien('files', 'mkdir', id, '/srv/other');
const found = answer('search', id, 'there', '--dir', '/srv');
assert.equal(found.results['/srv/dir/hello.txt'][0].line, 1);
assert.equal(oblien('search', 'files', id, '*.txt', '--dir', '/srv').trim(), '/srv/dir/hello.txt');
const local = mkdtempSync(join(tmpdir(), 'oblien-'));
try {
  writeFileSync(join(local, 'pushed.txt'), 'pushed');
  oblien('files', 'push', id, join(local, 'pushed.txt'), '--dest', '/srv/other');
  oblien('files', 'pull', id, '/srv/other', '/srv/dir/hello.txt', '--dest', local);
  assert.equal(readFileSync(join(local, 'other/pushed.txt'), 'utf8'), 'pushed');
  assert.equal(readFileSync(join(local, 'hello.txt'), 'utf8'), 'hello there');
} finally {
  rmSync(local, { recursive: true });
}
oblien('files', 'rm', id, '/srv/other');
const term = answer('terminal', 'create', id, '--shell', '/bin/sh');
assert.deepEqual(answer('terminal', 'list', id).map(({ id }) => id), [term.id]);
oblien('terminal', 'close', id, term.id);
assert.match(oblien('exec', id, '--stream', '--', 'echo', 'streamed'), /c3RyZWFtZWQK/);
oblien('ws', 'delete', id);
console.log('oblien runtime cli: ok');
