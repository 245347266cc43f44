/**
 * Goal: a volume grows while it is served: clients that connect see the new size and write beyond the old end, those
 * that are connected go on, and an incremental backup after it restores to all of it.
 *
 * Method: qemu-io and nbdinfo on the export, a client that stays connected through the growth, restored files compared
 * with a copy of the export.
 */
import { statSync } from 'node:fs';
import t from 'tap';
import { must, mustCowbell, Running } from './support/process.ts';
import { backUp, eventsOf, serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1024 * 1024;

t.test('online: new clients see it, connected ones go on, the next set has it', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo', 'nbdcopy'])) return;
  // The size is no multiple of a track: the last track becomes another one.
  const { at, volume, uri, server } = await serveVolume(t, { size: '8712K' });
  await mustCowbell(['store', 'init', at('store')]);
  const write = (...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  await write('write -P 1 0 1M', 'write -P 2 8704K 8K', 'flush');
  const full = await backUp(volume, at('store'), ['--codec', 'none']);
  t.match(full, { level: 'full', tracks: 17 });

  // It reads its commands from the other end of a pipe, so that it is connected before, during and after.
  const grown = at('grown');
  const connected = new Running('sh', [
    '-c',
    `{ echo 'write -P 3 1M 64k'; until [ -e '${grown}' ]; do sleep 0.02; done; echo 'write -P 4 2M 64k'; echo 'read -P 2 8704K 8K'; echo quit; } | qemu-io -f raw '${uri}'`,
  ]);
  await connected.waitForLine(/wrote 65536\/65536 bytes at offset 1048576/);
  const events = eventsOf(await mustCowbell(['--json', 'volume', 'grow', volume, '--size', '20M']));
  t.strictSame(events, [
    { event: 'grow', volume: 'vol', sizeBytes: 20 * MIB, sizeBytesBefore: 8712 * 1024 },
    { event: 'done' },
  ]);
  await must('touch', [grown]);
  const ended = await connected.wait();
  t.equal(ended.status, 0, ended.stderr);
  t.match(ended.stdout, /wrote 65536\/65536 bytes at offset 2097152[^]*read 8192\/8192 bytes/);
  t.notMatch(ended.stdout, /fail/);

  t.equal((await must('nbdinfo', ['--size', uri])).trim(), String(20 * MIB));
  t.equal(statSync(at('home.raw')).size, 20 * MIB);
  await write('read -P 0 8712K 8M', 'write -P 5 8711K 2K', 'write -P 6 19M 1M', 'flush');
  await must('nbdcopy', [uri, at('copy.raw')]);
  const incremental = await backUp(volume, at('store'));
  t.match(incremental, { level: 'incremental', tracks: 1 + 1 + 1 + 16 });
  const stopped = await server.stop();
  t.equal(stopped.status, 0, stopped.stderr);
  await mustCowbell(['store', 'verify', at('store')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('copy.raw'), at('out.raw')]);
  await mustCowbell(['restore', at('store'), String(full['set']), at('old.raw')]);
  t.equal(statSync(at('old.raw')).size, 8712 * 1024, 'the older set has the older size');
});
