// Drives the unmodified npm package `oblien` against SKERRY_URL: what it prints is checked by the test.
import { strict as assert } from 'node:assert';
import Oblien from 'oblien';

const client = new Oblien({
  clientId: 'admin',
  clientSecret: process.env.SKERRY_KEY,
  baseUrl: process.env.SKERRY_URL,
});

const made = await client.workspaces.create({
  name: 'from-the-sdk',
  image: 'node-20',
  config: { cpus: 1, memory_mb: 512, env: [{ key: 'GREETING', value: 'hello' }] },
});
assert.equal(made.info.status, 'running');
assert.equal(made.ready, true);

const got = await client.workspaces.get(made.id);
assert.equal(got.name, 'from-the-sdk');
const listed = await client.workspaces.list({ page: 1, limit: 20 });
assert.deepEqual(listed.workspaces.map((workspace) => workspace.id), [made.id]);
const renamed = await client.workspaces.update(made.id, { name: 'renamed' });
assert.equal(renamed.name, 'renamed');
const quota = await client.workspaces.getQuota();
assert.equal(quota.currentSandboxes, 1);

await client.workspaces.stop(made.id);
assert.equal((await client.workspaces.get(made.id)).info.status, 'stopped');
await client.workspaces.start(made.id);
assert.equal((await client.workspaces.get(made.id)).info.is_running, true);

await assert.rejects(
  client.workspaces.create({ image: 'base', config: { cpus: 33 } }),
  (error) => error.status === 400 || error.status === 403,
);
await assert.rejects(client.workspaces.get('ws_nosuchworkspace'), (error) => error.status === 404);
const stranger = new Oblien({
  clientId: 'admin',
  clientSecret: 'not-the-key',
  baseUrl: process.env.SKERRY_URL,
});
await assert.rejects(
  stranger.workspaces.list(),
  (error) => error.constructor.name === 'AuthenticationError',
);

await client.workspaces.delete(made.id);
await assert.rejects(client.workspaces.get(made.id), (error) => error.status === 404);
console.log('oblien: ok');
