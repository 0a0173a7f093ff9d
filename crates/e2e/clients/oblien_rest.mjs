// Drives what no other script of the unmodified npm package `oblien` calls, against SKERRY_URL.
import { strict as assert } from 'node:assert';
import Oblien from 'oblien';

const client = new Oblien({
  clientId: 'admin',
  clientSecret: process.env.SKERRY_KEY,
  baseUrl: process.env.SKERRY_URL,
});
const { workspaces } = client;
const { id } = await workspaces.create({
  image: 'base',
  config: { memory_mb: 256, workloads: [{ name: 'app', cmd: ['sleep', '1000'] }] },
});
assert.ok((await workspaces.images.list({ search: 'node' })).images.some(({ id }) => id === 'node-20'));
assert.equal((await workspaces.resources.get(id)).resources.memory_mb, 256);
const grown = await workspaces.resources.patch(id, { disk_size_mb: 700 });
assert.deepEqual([grown.updated.disk_size_mb, grown.relaunched], [700, false]);
await assert.rejects(workspaces.resources.update(id, { memory_mb: 384 }), (error) => error.status === 409);
const larger = await workspaces.resources.update(id, { memory_mb: 384, apply: true });
assert.deepEqual([larger.updated.memory_mb, larger.relaunched], [384, true]);
const sizes = [];
for await (const { stats } of workspaces.metrics.statsStream(id)) {
  sizes.push(stats.guestMemoryTotal);
  if (sizes.length === 2) break;
}
assert.ok(sizes.every((size) => size > 256 * 1024 * 1024), String(sizes));
assert.ok((await workspaces.metrics.stats(id)).stats.guestMemoryTotal > 0);
assert.ok(Array.isArray((await workspaces.logs.get(id, { source: 'boot', tail_lines: 5 })).logs));
assert.equal((await workspaces.network.get(id)).allow_internet, false);
assert.equal((await workspaces.ssh.status(id)).supported, false);

const exposed = await workspaces.publicAccess.expose(id, { port: 3000, label: 'app', slug: 'my-app' });
assert.match(JSON.stringify(exposed), /my-app/);
assert.match(JSON.stringify(await workspaces.publicAccess.updateSlug(id, 3000, { slug: 'our-app' })), /our-app/);
assert.match(JSON.stringify(await workspaces.publicAccess.list(id)), /our-app/);
await workspaces.publicAccess.revoke(id, 3000);
assert.ok(!/our-app/.test(JSON.stringify(await workspaces.publicAccess.list(id))));

await workspaces.workloads.update(id, 'app', { labels: { tier: 'web' } });
assert.equal((await workspaces.workloads.get(id, 'app')).labels.tier, 'web');
assert.ok((await workspaces.workloads.status(id, 'app')).status);
assert.equal((await workspaces.workloads.stats(id, 'app')).name ?? 'app', 'app');

await workspaces.lifecycle.updateTtl(id, { ttl: '1h', ttl_action: 'stop' });
await workspaces.lifecycle.ping(id);
assert.equal((await workspaces.lifecycle.get(id)).ttl, '1h');
await workspaces.lifecycle.destroy(id);
await assert.rejects(workspaces.get(id), (error) => error.status === 404);
console.log('oblien rest: ok');
