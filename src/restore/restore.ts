/**
 * A restore from top to bottom: targets, remap table, plan, write, read back.
 *
 *     chain view --> remap table --> verify, write --> target devices --> compare, where asked for
 *
 * What can be refused is refused before the first write, and leaves nothing behind. After the first write a
 * failure leaves incomplete targets, which its error names; files created for the restore then stay, for
 * what they hold may be all there is.
 */

import { LIMITS } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { TargetLayout } from './layout.ts';
import { RestoreError } from './errors.ts';
import { PieceDigests } from './piece-digests.ts';
import { type PlanSummary, summarise } from './plan-summary.ts';
import { planRestore, type RestorePlan } from './planner.ts';
import {
  changed,
  dropProgress,
  identityOf,
  readProgress,
  type RestoreIdentity,
  writeProgress,
} from './progress-file.ts';
import { differenceError, findDifferences } from './read-back.ts';
import type { RemapTable } from './remap-table.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';
import { TargetFailure } from './target-calls.ts';
import { type OpenTargets, openTargets, type OpenTargetsOptions, type TargetRequest } from './targets.ts';
import {
  Cancelled,
  type RestoreCheckpoint,
  type RestoreOptions,
  type RestoreResult,
  writePlan,
  writerCount,
  type Written,
} from './writer.ts';

export interface WholeRestoreOptions
  extends OpenTargetsOptions, Omit<RestoreOptions, 'checkpoint' | 'digests'> {
  /** What goes where; the whole volume over the targets in sequence when absent. */
  readonly layout?: TargetLayout;
  /** Keep a progress file, and go on from it where there is one. Of sources with hashes only. */
  readonly resume?: ResumeOptions;
  /** Where there is no `resume`: progress files that this restore makes untrue, to be removed before the first write. */
  readonly staleProgressFiles?: readonly string[];
  /** Read back what was written and compare it. */
  readonly verify?: boolean;
  /** Called from time to time while it is read back. Must not throw. */
  readonly onReadBack?: (progress: { readonly bytesRead: number; readonly bytesTotal: number }) => void;
  /** Called with what was decided when nothing can be refused any more, before the first write; a throw refuses it. */
  readonly onPlanned?: (planned: PlannedRestore) => Promise<void> | void;
}

export interface ResumeOptions {
  readonly path: string;
  /** The id of the set that is restored. */
  readonly set: string;
  /** Bytes written between two records; `LIMITS.restoreCheckpointBytes` when absent. */
  readonly everyBytes?: number;
}

/** A restore that can begin. */
export interface PlannedRestore {
  /** The remap table that is used, and its targets as they were asked for, with the sizes of those that are made. */
  readonly table: RemapTable;
  readonly targets: readonly TargetRequest[];
}

/**
 * Restores a set, or the part of it that `layout` names, onto targets and makes it durable.
 *
 * @throws {RestoreError} with any of its codes; only `target-failed` and `cancelled` can come after the
 *   first write.
 * @throws {RestoreCorruptionError} when the store is damaged, and nothing is to be salvaged.
 * @throws {CorruptionError} when what is read back is not what was written.
 */
export async function restore<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  targets: readonly TargetRequest[],
  options: WholeRestoreOptions,
): Promise<RestoreResult & { readonly bytesLeftOut: number }> {
  const ready = await prepare(source, targets, options);
  const { opened, plan, checkpoint } = ready;
  try {
    // Only these must be kept in memory: any other source is asked again.
    const needsDigests = options.verify === true && source.hashOf === undefined;
    const digests = needsDigests ? { digests: new PieceDigests() } : {};
    const writing = { ...options, ...digests, ...(checkpoint === undefined ? {} : { checkpoint }) };
    const written = await writePlan(source, plan, writing);
    if (options.verify === true) await verifyWritten(source, plan, { written, ...writing });
    if (options.resume !== undefined) await dropProgress(options.resume.path);
    return { ...written.result, bytesLeftOut: opened.leftOutBytes };
  } finally {
    await opened.close();
  }
}

/**
 * Finds out what `restore` would do and whether it would be refused, and writes and makes nothing. Targets are opened
 * and claimed for as long as that takes.
 *
 * @throws {RestoreError} as `restore` before its first write.
 */
export async function planOnly<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  targets: readonly TargetRequest[],
  options: WholeRestoreOptions,
): Promise<PlannedRestore & { readonly summary: PlanSummary }> {
  const { opened, plan, planned, before } = await prepare(source, targets, { ...options, isDryRun: true });
  try {
    const { leftOutBytes } = opened;
    return { ...planned, summary: summarise(source, plan, { leftOutBytes, before }) };
  } finally {
    await opened.close();
  }
}

interface Ready {
  readonly opened: OpenTargets;
  readonly plan: RestorePlan;
  readonly planned: PlannedRestore;
  readonly before: TrackSet;
  readonly checkpoint: RestoreCheckpoint | undefined;
}

/** Everything that comes before the first write. */
async function prepare<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  requests: readonly TargetRequest[],
  options: WholeRestoreOptions,
): Promise<Ready> {
  const layout = options.layout ?? wholeVolume(source);
  const opened = await openTargets(requests, layout, options);
  try {
    const { table } = opened;
    const plan = planRestore(source, table, opened.targets);
    const { resume } = options;
    const identity = resume === undefined ? undefined : identityOf(resume.set, source, { table, plan });
    const before = (await writtenBefore(source, plan, { options, identity })) ?? TrackSet.empty();
    const planned = { table, targets: requests.map((request) => withSize(request, opened)) };
    const ready = { opened, plan, planned, before };
    if (options.isDryRun === true) return { ...ready, checkpoint: undefined };
    await options.onPlanned?.(planned);
    return { ...ready, checkpoint: await beginProgress(options, identity, before) };
  } catch (error) {
    await opened.discard();
    throw error;
  }
}

/** The volume as a whole, behind whose used part a target may end. */
export function wholeVolume(
  source: RestoreSource,
): Extract<TargetLayout, { readonly sequenceBytes: number }> {
  const { sizeBytes, trackSizeBytes } = source;
  const last = TrackSet.union([source.tracks(), source.lost?.() ?? TrackSet.empty()]).last;
  const usedBytes = last === undefined ? 0 : Math.min(sizeBytes, (last + 1) * trackSizeBytes);
  return { sequenceBytes: sizeBytes, usedBytes };
}

/** With the size of the file where one is made, so that it is made as large by whoever uses the table later. */
function withSize(request: TargetRequest, opened: OpenTargets): TargetRequest {
  const target = opened.targets.find(({ name }) => name === request.name);
  if (target?.createdIn === undefined) return request;
  return { ...request, sizeBytes: target.device.sizeBytes };
}

/** The tracks that an interrupted run has written, where the targets are still as it left them. */
async function writtenBefore<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  of: { readonly options: WholeRestoreOptions; readonly identity: RestoreIdentity | undefined },
): Promise<TrackSet | undefined> {
  const { options, identity } = of;
  if (options.resume === undefined || identity === undefined) return undefined;
  const { path } = options.resume;
  const before = await readProgress(path, identity, plan.targets);
  if (before === undefined) return undefined;
  const tracks = before.intersection(plan.tracks);
  const [first] = await findDifferences(source, plan, {
    readers: writerCount(options),
    tracks: sampleOf(tracks),
    tracksOnly: true,
  });
  if (first === undefined) return tracks;
  throw changed(first.target, `has changed at byte ${first.offsetBytes}`, path);
}

/** Tracks that are looked at before a restore goes on. */
const SAMPLE_TRACKS = 256;

/** So many of the tracks, evenly over all of them, the last one among them. */
function sampleOf(tracks: TrackSet): TrackSet {
  const step = Math.max(1, Math.floor(tracks.size / SAMPLE_TRACKS));
  const sample = TrackSet.empty();
  let index = 0;
  for (const track of tracks) {
    if (index % step === 0) sample.add(track);
    index += 1;
  }
  if (tracks.last !== undefined) sample.add(tracks.last);
  return sample;
}

/** The file says that nothing was written before anything is, so that the targets are known by it from then on. */
async function beginProgress(
  options: WholeRestoreOptions,
  identity: RestoreIdentity | undefined,
  before: TrackSet,
): Promise<RestoreCheckpoint | undefined> {
  const { resume } = options;
  if (resume === undefined || identity === undefined) {
    for (const path of options.staleProgressFiles ?? []) await dropProgress(path);
    return undefined;
  }
  const { path, everyBytes = LIMITS.restoreCheckpointBytes } = resume;
  await writeProgress(path, identity, before);
  return { before, everyBytes, record: (durable) => writeProgress(path, identity, durable) };
}

async function verifyWritten<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  options: WholeRestoreOptions & { readonly written: Written; readonly digests?: PieceDigests },
): Promise<void> {
  const { signal, onReadBack, digests, written } = options;
  const bytesTotal = plan.dataBytes + plan.zeroBytes;
  try {
    const differences = await findDifferences(source, plan, {
      readers: writerCount(options),
      tracks: written.tracks,
      zeroTracks: written.zeroTracks,
      ...(digests === undefined ? {} : { digests }),
      onRead: (bytesRead) => {
        if (signal?.aborted === true) throw new Cancelled('Cancelled');
        onReadBack?.({ bytesRead, bytesTotal });
      },
    });
    const error = differenceError(differences);
    if (error !== undefined) throw error;
  } catch (error) {
    throw readBackError(error);
  }
}

/** What was written is complete and durable, whatever became of the reading. */
function readBackError(error: unknown): unknown {
  const note = '; all that was to be restored is written';
  const incompleteTargets: readonly string[] = [];
  if (error instanceof Cancelled) {
    return new RestoreError('cancelled', `Reading back was cancelled${note}`, { incompleteTargets });
  }
  if (!(error instanceof TargetFailure)) return error;
  const details = { target: error.target.name, incompleteTargets };
  return new RestoreError('target-failed', error.message + note, details, { cause: error.cause });
}
