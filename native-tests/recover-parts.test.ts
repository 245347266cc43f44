/**
 * Goal: `cowbell recover` restores damaged ranges of a home and leaves the rest of it alone; it works from an encrypted
 * store; and what cannot be is refused in one sentence, with the exit status of its kind, before anything has changed.
 *
 * Method: garbage is written over some tracks of a home at rest. What must not be touched is compared byte by byte.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, mustCowbell, temporaryDirectory } from './support/process.ts';
import {
  loseVolume,
  MIB,
  ModelWriter,
  readFrom,
  readHead,
  recoveryOf,
  startRecovery,
  TRACK_BYTES,
  until,
} from './support/recovering.ts';
import { backUp, startServer, statusOf } from './support/served.ts';

const SIZE_MIB = 8;
const SIZE = SIZE_MIB * MIB;

t.test('ranges of a home that is there', async (t) => {
  const { at, volume, store, model } = await loseVolume(t, { sizeMib: SIZE_MIB, usedMib: 6 });
  const whole = await startRecovery(t, [store, 'latest', volume]);
  await whole.server.waitForLine(/"event":"recovered"/);
  const writer = await ModelWriter.connect(whole.uri, model);
  // Newer than the store has it, and not damaged.
  await writer.write(MIB, TRACK_BYTES);
  await writer.end();
  t.equal((await whole.server.stop()).status, 0);

  const damaged = ['--range', '2M+128K', '--range', '3M+64K', '--range', '4M+64K', '--range', '5M+64K'];
  await mustCowbell(['snapshot', 'create', 'kept', volume]);
  const words = ['recover', store, 'latest', volume];
  const withSnapshot = await cowbell([...words, ...damaged]);
  t.equal(withSnapshot.status, 1);
  t.match(
    withSnapshot.stderr,
    /^cowbell: Volume vol has the snapshot kept, .*; delete its snapshots first\n$/,
  );
  await mustCowbell(['snapshot', 'delete', volume, 'kept']);

  const home = openSync(at('home.raw'), 'r+');
  for (const [offsetBytes, lengthBytes] of [
    [2 * MIB, 2 * TRACK_BYTES],
    [3 * MIB, TRACK_BYTES],
    [4 * MIB, TRACK_BYTES],
    [5 * MIB, TRACK_BYTES],
  ] as const)
    writeSync(home, Buffer.alloc(lengthBytes, 'garbage '), 0, lengthBytes, offsetBytes);
  closeSync(home);
  for (const [range, message] of [
    ['2M+512', /^cowbell: Range 2097152\+512 is not whole tracks of vol, wanted multiples of 65536 bytes/],
    ['8M+64K', /^cowbell: Range 8388608\+65536 is not whole tracks of vol, .* below 8388608/],
    ['2M+0', /^cowbell: --range is '2M\+0', wanted at least one byte/],
    ['2M', /^cowbell: --range is '2M', wanted <offset>\+<length>/],
  ] as const) {
    const refused = await cowbell([...words, '--range', range]);
    t.match(refused.stderr, message);
    t.equal(refused.status, 2, range);
  }
  t.equal(await recoveryOf(volume), undefined, 'nothing has begun');

  const held = await startRecovery(t, [store, 'latest', volume, ...damaged, '--rate', '1']);
  t.match(held.begun, { how: 'in-part', putAside: null });
  const during = await ModelWriter.connect(held.uri, model);
  await during.write(5 * MIB, TRACK_BYTES);
  await during.end();
  t.equal((await held.server.stop()).status, 0);
  // The same once more: what was written meanwhile is not lost again.
  const part = await startRecovery(t, [store, 'latest', volume, ...damaged]);
  t.match(part.begun, { how: 'resumed' });
  t.match(
    part.server.stderr,
    /vol is under recovery already and goes on as it began, without regard to --range\n/,
  );
  t.ok((await readFrom(part.uri, 0, SIZE)).equals(model), 'only the damage is from the store');
  await part.server.waitForLine(/"event":"recovered"/);
  // Its clean stop knew another home, so that everything may count as changed; it may not be less.
  t.match(await backUp(volume, store), { level: 'incremental' });
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  t.ok(readHead(at('out.raw'), SIZE).equals(model));
  t.equal((await part.server.stop()).status, 0);
  t.ok(readHead(at('home.raw'), SIZE).equals(model), 'the home');

  const again = await cowbell([...words, ...damaged]);
  t.equal(again.status, 1);
  t.match(
    again.stderr,
    /^cowbell: These ranges of vol were recovered from set \S+ of \S+ already, .* say --again\n$/,
  );
  const meant = await startRecovery(t, [store, 'latest', volume, ...damaged, '--again']);
  t.match(meant.begun, { how: 'in-part' });
  await meant.server.waitForLine(/"event":"recovered"/);
  t.equal((await meant.server.stop()).status, 0);
});

t.test('a home that is lost once more, under recovery', async (t) => {
  const { at, volume, store, model, volumeId } = await loseVolume(t, { sizeMib: SIZE_MIB, usedMib: 6 });
  const first = await startRecovery(t, [store, 'latest', volume, '--rate', '1']);
  t.equal((await first.server.stop()).status, 0);
  rmSync(at('home.raw'));
  const inPart = await cowbell(['recover', store, 'latest', volume, '--range', '0+64K']);
  t.equal(inPart.status, 2);
  t.match(inPart.stderr, /^cowbell: The home \S+home.raw of vol is lost, not a range of it\n$/);
  const again = await startRecovery(t, [store, 'latest', volume]);
  t.match(again.begun, { how: 'replaced', putAside: join(volume, `lost-${volumeId.slice(0, 8)}-2`) });
  t.ok((await readFrom(again.uri, 0, SIZE)).equals(model));
  await again.server.waitForLine(/"event":"recovered"/);
  t.equal((await again.server.stop()).status, 0);
  t.ok(readHead(at('home.raw'), SIZE).equals(model));
});

t.test('a home whose filesystem is not mounted is not lost', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  mkdirSync(at('mnt'));
  await mustCowbell(['volume', 'create', at('vol'), '--size', '1M', '--home', at('mnt/home.raw')]);
  await mustCowbell(['store', 'init', at('store')]);
  await backUp(at('vol'), at('store'));
  renameSync(at('mnt'), at('elsewhere'));
  const words = ['recover', at('store'), 'latest', at('vol')];
  const refused = await cowbell(words);
  t.equal(refused.status, 1);
  t.match(
    refused.stderr,
    /^cowbell: Directory \S+mnt of the home is not there; mount its filesystem, .*--home\n$/,
  );
  t.ok(existsSync(join(at('vol'), 'state.mdb')), 'nothing was put aside');
  const other = await startRecovery(t, [...words.slice(1), '--home', at('other.raw')]);
  t.match(other.begun, { how: 'replaced' });
  t.equal((await other.server.stop()).status, 0);
  t.match(await statusOf(at('vol')), { home: at('other.raw') });
});

t.test('from an encrypted store', async (t) => {
  const keyFile = join(temporaryDirectory(t), 'key');
  writeFileSync(keyFile, randomBytes(32));
  const keyed = ['--key-file', keyFile];
  const lost = { sizeMib: SIZE_MIB, usedMib: 6, init: ['--encrypt', ...keyed], key: keyed };
  const { at, volume, store, model } = await loseVolume(t, lost);
  const keyless = await cowbell(['recover', store, 'latest', volume]);
  t.equal(keyless.status, 2);
  t.match(keyless.stderr, /is encrypted, wanted its key: --key-file/);
  t.notOk(existsSync(at('home.raw')));

  const first = await startRecovery(t, [store, 'latest', volume, ...keyed, '--rate', '1']);
  const writer = await ModelWriter.connect(first.uri, model);
  t.ok(await writer.agrees(3 * MIB, MIB));
  await writer.write(4 * MIB + 512, 512);
  await writer.end();
  first.server.child.kill('SIGKILL');
  await first.server.wait();
  const served = await cowbell(['serve', volume]);
  t.equal(served.status, 1, 'nobody keeps the key');
  t.match(
    served.stderr,
    /^cowbell: Volume vol is being recovered .*which cannot be used: .*is encrypted.*\n$/,
  );
  const again = await startRecovery(t, [store, 'latest', volume, ...keyed]);
  t.match(again.begun, { how: 'resumed' });
  await again.server.waitForLine(/"event":"recovered"/);
  t.equal((await again.server.stop()).status, 0);
  t.ok(readHead(at('home.raw'), SIZE).equals(model));
});

t.test('what is refused', async (t) => {
  const { at, volume, store, sets } = await loseVolume(t, { sizeMib: SIZE_MIB, usedMib: 6 });
  const before = readdirSync(volume).toSorted();
  const refusals: readonly (readonly [words: readonly string[], status: number, message: RegExp])[] = [
    [[store, '01NONE', volume], 1, /^cowbell: No set in the store is 01NONE, it has 2 sets\n$/],
    [[store, 'latest:other', volume], 1, /^cowbell: [^\n]*other[^\n]*\n$/],
    [[at('none'), 'latest', volume], 1, /^cowbell: \S+none is not a store\n$/],
    [[store, 'live', volume], 2, /^cowbell: The set is 'live', wanted a set of the store, such as latest\n$/],
    [['nbd://127.0.0.1:1/x', 'latest', volume], 2, /^cowbell: The set is 'latest', wanted live with the URI/],
    [['nbd://127.0.0.1:1/x', 'live', volume], 1, /^cowbell: Cannot connect to nbd:\/\/127.0.0.1:1\/x: /],
    [[store, 'latest', volume, '--rate', 'fast'], 2, /^cowbell: --rate is 'fast', wanted bytes/],
    [[store, 'latest', volume, '--first', '1M'], 2, /^cowbell: --first is '1M', wanted <offset>\+<length>/],
    [
      [store, 'latest', volume, '--first', '1M+0'],
      2,
      /^cowbell: --first is '1M\+0', wanted at least one byte/,
    ],
    [[store, 'latest', at('none'), '--range', '0+64K'], 1, /none holds no volume of which a range/],
    [[store, 'latest'], 2, /./],
  ];
  for (const [words, status, message] of refusals) {
    const refused = await cowbell(['recover', ...words]);
    t.match(refused.stderr, message, words.slice(1).join(' '));
    t.equal(refused.status, status, refused.stderr);
  }
  t.same(readdirSync(volume).toSorted(), before, 'the directory is as it was');
  t.notOk(existsSync(at('none')));

  const held = await startRecovery(t, [store, 'latest', volume, '--rate', '1', '--first', '1T+1M']);
  t.match(held.server.stderr, /--first 1099511627776\+1048576 is behind the end of vol, and is left out/);
  const second = await cowbell(['recover', store, 'latest', volume]);
  t.equal(second.status, 1);
  t.match(second.stderr, /^cowbell: [^\n]*in use[^\n]*\n$/);
  t.equal((await held.server.stop()).status, 0);
  const other = await cowbell(['recover', store, sets[0] ?? '', volume]);
  t.equal(other.status, 1);
  t.match(other.stderr, /is being recovered from point [0-9a-f]{32}, and goes on from nothing else/);
  const serving = await startServer(t, [volume]);
  await until('recovered', async () => (await recoveryOf(volume)) === undefined);
  t.equal((await serving.server.stop()).status, 0);
  const there = await cowbell(['recover', store, 'latest', volume]);
  t.equal(there.status, 1);
  t.match(there.stderr, /has its home \S+home.raw, and nothing says that it is lost; name the damaged range/);
  t.match(await statusOf(volume), { served: false });
});
