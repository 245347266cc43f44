/**
 * Makes a lost member anew from the healthy ones, while they go on.
 *
 *     mark it as a part -> remove what is there -> copy the closed logs, then the open one in rounds
 *       -> writers wait -> copy the rest -> a writer of its own -> no part any more -> takes part
 *
 * A crash in between leaves a part that is known as such, and a member that is still lost.
 */

import { assert } from '../base/index.ts';
import { copyRecords, type CopySource, LogCopier } from './log-copy.ts';
import type { Areas } from './log-stream.ts';
import type { Member } from './member.ts';
import type { RecordRow } from './record-row.ts';
import type { StoreLog } from './store-log.ts';

/** For what came in a round with fewer records the writers wait, and after so many rounds for any. */
const CATCH_UP_RECORDS = 256;
const CATCH_UP_ROUNDS = 8;

/** What a member is made from. */
export interface RecreationSource {
  readonly row: RecordRow;
  /** All logs, the open one last; others may be begun meanwhile. */
  readonly logs: readonly StoreLog[];
  /** A log as it is now; undefined where nothing of it is written yet. */
  readonly find: (log: StoreLog, areas: Areas) => Promise<CopySource | undefined>;
  readonly makeAreas: () => Areas;
  readonly signal: AbortSignal | undefined;
}

/** Removes everything that a member has. */
export async function clearMember(member: Member): Promise<void> {
  await member.setComplete(false);
  await member.removeBlank();
  await member.remove((await member.find()).map(({ key }) => key));
}

/**
 * Copies all logs. Nothing is put any more when it resolves, until the row is let go.
 *
 * @returns the number of the open log's last segment; -1 where it has none yet.
 */
export async function copyLogs(source: RecreationSource, member: Member): Promise<number> {
  let segmentNumber = -1;
  for (let index = 0; index < source.logs.length; index += 1) {
    const log = source.logs[index];
    if (log !== undefined) segmentNumber = await copyLog(source, log, member);
  }
  return segmentNumber;
}

async function copyLog(
  { row, logs, find, makeAreas, signal }: RecreationSource,
  log: StoreLog,
  member: Member,
): Promise<number> {
  const areas = makeAreas();
  let source = await find(log, areas);
  const { first } = source?.log.copies[0] ?? {};
  if (source === undefined || first === undefined) return -1;
  const { previous, compactedMs } = source.log;
  const copier = new LogCopier(member, {
    facts: first,
    generation: 0,
    segmentNumber: 0,
    previous,
    compactedMs,
  });
  const isOpen = (): boolean => log === logs.at(-1);
  try {
    let end = previous;
    for (let round = 0; ; round += 1) {
      const isLast = !isOpen() || row.isHeld;
      const before = end;
      end = await copyRecords(source, end, copier, { signal });
      if (isLast) break;
      if (end - before < CATCH_UP_RECORDS || round > CATCH_UP_ROUNDS) await row.hold();
      source = (await find(log, areas)) ?? source;
    }
    const wanted = isOpen() ? row.sequence : end;
    assert(end >= wanted || log.isDamaged, `Log ${log.number} was copied up to ${end}, wanted ${wanted}`);
    await copier.finish();
    return copier.segmentNumber - 1;
  } catch (error) {
    await Promise.allSettled([copier.abort()]);
    throw error;
  } finally {
    await areas.close();
  }
}
