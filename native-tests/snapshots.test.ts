/**
 * Goal: snapshots by command do the same served or not; every refusal has its line and its exit status.
 *
 * Method: one story of patterns, written and read by qemu-io; a table of refusals.
 */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, mustCowbell, temporaryDirectory } from './support/process.ts';
import { serveVolume, startServer, statusOf } from './support/served.ts';
import { expectContent, exported, snapshot, uriOf, write } from './support/snapshot.ts';
import { requireTools } from './support/tools.ts';

const SHARED = ['--track-size', '64K'];

/** The same on a served volume and on one that is not, but for the writes. */
async function story(t: Test, volume: string, writing: (body: () => Promise<void>) => Promise<void>) {
  t.match(await snapshot('list', volume), [{ event: 'snapshots', count: 0 }]);
  await writing(() => write(uriOf(volume), '-P 1 0 1M'));
  t.match(await snapshot('create', 'one', volume), [
    {
      event: 'snapshot',
      volume: 'vol',
      name: 'one',
      point: /^[0-9a-f]{32}$/,
      createdMs: Number,
      freezeMs: Number,
    },
  ]);
  await writing(() => write(uriOf(volume), '-P 2 0 128k'));
  await snapshot('create', 'two', volume);
  await writing(() => write(uriOf(volume), '-P 3 64k 128k', '-P 3 2M 64k'));
  t.match(await snapshot('list', volume), [
    { event: 'snapshot', name: 'one', state: 'ready', tracks: 2 },
    { event: 'snapshot', name: 'two', state: 'ready', tracks: 3 },
  ]);
  const changed = (offsetBytes: number, lengthBytes: number) => ({
    event: 'changed',
    offsetBytes,
    lengthBytes,
  });
  t.strictSame(await snapshot('changes', volume, 'one', 'two'), [
    changed(0, 131_072),
    { event: 'changes', from: 'one', to: 'two', tracks: 2 },
  ]);
  t.strictSame(await snapshot('changes', volume, 'two'), [
    changed(65_536, 131_072),
    changed(2_097_152, 65_536),
    { event: 'changes', from: 'two', to: null, tracks: 3 },
  ]);
  await writing(async () => {
    await expectContent(uriOf(volume, 'one'), '-P 1 0 1M', '-P 0 1M 7M');
    await expectContent(uriOf(volume, 'two'), '-P 2 0 128k', '-P 1 128k 896k', '-P 0 1M 7M');
  });
  t.match((await snapshot('rollback', volume, 'one')).at(-1), { event: 'rollback', name: 'one', tracks: 4 });
  await writing(async () => {
    await expectContent(uriOf(volume), '-P 1 0 1M', '-P 0 1M 7M');
    await expectContent(uriOf(volume, 'two'), '-P 2 0 128k', '-P 1 128k 896k', '-P 0 1M 7M');
  });
  t.match(await snapshot('delete', volume, 'one'), [{ event: 'deleted', name: 'one' }]);
  await writing(async () => {
    t.strictSame(await exported(volume), ['vol', 'vol@two']);
    await expectContent(uriOf(volume, 'two'), '-P 2 0 128k', '-P 1 128k 896k', '-P 0 1M 7M');
  });
}

t.test('online', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo'])) return;
  const { volume, server } = await serveVolume(t, { size: '8M', create: SHARED });
  await story(t, volume, (body) => body());
  t.match(await statusOf(volume), { snapshots: [{ name: 'two' }] });
  t.strictSame(await server.stop().then(({ status, stderr }) => [status, stderr]), [0, '']);
});

t.test('offline', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo'])) return;
  const volume = join(temporaryDirectory(t), 'vol');
  await mustCowbell(['volume', 'create', volume, '--size', '8M', ...SHARED]);
  await story(t, volume, async (body) => {
    const { server } = await startServer(t, [volume]);
    await body();
    t.equal((await server.stop()).status, 0);
  });
});

t.test('refusals and their exit status', async (t) => {
  const { at, volume, server } = await serveVolume(t, { size: '1M' });
  await mustCowbell(['store', 'init', at('store')]);
  await snapshot('create', 'one', volume);
  const backup = ['backup', '--store', at('store')];
  const cases: readonly (readonly [readonly string[], 1 | 2, RegExp])[] = [
    [['snapshot', 'delete', volume, 'nix'], 1, /^cowbell: The volume has no snapshot nix\n$/],
    [['snapshot', 'rollback', volume, 'nix'], 1, /no snapshot nix/],
    [['snapshot', 'changes', volume, 'nix'], 1, /no snapshot nix/],
    [['snapshot', 'changes', volume, 'one', 'nix'], 1, /no snapshot nix/],
    [[...backup, `${volume}@nix`], 1, /no snapshot nix/],
    [['snapshot', 'create', 'one', volume], 1, /Snapshot one exists already/],
    [['snapshot', 'create', 'a b', volume], 2, /Snapshot name "a b" is not made of/],
    [['snapshot', 'create', 'x'.repeat(65), volume], 2, /is not made of up to 64/],
    [['snapshot', 'create', '../x', volume], 2, /is not made of/],
    [['snapshot', 'create', 'two', volume, volume], 2, /is named twice/],
    [[...backup, volume, `${volume}@one`], 2, /is named twice/],
    [[...backup, `${volume}@`], 2, /wanted a snapshot's name behind the @/],
    [['snapshot', 'create', 'two', at('nowhere')], 1, /nowhere/],
    [['snapshot', 'create', 'two'], 2, /./],
    [['snapshot'], 2, /No snapshot command is given/],
  ];
  for (const online of [true, false]) {
    if (!online) await server.stop();
    for (const [words, status, message] of cases) {
      const refused = await cowbell(words);
      t.match(
        refused,
        { status, stderr: message },
        `${words.slice(0, 3).join(' ')}, ${online ? 'online' : 'offline'}`,
      );
      t.match(refused.stderr, /^cowbell: [^\n]*\n$/);
    }
  }
  t.match(await snapshot('list', volume), [{ name: 'one' }], 'nothing was made, nothing is gone');
  await mustCowbell([...backup, `${volume}@one`]);
  t.match(await cowbell([...backup, `${volume}@one`]), { status: 1, stderr: /has a set of snapshot one/ });
});

t.test('offline: a post-hook that fails is told once', async (t) => {
  const volume = join(temporaryDirectory(t), 'vol');
  await mustCowbell(['volume', 'create', volume, '--size', '1M']);
  const made = await cowbell(['snapshot', 'create', 'one', volume, '--post-freeze', 'exit 3']);
  t.match(made, { status: 0, stderr: /^cowbell: Post-freeze hook 'exit 3'[^\n]*\n$/ });
});
