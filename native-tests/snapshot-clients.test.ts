/**
 * Goal: a snapshot's export is read-only; nobody is robbed of a snapshot or of the volume while connected, and nobody
 * gets in while the volume is rolled back. What changed is told however much it is.
 *
 * Method: clients that stay connected beside the command; libnbd for what no tool sends.
 */
import t from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { cowbell, mustCowbell, run, startCowbell } from './support/process.ts';
import { requirePython, runPython } from './support/python.ts';
import { serveVolume } from './support/served.ts';
import { expectContent, exported, snapshot, uriOf, write } from './support/snapshot.ts';
import { requireTools } from './support/tools.ts';

const CHANGES = `
import errno, json, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
def refusal(call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, error.errnum)
    return None
print(json.dumps([h.is_read_only(), refusal(h.pwrite, b'b' * 512, 0), refusal(h.trim, 512, 0),
                  refusal(h.zero, 512, 0), refusal(h.flush), h.pread(512, 0) == b'\\x01' * 512]))
`;

t.test('clients are not robbed of a snapshot, nor of the volume', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo']) || !(await requirePython(t))) return;
  const { volume, uri } = await serveVolume(t, { size: '8M' });
  await write(uri, '-P 1 0 1M');
  await snapshot('create', 'one', volume);
  t.same(await runPython(CHANGES, uriOf(volume, 'one')), [true, 'EPERM', 'EPERM', 'EPERM', null, true]);
  t.not((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', uriOf(volume, 'one')])).status, 0);
  await write(uri, '-P 2 0 1M');

  const reader = await NbdClient.connect(uriOf(volume, 'one'));
  t.match(await cowbell(['--json', 'snapshot', 'delete', volume, 'one']), {
    status: 1,
    stdout: /"code":"clients-connected"/,
    stderr: 'cowbell: Export vol@one has clients connected (1); disconnect them first\n',
  });
  const block = Buffer.alloc(4096);
  await reader.read(block, 0);
  t.equal(block[0], 1);
  const writer = await NbdClient.connect(uri);
  t.match(await cowbell(['snapshot', 'rollback', volume, 'one']), {
    status: 1,
    stderr: 'cowbell: Export vol has clients connected (1); disconnect them first\n',
  });
  await writer.disconnect();
  // A name that nobody has takes nothing away.
  t.match(await cowbell(['snapshot', 'rollback', volume, 'misspelt']), {
    status: 1,
    stderr: /no snapshot misspelt/,
  });
  await expectContent(uri, '-P 2 0 1M');
  await mustCowbell(['snapshot', 'rollback', volume, 'one']);
  await expectContent(uri, '-P 1 0 1M');
  await reader.disconnect();
  await mustCowbell(['snapshot', 'delete', volume, 'one']);
  t.strictSame(await exported(volume), ['vol']);
});

t.test('nobody gets in during a rollback, and nothing is kept of it', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo'])) return;
  const { volume, uri } = await serveVolume(t, { size: '16M', create: ['--track-size', '4K'] });
  await write(uri, '-P 1 0 16M');
  await snapshot('create', 'one', volume);
  await write(uri, '-P 2 0 16M');
  const rollback = startCowbell(['--json', 'snapshot', 'rollback', volume, 'one']);
  await rollback.waitForLine(/"event":"progress"/);
  const [refused, second, kept] = await Promise.all([
    run('nbdinfo', [uri]),
    cowbell(['snapshot', 'rollback', volume, 'one']),
    cowbell(['snapshot', 'create', 'mixed', volume]),
  ]);
  if (rollback.ended === undefined) {
    t.not(refused.status, 0);
    t.match(second, { status: 1, stderr: /^cowbell: Volume vol is being rolled back; wait for it\n$/ });
    t.match(kept, { status: 1, stderr: /^cowbell: Volume vol is being rolled back; wait for it\n$/ });
  } else {
    t.comment('the rollback was over before it could be looked at');
  }
  t.match(await rollback.wait(), { status: 0, stdout: /"tracks":4096/ });
  await expectContent(uri, '-P 1 0 16M');
});

t.test('more changes than one answer holds', async (t) => {
  const { volume, uri } = await serveVolume(t, { size: '40M', create: ['--track-size', '4K'] });
  await snapshot('create', 'one', volume);
  const client = await NbdClient.connect(uri);
  const count = 5000;
  const lane = async (first: number): Promise<void> => {
    const block = Buffer.alloc(4096, 'x');
    for (let index = first; index < count; index += 16) await client.write(block, index * 8192);
  };
  await Promise.all(Array.from({ length: 16 }, (_, first) => lane(first)));
  await client.disconnect();
  const events = await snapshot('changes', volume, 'one');
  t.match(events.at(-1), { event: 'changes', tracks: count });
  t.strictSame(
    events.slice(0, -1).map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]),
    Array.from({ length: count }, (_, index) => [index * 8192, 4096]),
  );
});
