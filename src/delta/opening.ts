/**
 * What the last owner left on the members: which logs there are, how far they go, what they cover, and which members
 * have all of it.
 *
 * A member that lacks what nobody was told is durable is given it by the others. One that lacks more, or is damaged, is
 * lost, and made anew later; unless none has everything, while all together have: then one is mended at once.
 */

import { CorruptionError } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { PartBudget } from './coverage.ts';
import type { RecordHeader } from './format.ts';
import { copyRecords, LogCopier } from './log-copy.ts';
import { LogMerge, newestFacts } from './log-merge.ts';
import { limitOf, type Log, logsOf, mergeLogs } from './log-set.ts';
import { Areas } from './log-stream.ts';
import type { Member } from './member.ts';
import { StoreLog } from './store-log.ts';

export interface LeftLogs {
  readonly logs: readonly StoreLog[];
  /** The number that the next log may have. */
  readonly nextNumber: number;
  /** The last record. */
  readonly end: number;
  /** The time of the last record; 0 where there is none. */
  readonly lastMs: number;
  /** The volume's, as the logs know it. */
  readonly volumeBytes: number | undefined;
  /** The tracks of changes that may not have been durable. */
  readonly unflushed: TrackSet;
  /** Members that have all of it, durably. */
  readonly usable: readonly Member[];
  readonly lost: ReadonlyMap<Member, unknown>;
}

/** How a member has one log. */
interface Held {
  readonly log: Log;
  readonly limit: number;
  /** The last record that it has; undefined where it lacks the log. */
  readonly end: number | undefined;
  /** The last record that there is. */
  readonly wholeEnd: number;
  readonly failure: unknown;
  readonly verdict: 'whole' | 'behind' | 'bad';
}

/** Looks at what there is, and brings up those that are behind. Removes what nobody needs. */
export async function openLeftLogs(
  members: readonly Member[],
  trackBytes: number,
  budget: PartBudget,
): Promise<LeftLogs> {
  const areas = new Areas();
  try {
    const lost = new Map<Member, unknown>();
    const merged = await findLogs(members, lost);
    const facts = await newestFacts(merged, areas);
    const logs: StoreLog[] = [];
    const unflushed = TrackSet.empty();
    const held = new Map<Member, Held[]>();
    let end = merged[0]?.previous ?? 0;
    for (const [index, log] of merged.entries()) {
      const limit = limitOf(merged, index);
      const storeLog = new StoreLog(log, trackBytes, budget);
      const merge = new LogMerge(log, end, { areas, limit, verifyBeyond: facts.durable });
      for (let batch = await merge.next(); batch !== undefined; batch = await merge.next())
        for (const entry of batch) {
          storeLog.note(entry);
          if (entry.sequence > facts.durable) addTracks(unflushed, entry, trackBytes);
        }
      await merge.finish();
      const required = Math.min(limit, facts.durable);
      storeLog.isDamaged = merge.end < required;
      storeLog.isCompacted = log.compactedMs > 0;
      logs.push(storeLog);
      for (const member of members)
        if (!lost.has(member))
          held.set(member, [...(held.get(member) ?? []), heldBy(member, { log, limit, merge, required })]);
      end = storeLog.isDamaged && merged[index + 1] !== undefined ? limit : merge.end;
    }
    const usable = await bringUp(held, { areas, durable: facts.durable, lost });
    return {
      logs,
      nextNumber: (merged.at(-1)?.number ?? 0) + 1,
      end,
      lastMs: logs.at(-1)?.lastMs ?? 0,
      volumeBytes: facts.volumeBytes,
      unflushed,
      usable: merged.length === 0 ? members.filter((member) => !lost.has(member)) : usable,
      lost,
    };
  } finally {
    await areas.close();
  }
}

function addTracks(
  tracks: TrackSet,
  { kind, offsetBytes, lengthBytes }: Pick<RecordHeader, 'kind' | 'offsetBytes' | 'lengthBytes'>,
  trackBytes: number,
): void {
  if (kind !== 'write' && kind !== 'zeroes') return;
  const first = Math.floor(offsetBytes / trackBytes);
  const last = Math.floor((offsetBytes + lengthBytes - 1) / trackBytes);
  tracks.addRun({ first, count: last - first + 1 });
}

/** The logs on all members; what is left of others is removed. */
async function findLogs(members: readonly Member[], lost: Map<Member, unknown>): Promise<readonly Log[]> {
  const found = [];
  for (const member of members) {
    try {
      await member.removeBlank();
      const logs = logsOf(member, await member.find());
      await member.remove(logs.remnants.map(({ key }) => key));
      found.push(logs);
    } catch (error) {
      lost.set(member, error);
    }
  }
  return mergeLogs(found);
}

function heldBy(
  member: Member,
  {
    log,
    limit,
    merge,
    required,
  }: { readonly log: Log; readonly limit: number; readonly merge: LogMerge; readonly required: number },
): Held {
  const stream = merge.streams.find((one) => one.log.member === member);
  const end = stream?.end;
  const wholeEnd = merge.end;
  // Where all together lack something, nobody is the worse for lacking the same.
  const needed = Math.min(required, wholeEnd);
  const has = end ?? log.previous;
  const isBad = stream?.failure !== undefined || has < needed;
  const isWhole = end !== undefined && end >= wholeEnd;
  return {
    log,
    limit,
    end,
    wholeEnd,
    failure: stream?.failure,
    verdict: isBad ? 'bad' : isWhole ? 'whole' : 'behind',
  };
}

interface BringUp {
  readonly areas: Areas;
  readonly durable: number;
  readonly lost: Map<Member, unknown>;
}

async function bringUp(held: ReadonlyMap<Member, readonly Held[]>, context: BringUp): Promise<Member[]> {
  const { lost, durable } = context;
  const isGood = ([, logs]: readonly [Member, readonly Held[]]): boolean =>
    logs.every(({ verdict }) => verdict !== 'bad');
  const all = [...held];
  const good = all.filter(isGood);
  // None has everything: the first that can be read is mended.
  const chosen =
    good.length > 0
      ? good
      : all.filter(([, logs]) => logs.every((log) => log.failure === undefined)).slice(0, 1);
  const usable: Member[] = [];
  for (const [member, logs] of all) {
    try {
      if (!chosen.some(([one]) => one === member)) throw lossOf(member, logs);
      const left: Held[] = [];
      for (const log of logs)
        if (log.verdict === 'whole' || !(await isReplaced(member, log, context))) left.push(log);
      await syncUnsure(member, left, durable);
      usable.push(member);
    } catch (error) {
      lost.set(member, error);
    }
  }
  return usable;
}

function lossOf(member: Member, logs: readonly Held[]): unknown {
  const bad = logs.find(({ verdict }) => verdict === 'bad');
  if (bad?.failure !== undefined) return bad.failure;
  const what =
    bad?.end === undefined
      ? `lacks log ${bad?.log.number}`
      : `is damaged in log ${bad.log.number} after record ${bad.end}`;
  return new CorruptionError(`Delta member ${member.place} ${what}`, { where: member.place });
}

/**
 * Gives a member what it lacks of a log; or all of the log where a part of it is bad.
 *
 * @returns whether the segments that it had are gone.
 */
async function isReplaced(member: Member, held: Held, { areas, durable }: BringUp): Promise<boolean> {
  const { log, limit } = held;
  const copy = log.copies.find((one) => one.member === member);
  const header = (copy ?? log.copies[0])?.segments.at(-1)?.header;
  if (header === undefined) return false;
  const append = held.verdict === 'behind' && copy?.first.generation === 0;
  const from = append ? (held.end ?? log.previous) : log.previous;
  const copier = new LogCopier(member, {
    facts: header,
    generation: append || copy === undefined ? 0 : copy.first.generation + 1,
    segmentNumber: copy === undefined ? 0 : header.segmentNumber + 1,
    previous: from,
    compactedMs: log.compactedMs,
  });
  try {
    await copyRecords({ log, areas, limit, verifyBeyond: durable }, from, copier);
    await copier.finish();
  } catch (error) {
    await copier.abort();
    throw error;
  }
  if (append || copy === undefined) return false;
  await member.remove(copy.segments.map(({ key }) => key));
  return true;
}

/** A process that was killed leaves in memory what the disk does not have yet; it is about to count as durable. */
async function syncUnsure(member: Member, logs: readonly Held[], durable: number): Promise<void> {
  const unsure = logs.filter(({ wholeEnd, log }) => wholeEnd > durable || log.previous >= durable);
  const opened = [];
  for (const { log } of unsure) {
    const copy = log.copies.find((one) => one.member === member);
    for (const { key } of copy?.segments ?? []) opened.push(await member.open(key));
  }
  await member.sync(opened);
  for (const area of opened) await area.close();
}
