// Drives the workloads of the unmodified npm package `oblien` against SKERRY_URL.
import { strict as assert } from 'node:assert';
import Oblien from 'oblien';

const client = new Oblien({
  clientId: 'admin',
  clientSecret: process.env.SKERRY_KEY,
  baseUrl: process.env.SKERRY_URL,
});
const { workloads } = client.workspaces;

// Each answer is the guest's; the bound is for a machine that hangs.
const until = async (ask, wanted) => {
  const bound = Date.now() + 240_000;
  for (;;) {
    const answer = await ask();
    if (wanted(answer)) return answer;
    assert.ok(Date.now() < bound, `never as wanted: ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

const box = await client.workspaces.create({
  name: 'host',
  image: 'base',
  mode: 'permanent',
  config: {
    memory_mb: 512,
    env: [{ key: 'GREETING', value: 'hello' }],
    workloads: [
      { name: 'ticker', cmd: ['sh', '-c', 'echo $GREETING $OWN; while :; do echo tick; sleep 1; done'],
        env: ['OWN=own'], restart_policy: 'always', restart_delay: 0, restart_backoff: false },
    ],
  },
});
const show = (name) => () => workloads.get(box.id, name);
const running = ({ status, pid }) => status === 'running' && pid > 0;
const first = await until(show('ticker'), running);
const { logs } = await until(() => workloads.logs(box.id, 'ticker'), ({ logs }) => /tick/.test(logs));
assert.match(logs, /^\[\d{4}-.*Z\] stdout: hello own$/m);

// Killed inside, it is started again.
assert.equal(first.restart_count, 0);
const killer = await workloads.create(box.id, { name: 'killer', cmd: ['kill', '-9', String(first.pid)] });
assert.equal(killer.name, 'killer');
const second = await until(show('ticker'), (now) => running(now) && now.pid !== first.pid);
assert.equal(second.restart_count, 1);
assert.equal((await until(show('killer'), ({ status }) => status === 'exited')).exit_code, 0);

// Streams: lines as they come, and use of resources.
for await (const line of workloads.logsStream(box.id, 'ticker')) {
  // The new process may have begun to speak only now.
  if (line.message !== 'tick') continue;
  assert.equal(line.stream, 'stdout');
  break;
}
for await (const record of workloads.statsStream(box.id, 'ticker')) {
  assert.ok(record.rss_bytes > 0, JSON.stringify(record));
  break;
}
for await (const record of workloads.allStatsStream(box.id)) {
  if (record.type === 'subscribed') continue;
  assert.equal(record[0].name, 'ticker');
  break;
}

// What was stopped stays stopped over a restart of the machine, what runs runs again.
await workloads.create(box.id, { name: 'resting', cmd: 'exec sleep 1000', enabled: false });
assert.equal((await workloads.get(box.id, 'resting')).enabled, false);
await workloads.patch(box.id, 'killer', { name: 'once' });
await workloads.delete(box.id, 'once');
await client.workspaces.restart(box.id);
await until(show('ticker'), running);
await until(show('resting'), ({ status }) => status === 'stopped');
await workloads.start(box.id, 'resting');
await until(show('resting'), running);
await workloads.stop(box.id, 'resting');
await until(show('resting'), ({ status, pid }) => status === 'stopped' && pid === null);
// The output of before is kept: that of three processes is there.
await until(
  () => workloads.logs(box.id, 'ticker'),
  ({ logs }) => (logs.match(/hello own/g) ?? []).length === 3,
);

// A pause and a snapshot do not disturb a process.
const before = await until(show('ticker'), running);
await client.workspaces.pause(box.id);
await client.workspaces.resume(box.id);
assert.equal((await until(show('ticker'), running)).pid, before.pid);

assert.deepEqual((await workloads.list(box.id)).map(({ name }) => name), ['ticker', 'resting']);
await workloads.deleteAll(box.id);
assert.deepEqual(await workloads.list(box.id), []);
await client.workspaces.delete(box.id);

// The end of a command is the end of its machine, and of a workspace that is removed on exit.
const toldToEnd = (code) => ['sh', '-c', `until [ -e /tmp/go ]; do sleep 0.2; done; exit ${code}`];
const job = await client.workspaces.create({
  image: 'base',
  config: { memory_mb: 512, cmd: toldToEnd(0), remove_on_exit: true },
});
const gone = (error) => error.status === 404 || Promise.reject(error);
await until(() => workloads.get(job.id, 'main'), running);
// The workspace may be gone before the answer is.
await workloads.create(job.id, { cmd: ['touch', '/tmp/go'] }).catch(gone);
await until(() => client.workspaces.get(job.id).then(() => false, gone), (is) => is);
const failing = await client.workspaces.create({
  image: 'base',
  config: { memory_mb: 512, cmd: toldToEnd(3) },
});
await until(() => workloads.get(failing.id, 'main'), running);
await workloads.create(failing.id, { cmd: ['touch', '/tmp/go'] });
const failed = await until(() => client.workspaces.get(failing.id), ({ info }) => !info.is_running);
assert.equal(failed.info.status, 'error');
await client.workspaces.delete(failing.id);

const none = (error) => error.status === 404;
await assert.rejects(workloads.list(box.id), none);
console.log('oblien workloads: ok');
