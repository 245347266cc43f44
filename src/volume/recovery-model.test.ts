/**
 * Goal: whatever is done with a volume while it is being recovered, in whatever order its home, its side and a mirror go
 * on, it reads as the side's point with everything written since on top: what was flushed survives a power cut, a fill
 * and a medium bring back nothing over it, sessions and snapshots hold their freeze, no change is missed, and at the
 * end the home holds the volume and the mirror equals it.
 *
 * Method: seeded runs beside a model of every sector (`recovery-world.fixture.ts`): calls of all kinds and sizes that
 * overlap, fills and media, sessions and snapshots, clean reopenings and power cuts, a side that fails in between. A
 * failure names its seed; `COWBELL_SEED=n` runs that one again, `COWBELL_RUNS=n` so many.
 */

import { env } from 'node:process';
import t from 'tap';
import { systemCode } from '../base/index.ts';
import { SECTOR_BYTES, sectorsOf, TEST_TRACK_BYTES, turns, within } from '../sim/index.ts';
import { MemoryArea } from './index.ts';
import {
  type MirrorKind,
  POINT,
  RecoveryWorld,
  SECTOR_COUNT,
  TRACK_SECTORS,
} from './recovery-world.fixture.ts';

const RUNS = Number(env['COWBELL_RUNS'] ?? 10);
const FIRST_SEED = Number(env['COWBELL_SEED'] ?? 1);
const LAST_SEED = env['COWBELL_SEED'] === undefined ? FIRST_SEED + RUNS - 1 : FIRST_SEED;
const STEPS = 60;

interface Range {
  readonly first: number;
  readonly count: number;
}

/** Single sectors, whole tracks, the short last one, and what crosses tracks. */
function someRange({ random }: RecoveryWorld): Range {
  const start = TRACK_SECTORS * random.below(Math.ceil(SECTOR_COUNT / TRACK_SECTORS));
  const wanted = random.pick([
    1,
    1 + random.below(TRACK_SECTORS),
    TRACK_SECTORS,
    TRACK_SECTORS,
    2 * TRACK_SECTORS,
  ]);
  const first = random.chance(0.6) ? start : Math.min(SECTOR_COUNT - 1, start + random.below(TRACK_SECTORS));
  const count = random.chance(0.1) ? 3 * TRACK_SECTORS + 1 : wanted;
  return { first, count: Math.min(count, SECTOR_COUNT - first) };
}

function issueChange(world: RecoveryWorld, kind: 'write' | 'zeroes' | 'trim'): void {
  const { random, model, volume } = world;
  const { first, count } = someRange(world);
  const fua = random.chance(0.15);
  const values = kind === 'write' ? model.newValues(count) : Array.from({ length: count }, () => 0);
  const change = model.begin(first, values, { isTrim: kind === 'trim', isFua: fua });
  const [offsetBytes, lengthBytes] = [first * SECTOR_BYTES, count * SECTOR_BYTES];
  world.touched.addRun(volume.geometry.tracksOf(offsetBytes, lengthBytes));
  const perform = async (): Promise<void> => {
    try {
      if (kind === 'write') await volume.write(sectorsOf(values), offsetBytes, { fua });
      else if (kind === 'trim') await volume.trim(offsetBytes, lengthBytes, { fua });
      else await volume.writeZeroes(offsetBytes, lengthBytes, { fua, mayTrim: random.chance(0.5) });
    } catch (error) {
      if (volume !== world.volume) return;
      model.fail(change);
      if (!world.isExpected(error)) throw error;
      world.count('changes failed');
      return;
    }
    if (volume === world.volume) model.finish(change);
  };
  world.follow(perform());
  world.count(kind);
}

function issueRead(world: RecoveryWorld): void {
  const { model, volume } = world;
  const { first, count } = someRange(world);
  const span = model.openSpan();
  const read = async (): Promise<void> => {
    const content = Buffer.alloc(count * SECTOR_BYTES);
    try {
      await volume.read(content, first * SECTOR_BYTES);
    } catch (error) {
      if (!world.isExpected(error)) throw error;
      return;
    } finally {
      model.closeSpan(span);
    }
    const problem = span.mismatch(content, first);
    if (problem !== undefined) throw new Error(`A read gave what was never there: ${problem}`);
  };
  world.follow(read());
  world.count('reads');
}

function issueFlush(world: RecoveryWorld): void {
  const { model, volume } = world;
  const span = model.openSpan();
  const flush = async (): Promise<void> => {
    try {
      await volume.flush();
    } catch (error) {
      model.closeSpan(span);
      throw error;
    }
    if (volume === world.volume) model.flushed(span);
  };
  world.follow(flush());
  world.count('flushes');
}

function someTracks({ random, volume }: RecoveryWorld): number[] {
  return Array.from({ length: volume.geometry.trackCount }, (_, track) => ({ track, place: random.next() }))
    .toSorted((a, b) => a.place - b.place)
    .map(({ track }) => track);
}

function beginFill(world: RecoveryWorld): void {
  const { random, volume, scheduler } = world;
  const [track = 0] = someTracks(world);
  const count = Math.min(3, volume.geometry.trackCount - track);
  const first = random.chance(0.5) ? [{ first: track, count }] : [];
  const fill = async (): Promise<void> => {
    try {
      await volume.fill((recovery, signal) =>
        recovery.fillAll({ signal, first, take: () => scheduler.park('fill', 0.7) }),
      );
    } catch (error) {
      if (!world.isExpected(error)) throw error;
      world.count('fills failed');
    }
  };
  world.follow(fill());
  world.count('fills');
}

/** Brings what the side held at the point, track by track, some of them. */
function bringMedium(world: RecoveryWorld): void {
  const { random, volume, scheduler, original } = world;
  const selected = someTracks(world).slice(0, 1 + random.below(8));
  const apply = async (): Promise<void> => {
    try {
      await volume.fill(async (recovery, signal) => {
        for (const track of selected) {
          await scheduler.park('medium', 0.7);
          signal.throwIfAborted();
          const start = track * TEST_TRACK_BYTES;
          const content = Buffer.from(original.subarray(start, start + TEST_TRACK_BYTES));
          const isZero = content.every((byte) => byte === 0);
          if (await recovery.offer(track, isZero ? undefined : content)) world.count('tracks from media');
        }
      });
    } catch (error) {
      if (!world.isExpected(error)) throw error;
    }
  };
  world.follow(apply());
  world.count('media');
}

function takeSnapshot(world: RecoveryWorld): void {
  const { model, volume } = world;
  if (world.snapshots.size >= 3) return;
  const name = `s${world.nextNumber()}`;
  const image = model.openSpan();
  const take = async (): Promise<void> => {
    try {
      await volume.createSnapshot(name);
    } catch (error) {
      if (!world.isExpected(error)) throw error;
      return;
    } finally {
      model.closeSpan(image);
    }
    if (volume === world.volume) world.snapshots.set(name, { image });
    world.count('snapshots');
  };
  world.follow(take());
}

function readSnapshot(world: RecoveryWorld): void {
  const { random, volume } = world;
  if (world.snapshots.size === 0) return;
  const [name, { image }] = random.pick([...world.snapshots]);
  const read = async (): Promise<void> => {
    const device = volume.openSnapshot(name);
    try {
      const content = Buffer.alloc(device.sizeBytes);
      await device.read(content, 0);
      const problem = image.mismatch(content);
      if (problem !== undefined) throw new Error(`Snapshot ${name} is not its freeze: ${problem}`);
      image.narrow(content);
      world.count('snapshots read');
    } catch (error) {
      if (!world.isExpected(error)) throw error;
    } finally {
      await device.close();
    }
  };
  world.follow(read());
}

async function deleteSnapshot(world: RecoveryWorld): Promise<void> {
  if (world.snapshots.size === 0) return;
  await world.settle();
  const name = world.random.pick([...world.snapshots.keys()]);
  world.snapshots.delete(name);
  world.scheduler.open();
  await world.volume.deleteSnapshot(name);
  world.scheduler.close();
}

function runSession(world: RecoveryWorld): void {
  const { random, model, volume, scheduler } = world;
  if (world.sessions.length > 0) return;
  const slots = random.pick([0, 2, 20]);
  const span = model.openSpan();
  const image = span;
  const run = async (): Promise<void> => {
    let session;
    try {
      const areas = [
        new MemoryArea({ sizeBytes: slots * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES }),
      ];
      session = await volume.beginSession({ consumer: 'store', level: 'full', candidates: [], areas });
    } catch (error) {
      if (!world.isExpected(error) && systemCode(error) !== 'session-running') throw error;
      return;
    } finally {
      model.closeSpan(span);
    }
    const content = Buffer.alloc(SECTOR_COUNT * SECTOR_BYTES);
    const running = { session, content, image };
    world.sessions.push(running);
    const at = (track: number): Buffer =>
      content.subarray(track * TEST_TRACK_BYTES, (track + 1) * TEST_TRACK_BYTES);
    const mainPass = async (): Promise<void> => {
      for (const track of someTracks(world)) {
        await scheduler.park('lane', 0.6);
        const read = Buffer.alloc(at(track).length);
        await volume.read(read, track * TEST_TRACK_BYTES);
        await scheduler.park('lane', 0.3);
        if (session.confirm([{ first: track, count: 1 }]).length === 0) read.copy(at(track));
      }
    };
    const drain = async (): Promise<void> => {
      for (;;) {
        const taken = await session.take(2);
        if (taken.length === 0) return;
        for (const { id, track, content: old } of taken) {
          await scheduler.park('lane', 0.3);
          if (old === undefined) await volume.read(at(track), track * TEST_TRACK_BYTES);
          else old.copy(at(track));
          session.acknowledge([id]);
          world.count('tracks diverted');
        }
      }
    };
    try {
      const parts = [mainPass(), drain()];
      // Where one fails, the other waits for what never comes.
      for (const part of parts) part.catch((error: unknown) => session.fail(error));
      await Promise.all(parts);
      await session.mayComplete();
      await session.complete('set');
    } catch (error) {
      session.fail(error);
      if (!world.isExpected(error) && systemCode(error) !== 'session-ended') throw error;
      return;
    } finally {
      const place = world.sessions.indexOf(running);
      if (place >= 0) world.sessions.splice(place, 1);
    }
    const problem = image.mismatch(content);
    if (problem !== undefined) throw new Error(`A session is not its freeze: ${problem}`);
    world.count('sessions');
  };
  world.follow(run());
}

type Command = (world: RecoveryWorld) => void | Promise<void>;

const COMMANDS: readonly (readonly [number, Command])[] = [
  [14, (world) => issueChange(world, 'write')],
  [4, (world) => issueChange(world, 'zeroes')],
  [3, (world) => issueChange(world, 'trim')],
  [9, issueRead],
  [4, issueFlush],
  [3, beginFill],
  [3, bringMedium],
  [2, takeSnapshot],
  [3, readSnapshot],
  [1, deleteSnapshot],
  [2, runSession],
  [1, (world) => world.reopen()],
  [2, (world) => world.powerCut()],
  [5, (world) => world.harmSide()],
  [2, (world) => world.healSide()],
];

const CHOICES = COMMANDS.flatMap(([weight, command]) => Array.from({ length: weight }, () => command));

function assertSame(found: Buffer, wanted: Buffer, what: string): void {
  const track = Array.from({ length: Math.ceil(found.length / TEST_TRACK_BYTES) }, (_, index) => index).find(
    (index) =>
      found.compare(
        wanted,
        index * TEST_TRACK_BYTES,
        Math.min(wanted.length, (index + 1) * TEST_TRACK_BYTES),
        index * TEST_TRACK_BYTES,
        Math.min(found.length, (index + 1) * TEST_TRACK_BYTES),
      ) !== 0,
  );
  if (track !== undefined) throw new Error(`${what}, track ${track}`);
}

function assertChanges(world: RecoveryWorld, content: Buffer): void {
  const { volume, original } = world;
  const changed = volume.changedSince(POINT);
  for (let track = 0; track < volume.geometry.trackCount; track += 1) {
    const end = Math.min(content.length, (track + 1) * TEST_TRACK_BYTES);
    const isSame =
      content.compare(original, track * TEST_TRACK_BYTES, end, track * TEST_TRACK_BYTES, end) === 0;
    if (!isSame && !changed.has(track)) throw new Error(`The change of track ${track} is missed`);
    // A power cut leaves whole regions in doubt, and a freeze folds the point.
    const isExact =
      !world.wasCut && world.tally.get('snapshots') === undefined && !world.tally.has('sessions');
    if (isExact && volume.status().points === 1 && changed.has(track) && !world.touched.has(track))
      throw new Error(`Track ${track} counts as changed, and nobody wrote it`);
  }
}

/** Ends everything: what is left comes, and all must be what it should be. */
async function finish(world: RecoveryWorld): Promise<void> {
  const { scheduler } = world;
  world.healSide();
  await world.settle();
  scheduler.open();
  await world.volume.fill((recovery, signal) => recovery.fillAll({ signal }));
  if (world.volume.recovery !== undefined) throw new Error('The recovery is not over');
  const content = await world.content();
  world.model.observe(content, { isFinal: false });
  const problem = world.model.snapshot().mismatch(content);
  if (problem !== undefined) throw new Error(`At the end ${problem}`);
  assertSame(content, world.homeContent(), 'The home is not what the volume reads as');
  const mirror = world.mirrorContent();
  if (mirror !== undefined) assertSame(world.homeContent(), mirror, 'The mirror differs');
  if (world.mirrorKind !== 'the side')
    assertSame(world.sideContent(), world.original, 'The side was written');
  assertChanges(world, content);
  for (const [name, { image }] of world.snapshots) {
    const device = world.volume.openSnapshot(name);
    const kept = Buffer.alloc(device.sizeBytes);
    await device.read(kept, 0);
    await device.close();
    const wrong = image.mismatch(kept);
    if (wrong !== undefined) throw new Error(`Snapshot ${name} is not its freeze: ${wrong}`);
  }
  await world.reopen();
  scheduler.open();
  assertSame(await world.content(), content, 'After a restart the volume differs');
}

async function runSeed(seed: number, mirrorKind: MirrorKind): Promise<ReadonlyMap<string, number>> {
  const world = new RecoveryWorld(seed, mirrorKind);
  try {
    await world.start();
    for (let step = 0; step < STEPS; step += 1) {
      const command = world.random.pick(CHOICES);
      await within((async () => command(world))(), `step ${step}, ${command.toString()}`, 10_000);
      world.check();
      while (world.scheduler.parkedCount > 0 && world.random.chance(0.5)) world.scheduler.releaseOne();
      if (world.random.chance(0.6)) await turns(1);
      if (world.random.chance(0.08)) {
        await world.settle();
        await turns(1);
      }
    }
    await within(finish(world), 'the end', 10_000);
    return world.tally;
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    throw new Error(`Seed ${seed} with ${mirrorKind}: ${what}`, { cause: error });
  } finally {
    await world.end();
  }
}

t.test(`random recoveries, seeds ${FIRST_SEED} to ${LAST_SEED}`, async (t) => {
  const done = new Map<string, number>();
  for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1) {
    for (const mirrorKind of ['no mirror', 'the side', 'another'] as const) {
      const tally = await runSeed(seed, mirrorKind);
      for (const [what, count] of tally) done.set(what, (done.get(what) ?? 0) + count);
    }
  }
  t.pass('everything was as it should be');
  if (FIRST_SEED === LAST_SEED) return;
  // A run that never gets to these would hold any promise.
  for (const what of [
    'changes failed',
    'fills failed',
    'tracks from media',
    'sessions',
    'tracks diverted',
    'snapshots read',
    'clean reopenings',
    'power cuts',
  ])
    t.ok((done.get(what) ?? 0) > 0, `${what}: ${done.get(what) ?? 0}`);
});
