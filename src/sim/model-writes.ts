/** Changes and reads of a model run: each is told to the model when it is issued and when it has ended. */

import { systemCode } from '../base/index.ts';
import { contentOf, type ModelChange, SECTOR_BYTES } from './model.ts';
import { isInjected, type World } from './model-world.ts';
import { must } from './promises.ts';

interface Range {
  readonly first: number;
  readonly count: number;
}

/** Any size and alignment: single sectors, whole tracks, and what crosses tracks. */
function someRange(world: World): Range {
  const { random, model } = world;
  const perTrack = world.trackBytes / SECTOR_BYTES;
  if (random.chance(0.02)) return { first: 0, count: model.sectorCount };
  const reach = Math.min(world.hotTracks * perTrack, model.sectorCount);
  const wanted = random.pick([1, 1 + random.below(perTrack), perTrack, 1 + random.below(3 * perTrack)]);
  const count = Math.min(wanted, reach);
  const first = random.below(reach - count + 1);
  return random.chance(0.3) ? { first: first - (first % perTrack), count } : { first, count };
}

/** New values, values that are there already, or zeroes. */
function someValues({ random, model }: World, { first, count }: Range): number[] {
  const kind = random.pick(['new', 'new', 'new', 'same', 'zero'] as const);
  if (kind === 'new') return model.newValues(count);
  return Array.from({ length: count }, (_, place) => (kind === 'zero' ? 0 : model.someValue(first + place)));
}

type Kind = 'write' | 'zeroes' | 'trim';

/** Issues a change and does not wait for it. */
export function issueChange(world: World, kind: Kind): void {
  const { random, model, volume } = world;
  const range = someRange(world);
  const fua = random.chance(0.15);
  const values = kind === 'write' ? someValues(world, range) : Array.from({ length: range.count }, () => 0);
  const isFree = kind !== 'trim' && mustNotWait(world, range);
  const change = model.begin(range.first, values, { isTrim: kind === 'trim', isFua: fua });
  if (world.isFreezing) world.count('changes during a freeze');
  const offsetBytes = range.first * SECTOR_BYTES;
  const lengthBytes = range.count * SECTOR_BYTES;
  const operationsBefore = world.faulty?.operations.length ?? 0;
  let isWaiting = false;
  const options = {
    fua,
    onWaiting: () => {
      must('nobody waits', !isWaiting, 'A write was reported as waiting twice');
      isWaiting = true;
      world.count('writes that waited');
    },
    onResumed: () => {
      isWaiting = false;
    },
  };
  // An arrow, so that what the volume throws at once becomes a rejection.
  const perform = async (): Promise<void> => {
    if (kind === 'write') await volume.write(contentOf(values), offsetBytes, options);
    else if (kind === 'trim') await volume.trim(offsetBytes, lengthBytes, options);
    else await volume.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: random.chance(0.5) });
    must('nobody waits', !isWaiting, 'A write ended and is still reported as waiting');
  };
  const done = follow(world, change, perform());
  if (isFree && world.faulty !== undefined) {
    const sent = world.faulty.operations.length - operationsBefore;
    must('nobody waits', sent > 0 && !isWaiting, 'A write to saved tracks waited');
    world.count('writes past a backup');
  }
  // Issued after the freeze and ended: what was under it has been saved. A trim may have left it there.
  const sessions = world.backups.filter(({ hasSession }) => kind !== 'trim' && hasSession);
  const tracks = tracksOf(world, range);
  const note = (): void => {
    for (const { saved } of sessions) tracks.forEach((track) => saved.add(track));
  };
  world.follow(done.then(note));
  if (kind === 'trim') for (const { trimmed } of world.backups) tracks.forEach((track) => trimmed.add(track));
  world.count(kind);
}

async function follow(world: World, change: ModelChange, done: Promise<void>): Promise<void> {
  try {
    await done;
  } catch (error) {
    world.model.fail(change);
    const code = systemCode(error);
    const isRefused =
      (code === 'snapshot-full' && world.snapshots.mayRefuse) ||
      (code === 'snapshot-failed' && world.storesMayFail);
    if (isRefused) world.count('writes refused for a snapshot');
    const isFine =
      code === 'closed' ||
      isRefused ||
      world.isOff ||
      (world.mayFail && (code === 'poisoned' || isInjected(error)));
    if (!isFine) throw error;
    world.count('changes failed');
    return;
  }
  world.model.finish(change);
}

/** Whether no backup stands in the way of a change here: each track saved for all of them, nothing under way. */
function mustNotWait(world: World, range: Range): boolean {
  const { backups, volume, model } = world;
  if (backups.length === 0 || world.isFreezing) return false;
  if (backups.some(({ isOver, hasSession }) => isOver || !hasSession)) return false;
  if (volume.status().poisoned !== undefined || model.isBusy(range.first, range.count)) return false;
  // A snapshot wants a copy first.
  if (volume.snapshots().length > 0) return false;
  const tracks = tracksOf(world, range);
  return (
    tracks.every((track) => volume.isLogged({ first: track, count: 1 })) &&
    backups.every(({ saved, trimmed }) => tracks.every((track) => saved.has(track) && !trimmed.has(track)))
  );
}

function tracksOf({ volume }: World, { first, count }: Range): number[] {
  const run = volume.geometry.tracksOf(first * SECTOR_BYTES, count * SECTOR_BYTES);
  return Array.from({ length: run.count }, (_, at) => run.first + at);
}

/** A flush; what had finished before it is durable after it. */
export function issueFlush(world: World): void {
  const { model, volume } = world;
  const span = model.openSpan();
  const flush = async (): Promise<void> => {
    try {
      await volume.flush();
      model.flushed(span);
    } catch (error) {
      model.closeSpan(span);
      const code = systemCode(error);
      if (code !== 'closed' && !world.isOff && !(world.mayFail && (code === 'poisoned' || isInjected(error))))
        throw error;
    }
  };
  world.follow(flush());
  world.count('flush');
}

/** A read through the volume gives something that was there while it ran. */
export function issueRead(world: World): void {
  const { model, volume } = world;
  const { first, count } = someRange(world);
  const span = model.openSpan();
  const read = async (): Promise<void> => {
    const content = Buffer.alloc(count * SECTOR_BYTES);
    try {
      await volume.read(content, first * SECTOR_BYTES);
    } catch (error) {
      if (!world.isOff && (!world.mayFail || !isInjected(error))) throw error;
      return;
    } finally {
      model.closeSpan(span);
    }
    const problem = span.mismatch(content, first);
    must('reads are right', problem === undefined, `A read gave what was never there: ${problem}`);
  };
  world.follow(read());
  world.count('read');
}
