/**
 * Which logs a member has, and which logs there are on all members together.
 *
 * A log of a member is the newest generation of its segments that is complete; what is left of an older or of an
 * unfinished one is a remnant, and so is a log without its first segment, which goes first when a log is removed.
 *
 * Where two members have different logs of one number, one of them was lost before the other began its own: the later
 * one counts.
 */

import { present } from '../base/index.ts';
import type { SegmentHeader } from './format.ts';
import type { FoundSegment, Member } from './member.ts';

/** One log on one member. */
export interface MemberLog {
  readonly member: Member;
  /** By number. */
  readonly segments: readonly FoundSegment[];
  readonly first: SegmentHeader;
}

/** One log, on the members that have it. */
export interface Log {
  readonly number: number;
  readonly id: string;
  readonly startPoint: string;
  readonly pointMs: number;
  readonly beganMs: number;
  /** The sequence number that its first record follows, or less where a later log follows an earlier record. */
  readonly previous: number;
  /** Not 0 where one of the members has it compacted. */
  readonly compactedMs: number;
  /** Not empty. */
  readonly copies: readonly MemberLog[];
}

export interface MemberLogs {
  /** Ascending by number. */
  readonly logs: readonly MemberLog[];
  /** What nobody needs any more. */
  readonly remnants: readonly FoundSegment[];
}

/** Sorts out the segments of one member. */
export function logsOf(member: Member, found: readonly FoundSegment[]): MemberLogs {
  const byLog = groupBy(found, ({ header }) => `${header.logNumber} ${header.logId}`);
  const logs: MemberLog[] = [];
  const remnants: FoundSegment[] = [];
  for (const segments of byLog.values()) {
    const chosen = wholeGeneration(segments);
    if (chosen !== undefined) {
      const first = present(chosen[0], 'A generation has a first segment').header;
      logs.push({ member, segments: chosen, first });
    }
    for (const segment of segments) if (chosen?.includes(segment) !== true) remnants.push(segment);
  }
  logs.sort((a, b) => a.first.logNumber - b.first.logNumber || a.first.beganMs - b.first.beganMs);
  return { logs, remnants };
}

/** The newest generation that can be used. */
function wholeGeneration(segments: readonly FoundSegment[]): readonly FoundSegment[] | undefined {
  const generations = groupBy(segments, ({ header }) => header.generation);
  for (const generation of [...generations.keys()].toSorted((a, b) => b - a)) {
    const of = (generations.get(generation) ?? []).toSorted(
      (a, b) => a.header.segmentNumber - b.header.segmentNumber,
    );
    const first = of[0]?.header;
    if (first === undefined) continue;
    if (generation === 0 ? first.segmentNumber === 0 : first.segmentCount === of.length) return of;
  }
  return undefined;
}

/** The logs of all members together, ascending by number. */
export function mergeLogs(members: readonly MemberLogs[]): readonly Log[] {
  const byNumber = groupBy(
    members.flatMap(({ logs }) => logs),
    ({ first }) => first.logNumber,
  );
  const logs = [...byNumber.values()]
    .map((all) => {
      const newest = all.reduce((a, b) => (b.first.beganMs > a.first.beganMs ? b : a)).first;
      const copies = all.filter(({ first }) => first.logId === newest.logId);
      return {
        number: newest.logNumber,
        id: newest.logId,
        startPoint: newest.startPoint,
        pointMs: newest.pointMs,
        beganMs: newest.beganMs,
        previous: newest.previous,
        compactedMs: Math.max(...copies.map(({ first }) => first.compactedMs)),
        copies,
      };
    })
    .toSorted((a, b) => a.number - b.number);
  let previous = Number.POSITIVE_INFINITY;
  for (const [index, log] of [...logs.entries()].toReversed()) {
    previous = Math.min(previous, log.previous);
    logs[index] = { ...log, previous };
  }
  return logs;
}

/** What may be read of a log: a later one that follows an earlier record says that the rest was never made durable. */
export function limitOf(logs: readonly Log[], index: number): number {
  return logs[index + 1]?.previous ?? Number.POSITIVE_INFINITY;
}

function groupBy<T, K>(items: readonly T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}

/** The index of the log that begins the epoch after `point`: the first one, where the volume was opened since. */
export function logOfPoint(logs: readonly Log[], point: string): number | undefined {
  const index = logs.findIndex(({ startPoint }) => startPoint === point);
  return index === -1 ? undefined : index;
}
