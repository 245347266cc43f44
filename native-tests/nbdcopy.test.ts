/**
 * Goal: nbdcopy moves an image onto a volume and off it again without a changed byte, over one connection and
 * over several with many requests in flight.
 *
 * Method: random content between zero gaps, an odd number of sectors; both ways compared with the original.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs';
import t from 'tap';
import { must } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_BYTES = 32 * MIB - 512;

/** Every third MiB is a hole; the last sectors are content. */
function writeImage(path: string): void {
  const descriptor = openSync(path, 'w');
  ftruncateSync(descriptor, SIZE_BYTES);
  for (let offset = 0; offset < SIZE_BYTES; offset += MIB) {
    if ((offset / MIB) % 3 === 1) continue;
    const content = randomBytes(Math.min(MIB, SIZE_BYTES - offset));
    writeSync(descriptor, content, 0, content.length, offset);
  }
  closeSync(descriptor);
}

for (const [name, words] of [
  ['one connection, synchronous', ['--synchronous', '--connections=1']],
  ['four connections, 64 requests each', ['--connections=4', '--requests=64', '--flush']],
] as const) {
  t.test(name, async (t) => {
    if (!requireTools(t, ['nbdcopy'])) return;
    const { at, server, uri } = await serveVolume(t, { size: String(SIZE_BYTES) });
    writeImage(at('in.raw'));
    await must('nbdcopy', [...words, at('in.raw'), uri]);
    await must('nbdcopy', [...words, uri, at('out.raw')]);
    await must('cmp', [at('in.raw'), at('out.raw')]);
    t.equal((await server.stop()).status, 0);
    await must('cmp', [at('in.raw'), at('home.raw')]);
    t.pass('both copies and the home are equal');
  });
}

t.test('without a zero command', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
  const { at, uri } = await serveVolume(t, { size: String(SIZE_BYTES) });
  writeFileSync(at('old.raw'), Buffer.alloc(SIZE_BYTES, 0xaa));
  writeImage(at('in.raw'));
  await must('nbdcopy', [at('old.raw'), uri]);
  await must('nbdcopy', ['--allocated', at('in.raw'), uri]);
  await must('nbdcopy', [uri, at('out.raw')]);
  await must('cmp', [at('in.raw'), at('out.raw')]);
  t.pass('zeroes written out replace what was there');
});
