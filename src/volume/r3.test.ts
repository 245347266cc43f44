/**
 * EXAMPLES R3, a new backup side is brought up from a primary that is in use: R1 with the roles exchanged. The primary
 * has the new side as its mirror, and that is filled from the primary, or from a medium made of it.
 *
 *     client -> mirrored -> primary
 *                  |           |
 *                  +-> filling (new side) <- medium, or the primary as it is
 *
 * Goal: both sides end as the example says; whatever is written meanwhile, they end equal.
 *
 * Method: locations are tracks counted from one, as in R1. Then random changes of the client, of parts and of whole
 * tracks, while the side is filled, with the calls of both devices let go in random order; a failure names its seed.
 */

import { env } from 'node:process';
import t from 'tap';
import { allFinished, SeededRandom } from '../base/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, Scheduler, SECTOR_BYTES, TEST_TRACK_BYTES as TRACK, turns, within } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { FillingDevice } from './filling-device.ts';
import { Geometry } from './geometry.ts';
import { MirroredDevice } from './mirrored-device.ts';
import { RangeOrder } from './range-order.ts';
import { labelsOn } from './recovering.fixture.ts';

interface Pair {
  readonly primary: FaultyDevice;
  readonly side: FaultyDevice;
  readonly filling: FillingDevice;
  /** What the client writes to. */
  readonly device: MirroredDevice;
  readonly trackCount: number;
}

function makePair(sizeBytes: number): Pair {
  const primary = new FaultyDevice(new MemoryDevice({ sizeBytes }));
  const side = new FaultyDevice(new MemoryDevice({ sizeBytes }));
  const trackCount = Math.ceil(sizeBytes / TRACK);
  const filling = new FillingDevice({
    device: side,
    source: primary,
    geometry: new Geometry(sizeBytes, TRACK),
    missing: TrackSet.all(trackCount),
    saveMap: async () => undefined,
    onDeviceFailed: () => undefined,
    mayWrite: () => true,
  });
  const onMirrorLost = async (error: unknown): Promise<void> => {
    throw error;
  };
  const device = new MirroredDevice({ primary, mirror: filling, onMirrorLost });
  return { primary, side, filling, device, trackCount };
}

const words = (text: string): string[] => text.split(' ');

t.test('R3: a new backup side from a medium', async (t) => {
  const { primary, side, filling, device } = makePair(6 * TRACK);
  for (const [track, label] of words('1 2 3 4 5 6').entries())
    await primary.write(labelled(label), track * TRACK);
  const medium = await labelsOn(primary);
  primary.forgetOperations();

  await device.write(labelled('2a'), TRACK);
  await device.write(labelled('5a'), 4 * TRACK);
  t.same(await labelsOn(side), words('0 2a 0 0 5a 0'), 'both get what is written');
  t.same(TrackSet.all(6).difference(filling.missing()).toArray(), [1, 4], 'the overwrite map is {2, 5}');

  side.forgetOperations();
  primary.forgetOperations();
  const given: number[] = [];
  for (const location of [4, 2, 6, 1, 5, 3])
    if (await filling.offer(location - 1, labelled(medium[location - 1] ?? ''))) given.push(location);
  t.same(given, [4, 6, 1, 3]);
  const written = side.operations.map(({ kind, offsetBytes }) => `${kind} ${offsetBytes / TRACK + 1}`);
  t.same(written, ['write 4', 'write 6', 'write 1', 'write 3'], '1 3 4 6 are written, and nothing else');
  t.same(primary.operations, [], 'the primary is not asked');
  t.equal(filling.missingCount, 0);
  t.same(await labelsOn(side), words('1 2a 3 4 5a 6'));
  t.same(await labelsOn(primary), words('1 2a 3 4 5a 6'));
});

t.test('R3: a new backup side from the primary as it is', async (t) => {
  const { primary, side, filling, device } = makePair(6 * TRACK);
  for (const [track, label] of words('1 2 3 4 5 6').entries())
    await primary.write(labelled(label), track * TRACK);
  primary.forgetOperations();
  await device.write(labelled('2a'), TRACK);
  await device.write(labelled('5a'), 4 * TRACK);
  await filling.bringIn({ first: 0, count: 6 });
  const read = primary.operations.filter(({ kind }) => kind === 'read');
  t.same(
    read.map(({ offsetBytes, lengthBytes }) => [offsetBytes / TRACK + 1, lengthBytes / TRACK]),
    [
      [1, 1],
      [3, 2],
      [6, 1],
    ],
  );
  t.same(await labelsOn(side), words('1 2a 3 4 5a 6'));
  t.same(await labelsOn(primary), words('1 2a 3 4 5a 6'));
});

const RUNS = Number(env['COWBELL_RUNS'] ?? 150);
const FIRST_SEED = Number(env['COWBELL_SEED'] ?? 1);
const LAST_SEED = env['COWBELL_SEED'] === undefined ? FIRST_SEED + RUNS - 1 : FIRST_SEED;
const SECTOR_COUNT = 5 * (TRACK / SECTOR_BYTES) + 3;

/** One change; the write path of a volume keeps overlapping ones apart, and so does `order`. */
async function change(pair: Pair, random: SeededRandom, order: RangeOrder): Promise<void> {
  const { device } = pair;
  const isWhole = random.chance(0.4);
  const perTrack = TRACK / SECTOR_BYTES;
  const first = isWhole ? perTrack * random.below(pair.trackCount) : random.below(SECTOR_COUNT);
  const wanted = isWhole ? perTrack * (1 + random.below(2)) : 1 + random.below(2 * perTrack);
  const [at, length] = [first * SECTOR_BYTES, Math.min(wanted, SECTOR_COUNT - first) * SECTOR_BYTES];
  const content = Buffer.alloc(length, 1 + random.below(255));
  const isZero = random.chance(0.2);
  const turn = order.acquire(at, at + length);
  try {
    await turn.ready;
    if (isZero) await device.writeZeroes(at, length);
    else await device.write(content, at);
  } finally {
    turn.release();
  }
}

async function bringUp(seed: number): Promise<void> {
  const random = new SeededRandom(seed);
  const scheduler = new Scheduler(random);
  const pair = makePair(SECTOR_COUNT * SECTOR_BYTES);
  const { primary, side, filling, trackCount } = pair;
  const original = Buffer.alloc(SECTOR_COUNT * SECTOR_BYTES, 'original;');
  await primary.write(original, 0);
  await primary.flush();
  for (const [name, device] of Object.entries({ primary, side }))
    device.delay({}, ({ kind }) => scheduler.park(`${name} ${kind}`, 0.6));
  const order = new RangeOrder();
  const work: Promise<void>[] = [];
  for (let step = 0; step < 30; step += 1) {
    const track = random.below(trackCount);
    if (random.chance(0.7)) work.push(change(pair, random, order));
    else if (random.chance(0.5)) work.push(filling.bringIn({ first: track, count: 1 }));
    else {
      const content = Buffer.from(original.subarray(track * TRACK, (track + 1) * TRACK));
      work.push(filling.offer(track, content).then(() => undefined));
    }
    if (random.chance(0.5)) await turns(1);
    scheduler.releaseOne();
  }
  work.push(filling.bringIn({ first: 0, count: trackCount }));
  while (scheduler.parkedCount > 0) {
    scheduler.releaseOne();
    await turns(1);
  }
  scheduler.open();
  await within(allFinished(work), 'the bringing up', 3_000);
  const [one, other] = [Buffer.alloc(original.length), Buffer.alloc(original.length)];
  await primary.read(one, 0);
  await side.read(other, 0);
  if (filling.missingCount > 0 || !one.equals(other))
    throw new Error(`Seed ${seed}: the new side differs from the primary`);
}

t.test(`R3: whatever is written meanwhile, seeds ${FIRST_SEED} to ${LAST_SEED}`, async (t) => {
  for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1) await bringUp(seed);
  t.pass('both sides ended equal');
});
