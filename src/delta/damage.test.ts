/**
 * Goal: bytes that are not what was written are never taken for it. Damage in one member is made good by another, and
 * told; without another it is an error where it is met, and not a shorter log. Whatever a segment holds, a reader ends
 * with the records or with an error of ours.
 *
 * Method: real logs in directories and on devices; every sort of place in them is harmed by hand.
 */

import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { BlockError, CorruptionError } from '../base/index.ts';
import { RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES } from './format.ts';
import { DeltaWorld, TRACK_BYTES, VOLUME_ID, type WorldOptions } from './world.fixture.ts';

const RECORD = RECORD_HEADER_BYTES + TRACK_BYTES;

/** Two epochs; in each of them tracks 0 to 5 are written and flushed, over several segments. */
async function makeLogs(t: Test, options: Partial<WorldOptions> = {}): Promise<DeltaWorld> {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'], ...options });
  await world.open();
  for (let epoch = 0; epoch < 2; epoch += 1) {
    for (let track = 0; track < 6; track += 1) {
      world.clock.advance(1000);
      await world.append(track * TRACK_BYTES, TRACK_BYTES, 'write');
      if (track % 2 === 1) await world.flush();
    }
    if (epoch === 0) await world.switchTo('p1');
  }
  await world.close();
  return world;
}

/** Segments of a member, in the order of their names. */
function segmentsOf(world: DeltaWorld, index: number): string[] {
  const directory = join(world.places[index]?.place ?? '', VOLUME_ID);
  return readdirSync(directory)
    .toSorted()
    .map((name) => join(directory, name));
}

function flip(path: string | undefined, atBytes: number): void {
  const file = openSync(path ?? '', 'r+');
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, atBytes);
  byte[0] = (byte[0] ?? 0) ^ 0x40;
  writeSync(file, byte, 0, 1, atBytes);
  closeSync(file);
}

async function contentFrom(world: DeltaWorld, places?: readonly string[]): Promise<Buffer> {
  const reader = await world.reader(places?.slice());
  try {
    return await world.composed(reader, world.imageAt(0), '');
  } finally {
    await reader.close();
  }
}

const end = Number.POSITIVE_INFINITY;
/** The first write, behind the segment's header, its point and the flush of its beginning. */
const first = SEGMENT_HEADER_BYTES + 2 * RECORD_HEADER_BYTES;
const PLACES: Readonly<Record<string, number>> = {
  'the header of the first record': SEGMENT_HEADER_BYTES + 20,
  'the header of a write': first + 20,
  'the payload of a write': first + RECORD_HEADER_BYTES + 5,
  'the header of the second write': first + RECORD + 20,
  'the header of a segment': 100,
};

for (const [what, at] of Object.entries(PLACES)) {
  await t.test(`${what} is damaged`, async (t) => {
    const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
    flip(segmentsOf(world, 1)[0], at);
    t.ok((await contentFrom(world)).equals(world.imageAt(end)), 'the other member has it');
    t.equal(
      world.damage.length > 0 || what.includes('payload') || what.includes('segment'),
      true,
      'and it is told',
    );
    await t.rejects(contentFrom(world, [world.places[1]?.place ?? '']), 'without it, it is an error');
  });
}

t.test('a payload that is damaged in the member that is read from comes from the other one', async (t) => {
  const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
  flip(segmentsOf(world, 0)[0], first + RECORD_HEADER_BYTES + 5);
  t.ok((await contentFrom(world)).equals(world.imageAt(end)));
  t.match(world.damage, [/Delta record 3 in .*member-0 is damaged; another member has it whole/]);
});

t.test('two members that are damaged at different places are whole together', async (t) => {
  const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
  flip(segmentsOf(world, 0)[0], first + RECORD + 20);
  flip(segmentsOf(world, 1)[1], SEGMENT_HEADER_BYTES + 20);
  t.ok((await contentFrom(world)).equals(world.imageAt(end)));
  await world.open();
  t.same(
    world.store.status().members.map(({ state }) => state),
    ['healthy', 'lost'],
    'one is mended, one is lost',
  );
  await world.store.recreate([...world.lost][0] ?? '');
  world.lost.clear();
  await world.close();
  for (const { place } of world.places)
    t.ok((await contentFrom(world, [place])).equals(world.imageAt(end)), place);
});

t.test('a damaged member is lost at open, and made anew', async (t) => {
  const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
  flip(segmentsOf(world, 1)[0], first + 20);
  await world.open();
  t.match(world.store.status().members[1], { state: 'lost', reason: /is damaged in log 1 after record 2/ });
  await world.append(0, TRACK_BYTES, 'write');
  await world.store.recreate(world.places[1]?.place ?? '');
  await world.append(TRACK_BYTES, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  t.ok((await contentFrom(world, [world.places[1]?.place ?? ''])).equals(world.imageAt(end)));
});

t.test(
  'a damaged single member takes new logs, and says of the old ones that they are not whole',
  async (t) => {
    const world = await makeLogs(t);
    flip(segmentsOf(world, 0)[0], first + 20);
    await world.open();
    t.equal(world.store.wholeTracks('', 'now'), undefined);
    t.same(world.store.wholeTracks('p1', 'now')?.toArray(), [0, 1, 2, 3, 4, 5]);
    await world.append(0, TRACK_BYTES, 'write');
    await world.flush();
    const reader = await world.reader();
    const base = world.imageAt(world.points[1]?.sequence ?? 0);
    t.ok((await world.composed(reader, base, 'p1')).equals(world.imageAt(end)));
    await t.rejects(world.composed(reader, base, ''), CorruptionError);
    await reader.close();
  },
);

t.test('a segment that is missing is damage, and so is a log', async (t) => {
  for (const index of [0, 1]) {
    const world = await makeLogs(t);
    rmSync(segmentsOf(world, 0)[index] ?? '');
    await t.rejects(contentFrom(world));
  }
  const world = await makeLogs(t);
  for (const path of segmentsOf(world, 0)) if (path.includes('0000000001-')) rmSync(path);
  await t.rejects(contentFrom(world), /do not reach to the beginning of the volume/);
});

t.test('what is cut off behind the last flush is no damage', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'] });
  await world.open();
  await world.append(0, TRACK_BYTES, 'write');
  await world.flush();
  const wanted = world.imageAt(end);
  await world.append(TRACK_BYTES, TRACK_BYTES, 'write');
  await world.append(2 * TRACK_BYTES, 512, 'write');
  await world.crash('kill');
  // Before it are the first write and its flush; the record behind it is whole.
  flip(segmentsOf(world, 0)[0], first + RECORD + RECORD_HEADER_BYTES + 20);
  t.ok((await contentFrom(world)).equals(wanted));
});

t.test('a log of another life of the member is not taken', async (t) => {
  const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
  const before = segmentsOf(world, 1).map((path) => [path, readFileSync(path)] as const);
  await world.open();
  await world.append(0, TRACK_BYTES, 'write');
  await world.flush();
  await world.append(TRACK_BYTES, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  for (const path of segmentsOf(world, 1)) rmSync(path);
  for (const [path, bytes] of before) writeFileSync(path, bytes);
  t.ok((await contentFrom(world)).equals(world.imageAt(end)), 'the one that is behind does no harm');
  await world.open();
  t.match(world.store.status().members[1], { state: 'lost', reason: /lacks log 3/ });
});

t.test('of two logs of one number the one that was begun later counts', async (t) => {
  const world = await makeLogs(t, { kinds: ['directory', 'directory'] });
  const [one = '', other = ''] = world.places.map(({ place }) => place);
  const base = world.changes;
  // The first one goes on without the second, and never knows that the second went on without it.
  world.lost.add(other);
  await world.open();
  await world.append(0, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  world.clock.advance(60_000);
  world.changes = [...base];
  world.lost.clear();
  world.lost.add(one);
  await world.open();
  await world.append(0, TRACK_BYTES, 'write');
  await world.append(TRACK_BYTES, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  world.lost.clear();
  t.ok((await contentFrom(world, [one, other])).equals(world.imageAt(end)));
  t.ok((await contentFrom(world, [other, one])).equals(world.imageAt(end)), 'whichever is named first');
  await world.open();
  t.match(world.store.status().members, [{ state: 'lost', reason: /lacks log 3/ }, { state: 'healthy' }]);
});

t.test('whatever a segment holds, reading it ends', async (t) => {
  const world = await makeLogs(t);
  const paths = segmentsOf(world, 0);
  const originals = paths.map((path) => readFileSync(path));
  const harm = fc.record({
    segment: fc.nat(paths.length - 1),
    atBytes: fc.oneof(fc.nat(8191), fc.nat(65_535)),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 64 }),
  });
  const wanted = world.imageAt(end);
  await fc.assert(
    fc.asyncProperty(fc.array(harm, { minLength: 1, maxLength: 4 }), async (harms) => {
      const harmed = originals.map((bytes) => Buffer.from(bytes));
      for (const { segment, atBytes, bytes } of harms)
        harmed[segment]?.set(bytes.subarray(0, 65_536 - atBytes), atBytes);
      for (const [index, path] of paths.entries()) writeFileSync(path, harmed[index] ?? '');
      try {
        const found = await contentFrom(world);
        // Behind the last record that tells of a flush there is one flush more, which harm takes for a torn end.
        const isEarlier = world.changes.some(({ sequence }) => found.equals(world.imageAt(sequence)));
        return found.equals(wanted) || isEarlier;
      } catch (error) {
        return error instanceof BlockError || error instanceof CorruptionError;
      }
    }),
    { numRuns: 150 },
  );
});
