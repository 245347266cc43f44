/**
 * Goal: a lost volume serves again at once through `cowbell recover`, with the bytes it had, whether what is read was
 * restored already or not; what clients write meanwhile stays; in the end its home holds what the volume does, and the
 * next backup is an incremental one of what was written and of nothing else. However it is stopped meanwhile, it goes on.
 *
 * Method: a volume of random bytes is backed up in a full and an incremental set and its home is deleted. A model in
 * memory is written as the export is. `--rate` holds the fill, so that the tests come before it; where it must not run
 * at all, it may restore one byte a second.
 */
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { FlushChecker } from './support/flush-checker.ts';
import { childrenOf, cowbell, must, mustCowbell } from './support/process.ts';
import {
  eventOf,
  type Lost,
  loseVolume,
  MIB,
  ModelWriter,
  readFrom,
  readHead,
  type Recovering,
  recoveryOf,
  startRecovery,
  TRACK_BYTES,
  until,
} from './support/recovering.ts';
import { backUp, startServer, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const SIZE_MIB = 24;
const USED_MIB = 16;
const SIZE = SIZE_MIB * MIB;
/** The first run of a fill is not held; the next one waits for days. */
const HELD = ['--rate', '1'];

async function lose(t: Parameters<typeof loseVolume>[0]): Promise<Lost> {
  return await loseVolume(t, { sizeMib: SIZE_MIB, usedMib: USED_MIB });
}

/** The home holds what the model does, once nobody serves the volume. */
async function assertHome(
  t: {
    readonly ok: (value: boolean, name: string) => unknown;
    readonly equal: (a: unknown, b: unknown, name: string) => unknown;
  },
  { server }: Pick<Recovering, 'server'>,
  home: string,
  model: Buffer,
): Promise<void> {
  const { status, stderr } = await server.stop();
  t.equal(status, 0, stderr);
  t.ok(readHead(home, model.length).equals(model), 'the home holds all of it');
}

t.test('in its directory: reads and writes before the fill', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-img'])) return;
  const { at, volume, store, volumeId, model, sets } = await lose(t);
  const recovering = await startRecovery(t, [store, 'latest', volume, '--rate', '6M']);
  const { server, uri, begun } = recovering;
  const aside = join(volume, `lost-${volumeId.slice(0, 8)}`);
  t.match(begun, { volume: 'vol', set: sets[1], how: 'replaced', putAside: aside });
  t.match(server.stderr, /What was left of the lost volume is in /);
  t.match(await statusOf(volume), { served: true, volumeId, home: at('home.raw'), changedTracks: 0 });

  const writer = await ModelWriter.connect(uri, model);
  t.ok(await writer.agrees((USED_MIB - 1) * MIB, MIB), 'the end of what was in use');
  t.ok(await writer.agrees(3 * TRACK_BYTES, TRACK_BYTES), 'what the incremental set has');
  t.ok(await writer.agrees(USED_MIB * MIB - 4096, 8192), 'half of it never written');
  await writer.write((USED_MIB - 4) * MIB + 512, 512);
  await writer.write((USED_MIB - 3) * MIB, TRACK_BYTES);
  await writer.write((USED_MIB - 3) * MIB + 3 * TRACK_BYTES + 100 * 512, 2 * TRACK_BYTES);
  await writer.zero((USED_MIB - 5) * MIB, 2 * TRACK_BYTES);
  await writer.zero((USED_MIB - 5) * MIB + 5 * TRACK_BYTES + 4096, 4096);
  await writer.write((USED_MIB + 1) * MIB, 1024);
  t.match(await recoveryOf(volume), {
    trackCount: SIZE / TRACK_BYTES,
    side: { kind: 'store', set: sets[1] },
  });
  await must('nbdcopy', [uri, at('read.raw')]);
  t.ok(readHead(at('read.raw'), SIZE).equals(model), 'nbdcopy read all of it');
  await writer.write(0, 512);
  await writer.end();

  t.match(eventOf(await server.waitForLine(/"event":"recovered"/)), { volume: 'vol', set: sets[1] });
  t.equal(await recoveryOf(volume), undefined);
  await must('nbdcopy', [uri, at('read.raw')]);
  const next = await backUp(volume, store);
  t.match(next, { level: 'incremental', tracks: writer.tracks.size });
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  t.ok(readHead(at('out.raw'), SIZE).equals(model), 'and that backup holds the model');
  await assertHome(t, recovering, at('home.raw'), model);
  t.match(
    await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', at('read.raw'), at('home.raw')]),
    /identical/,
  );
  t.match(server.stdout, /"event":"done"\}\n$/);
});

t.test('into a new directory, from an older set, and as a copy', async (t) => {
  const { at, store, volumeId, model, sets } = await lose(t);
  const recovering = await startRecovery(t, [store, 'latest', at('new'), '--socket', at('s')]);
  t.match(recovering.begun, { volume: 'new', how: 'created', putAside: null });
  t.ok((await readFrom(recovering.uri, 0, SIZE)).equals(model));
  await recovering.server.waitForLine(/"event":"recovered"/);
  t.match(await statusOf(at('new')), { volumeId, name: 'new' });
  t.match(await backUp(at('new'), store), { level: 'incremental', tracks: 0 });
  await assertHome(t, recovering, join(at('new'), 'home.raw'), model);

  await mustCowbell(['restore', store, sets[0] ?? '', at('older.raw')]);
  const older = await startRecovery(t, [
    store,
    sets[0] ?? '',
    at('copy'),
    '--as-copy',
    '--home',
    at('copy.raw'),
  ]);
  await older.server.waitForLine(/"event":"recovered"/);
  t.not((await statusOf(at('copy')))['volumeId'], volumeId);
  t.match(await backUp(at('copy'), store), { level: 'full', tracks: (USED_MIB * MIB) / TRACK_BYTES });
  await assertHome(t, older, at('copy.raw'), readHead(at('older.raw'), SIZE));
});

t.test('killed with SIGKILL after flushed writes, and recovered or served again', async (t) => {
  const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  t.comment(`COWBELL_SEED=${seed}`);
  const random = new SeededRandom(seed);
  const { at, volume, store, model } = await lose(t);
  const checker = new FlushChecker({ sizeBytes: 8 * MIB, random, before: model.subarray(0, 8 * MIB) });
  const words = [store, 'latest', volume];
  for (let round = 0; round < 3; round += 1) {
    // What comes first is behind what the checker writes, so that its reads and writes do meet what is missing.
    const first = ['--first', `${8 + 2 * round}M+2M`, '--rate', '1M'];
    const { server, uri, begun } = await startRecovery(t, [...words, ...first]);
    t.equal(begun['how'], round === 0 ? 'replaced' : 'resumed');
    const killAt = 30 + random.below(300);
    await checker.writeUntilLost(uri, (count) => {
      if (count === killAt) server.child.kill('SIGKILL');
    });
    await server.wait();
    const left = await recoveryOf(volume);
    t.ok(
      Number(left?.['missingTracks']) > 0,
      `${String(left?.['missingTracks'])} tracks are missing after ${killAt} answers`,
    );
  }
  const serving = await startServer(t, [volume]);
  t.match(await statusOf(volume), { served: true, startedClean: false });
  const found = await readFrom(serving.uri, 0, SIZE);
  t.same(checker.judge(found), [], 'what was flushed is there');
  t.ok(checker.flushedCount > 0, `${checker.flushedCount} writes were flushed`);
  t.ok(found.subarray(8 * MIB).equals(model.subarray(8 * MIB)), 'and the rest as it was');
  await until('recovered', async () => (await recoveryOf(volume)) === undefined);
  t.match(await backUp(volume, store), { level: 'incremental' });
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  t.ok(readHead(at('out.raw'), SIZE).equals(found), 'the next backup is exact');
  await assertHome(t, serving, at('home.raw'), found);
});

t.test('stopped with SIGTERM, moved, recovered from the new place, served', async (t) => {
  const { at, volume, store, model, sets } = await lose(t);
  const first = await startRecovery(t, [store, 'latest', volume, ...HELD]);
  const writer = await ModelWriter.connect(first.uri, model);
  await writer.write(9 * MIB + 1024, 1024);
  await writer.write(10 * MIB, 3 * TRACK_BYTES);
  await writer.end();
  t.equal((await first.server.stop()).status, 0);
  t.ok(Number((await recoveryOf(volume))?.['missingTracks']) > 0);

  renameSync(store, at('moved'));
  const refused = await cowbell(['serve', volume]);
  t.equal(refused.status, 1);
  t.match(
    refused.stderr,
    /^cowbell: Volume vol is being recovered from set \S+ of \S+store, which cannot be used: .*\n$/,
  );
  const second = await startRecovery(t, [at('moved'), sets[1] ?? '', volume, ...HELD]);
  t.match(second.begun, { how: 'resumed', set: sets[1], putAside: null });
  t.match(await recoveryOf(volume), { side: { storePath: at('moved') } });
  t.ok((await readFrom(second.uri, 9 * MIB, 2 * MIB)).equals(model.subarray(9 * MIB, 11 * MIB)));
  t.equal((await second.server.stop()).status, 0);

  const serving = await startServer(t, [volume]);
  t.ok((await readFrom(serving.uri, 0, SIZE)).equals(model));
  await until('recovered', async () => (await recoveryOf(volume)) === undefined);
  t.match(await backUp(volume, at('moved')), { level: 'incremental', tracks: writer.tracks.size });
  await assertHome(t, serving, at('home.raw'), model);
  rmSync(at('moved'), { recursive: true });
  const after = await startServer(t, [volume]);
  t.equal((await after.server.stop()).status, 0, 'and it needs no store any more');
});

t.test('backups and snapshots while the fill runs', async (t) => {
  const { at, volume, store, model } = await lose(t);
  const recovering = await startRecovery(t, [store, 'latest', volume, '--rate', '2M']);
  const writer = await ModelWriter.connect(recovering.uri, model);
  await writer.write(12 * MIB + 512, 512);
  await writer.write(13 * MIB, TRACK_BYTES);
  await mustCowbell(['snapshot', 'create', 'during', volume]);
  const atSnapshot = Buffer.from(model);
  await writer.write(13 * MIB, TRACK_BYTES);
  await writer.write(14 * MIB, 2 * TRACK_BYTES);
  await writer.zero(15 * MIB, TRACK_BYTES);
  t.match(await backUp(volume, store), { level: 'incremental', tracks: 5 });
  await mustCowbell(['restore', store, 'latest', at('incremental.raw')]);
  t.ok(readHead(at('incremental.raw'), SIZE).equals(model), 'an incremental backup');
  t.ok(Number((await recoveryOf(volume))?.['missingTracks']) > 0, 'tracks are missing still');
  const snapshotUri = recovering.uri.replace('/vol?', '/vol%40during?');
  t.ok(
    (await readFrom(snapshotUri, 12 * MIB, 4 * MIB)).equals(atSnapshot.subarray(12 * MIB, 16 * MIB)),
    'the snapshot',
  );
  await mustCowbell(['store', 'init', at('other')]);
  t.match(await backUp(volume, at('other')), { level: 'full' });
  await mustCowbell(['restore', at('other'), 'latest', at('full.raw')]);
  t.ok(readHead(at('full.raw'), SIZE).equals(model), 'a full one into another store');
  await writer.end();
  await recovering.server.waitForLine(/"event":"recovered"/);
  t.ok((await readFrom(snapshotUri, 0, SIZE)).equals(atSnapshot), 'all of the snapshot, afterwards');
  await mustCowbell(['snapshot', 'delete', volume, 'during']);
  await assertHome(t, recovering, at('home.raw'), model);
});

t.test('the process that reads the store is killed', async (t) => {
  const { at, volume, store, model } = await lose(t);
  const recovering = await startRecovery(t, [store, 'latest', volume, ...HELD]);
  const { server, uri } = recovering;
  const readers = childrenOf(server.child.pid);
  t.equal(readers.length, 1);
  for (const reader of readers) process.kill(reader, 'SIGKILL');
  let failures = 0;
  await until('read again', async () => {
    try {
      const found = await readFrom(uri, 9 * MIB, MIB);
      t.ok(found.equals(model.subarray(9 * MIB, 10 * MIB)), 'the same bytes');
      return true;
    } catch (error) {
      if (!/EIO|Cannot read/.test(String(error))) throw error;
      failures += 1;
      return false;
    }
  });
  t.comment(`${failures} reads failed before another process was started`);
  t.match(server.stderr, /is opened again: the process that read it has died/);
  t.equal((await server.stop()).status, 0);
  const serving = await startServer(t, [volume]);
  await until('recovered', async () => (await recoveryOf(volume)) === undefined);
  await assertHome(t, serving, at('home.raw'), model);
});

t.test('named ranges come first', async (t) => {
  const { at, volume, store, model } = await lose(t);
  const first = ['--first', '11M+512K', '--first', '6M+512'];
  const recovering = await startRecovery(t, [store, 'latest', volume, ...first, ...HELD]);
  const isThere = (offsetBytes: number, lengthBytes: number): boolean => {
    const end = offsetBytes + lengthBytes;
    return readHead(at('home.raw'), end).subarray(offsetBytes).equals(model.subarray(offsetBytes, end));
  };
  await until('restored', () => isThere(11 * MIB, MIB / 2));
  t.notOk(isThere(0, TRACK_BYTES), 'and the beginning is not');
  t.match(await recoveryOf(volume), { missingTracks: (USED_MIB * MIB - MIB / 2) / TRACK_BYTES });
  t.equal((await recovering.server.stop()).status, 0, 'a fill that waits does not hold a stop');
});
