// Holds the table of methods in docs/dialects/oblien.md against the unmodified npm package `oblien`.
//
// Every public method of the client and of a runtime has a row, its own or that of its whole area, and no row is
// of something else. What is said to work is called by one of the scripts beside this one; what is said to be
// refused is, when called.
import { strict as assert } from 'node:assert';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import Oblien from 'oblien';
import { Runtime } from 'oblien/runtime';

const HERE = ['works', 'deviates', 'served', 'refused', 'local'];
const baseUrl = process.env.SKERRY_URL;

// Nothing but the server is asked, whatever a method means to ask.
const { fetch } = globalThis;
globalThis.fetch = (input, init) => {
  const url = String(input.url ?? input);
  assert.ok(url.startsWith(baseUrl), `a call of ${url}`);
  return fetch(input, init);
};

const client = new Oblien({
  clientId: 'admin',
  clientSecret: process.env.SKERRY_KEY,
  baseUrl,
  cdnBaseUrl: baseUrl,
});
const box = await client.workspaces.create({ image: 'base', config: { memory_mb: 256 } });
const { token } = await client.workspaces.apiAccess.enable(box.id);
const runtime = new Runtime({ token, baseUrl });

const methods = new Map();
const seen = new Set();
function collect(object, prefix) {
  if (seen.has(object)) return;
  seen.add(object);
  for (let proto = Object.getPrototypeOf(object); proto !== Object.prototype; proto = Object.getPrototypeOf(proto)) {
    for (const [name, { value }] of Object.entries(Object.getOwnPropertyDescriptors(proto))) {
      if (typeof value !== 'function' || name === 'constructor' || name.startsWith('_')) continue;
      methods.set(`${prefix}${name}`, value.bind(object));
    }
  }
  for (const [name, value] of Object.entries(object)) {
    const kind = value?.constructor?.name ?? '';
    if (name.startsWith('_') || typeof value !== 'object' || /^(Object|Array|Map|Set|.*HttpClient)$|^$/.test(kind)) continue;
    collect(value, `${prefix}${name}.`);
  }
}
collect(client, '');
collect(runtime, 'runtime.');
collect(runtime.ws(), 'runtime.ws.');
collect(runtime.proxy(1), 'runtime.proxy.');

const rows = new Map();
for (const line of readFileSync(process.env.SKERRY_OBLIEN_DOCS, 'utf8').split('\n')) {
  const row = /^\| `([A-Za-z.]+(?:\.\*)?)` \| (\w+) \|.*\|$/.exec(line);
  if (!row || !HERE.includes(row[2])) continue;
  assert.ok(!rows.has(row[1]), `${row[1]} has two rows`);
  rows.set(row[1], row[2]);
}
const areaOf = (name) => [...rows.keys()].find((row) => row.endsWith('.*') && name.startsWith(row.slice(0, -1)));
const used = new Set();
const wrong = [];
const here = new Map();
for (const name of methods.keys()) {
  const row = rows.has(name) ? name : areaOf(name);
  if (!row) {
    wrong.push(`${name} has no row`);
    continue;
  }
  used.add(row);
  here.set(name, rows.get(row));
}
for (const row of rows.keys()) if (!used.has(row)) wrong.push(`${row} is a row of nothing`);

const scripts = process.env.SKERRY_CLIENT_SCRIPTS;
const called = readdirSync(scripts)
  .filter((name) => /^oblien.*\.mjs$/.test(name) && name !== 'oblien_methods.mjs')
  .map((name) => readFileSync(join(scripts, name), 'utf8'))
  .join('\n');

// What methods want before they ask anybody.
const THINGS = {
  ip: '192.0.2.1', host: '192.0.2.1', port: 8080, domain: 'example.org', slug: 'x', name: 'x', hostname: 'example.org',
  files: [], urls: [], path: '/', image: 'base', routes: [], targetUrl: 'https://example.org', workspace_id: box.id, namespace: 'x',
};
for (const [name, is] of here) {
  const [method, parent] = name.split('.').reverse();
  const calls = new RegExp(`\\b${parent ? `(${parent}|rt|ws|renewed|direct)(\\([^)]*\\))?\\.` : ''}${method}\\b`);
  if (['works', 'deviates'].includes(is) && !calls.test(called)) {
    wrong.push(`${name} is said to be ${is}, and no script calls it`);
  }
  if (is !== 'refused') continue;
  const first = methods.get(name).length > 0 && /^workspaces\./.test(name) ? box.id : { ...THINGS };
  const attempts = [[first, { ...THINGS }, { ...THINGS }], ['x', { ...THINGS }, { ...THINGS }]];
  const answers = [];
  for (const attempt of attempts) {
    try {
      let answer = methods.get(name)(...attempt);
      answer = answer?.next ? await answer.next() : await answer;
      answers.push(`answered ${JSON.stringify(answer)}`);
    } catch (error) {
      answers.push([400, 405, 501].includes(error.status) ? 'refused' : String(error));
    }
  }
  if (!answers.includes('refused')) wrong.push(`${name} is said to be refused: ${answers.join('; ')}`);
}
await client.workspaces.delete(box.id);
assert.deepEqual(wrong, []);
console.log(`${methods.size} methods\noblien methods: ok`);
