/**
 * Goal: a remap file says exactly what FORMAT.md says, and every mistake is named with file, place and value.
 * Method: a table of mistakes; a property test writes files and reads them back.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { formatRemapFile, parseRemapFile, readRemapFile, requestsOf } from './remap-file.ts';
import { type RemapRow, RemapTable } from './remap-table.ts';

const EXAMPLE = {
  format: 'cowbell-remap',
  version: 0,
  targets: [
    { name: 'a', uri: '/srv/a.raw', sizeBytes: '2G' },
    { name: 'b', uri: 'nbd+unix:///disk?socket=/run/b.sock' },
  ],
  rows: [
    { source: '0', length: '64M', target: 'a', offset: '1M' },
    { source: '64M', length: 512, target: 'b', offset: 0 },
  ],
};

t.test('the example of FORMAT.md', async (t) => {
  const path = join(t.testdir({ 'remap.json': JSON.stringify(EXAMPLE) }), 'remap.json');
  const { targets, table } = await readRemapFile(path);
  t.same(targets, [
    { name: 'a', uri: '/srv/a.raw', sizeBytes: 2 ** 31 },
    { name: 'b', uri: 'nbd+unix:///disk?socket=/run/b.sock' },
  ]);
  t.same(table.rows, [
    { sourceOffsetBytes: 0, lengthBytes: 2 ** 26, target: 'a', targetOffsetBytes: 2 ** 20 },
    { sourceOffsetBytes: 2 ** 26, lengthBytes: 512, target: 'b', targetOffsetBytes: 0 },
  ]);
});

t.test('each mistake is named by file, place and value', (t) => {
  const row = EXAMPLE.rows[0];
  const cases: { change: object; place: string; message: string }[] = [
    { change: { format: 'other' }, place: 'format', message: 'format is "other", wanted "cowbell-remap"' },
    { change: { version: 1 }, place: 'version', message: 'version is 1, wanted 0' },
    { change: { version: undefined }, place: 'version', message: 'version is missing, wanted 0' },
    { change: { extra: true }, place: 'document.extra', message: 'document.extra is true, wanted only' },
    { change: { targets: {} }, place: 'targets', message: 'targets is {}, wanted a list' },
    { change: { targets: [7] }, place: 'targets[0]', message: 'targets[0] is 7, wanted an object' },
    { change: { targets: [{ name: '' }] }, place: 'targets[0].name', message: 'is "", wanted a text' },
    {
      change: { targets: [{ name: 'a' }, { name: 'a' }] },
      place: 'targets[1].name',
      message: 'targets[1].name is "a", wanted each name once',
    },
    {
      change: { targets: [{ name: 'a', uri: 5 }] },
      place: 'targets[0].uri',
      message: 'targets[0].uri is 5, wanted a text',
    },
    {
      change: { targets: Array.from({ length: 257 }, (_, index) => ({ name: String(index) })) },
      place: 'targets.length',
      message: 'targets.length is 257, wanted at most 256',
    },
    { change: { rows: undefined }, place: 'rows', message: 'rows is missing, wanted a list' },
    {
      change: { rows: [row, { ...row, source: '64Q' }] },
      place: 'rows[1].source',
      message: 'rows[1].source is "64Q", wanted a size in multiples of 512 bytes',
    },
    {
      change: { rows: [{ ...row, offset: 100 }] },
      place: 'rows[0].offset',
      message: 'rows[0].offset is 100, wanted a size',
    },
    {
      change: { rows: [{ ...row, length: -512 }] },
      place: 'rows[0].length',
      message: 'rows[0].length is -512',
    },
    {
      change: { rows: [{ ...row, target: 'c' }] },
      place: 'rows[0].target',
      message: 'rows[0].target is "c", wanted the name of one of the targets',
    },
    {
      change: { rows: [row, { ...row, target: 'b' }] },
      place: 'rows[1]',
      message: 'rows[1] meets row 0 at byte 0 of the source',
    },
  ];
  for (const { change, place, message } of cases) {
    const error = caught(() => parseRemapFile(JSON.stringify({ ...EXAMPLE, ...change }), 'remap.json'));
    t.match(error, { code: 'bad-remap-file', details: { file: 'remap.json', place } }, place);
    t.ok(error instanceof Error && error.message.startsWith('Remap file remap.json: '));
    t.ok(error instanceof Error && error.message.includes(message), `${String(error)} has ${message}`);
  }
  t.match(
    caught(() => parseRemapFile('{', 'remap.json')),
    { message: /^Remap file remap.json is no JSON/ },
  );
  t.match(
    caught(() => parseRemapFile('[]', 'remap.json')),
    { details: { place: 'document', value: [] } },
  );
  t.end();
});

t.test('a file that cannot be read', async (t) => {
  const directory = t.testdir({});
  await t.rejects(readRemapFile(join(directory, 'absent')), { code: 'bad-remap-file', message: /ENOENT/ });
  const broken = join(directory, 'broken');
  writeFileSync(broken, 'no');
  await t.rejects(readRemapFile(broken), { code: 'bad-remap-file', message: /is no JSON/ });
});

t.test('targets of the command line take the place of those of the file', (t) => {
  const remap = { targets: [{ name: 'a', uri: '/a', sizeBytes: 512 }, { name: 'b' }] };
  t.same(requestsOf(remap, ['/x', '/y'], 'f'), [
    { name: 'a', uri: '/x', sizeBytes: 512 },
    { name: 'b', uri: '/y' },
  ]);
  t.throws(() => requestsOf(remap, [], 'f'), {
    message: /targets\[1\].uri is missing, wanted a path or URI/,
  });
  t.throws(() => requestsOf(remap, ['/x'], 'f'), { message: /targets.length is 2, wanted 1/ });
  t.end();
});

t.test('property: what is written is read back', (t) => {
  const rows = fc.array(fc.tuple(fc.nat(2 ** 11), fc.constantFrom('a', 'weird "name"\n')), { maxLength: 30 });
  fc.assert(
    fc.property(rows, fc.constantFrom(1, 2, 2 ** 11, 2 ** 21, 2 ** 31), (starts, scale) => {
      const used = new Map<number, RemapRow>();
      for (const [start, target] of starts) {
        const offsetBytes = start * scale * 512;
        used.set(start, {
          sourceOffsetBytes: offsetBytes,
          lengthBytes: 512,
          target,
          targetOffsetBytes: offsetBytes,
        });
      }
      const table = RemapTable.of(used.values());
      const targets = [{ name: 'a', uri: '/srv/a', sizeBytes: scale * 512 }, { name: 'weird "name"\n' }];
      const file = parseRemapFile(formatRemapFile({ targets, table }), 'f');
      t.same(file.targets, targets);
      return JSON.stringify(file.table.rows) === JSON.stringify(table.rows);
    }),
  );
  t.same(parseRemapFile(formatRemapFile({ targets: [], table: RemapTable.of([]) }), 'f').targets, []);
  t.end();
});

function caught(call: () => unknown): unknown {
  try {
    call();
  } catch (error) {
    return error;
  }
  return undefined;
}
