/**
 * Goal: nbdcopy uses the map of a volume in both directions: only data is moved, and a copy that is to be
 * fully allocated is.
 *
 * Method: a sparse image onto a volume with and without `--allocated`; the blocks of the home tell.
 */
import { closeSync, ftruncateSync, openSync, statSync, writeSync } from 'node:fs';
import t from 'tap';
import { must } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;

t.test('nbdcopy, sparse and allocated', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
  const { at, uri } = await serveVolume(t, { size: '64M' });
  const image = openSync(at('image.raw'), 'w');
  ftruncateSync(image, 64 * MIB);
  writeSync(image, Buffer.alloc(MIB, 'cowbell'), 0, MIB, 8 * MIB);
  writeSync(image, Buffer.alloc(512, 'x'), 0, 512, 64 * MIB - 512);
  closeSync(image);
  const homeBytes = (): number => statSync(at('home.raw')).blocks * 512;

  await must('nbdcopy', ['--flush', at('image.raw'), uri]);
  t.ok(homeBytes() < 4 * MIB, 'holes stay holes');
  await must('nbdcopy', [uri, at('back.raw')]);
  await must('cmp', [at('image.raw'), at('back.raw')]);
  t.ok(statSync(at('back.raw')).blocks * 512 < 4 * MIB, 'and come back as holes');

  await must('nbdcopy', ['--flush', '--allocated', at('image.raw'), uri]);
  t.ok(homeBytes() >= 64 * MIB, 'all of it is allocated');
  await must('nbdcopy', [uri, at('again.raw')]);
  await must('cmp', [at('image.raw'), at('again.raw')]);
});
