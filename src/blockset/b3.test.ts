/**
 * EXAMPLES B3: any order, two forms of metadata (seeds/2, Fig. 13-14).
 *
 * Goal: an object whose blocks arrived in any order is rebuilt from each form of ordering metadata alone,
 * and without metadata it is refused, not guessed.
 *
 * Method: the example's object of six blocks on a device of 24 tracks of one block each; a real set is
 * written for each of the 720 orders of arrival and read back through each form, by single blocks and by
 * extents. Syncs are left out: this is about order, not durability.
 */

import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { openLmdb } from '../records/index.ts';
import {
  labelled,
  labelOf,
  newSet,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
  writeSetAt,
} from './model.fixture.ts';
import type { OrderingForm } from './ordering.ts';
import { orderKey } from './set-format.ts';
import { SetReader } from './set-reader.ts';

const ADDRESSES: Readonly<Record<string, number>> = { A: 4, B: 5, C: 20, D: 9, E: 0, F: 13 };
const LABELS = ['A', 'B', 'C', 'D', 'E', 'F'];
const EXAMPLE_ORDER = ['B', 'D', 'F', 'C', 'E', 'A'];

function address(label: string): number {
  return ADDRESSES[label] ?? -1;
}

/** The six forms under test for one order of arrival; positions count from 0. */
function formsOf(order: readonly string[]): Record<string, OrderingForm> {
  const row = (label: string): { position: number; address: number; count: number } => ({
    position: LABELS.indexOf(label),
    address: address(label),
    count: 1,
  });
  return {
    addresses: { form: 'addresses', rows: LABELS.map(row) },
    arrivals: { form: 'arrivals', rows: order.map(row) },
    positions: {
      form: 'positions',
      rows: LABELS.map((label) => ({ arrival: order.indexOf(label), count: 1 })),
    },
    'addresses by extents': {
      form: 'addresses',
      rows: [{ position: 0, address: 4, count: 2 }, ...LABELS.slice(2).map(row)],
    },
    'arrivals by extents': { form: 'arrivals', rows: joined(order.map(row)) },
    'positions by extents': {
      form: 'positions',
      rows: joinedArrivals(LABELS.map((label) => order.indexOf(label))),
    },
  };
}

/** Joins A and B, one extent 4-5, where they arrived one after the other. */
function joined(rows: { position: number; address: number; count: number }[]): typeof rows {
  const result: typeof rows = [];
  for (const row of rows) {
    const last = result.at(-1);
    if (last !== undefined && last.position + 1 === row.position && last.address + 1 === row.address) {
      result[result.length - 1] = { ...last, count: 2 };
    } else result.push(row);
  }
  return result;
}

function joinedArrivals(arrivals: readonly number[]): { arrival: number; count: number }[] {
  const result: { arrival: number; count: number }[] = [];
  for (const arrival of arrivals) {
    const last = result.at(-1);
    if (last !== undefined && last.arrival + last.count === arrival) last.count += 1;
    else result.push({ arrival, count: 1 });
  }
  return result;
}

function* permutations(items: readonly string[]): Generator<readonly string[]> {
  if (items.length === 0) yield [];
  for (const [index, item] of items.entries()) {
    for (const rest of permutations(items.toSpliced(index, 1))) yield [item, ...rest];
  }
}

async function writeExample(path: string, order: readonly string[]): Promise<void> {
  const header = {
    ...newSet({ sizeBytes: 24 * TRACK_BYTES }),
    id: '0'.repeat(26),
    previous: null,
    createdMs: 0,
    lanes: 1,
  };
  const writer = writeSetAt(path, header);
  for (const label of order) writer.add(address(label), labelled(label));
  for (const [name, ordering] of Object.entries(formsOf(order))) {
    writer.putObject({ name, blockSizeBytes: TRACK_BYTES, ordering });
  }
  await writer.finish({ bytesRead: 6 * TRACK_BYTES, diverted: 0, unchanged: 0 });
  await writer.seal();
}

function rebuilt(reader: SetReader, form: string): string {
  return [...reader.readObject(form)].map(labelOf).join('');
}

t.test('B3 any order: the example, from each form alone', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  await writeExample(path, EXAMPLE_ORDER);
  const reader = SetReader.open(path);
  const arrivals = EXAMPLE_ORDER.map((_, arrival) => labelOf(reader.readArrival(arrival))).join(' ');
  t.equal(arrivals, 'B D F C E A', 'stored as it arrived');
  t.same(formsOf(EXAMPLE_ORDER)['positions']?.rows[0], { arrival: 5, count: 1 }, 'position 1 is arrival 6');
  for (const form of Object.keys(formsOf(EXAMPLE_ORDER))) t.equal(rebuilt(reader, form), 'ABCDEF', form);
  await reader.close();
});

t.test('B3 any order: all 720 orders of arrival', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  let count = 0;
  const wrong: string[] = [];
  for (const order of permutations(LABELS)) {
    const path = `${directory}/${order.join('')}`;
    await writeExample(path, order);
    const reader = SetReader.open(path);
    for (const form of Object.keys(formsOf(order))) {
      if (rebuilt(reader, form) !== 'ABCDEF') wrong.push(`${order.join('')} ${form}`);
    }
    await reader.close();
    count += 1;
  }
  t.equal(count, 720);
  t.same(wrong, []);
});

t.test('B3 any order: without metadata it is refused, not guessed', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const path = `${directory}/set`;
  await writeExample(path, EXAMPLE_ORDER);
  const reader = SetReader.open(path);
  t.throws(() => reader.object('unknown'), CorruptionError);
  await reader.close();

  const file = openLmdb(path, { bulk: true });
  const order = file.database('order');
  file.transaction(() => {
    order.remove(orderKey(0));
  });
  await file.sync('set-data');
  await file.close();
  t.throws(() => SetReader.open(path), CorruptionError, 'the order of tracks is gone');
});

t.test('B3 any order: metadata that is not whole is refused', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  await writeExample(path, EXAMPLE_ORDER);
  const reader = SetReader.open(path);
  const refused = (ordering: OrderingForm, what: string): void => {
    const object = { name: 'x', blockSizeBytes: TRACK_BYTES, ordering };
    t.throws(() => reader.orderingOf(object), CorruptionError, what);
  };
  const row = { position: 0, address: 4, count: 1 };
  refused({ form: 'addresses', rows: [] }, 'no rows');
  refused({ form: 'addresses', rows: [{ ...row, position: 1 }] }, 'the first position is missing');
  refused({ form: 'addresses', rows: [row, row] }, 'a position twice');
  refused({ form: 'addresses', rows: [row, { ...row, position: 1 }] }, 'a block at two positions');
  refused({ form: 'addresses', rows: [{ ...row, address: 7 }] }, 'an address that is not stored');
  refused({ form: 'addresses', rows: [{ ...row, address: 4000 }] }, 'an address beyond the volume');
  await reader.close();
});
