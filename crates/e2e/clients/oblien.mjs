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
assert.equal((await client.workspaces.get(made.slug)).id, made.id);
const { workspace: details } = await client.workspaces.getDetails(made.id);
assert.equal(details.lifecycle.mode, 'temporary');
assert.deepEqual(details.config.env_keys, ['GREETING']);
assert.ok(details.stats.memoryUsedMB > 0 && details.stats.memoryTotalMB <= 512);
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

// Rest, snapshots and the rules of a life.
const status = async () => (await client.workspaces.get(made.id)).info.status;
await client.workspaces.pause(made.id);
assert.equal(await status(), 'paused');
await client.workspaces.resume(made.id);
assert.equal(await status(), 'running');
await client.workspaces.snapshots.create(made.id, { after: 'stop' });
assert.equal(await status(), 'stopped');
await client.workspaces.snapshots.restore(made.id);
assert.equal(await status(), 'running');
await client.workspaces.lifecycle.makeTemporary(made.id, { ttl: '1h', ttl_action: 'remove' });
await client.workspaces.ping(made.id, { ttl_seconds: 7200 });
const life = await client.workspaces.lifecycle.get(made.id);
assert.deepEqual([life.ttl, life.ttl_action], ['1h', 'remove']);
assert.ok(Date.parse(life.expires_at) - Date.now() > 6_000_000, life.expires_at);
await client.workspaces.lifecycle.setIdle(made.id, { suspend_after: 900 });
assert.deepEqual((await client.workspaces.lifecycle.get(made.id)).idle, { suspend_after: 900, stop_after: 0 });
await client.workspaces.lifecycle.setIdle(made.id, null);
await client.workspaces.lifecycle.makePermanent(made.id, { restart_policy: 'no' });
const lasting = await client.workspaces.lifecycle.get(made.id);
assert.deepEqual([lasting.mode, lasting.ttl, lasting.restart_policy], ['permanent', null, 'no']);
await client.workspaces.lifecycle.makeTemporary(made.id);

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


// What is refused says which field and leaves nothing behind.
const refused = (body, code, field) =>
  assert.rejects(
    client.workspaces.create({ image: 'base', ...body }),
    (error) => error.code === code && error.details.field === field && error.message.includes(field),
  );
await refused({ name: 'x'.repeat(256) }, 'INVALID_NAME_LENGTH', 'name');
await refused({ namespace: 'no spaces' }, 'INVALID_NAMESPACE', 'namespace');
await refused({ image: 'no-such-image' }, 'invalid_image', 'image');
await refused({ config: { ttl: 'soon' } }, 'INVALID_CONFIG', 'config.ttl');
await refused({ config: { ssh_access: true } }, 'INVALID_CONFIG', 'config.ssh_access');
await refused(
  { config: { network_config: { allow_internet: true } } },
  'INVALID_CONFIG',
  'config.network_config.allow_internet',
);
await assert.rejects(
  client.workspaces.update(made.id, { mode: 'permanent' }),
  (error) => error.code === 'validation_error' && error.details.field === 'mode',
);
assert.equal((await client.workspaces.list()).total, 1);

// A domain of one's own waits for its record; the name server of this test answers nobody.
const { domains } = client.workspaces;
assert.equal(await domains.get(made.id), null);
const checked = await domains.checkDNS(made.id, { domain: 'app.example.org' });
assert.deepEqual([checked.verified, checked.cname, checked.ownership], [false, false, false]);
assert.equal(checked.required_records.cname.host, 'app.example.org');
assert.ok(checked.required_records.txt.host.endsWith('.app.example.org') && checked.errors.length > 0);
const connected = await domains.connect(made.id, { domain: 'app.example.org', port: 8080 });
assert.deepEqual([connected.port, connected.ssl.status, connected.dns.verified], [8080, 'pending', false]);
assert.equal((await domains.get(made.id)).customDomain, 'app.example.org');
// This server is given its certificates.
await assert.rejects(domains.renewSSL(made.id), (error) => error.status === 409);
await assert.rejects(
  domains.connect(made.id, { domain: 'other.example.org' }),
  (error) => error.status === 409,
);
assert.equal((await domains.disconnect(made.id)).success, true);
assert.equal(await domains.get(made.id), null);

// Several at once, each its own; pages cover them without overlap.
const several = await Promise.all(
  [1, 2, 3].map(() =>
    client.workspaces.create({
      name: 'one-of-three',
      image: 'base',
      mode: 'permanent',
      namespace: 'parallel',
      config: { memory_mb: 256 },
    }),
  ),
);
const ids = new Set(several.map((workspace) => workspace.id));
assert.equal(ids.size, 3);
const pages = await Promise.all(
  [1, 2].map((page) => client.workspaces.list({ mode: 'permanent', page, limit: 2 })),
);
assert.deepEqual(new Set(pages.flatMap((page) => page.workspaces.map(({ id }) => id))), ids);
assert.deepEqual(pages.map((page) => page.total), [3, 3]);

// Two deletions of one workspace at once: it is gone, and neither is a fault of the server.
for (const id of ids) {
  const both = await Promise.allSettled([1, 2].map(() => client.workspaces.delete(id)));
  const faults = both.filter(({ status, reason }) => status === 'rejected' && reason.status !== 404);
  assert.deepEqual(faults, []);
  await assert.rejects(client.workspaces.get(id), (error) => error.status === 404);
}

// Found at once, and deleted while it comes up.
const early = await client.workspaces.create({ image: 'base', wait_ready: false });
assert.equal(early.info.status, 'creating');
assert.equal((await client.workspaces.get(early.id)).id, early.id);
await client.workspaces.delete(early.id);
await assert.rejects(client.workspaces.get(early.id), (error) => error.status === 404);

// A time to live removes.
const brief = await client.workspaces.create({
  image: 'base',
  config: { ttl: '2s', ttl_action: 'remove' },
});
const until = Date.now() + 30_000;
const gone = (error) => error.status === 404 || Promise.reject(error);
while (!(await client.workspaces.get(brief.id).then(() => false, gone))) {
  assert.ok(Date.now() < until, 'the time to live ended long ago');
  await new Promise((resolve) => setTimeout(resolve, 200));
}

await client.workspaces.delete(made.id);
await assert.rejects(client.workspaces.get(made.id), (error) => error.status === 404);
const empty = await client.workspaces.getQuota();
assert.deepEqual(empty.pool_usage, { cpus: 0, memory_mb: 0, disk_mb: 0 });
console.log('oblien: ok');
