/**
 * Goal: a volume tells holes from data to nbdinfo and qemu-img, and qemu-img converts only the data of it.
 *
 * Method: patterns at known places of a volume whose home is a sparse file; maps of both tools.
 */
import { statSync } from 'node:fs';
import t from 'tap';
import { must } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;

t.test('nbdinfo and qemu-img map holes and data', async (t) => {
  if (!requireTools(t, ['nbdinfo', 'qemu-io', 'qemu-img'])) return;
  const { at, uri } = await serveVolume(t, { size: '6G' });
  const writes = ['write -P 1 1M 1M', 'write -P 2 5G 2M', 'write -P 3 16M 1M', 'discard 16M 1M'];
  await must('qemu-io', ['-f', 'raw', ...writes.flatMap((command) => ['-c', command]), '-c', 'flush', uri]);
  const expected = [
    [0, MIB, 3],
    [MIB, MIB, 0],
    [2 * MIB, 5118 * MIB, 3],
    [5120 * MIB, 2 * MIB, 0],
    [5122 * MIB, 1022 * MIB, 3],
  ];
  const map: unknown = JSON.parse(await must('nbdinfo', ['--json', '--map', uri]));
  t.match(
    map,
    expected.map(([offset, length, type]) => ({ offset, length, type })),
  );
  const mapped: unknown = JSON.parse(await must('qemu-img', ['map', '-f', 'raw', '--output=json', uri]));
  t.match(
    mapped,
    expected.map(([start, length, type]) => ({ start, length, zero: type === 3, data: type === 0 })),
  );
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, at('copy.raw')]);
  t.ok(statSync(at('copy.raw')).blocks * 512 < 16 * MIB, 'a copy has the holes');
  await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, at('copy.raw')]);
});
