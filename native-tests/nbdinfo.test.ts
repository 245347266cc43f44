/**
 * Goal: libnbd understands what an export says of itself: size, flags, block sizes; a read-only one says so,
 * and a server of two lists both.
 *
 * Method: nbdinfo on served volumes.
 */
import { join } from 'node:path';
import t from 'tap';
import { must, mustCowbell, temporaryDirectory } from './support/process.ts';
import { serveVolume, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

t.test('an export says its size, flags and block sizes', async (t) => {
  if (!requireTools(t, ['nbdinfo'])) return;
  const { uri } = await serveVolume(t, { size: '24M' });
  t.equal((await must('nbdinfo', ['--size', uri])).trim(), String(24 * 1_048_576));
  t.match(JSON.parse(await must('nbdinfo', ['--json', uri])), {
    protocol: 'newstyle-fixed',
    exports: [
      {
        'export-name': 'vol',
        'export-size': 24 * 1_048_576,
        is_read_only: false,
        can_flush: true,
        can_fua: true,
        can_trim: true,
        can_zero: true,
        can_multi_conn: true,
        is_rotational: false,
        block_size_minimum: 512,
        block_size_preferred: 4096,
        block_size_maximum: 33_554_432,
      },
    ],
  });
});

t.test('a read-only server of two volumes lists both', async (t) => {
  if (!requireTools(t, ['nbdinfo'])) return;
  const directory = temporaryDirectory(t);
  const volumes = ['one', 'two'].map((name) => join(directory, name));
  const socket = join(directory, 'all.sock');
  for (const volume of volumes) await mustCowbell(['volume', 'create', volume, '--size', '1M']);
  const { server } = await startServer(t, [...volumes, '--socket', socket, '--read-only']);
  await server.waitForLine(/^ready .*two\?socket=.*all\.sock$/);
  const listed: unknown = JSON.parse(
    await must('nbdinfo', ['--json', '--list', `nbd+unix:///?socket=${socket}`]),
  );
  t.match(listed, {
    exports: [
      { 'export-name': 'one', is_read_only: true, can_trim: false, 'export-size': 1_048_576 },
      { 'export-name': 'two', is_read_only: true, can_trim: false, 'export-size': 1_048_576 },
    ],
  });
});
