/**
 * Goal: a volume that nobody serves grows by the same command; sizes that cannot be are refused, and so is a home that
 * has no room and does not grow.
 *
 * Method: volumes in files and in a piece of a file; the answers, and what became of the files.
 */
import { statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, mustCowbell, temporaryDirectory } from './support/process.ts';

const MIB = 1024 * 1024;

async function create(t: Test) {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const volume = at('vol');
  await mustCowbell(['volume', 'create', volume, '--size', '8M', '--home', at('home.raw')]);
  return { at, volume };
}

t.test('at rest, in steps, with refusals', async (t) => {
  const { at, volume } = await create(t);
  const grow = (size: string) => cowbell(['volume', 'grow', volume, '--size', size]);
  t.match(await grow('12M'), { status: 0, stdout: /^Grew volume vol from 8 MiB to 12 MiB$/m });
  t.match(await grow('12M'), { status: 0, stdout: /^Volume vol has 12 MiB already: nothing is changed$/m });
  t.match(await grow('10M'), {
    status: 2,
    stderr:
      /^cowbell: Volume vol has 12582912 bytes; making it smaller, 10485760 bytes, would lose .* not offered$/m,
  });
  t.match(await grow('12582913'), { status: 2, stderr: /12582913 is not a positive multiple of 512 bytes/ });
  t.match(await grow('much'), { status: 2, stderr: /--size is 'much'/ });
  t.match(await cowbell(['volume', 'grow', volume]), { status: 2, stderr: /size/ });
  t.match(await cowbell(['volume', 'grow', at('none'), '--size', '1G']), {
    status: 1,
    stderr: /does not exist/,
  });
  t.match(await mustCowbell(['volume', 'show', volume]), /size: +12 MiB/);
  t.equal(statSync(at('home.raw')).size, 12 * MIB);
});

t.test('a piece of a larger file must have the room already', async (t) => {
  const { at, volume } = await create(t);
  truncateSync(at('home.raw'), 64 * MIB);
  await mustCowbell(['volume', 'create', at('piece'), '--size', '8M', '--home', `${at('home.raw')}@16M+32M`]);
  await mustCowbell(['volume', 'grow', at('piece'), '--size', '32M']);
  t.match(await cowbell(['volume', 'grow', at('piece'), '--size', '33M']), {
    status: 1,
    stderr:
      /home\.raw@16777216\+33554432 of volume piece has 33554432 bytes .* wanted 34603008; make it larger first/,
  });
  // What is larger already is taken as it is.
  await mustCowbell(['volume', 'grow', volume, '--size', '16M']);
  t.equal(statSync(at('home.raw')).size, 64 * MIB);
});
