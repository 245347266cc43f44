/**
 * Goal: EXAMPLES B4, the remap table. An object of six blocks A-F, scattered on a device and stored in any
 * order, is restored to another allocation on a device of twelve tracks.
 *
 * Method: the two lists are joined to a table, which is compared with the expected one and then carried out
 * for all 720 orders of arrival, with one writer and with four, onto targets that are compared whole. Then
 * the same with a real store and files as targets, for some orders, where a flipped byte must reach no target.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { randomId } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import {
  type AllocatedExtent,
  isRestoreError,
  logicalBytes,
  mergeRemap,
  planRestore,
  type RemapRow,
  RemapTable,
  sliceLogical,
  type SourceExtent,
  writeRestore,
  restore,
} from './index.ts';
import { ModelSource, ModelTarget } from './model.fixture.ts';

const TRACK = 4096;
const OBJECT = ['A', 'B', 'C', 'D', 'E', 'F'];
/** Track addresses of A to F on the device of the backup, and on the device restored to. */
const ADDRESSES = [4, 5, 20, 9, 0, 13];
const ALLOCATION = [2, 11, 3, 7, 8, 0];
/** `B D F C E A`, as track addresses. */
const ARRIVAL = [5, 9, 13, 20, 0, 4];
const EXPECTED_DEVICE = 'F-AC---DE--B';

function metadata(addresses: readonly number[]): SourceExtent[] {
  return addresses.map((address, position) => ({
    logicalOffsetBytes: position * TRACK,
    lengthBytes: TRACK,
    offsetBytes: address * TRACK,
  }));
}

function allocated(addresses: readonly number[], target = 'device'): AllocatedExtent[] {
  return metadata(addresses).map((extent) => ({ ...extent, target }));
}

/** `4>2` for each row; lengths other than a track are shown too. */
function text(rows: readonly RemapRow[]): string {
  return rows
    .map(({ sourceOffsetBytes, lengthBytes, targetOffsetBytes }) => {
      const row = `${sourceOffsetBytes / TRACK}>${targetOffsetBytes / TRACK}`;
      return lengthBytes === TRACK ? row : `${row}x${lengthBytes / TRACK}`;
    })
    .join(' ');
}

/** The backup's device: twenty-one tracks, the object's filled with their letter. */
function backedUp(addresses = ADDRESSES): Buffer {
  const content = Buffer.alloc(21 * TRACK);
  for (const [index, address] of addresses.entries()) {
    content.fill(OBJECT[index] ?? '', address * TRACK, (address + 1) * TRACK);
  }
  return content;
}

function source(arrival: readonly number[]): ModelSource {
  return new ModelSource(
    backedUp(),
    TRACK,
    arrival.map((track) => [track]),
  );
}

function prefilled(trackCount: number, seed?: number): ModelTarget {
  return new ModelTarget(Buffer.alloc(trackCount * TRACK, '-'), seed === undefined ? {} : { seed });
}

/** One letter for each track of the target, `?` for a torn one. */
function letters(target: ModelTarget): string {
  let result = '';
  for (let offset = 0; offset < target.sizeBytes; offset += TRACK) {
    const track = target.bytes.subarray(offset, offset + TRACK).toString('latin1');
    result += track === track.charAt(0).repeat(TRACK) ? track.charAt(0) : '?';
  }
  return result;
}

function permutations(items: readonly number[]): number[][] {
  if (items.length <= 1) return [[...items]];
  return items.flatMap((item, index) =>
    permutations(items.toSpliced(index, 1)).map((rest) => [item, ...rest]),
  );
}

function named(name: string, device: ModelTarget) {
  return { name, device, knownZero: false };
}

t.test('B4: the table is the two lists joined by logical position', (t) => {
  const rows = mergeRemap(metadata(ADDRESSES), allocated(ALLOCATION));
  t.equal(text(rows), '4>2 5>11 20>3 9>7 0>8 13>0');
  const shuffled = mergeRemap(metadata(ADDRESSES).toReversed(), allocated(ALLOCATION).toReversed());
  t.equal(text(shuffled), text(rows), 'in whatever order the lists come');
  t.end();
});

t.test('B4: read in arrival order the writes go to 11 7 0 3 8 2', async (t) => {
  const target = prefilled(12);
  const stored = source(ARRIVAL);
  const table = RemapTable.of(mergeRemap(metadata(ADDRESSES), allocated(ALLOCATION)));
  await writeRestore(stored, planRestore(stored, table, [named('device', target)]), { writers: 1 });
  t.same(stored.reads, ARRIVAL, 'each track is read once, in storage order');
  t.same(target.log, [11, 7, 0, 3, 8, 2].map((track) => `write ${track * TRACK}+${TRACK}`).concat('flush'));
  t.equal(letters(target), EXPECTED_DEVICE);
});

t.test('B4: all 720 orders of arrival give the same device, with one writer and with four', async (t) => {
  const table = RemapTable.of(mergeRemap(metadata(ADDRESSES), allocated(ALLOCATION)));
  const orders = permutations(ADDRESSES);
  t.equal(orders.length, 720);
  const wrong: string[] = [];
  let inFlightMax = 0;
  for (const [index, order] of orders.entries()) {
    for (const writers of [1, 4]) {
      const target = prefilled(12, index);
      const stored = source(order);
      await writeRestore(stored, planRestore(stored, table, [named('device', target)]), { writers });
      if (letters(target) !== EXPECTED_DEVICE)
        wrong.push(`${order.join(' ')} ${writers}: ${letters(target)}`);
      if (writers === 4) inFlightMax = Math.max(inFlightMax, target.inFlightMax);
    }
  }
  t.same(wrong, []);
  t.ok(inFlightMax > 1, `four writers write at once (${inFlightMax})`);
});

t.test('B4: the room wanted is known before anything is written', async (t) => {
  const wanted = logicalBytes(metadata(ADDRESSES));
  t.equal(wanted, 6 * TRACK);

  await t.test('an allocation of five tracks is refused', async (t) => {
    const error = await caught(() => mergeRemap(metadata(ADDRESSES), allocated(ALLOCATION.slice(0, 5))));
    t.ok(isRestoreError(error, 'target-too-small'));
    t.match(error, {
      message: `Restore needs ${6 * TRACK} bytes, the ${5 * TRACK} allocated on device have no room for position ${5 * TRACK}`,
      details: { target: 'device', sizeBytes: 5 * TRACK, wantedBytes: 6 * TRACK },
    });
  });

  await t.test('a device of five tracks is refused untouched', async (t) => {
    const target = prefilled(5);
    const stored = source(ARRIVAL);
    const table = RemapTable.of(mergeRemap(metadata(ADDRESSES), allocated([0, 1, 2, 3, 4, 5])));
    t.same(table.roomNeeded().get('device'), { mappedBytes: 6 * TRACK, endBytes: 6 * TRACK });
    const error = await caught(() => planRestore(stored, table, [named('device', target)]));
    t.ok(isRestoreError(error, 'target-too-small'));
    t.match(error, {
      message: `Target device (model of ${5 * TRACK} bytes) has ${5 * TRACK} bytes, wanted at least ${6 * TRACK}`,
      details: { target: 'device', sizeBytes: 5 * TRACK, wantedBytes: 6 * TRACK },
    });
    t.equal(letters(target), '-----');
    t.same(target.log, []);
    t.same(stored.reads, []);
  });
});

t.test('B4: the same as extents', async (t) => {
  // A and B are one extent of the backup's device, C and D one of the room.
  const extents: SourceExtent[] = [
    { logicalOffsetBytes: 0, lengthBytes: 2 * TRACK, offsetBytes: 4 * TRACK },
    ...metadata(ADDRESSES).slice(2),
  ];
  const rooms: AllocatedExtent[] = [
    { logicalOffsetBytes: 0, lengthBytes: 2 * TRACK, offsetBytes: 10 * TRACK, target: 'device' },
    { logicalOffsetBytes: 2 * TRACK, lengthBytes: 3 * TRACK, offsetBytes: 2 * TRACK, target: 'device' },
    { logicalOffsetBytes: 5 * TRACK, lengthBytes: TRACK, offsetBytes: 0, target: 'device' },
  ];
  const rows = mergeRemap(extents, rooms);
  t.equal(text(rows), '4>10x2 20>2 9>3 0>4 13>0');
  t.equal(text(mergeRemap(metadata(ADDRESSES), rooms)), text(rows), 'single blocks join to the same rows');
  t.equal(
    text(mergeRemap(extents, allocated(ALLOCATION))),
    '4>2 5>11 20>3 9>7 0>8 13>0',
    'an extent is cut where its room is',
  );
  for (const writers of [1, 4]) {
    const target = prefilled(12, 1);
    const stored = source(ARRIVAL);
    await writeRestore(stored, planRestore(stored, RemapTable.of(rows), [named('device', target)]), {
      writers,
    });
    t.equal(letters(target), 'F-CDE-----AB');
  }
});

t.test('B4: sub-range B-D only', async (t) => {
  const part = sliceLogical(metadata(ADDRESSES), { offsetBytes: TRACK, lengthBytes: 3 * TRACK });
  t.equal(logicalBytes(part), 3 * TRACK);
  const rows = mergeRemap(part, allocated(ALLOCATION));
  t.equal(text(rows), '5>11 20>3 9>7');
  for (const writers of [1, 4]) {
    const target = prefilled(12, 2);
    const stored = source(ARRIVAL);
    await writeRestore(stored, planRestore(stored, RemapTable.of(rows), [named('device', target)]), {
      writers,
    });
    t.equal(letters(target), '---C---D---B');
    t.same(stored.reads, [5, 9, 20], 'nothing else is read');
  }
});

t.test('B4: split over two targets', async (t) => {
  const rooms = [...allocated(ALLOCATION.slice(0, 3), 'one'), ...allocated(ALLOCATION, 'two').slice(3)];
  const table = RemapTable.of(mergeRemap(metadata(ADDRESSES), rooms));
  t.same(table.roomNeeded().get('one'), { mappedBytes: 3 * TRACK, endBytes: 12 * TRACK });
  t.same(table.roomNeeded().get('two'), { mappedBytes: 3 * TRACK, endBytes: 9 * TRACK });
  for (const writers of [1, 4]) {
    const [one, two] = [prefilled(12, 3), prefilled(9, 4)];
    const stored = source(ARRIVAL);
    const plan = planRestore(stored, table, [named('one', one), named('two', two)]);
    await writeRestore(stored, plan, { writers });
    t.equal(letters(one), '--AC-------B');
    t.equal(letters(two), 'F------DE');
    t.ok(one.flushed && two.flushed, 'both are flushed');
  }
});

// ---- with a store and files ---------------------------------------------------------------------------

const OPTIONS = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

/** Stores the object in the order of `arrival`, each track in a frame of its own or all in one. */
async function storeObject(
  store: Store,
  arrival: readonly number[],
  framed: 'one' | 'each',
): Promise<{ readonly id: string; readonly path: string }> {
  const writer = await store.createSet({
    volumeId: randomId(),
    volumeName: 'object',
    level: 'full',
    base: null,
    point: randomId(),
    sizeBytes: 21 * TRACK,
    trackSizeBytes: TRACK,
    codec: 'none',
  });
  const content = backedUp();
  for (const track of arrival) {
    writer.add(track, content.subarray(track * TRACK, (track + 1) * TRACK));
    if (framed === 'each') writer.flush();
  }
  const rows = ADDRESSES.map((address, position) => ({ position, address, count: 1 }));
  writer.putObject({ name: 'object', blockSizeBytes: TRACK, ordering: { form: 'addresses', rows } });
  await writer.finish({ bytesRead: 6 * TRACK, diverted: 0, unchanged: 0 });
  await writer.seal();
  const { path } = await store.find(writer.id);
  return { id: writer.id, path };
}

/** The object's metadata as the set recorded it. */
async function storedMetadata(store: Store, id: string): Promise<SourceExtent[]> {
  const reader = store.openSet(await store.find(id));
  const { ordering, blockSizeBytes } = reader.object('object');
  await reader.close();
  if (ordering.form === 'positions') throw new TypeError('The object was stored with its addresses');
  return ordering.rows.map(({ position, address, count }) => ({
    logicalOffsetBytes: position * blockSizeBytes,
    lengthBytes: count * blockSizeBytes,
    offsetBytes: address * blockSizeBytes,
  }));
}

function lettersOf(path: string): string {
  return letters(new ModelTarget(readFileSync(path)));
}

t.test('B4: with a store and files, whole, in part and split over two', async (t) => {
  const directory = t.testdir({});
  const at = (name: string): string => join(directory, name);
  const store = await Store.init(at('store'));
  for (const [index, arrival] of [ARRIVAL, ADDRESSES, ARRIVAL.toReversed()].entries()) {
    const { id } = await storeObject(store, arrival, index === 1 ? 'one' : 'each');
    const object = await storedMetadata(store, id);
    const part = sliceLogical(object, { offsetBytes: TRACK, lengthBytes: 3 * TRACK });
    const halves = [...allocated(ALLOCATION.slice(0, 3), 'disk'), ...allocated(ALLOCATION, 'two').slice(3)];
    const cases = [
      { rows: mergeRemap(object, allocated(ALLOCATION, 'disk')), disk: EXPECTED_DEVICE, two: '------------' },
      { rows: mergeRemap(part, allocated(ALLOCATION, 'disk')), disk: '---C---D---B', two: '------------' },
      { rows: mergeRemap(object, halves), disk: '--AC-------B', two: 'F------DE---' },
    ];
    for (const { rows, disk, two } of cases) {
      for (const writers of [1, 4]) {
        for (const name of ['disk', 'two']) writeFileSync(at(name), '-'.repeat(12 * TRACK));
        const chain = await store.chain(id);
        const targets = ['disk', 'two'].map((name) => ({ name, uri: at(name) }));
        const layout = { table: RemapTable.of(rows) };
        await restore(chain, targets, { ...OPTIONS, layout, writers }).finally(() => chain.close());
        t.equal(lettersOf(at('disk')), disk);
        t.equal(lettersOf(at('two')), two);
      }
    }
  }
});

t.test('B4: with a store, a file of five tracks is refused untouched', async (t) => {
  const directory = t.testdir({ disk: '-'.repeat(5 * TRACK) });
  const store = await Store.init(join(directory, 'store'));
  const { id } = await storeObject(store, ARRIVAL, 'one');
  const rows = mergeRemap(await storedMetadata(store, id), allocated([0, 1, 2, 3, 4, 5], 'disk'));
  const chain = await store.chain(id);
  const restored = restore(chain, [{ name: 'disk', uri: join(directory, 'disk') }], {
    ...OPTIONS,
    layout: { table: RemapTable.of(rows) },
  });
  await t.rejects(restored, { code: 'target-too-small', message: /^Target disk .* wanted at least 24576$/ });
  t.equal(lettersOf(join(directory, 'disk')), '-----');
  await chain.close();
});

t.test('B4: with a store, a flipped byte reaches no target', async (t) => {
  for (const writers of [1, 4]) {
    const directory = t.testdir({ disk: '-'.repeat(12 * TRACK) });
    const store = await Store.init(join(directory, 'store'));
    const { id, path } = await storeObject(store, ARRIVAL, 'each');
    const rows = mergeRemap(await storedMetadata(store, id), allocated(ALLOCATION, 'disk'));
    const bytes = readFileSync(path);
    // The fourth track to arrive, and nothing else in the file, holds a run of this letter.
    const place = bytes.indexOf('C'.repeat(512));
    t.ok(place > 0);
    bytes.write('x', place + 100);
    writeFileSync(path, bytes);
    const chain = await store.chain(id);
    const restored = restore(chain, [{ name: 'disk', uri: join(directory, 'disk') }], {
      ...OPTIONS,
      layout: { table: RemapTable.of(rows) },
      writers,
    });
    await t.rejects(restored, {
      name: 'CorruptionError',
      message: /damaged in track 20: .*; target disk is incomplete$/,
      place: { where: path, tracks: [20] },
      incompleteTargets: ['disk'],
    });
    t.equal(lettersOf(join(directory, 'disk')), 'F------D---B', 'what came before it, whole, and no more');
    await chain.close();
  }
});

async function caught(call: () => unknown): Promise<unknown> {
  try {
    await call();
  } catch (error) {
    return error;
  }
  return undefined;
}
