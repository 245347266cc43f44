/**
 * Goal: writes, zeroes, discards and reads of any alignment down to 512 bytes do what qemu expects of them, and
 * what was flushed is there after a restart.
 *
 * Method: qemu-io patterns, verified by reads in the same and in a later run.
 */
import { statSync } from 'node:fs';
import t from 'tap';
import { must, run } from './support/process.ts';
import { serveVolume, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

t.test('patterns, zeroes, discard, sectors, flush', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { at, volume, server, uri } = await serveVolume(t, { size: '16M' });
  const io = async (target: string, ...commands: string[]): Promise<string> => {
    const words = commands.flatMap((command) => ['-c', command]);
    const { status, stdout, stderr } = await run('qemu-io', ['-f', 'raw', ...words, target]);
    t.equal(status, 0, `${commands.join('; ')}${stderr}`);
    t.notMatch(stdout, /failed|error/i);
    return stdout;
  };
  const expected = [
    'read -P 0x11 0 512',
    'read -P 0x22 512 1k',
    'read -P 0x11 1536 129536',
    'read -P 0x33 1048064 1k',
    'read -P 0 2M 512',
    'read -P 0x44 2097664 523776',
    'read -P 0 2621440 524288',
    'read -P 0x55 3584k 512k',
    'read -P 0x66 16776704 512',
    'read -P 0 8M 1M',
  ];
  await io(
    uri,
    'write -P 0x11 0 128k',
    'write -P 0x22 512 1k', // inside a page
    'write -P 0x33 1048064 1k', // over the edge of a track
    'write -P 0x44 2M 1M',
    'write -z 2M 512', // a sector of zeroes
    'write -z -u 2560k 512k',
    'write -f -P 0x55 3584k 512k', // FUA
    'write -P 0x66 16776704 512', // the last sector
    'write -P 0x77 8M 1M',
    'discard 8M 1M',
    'flush',
    ...expected,
  );

  await server.stop('SIGKILL');
  const again = await startServer(t, [volume]);
  await io(again.uri, ...expected);
  t.equal((await again.server.stop()).status, 0);
  t.ok(statSync(at('home.raw')).blocks * 512 < 8 * 1_048_576, 'discards and zeroes take no room');
});

t.test('many requests at once, in any order', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { uri } = await serveVolume(t, { size: '16M' });
  const commands: string[] = [];
  for (let index = 0; index < 64; index += 1) {
    commands.push(`aio_write -P ${index + 1} ${index * 65_536 * 3 + 512} 66048`);
  }
  commands.push('aio_flush');
  for (let index = 0; index < 64; index += 1) {
    commands.push(`read -P ${index + 1} ${index * 65_536 * 3 + 512} 66048`);
  }
  const { status, stdout } = await run('qemu-io', ['-f', 'raw', '-t', 'none', uri], {
    input: `${commands.join('\n')}\nquit\n`,
  });
  t.equal(status, 0);
  t.notMatch(stdout, /failed|error/i);
  t.equal(stdout.match(/read 66048\/66048/g)?.length, 64);
  await must('qemu-io', ['-f', 'raw', '-r', '-c', 'read -P 64 12387840 1k', uri]);
});
