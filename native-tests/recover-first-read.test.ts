/**
 * Goal: `recover` answers its first read in well under a second from the start of the command, whatever the size of the
 * volume.
 *
 * Method: sets of a volume of 1 GiB, all of it in use, and of one of 1 TiB with little in it. The time from the start of
 * the command to the answer of a read of the last track in use, which is missing then, in a new directory each time; the
 * median of five is printed beside what the project asks for, and the best of them is held against a limit that a busy
 * machine keeps too.
 */
import { rmSync } from 'node:fs';
import t, { type Test } from 'tap';
import { openNbdDevice } from '../src/nbd/index.ts';
import { must, mustCowbell, startCowbell } from './support/process.ts';
import { TRACK_BYTES } from './support/recovering.ts';
import { backUp, serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const TIMES = 5;
const WANTED_MS = 600;
/** Twice that, since other tests may run beside this one. */
const LIMIT_MS = 2 * WANTED_MS;

type Path = (name: string) => string;

async function firstReads(
  t: Test,
  size: string,
  fill: (uri: string, at: Path) => Promise<number>,
): Promise<void> {
  const { at, volume, server, uri } = await serveVolume(t, { size });
  const lastBytes = await fill(uri, at);
  await mustCowbell(['store', 'init', at('store')]);
  await backUp(volume, at('store'));
  await server.stop();
  rmSync(at('home.raw'));
  const readyMs: number[] = [];
  const readMs: number[] = [];
  const socket = at('s.sock');
  for (let time = 0; time < TIMES; time += 1) {
    const name = `again-${time}`;
    const startedMs = performance.now();
    const words = ['recover', at('store'), 'latest', at(name), '--socket', socket];
    const recovering = startCowbell([...words, '--rate', '1M']);
    await recovering.waitForLine(/^ready /);
    readyMs.push(performance.now() - startedMs);
    const device = await openNbdDevice({ transport: { kind: 'unix', path: socket }, exportName: name });
    const target = Buffer.alloc(TRACK_BYTES);
    await device.read(target, lastBytes - TRACK_BYTES);
    readMs.push(performance.now() - startedMs);
    t.ok(
      target.some((byte) => byte !== 0),
      'content was read',
    );
    await device.close();
    const { status, stdout, stderr } = await recovering.stop();
    t.equal(status, 0, stderr);
    t.notMatch(stdout, /Recovered/, 'before it was restored');
    rmSync(at(name), { recursive: true });
  }
  const [ready, read, best] = [median(readyMs), median(readMs), Math.round(Math.min(...readMs))];
  t.comment(
    `${size}: first read after ${read} ms, at best ${best} ms (ready after ${ready} ms), wanted ${WANTED_MS} ms`,
  );
  t.ok(best < LIMIT_MS, `${best} ms`);
}

function median(values: readonly number[]): number {
  return Math.round(values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0);
}

t.test('1 GiB, all in use', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'openssl'])) return;
  await firstReads(t, '1G', async (uri, at) => {
    const noise = `head -c 1G /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00 > ${at('noise.raw')}`;
    await must('sh', ['-c', noise]);
    await must('nbdcopy', [at('noise.raw'), uri]);
    rmSync(at('noise.raw'));
    return 1024 ** 3;
  });
});

t.test('1 TiB, little in use', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  await firstReads(t, '1T', async (uri) => {
    const commands = Array.from({ length: 64 }, (_, index) => [
      '-c',
      `write -P ${index + 1} ${index * 16}G 64k`,
    ]);
    await must('qemu-io', ['-f', 'raw', ...commands.flat(), '-c', 'flush', uri]);
    return 63 * 16 * 1024 ** 3 + TRACK_BYTES;
  });
});
