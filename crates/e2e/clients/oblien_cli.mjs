// Drives the command of the unmodified npm package `oblien` against SKERRY_URL, each call a process.
import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
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
  return { status, stdout, said: stdout + stderr };
}

function answer(...args) {
  const { status, stdout, said } = oblien(...args, '--json');
  assert.equal(status, 0, said);
  return JSON.parse(stdout);
}

const sizes = ['--cpus', '1', '--memory', '256', '--disk', '100'];
const made = answer('ws', 'create', '--image', 'base', '--name', 'from-the-cli', ...sizes);
assert.equal(made.status, 'running');
assert.deepEqual(made.resources, { cpus: 1, memory_mb: 256, disk_size_mb: 100 });
assert.equal(answer('ws', 'get', made.slug).id, made.id);
assert.equal(answer('ws', 'list').total, 1);
assert.equal(answer('ws', 'update', made.id, '--name', 'renamed').name, 'renamed');
assert.equal(answer('ws', 'quota').currentSandboxes, 1);
assert.equal(oblien('ws', 'stop', made.id).status, 0);
assert.equal(answer('ws', 'get', made.id).status, 'stopped');
assert.equal(oblien('ws', 'start', made.id).status, 0);

for (const [verb, status] of [['pause', 'paused'], ['resume', 'running']]) {
  assert.equal(oblien('ws', verb, made.id).status, 0);
  assert.equal(answer('ws', 'get', made.id).status, status);
}
assert.equal(oblien('lifecycle', 'make-temporary', made.id, '--ttl', '1h', '--ttl-action', 'suspend').status, 0);
assert.equal(oblien('lifecycle', 'idle', made.id, '--after', '15m', '--stop-after', '72h').status, 0);
const life = answer('lifecycle', 'get', made.id);
assert.deepEqual([life.ttl, life.ttl_action], ['1h', 'suspend']);
assert.deepEqual(life.idle, { suspend_after: 900, stop_after: 259200 });
assert.equal(oblien('lifecycle', 'make-permanent', made.id).status, 0);
assert.equal(answer('lifecycle', 'get', made.id).mode, 'permanent');

for (const [args, words] of [
  [['ws', 'create', '--image', 'base', '--cpus', '99'], 'config.cpus is 99'],
  [['ws', 'create', '--image', 'base', '--ssh'], 'config.ssh_access is not available'],
  [['ws', 'create', '--image', 'nope'], 'there is no image nope'],
  [['ws', 'get', 'ws_none'], 'workspace not found'],
  [['lifecycle', 'idle', made.id, '--after', '60'], 'suspend_after is out of range'],
]) {
  const { status, said } = oblien(...args);
  assert.notEqual(status, 0, args.join(' '));
  assert.ok(said.includes(words), said);
}

assert.equal(oblien('ws', 'delete', made.id).status, 0);
assert.equal(answer('ws', 'list').total, 0);
console.log('oblien cli: ok');
