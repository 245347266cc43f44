/**
 * What goes on behind the users of a mirror: a member is brought what it lacks, and the members are compared.
 *
 * Both go through the mirror in runs, and leave the devices to users for as long as a run took wherever there were any
 * meanwhile. A run is copied while no change of it is under way, so that nothing newer is replaced.
 *
 * A scrub reads without that, and looks again, with it, where it finds a difference: what is just being written differs
 * for a moment.
 */

import { LIMITS, messageOf, type Timer, systemTimer } from '../base/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';
import type { MirrorMember } from './mirror-member.ts';
import type { MirrorSet } from './mirror-set.ts';

export interface MirrorWork {
  /** Waits until so many more bytes may be read; at once where left out. */
  readonly take?: ((bytes: number) => Promise<void>) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after each run with the bytes that were gone through since the last call. Must not throw. */
  readonly onProgress?: ((bytes: number) => void) | undefined;
  readonly timer?: Timer | undefined;
}

export interface ScrubOptions extends MirrorWork {
  /** Writes what the first member in sync holds over the others where they differ. */
  readonly isRepairing: boolean;
  /** Called for each run that differs, before it is repaired. */
  readonly onDifference: (difference: MirrorDifference) => void;
}

/** A run of tracks that differ between members, or that one of them cannot read. */
export interface MirrorDifference extends TrackRun {
  /** The member that counts. */
  readonly reference: string;
  /** Those that hold something else. */
  readonly places: readonly string[];
  /** Why one of them cannot be read, where that is what is wrong. */
  readonly unreadable?: string;
  readonly repaired: boolean;
}

/**
 * Brings a member everything that it lacks; it is in sync, durably, when the promise resolves.
 *
 * @throws {VolumeError} `member-lost` where it goes away again; what reading the others throws; the signal's reason.
 */
export async function rebuildMember(
  mirror: MirrorSet,
  member: MirrorMember,
  work: MirrorWork,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(LIMITS.fillRunBytesMax);
  while (!member.isInSync) {
    assertHere(member);
    const missing = member.missing();
    for (const run of missing.runs(runTracksOf(mirror))) {
      await paced(mirror, mirror.rangeOf(run), work, (from, to) =>
        copyRun(mirror, member, run, buffer.subarray(0, to - from), from),
      );
    }
    work.signal?.throwIfAborted();
    const isDurable = await mirror.flushMember(member);
    assertHere(member);
    // It may be another device by now, which lacks everything.
    if (isDurable && member.isRebuilding && member.missingCount === 0) await mirror.recordWhole(member);
  }
}

function assertHere(member: MirrorMember): void {
  if (member.device !== undefined) return;
  const reason = member.absence?.reason ?? 'it is away';
  const message = `${member.place} cannot be rebuilt: ${reason}`;
  throw new VolumeError('member-lost', message, { place: member.place, reason });
}

async function copyRun(
  mirror: MirrorSet,
  member: MirrorMember,
  run: TrackRun,
  content: Buffer,
  from: number,
): Promise<void> {
  await mirror.exclusively(from, from + content.length, async () => {
    // Somebody else may rebuild it, too.
    if (member.isInSync || !member.lacks(run)) return;
    assertHere(member);
    await mirror.readGood(content, from);
    if (await mirror.bring(member, content, from)) member.brought(run);
    assertHere(member);
  });
}

/**
 * Compares what the members in sync hold. What is being written meanwhile is not taken for a difference.
 *
 * @returns the tracks of which some member holds something else than the first one in sync.
 * @throws what reading throws where no member can be read; the signal's reason.
 */
export async function scrubMirror(mirror: MirrorSet, options: ScrubOptions): Promise<TrackSet> {
  const differing = TrackSet.empty();
  const whole = TrackSet.ofRun(mirror.ownTracks);
  for (const run of whole.runs(runTracksOf(mirror))) {
    const range = mirror.rangeOf(run);
    await paced(mirror, range, options, async (from, to) => {
      if (await areEqual(mirror, from, to)) return;
      await mirror.exclusively(from, to, () => examine(mirror, run, options, differing));
    });
  }
  return differing;
}

/** Whether all members in sync could be read, and hold the same. */
async function areEqual(mirror: MirrorSet, from: number, to: number): Promise<boolean> {
  const contents = await Promise.all(readersOf(mirror).map((member) => contentOf(member, from, to)));
  const [first] = contents;
  return contents.every(
    (content) => Buffer.isBuffer(content) && Buffer.isBuffer(first) && content.equals(first),
  );
}

/** Track by track; nobody changes the run meanwhile. */
async function examine(
  mirror: MirrorSet,
  run: TrackRun,
  options: ScrubOptions,
  differing: TrackSet,
): Promise<void> {
  for (let track = run.first; track < run.first + run.count; track += 1) {
    const range = mirror.rangeOf({ first: track, count: 1 });
    if (range === undefined) continue;
    const difference = await examineTrack(mirror, track, range, options.isRepairing);
    if (difference === undefined) continue;
    differing.add(track);
    options.onDifference(difference);
  }
}

async function examineTrack(
  mirror: MirrorSet,
  track: number,
  { from, to }: { readonly from: number; readonly to: number },
  isRepairing: boolean,
): Promise<MirrorDifference | undefined> {
  const good = Buffer.allocUnsafe(to - from);
  const reference = await mirror.readGood(good, from);
  const wrong: MirrorMember[] = [];
  let unreadable: string | undefined;
  for (const member of readersOf(mirror)) {
    if (member === reference) continue;
    const content = await contentOf(member, from, to);
    if (Buffer.isBuffer(content) && content.equals(good)) continue;
    wrong.push(member);
    if (!Buffer.isBuffer(content)) unreadable ??= messageOf(content.error);
  }
  if (wrong.length === 0) return undefined;
  let repaired = isRepairing;
  if (isRepairing)
    for (const member of wrong) if (!(await mirror.bring(member, good, from))) repaired = false;
  return {
    first: track,
    count: 1,
    reference: reference.place,
    places: wrong.map(({ place }) => place),
    ...(unreadable === undefined ? {} : { unreadable }),
    repaired,
  };
}

function readersOf(mirror: MirrorSet): readonly MirrorMember[] {
  return mirror.members.filter(({ isInSync }) => isInSync);
}

async function contentOf(
  member: MirrorMember,
  from: number,
  to: number,
): Promise<Buffer | { readonly error: unknown }> {
  const content = Buffer.allocUnsafe(to - from);
  try {
    await member.use((device) => device.read(content, from));
    return content;
  } catch (error) {
    return { error };
  }
}

function runTracksOf({ trackSizeBytes }: MirrorSet): number {
  return Math.max(1, Math.floor(LIMITS.fillRunBytesMax / trackSizeBytes));
}

/** Does a run, and waits as long as it took where the mirror was used meanwhile. */
async function paced(
  mirror: MirrorSet,
  range: { readonly from: number; readonly to: number } | undefined,
  { take, signal, onProgress, timer = systemTimer }: MirrorWork,
  body: (from: number, to: number) => Promise<void>,
): Promise<void> {
  signal?.throwIfAborted();
  if (range === undefined) return;
  const { from, to } = range;
  await take?.(to - from);
  signal?.throwIfAborted();
  const useCount = mirror.useCount;
  const beganMs = mirror.clock.monotonicMs();
  await body(from, to);
  onProgress?.(to - from);
  const tookMs = mirror.clock.monotonicMs() - beganMs;
  const restMs = mirror.useCount === useCount ? 0 : Math.min(tookMs, LIMITS.mirrorRestMsMax);
  // Members that answer at once would let nobody else have a turn.
  await new Promise<void>((resolve) => {
    if (restMs >= 1) timer(restMs, resolve);
    else setImmediate(resolve);
  });
}
