/**
 * Goal: a restore through files: what fits is written and durable, what does not fit leaves nothing behind.
 * Method: a model source, real files through the device registry, syncs observed by name.
 */

import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { observeSyncs } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { RemapTable } from './remap-table.ts';
import { ModelSource } from './model.fixture.ts';
import { restore } from './restore.ts';

const TRACK = 4096;
const options = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

/** `1`, zeroes, `3`, zeroes up to track 1000. */
function source(): ModelSource {
  const content = Buffer.alloc(1000 * TRACK);
  content.fill('1', 0, TRACK);
  content.fill('3', 2 * TRACK, 3 * TRACK);
  return new ModelSource(content, TRACK, [[2], [0]]);
}

t.test('onto a new file: equal, sparse, its data and name durable', async (t) => {
  const directory = t.testdir({});
  const path = join(directory, 'disk');
  const synced: string[] = [];
  observeSyncs({
    after: (event) => {
      synced.push(event.kind === 'commit' ? 'commit' : `${event.name} ${event.kind} ${event.path}`);
    },
  });
  const result = await restore(source(), [{ name: 'disk', uri: path }], options).finally(() =>
    observeSyncs(undefined),
  );
  t.match(result, { tracks: 2, bytesWritten: 2 * TRACK, bytesZeroed: 0, bytesSkipped: 998 * TRACK });
  t.ok(readFileSync(path).equals(source().content));
  t.ok(statSync(path).blocks * 512 < 100 * TRACK, 'sparse');
  t.same(
    synced,
    [`restore-target file ${path}`, `restore-target file ${path}`, `restore-target directory ${directory}`],
    'the creation, then the data, then the name',
  );
});

t.test('onto a file in use before: zeroes are written too', async (t) => {
  const path = join(t.testdir({ disk: Buffer.alloc(1001 * TRACK, '-') }), 'disk');
  const result = await restore(source(), [{ name: 'disk', uri: path }], options);
  t.match(result, { bytesZeroed: 998 * TRACK, bytesSkipped: 0 });
  const found = readFileSync(path);
  t.ok(found.subarray(0, 1000 * TRACK).equals(source().content));
  t.equal(found.toString('latin1', 1000 * TRACK), '-'.repeat(TRACK));
});

t.test('a plan that is refused leaves old targets untouched and no new ones', async (t) => {
  const directory = t.testdir({ small: Buffer.alloc(TRACK, '-') });
  const table = RemapTable.of([
    { sourceOffsetBytes: 0, lengthBytes: TRACK, target: 'new', targetOffsetBytes: 0 },
    { sourceOffsetBytes: 2 * TRACK, lengthBytes: TRACK, target: 'small', targetOffsetBytes: TRACK },
  ]);
  const targets = ['new', 'small'].map((name) => ({ name, uri: join(directory, name) }));
  await t.rejects(restore(source(), targets, { ...options, layout: { table } }), {
    code: 'target-too-small',
    message: /^Target small \(file .*small\) has 4096 bytes, wanted at least 8192$/,
  });
  t.notOk(existsSync(join(directory, 'new')));
  t.equal(readFileSync(join(directory, 'small'), 'latin1'), '-'.repeat(TRACK));
});

t.test('damage on the way: targets are closed and free, and what was created stays', async (t) => {
  const path = join(t.testdir({}), 'disk');
  const damaged = source();
  damaged.damaged.add(0);
  await t.rejects(restore(damaged, [{ name: 'disk', uri: path }], options), {
    message: 'Track 0 of the model is damaged; target disk is incomplete',
  });
  t.ok(existsSync(path));
  await restore(source(), [{ name: 'disk', uri: path }], options);
  t.ok(readFileSync(path).equals(source().content));
});
