/**
 * Goal: a set read through a child process gives what the chain holds; what is wrong with the store has the code that it
 * has without the child; damage is corruption here too; and a child that dies fails reads and hangs nobody.
 *
 * Method: real stores and real children. One is killed while reads are on their way.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { kill } from 'node:process';
import t, { type Test } from 'tap';
import { CorruptionError, observeSyncs, present } from '../base/index.ts';
import { Store, type StoreKey } from '../blockset/index.ts';
import { builtProgram } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { errorCode } from './errors.ts';
import { openStoreReader, type StoreReader } from './store-reader.ts';

const program = builtProgram('store-reader');
const TRACK = 65_536;
/** More than a frame, so that damage to one leaves the others. */
const TRACKS = 96;

observeSyncs({ before: () => 'skip' });

function makeDirectory(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-reader-test-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

function labelled(label: string): Buffer {
  return Buffer.alloc(TRACK, `<${label}>`);
}

/** A full set without every third track, and an incremental that changes track 5 and zeroes track 7. */
async function makeStore(path: string, key?: StoreKey): Promise<Store> {
  const store = await Store.init(path, key === undefined ? {} : { key });
  const common = { volumeId: 'v', volumeName: 'disk', sizeBytes: TRACKS * TRACK, trackSizeBytes: TRACK };
  const full = await store.createSet({ ...common, level: 'full', base: null, point: 'p1', codec: 'none' });
  for (let track = 0; track < TRACKS; track += 1) if (track % 3 !== 0) full.add(track, labelled(`a${track}`));
  await full.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await full.seal();
  const next = await store.createSet({
    ...common,
    level: 'incremental',
    base: 'p1',
    point: 'p2',
    codec: 'zstd',
  });
  next.add(5, labelled('b5'));
  next.addZero(7);
  await next.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await next.seal();
  return store;
}

function expected(): Buffer {
  const tracks = Array.from({ length: TRACKS }, (_, track) => {
    if (track === 5) return labelled('b5');
    return track % 3 === 0 || track === 7 ? Buffer.alloc(TRACK) : labelled(`a${track}`);
  });
  return Buffer.concat(tracks);
}

async function opened(t: Test, options: Parameters<typeof openStoreReader>[0]): Promise<StoreReader> {
  const reader = await openStoreReader(options);
  t.teardown(() => reader.close());
  return reader;
}

async function codeOf(opening: Promise<unknown>): Promise<string> {
  try {
    await opening;
    return 'none';
  } catch (error) {
    return errorCode(error);
  }
}

t.test('a set is read through a child, whole, in order, and told', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  const store = await makeStore(storePath);
  const before = readdirSync(tmpdir()).filter((name) => name.startsWith('cowbell-reader-')).length;
  const reader = await opened(t, { storePath, set: 'latest:disk', program });
  t.equal(readdirSync(tmpdir()).filter((name) => name.startsWith('cowbell-reader-')).length, before);
  const volume = expected();
  const { device } = reader;
  t.match(reader.set, { volumeName: 'disk', point: 'p2', sizeBytes: volume.length, trackSizeBytes: TRACK });
  t.equal(reader.set.set, (await store.find('latest')).id);
  const wanted = TrackSet.of(Array.from({ length: TRACKS }, (_, track) => track).filter((n) => n % 3 !== 0));
  wanted.delete(7);
  t.same(reader.tracks.toArray(), wanted.toArray());

  const target = Buffer.alloc(volume.length, 0xee);
  await device.read(target, 0);
  t.ok(target.equals(volume));
  t.same(
    (await device.extents(0, 3 * TRACK)).map(({ zero, lengthBytes }) => [zero, lengthBytes / TRACK]),
    [
      [true, 1],
      [false, 2],
    ],
  );
  t.throws(() => device.write(Buffer.alloc(512), 0), /read-only/);

  const seen: number[] = [];
  for await (const runs of reader.order(wanted)) {
    for (const { first, count } of runs) {
      for (let track = first; track < first + count; track += 1) seen.push(track);
    }
  }
  t.equal(seen[0], 5, 'the newest set comes first');
  t.same(
    seen.toSorted((a, b) => a - b),
    wanted.toArray(),
  );
  for await (const runs of reader.order(wanted)) {
    t.ok(runs.length > 0);
    break;
  }
  t.notOk(reader.signal.aborted);
  await reader.close();
  await reader.close();
  t.notOk(reader.signal.aborted, 'its end was wanted');
  await t.rejects(async () => device.read(Buffer.alloc(512), 0));
});

t.test('several sets at once, and their sets are leased until they are closed', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  const store = await makeStore(storePath);
  const [old, latest] = await store.list();
  const one = await opened(t, { storePath, set: present(old, 'A set').id, program });
  const two = await opened(t, { storePath, set: present(latest, 'A set').id, program });
  const target = Buffer.alloc(512);
  await one.device.read(target, 5 * TRACK);
  t.match(target.toString('latin1'), /^<a5>/);
  await two.device.read(target, 5 * TRACK);
  t.match(target.toString('latin1'), /^<b5>/);
  await one.close();
  t.equal((await store.leasedSets()).size, 2);
  await two.close();
  t.equal((await store.leasedSets()).size, 0);
});

t.test('what is wrong with the store has its own code here', async (t) => {
  const directory = makeDirectory(t);
  const storePath = join(directory, 's');
  await makeStore(storePath);
  t.equal(await codeOf(openStoreReader({ storePath, set: 'zzz', program })), 'unknown-set');
  t.equal(
    await codeOf(openStoreReader({ storePath: join(directory, 'none'), set: 'x', program })),
    'not-a-store',
  );
  await t.rejects(openStoreReader({ storePath, set: 'zzz', program }), /zzz/);
});

t.test('an encrypted store', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  const key = { passphrase: 'correct horse' };
  await makeStore(storePath, key);
  t.equal(await codeOf(openStoreReader({ storePath, set: 'latest', program })), 'key-needed');
  const wrong = { passphrase: 'battery staple' };
  t.equal(await codeOf(openStoreReader({ storePath, set: 'latest', program, key: wrong })), 'wrong-key');
  const reader = await opened(t, { storePath, set: 'latest', program, key });
  const target = Buffer.alloc(8 * TRACK);
  await reader.device.read(target, 0);
  t.ok(target.equals(expected().subarray(0, 8 * TRACK)));
});

t.test('a damaged frame is corruption of its reads, and the rest is read on', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  const store = await makeStore(storePath);
  const full = present(
    (await store.list()).find(({ header }) => header?.point === 'p1'),
    'The full set',
  );
  const path = present(full.lanePaths[0], 'A lane');
  const bytes = readFileSync(path);
  bytes[bytes.indexOf('<a80>') + 1000] = 0;
  writeFileSync(path, bytes);
  const { device, signal } = await opened(t, { storePath, set: 'latest', program });
  const target = Buffer.alloc(TRACK);
  for (let time = 0; time < 2; time += 1) {
    await t.rejects(async () => device.read(target, 80 * TRACK), CorruptionError);
    await device.read(target, 5 * TRACK);
    t.ok(target.equals(labelled('b5')));
  }
  const error: unknown = await Promise.resolve(device.read(target, 80 * TRACK)).catch(
    (thrown: unknown) => thrown,
  );
  t.ok(error instanceof CorruptionError && error.place.tracks?.includes(80), 'the track is named');
  t.notOk(signal.aborted);
});

t.test('a child that is killed fails what is on its way and all later reads, and says so', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  await makeStore(storePath);
  let child: number | undefined;
  const reader = await opened(t, { storePath, set: 'latest', program, onChild: (pid) => (child = pid) });
  const order = reader.order(reader.tracks)[Symbol.asyncIterator]();
  const reads = Array.from({ length: 32 }, async (_, index) => {
    const target = Buffer.alloc(2 * TRACK);
    return await codeOf(Promise.resolve(reader.device.read(target, 2 * index * TRACK)));
  });
  kill(present(child, 'A child was started'), 'SIGKILL');
  const codes = await Promise.all(reads);
  t.ok(codes.every((code) => code === 'reader-died' || code === 'none'));
  t.equal(await codeOf(Promise.resolve(reader.device.read(Buffer.alloc(512), 0))), 'reader-died');
  t.equal(await codeOf(reader.device.extents(0, 512)), 'reader-died');
  t.equal(await codeOf(order.next()), 'reader-died');
  t.ok(reader.signal.aborted);
  t.match(String(reader.signal.reason), /latest of store .* died \(signal SIGKILL\)/);
  await reader.close();
});

t.test('much of a large set is read in threads, by address and in order', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  const store = await Store.init(storePath);
  const trackCount = 1100;
  const writer = await store.createSet({
    volumeId: 'v',
    volumeName: 'disk',
    sizeBytes: trackCount * TRACK,
    trackSizeBytes: TRACK,
    level: 'full',
    base: null,
    point: 'p1',
    codec: 'zstd',
  });
  // Arrived the other way round, so that the order of storage is not that of addresses.
  for (let track = trackCount - 1; track >= 0; track -= 1) writer.add(track, labelled(`a${track}`));
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await writer.seal();
  let child: number | undefined;
  const reader = await opened(t, { storePath, set: 'latest', program, onChild: (pid) => (child = pid) });
  const threadCount = (): number => readdirSync(`/proc/${child}/task`).length;
  const before = threadCount();
  const target = Buffer.alloc(64 * TRACK);
  for (let track = 0; track + 64 <= trackCount; track += 64) {
    await reader.device.read(target, track * TRACK);
    for (let at = 0; at < 64; at += 1) {
      const found = target.subarray(at * TRACK, (at + 1) * TRACK);
      if (!found.equals(labelled(`a${track + at}`))) t.fail(`track ${track + at} is wrong`);
    }
  }
  t.ok(threadCount() > before, 'threads were started');
  let last = trackCount;
  for await (const runs of reader.order(reader.tracks)) {
    for (const { first, count } of runs) {
      if (count !== 1 || first !== last - 1) t.fail(`track ${first} comes after ${last}`);
      last = first;
      const track = target.subarray(0, TRACK);
      await reader.device.read(track, first * TRACK);
      if (!track.equals(labelled(`a${first}`))) t.fail(`track ${first} is wrong in order`);
    }
  }
  t.equal(last, 0);
});

t.test('opening is given up', async (t) => {
  const storePath = join(makeDirectory(t), 's');
  await makeStore(storePath);
  const abort = new AbortController();
  const reason = new Error('not any more');
  const onChild = (): void => abort.abort(reason);
  const opening = openStoreReader({ storePath, set: 'latest', program, signal: abort.signal, onChild });
  t.equal(await opening.catch((error: unknown) => error), reason);
  t.equal(
    await openStoreReader({ storePath, set: 'latest', program, signal: abort.signal }).catch(
      (error: unknown) => error,
    ),
    reason,
  );
});
