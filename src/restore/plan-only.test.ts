/**
 * Goal: a dry run says exactly what a restore then does, refuses what it would refuse, and changes nothing.
 * Method: plans through files that exist and that do not, compared with the restore that follows.
 */

import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { DeviceRegistry } from '../device/index.ts';
import { ModelSource } from './model.fixture.ts';
import { PlannedFile } from './planned-file.ts';
import { formatRemapFile, parseRemapFile, requestsOf } from './remap-file.ts';
import { RemapTable } from './remap-table.ts';
import { planOnly, restore } from './restore.ts';

const TRACK = 4096;
const options = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

function source(): ModelSource {
  const content = Buffer.alloc(10 * TRACK);
  for (const track of [0, 2, 3, 7]) content.fill(String(track), track * TRACK, (track + 1) * TRACK);
  return new ModelSource(content, TRACK, [[7, 0], [2], [3]], { set: 'S1' });
}

t.test('what is planned is what is done', async (t) => {
  const directory = t.testdir({ old: Buffer.alloc(6 * TRACK, '-') });
  const requests = ['old', 'new'].map((name) => ({ name, uri: join(directory, name) }));
  const { summary, table, targets } = await planOnly(source(), requests, options);
  t.same(summary, {
    targets: [
      {
        name: 'old',
        uri: join(directory, 'old'),
        sizeBytes: 6 * TRACK,
        isNew: false,
        bytesWanted: 6 * TRACK,
        bytesToWrite: 3 * TRACK,
        bytesToZero: 3 * TRACK,
        bytesToSkip: 0,
      },
      {
        name: 'new',
        uri: join(directory, 'new'),
        sizeBytes: 4 * TRACK,
        isNew: true,
        bytesWanted: 4 * TRACK,
        bytesToWrite: TRACK,
        bytesToZero: 0,
        bytesToSkip: 3 * TRACK,
      },
    ],
    tracks: 4,
    tracksBefore: 0,
    frames: 3,
    sets: ['S1'],
    bytesToWrite: 4 * TRACK,
    bytesToZero: 3 * TRACK,
    bytesToSkip: 3 * TRACK,
    bytesLeftOut: 0,
    missing: [],
  });
  t.same(readdirSync(directory), ['old'], 'nothing is made');
  t.ok(readFileSync(join(directory, 'old')).equals(Buffer.alloc(6 * TRACK, '-')), 'nothing is written');

  // As a file, which is read back and edited: the second half of what goes to `new` comes first.
  const file = parseRemapFile(formatRemapFile({ table, targets }), 'plan');
  t.same(file.table.rows, table.rows);
  t.same(requestsOf(file, [], 'plan'), [requests[0], { ...requests[1], sizeBytes: 4 * TRACK }]);
  const edited = RemapTable.of(
    table.rows.flatMap((row) => {
      if (row.target === 'old') return [row];
      const half = { ...row, lengthBytes: 2 * TRACK };
      return [
        { ...half, targetOffsetBytes: 2 * TRACK },
        { ...half, sourceOffsetBytes: row.sourceOffsetBytes + 2 * TRACK, targetOffsetBytes: 0 },
      ];
    }),
  );
  const result = await restore(source(), requests, { ...options, layout: { table: edited } });
  t.match(result, { tracks: 4, bytesWritten: 4 * TRACK, bytesZeroed: 3 * TRACK, bytesSkipped: 3 * TRACK });
  t.ok(readFileSync(join(directory, 'old')).equals(source().content.subarray(0, 6 * TRACK)));
  const { content } = source();
  const swapped = Buffer.concat([content.subarray(8 * TRACK), content.subarray(6 * TRACK, 8 * TRACK)]);
  t.ok(readFileSync(join(directory, 'new')).equals(swapped));
});

t.test('what would be refused is refused, and targets are free afterwards', async (t) => {
  const directory = t.testdir({ small: Buffer.alloc(TRACK), disk: Buffer.alloc(10 * TRACK) });
  const at = (name: string) => [{ name, uri: join(directory, name) }];
  await t.rejects(planOnly(source(), at('small'), options), { code: 'target-too-small' });
  await t.rejects(planOnly(source(), at('no/such'), options), { code: 'bad-target' });
  await planOnly(source(), at('disk'), options);
  await restore(source(), at('disk'), options);
  t.notOk(existsSync(join(directory, 'no')));
});

t.test('a plan that somebody else refuses leaves nothing', async (t) => {
  const path = join(t.testdir({}), 'disk');
  const refused = restore(source(), [{ name: 'disk', uri: path }], {
    ...options,
    onPlanned: (planned) => {
      t.equal(statSync(path).size, 10 * TRACK);
      t.equal(planned.targets[0]?.sizeBytes, 10 * TRACK);
      throw new Error('No');
    },
  });
  await t.rejects(refused, { message: 'No' });
  t.notOk(existsSync(path));
});

t.test('a planned file moves no bytes', async (t) => {
  const file = new PlannedFile('/a', TRACK);
  for (const call of ['read', 'write', 'writeZeroes', 'trim'] as const) {
    t.throws(() => file[call](), { name: 'AssertionError', message: /^new file \/a is only planned/ });
  }
  await t.rejects(file.flush(), { name: 'AssertionError' });
  await t.rejects(file.extents(), { name: 'AssertionError' });
  await file.close();
});
