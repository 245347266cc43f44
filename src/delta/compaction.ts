/**
 * Rewrites a log to the newest content: a record of which every block was replaced by a later one of the same log goes.
 *
 * What comes out at the end of the log is the same; what it was in between is not known any more. Points and sizes stay,
 * and the last record, which the next log follows. The rest keep their numbers. Logs are compacted one by one, since
 * what comes out at the end of each may be asked for.
 */

import { payloadBytesOf, recordBytes, SEGMENT_HEADER_BYTES } from './format.ts';
import { BlockMap, blocksOf } from './block-map.ts';
import { copyRecords, type CopySource, LogCopier } from './log-copy.ts';
import { LogMerge } from './log-merge.ts';
import type { MemberLog } from './log-set.ts';
import type { Entry } from './log-stream.ts';
import { NumberList } from './number-list.ts';

/** Numbers of records that stay, and what they take. */
export interface Kept {
  readonly sequences: ReadonlySet<number>;
  readonly bytes: number;
  /** Of the largest of them. */
  readonly largestBytes: number;
  readonly lastMs: number;
}

/** What has to stay of a log. Takes some 24 bytes of memory for each of its records. */
export async function chooseKept(source: CopySource, trackBytes: number): Promise<Kept> {
  const changes = new Changes();
  const sequences = new Set<number>();
  const { alignBytes } = source.log.copies[0]?.first ?? { alignBytes: SEGMENT_HEADER_BYTES };
  let bytes = 0;
  let largestBytes = 0;
  let last: Entry | undefined;
  const keep = (sequence: number, payloadBytes: number): void => {
    if (sequences.has(sequence)) return;
    sequences.add(sequence);
    const size = recordBytes(payloadBytes, alignBytes);
    bytes += size;
    largestBytes = Math.max(largestBytes, size);
  };
  const merge = new LogMerge(source.log, source.log.previous, source);
  for (let batch = await merge.next(); batch !== undefined; batch = await merge.next()) {
    for (const entry of batch) {
      last = entry;
      if (entry.kind === 'write' || entry.kind === 'zeroes') changes.add(entry);
      else if (entry.kind !== 'flush') keep(entry.sequence, 0);
    }
  }
  if (last !== undefined) keep(last.sequence, payloadBytesOf(last));
  const seen = new BlockMap(trackBytes);
  for (const change of changes.newestFirst()) {
    let isNeeded = false;
    for (const run of blocksOf(change.offsetBytes, change.lengthBytes, trackBytes))
      if (seen.add(run.track, run.first, run.count).length > 0) isNeeded = true;
    if (isNeeded) keep(change.sequence, change.isWrite ? change.lengthBytes : 0);
  }
  return { sequences, bytes, largestBytes, lastMs: last?.timeMs ?? source.log.beganMs };
}

/** Segments that they take at most. */
export function segmentCountFor({ bytes, largestBytes }: Kept, segmentBytes: number): number {
  // A record that does not fit any more leaves the rest of its segment empty.
  return Math.ceil(bytes / Math.max(1, segmentBytes - SEGMENT_HEADER_BYTES - largestBytes));
}

/** Rewrites a member's copy of the log; the old segments go when the new ones are durable. */
export async function rewriteCompacted(source: CopySource, copy: MemberLog, kept: Kept): Promise<void> {
  const { member, segments } = copy;
  const last = segments.at(-1)?.header ?? copy.first;
  const copier = new LogCopier(member, {
    facts: copy.first,
    generation: copy.first.generation + 1,
    segmentNumber: last.segmentNumber + 1,
    previous: source.log.previous,
    compactedMs: kept.lastMs,
  });
  try {
    await copyRecords(source, source.log.previous, copier, {
      choose: ({ sequence }) => kept.sequences.has(sequence),
    });
    await copier.finish();
  } catch (error) {
    await copier.abort();
    throw error;
  }
  await member.remove(segments.map(({ key }) => key));
}

interface Change {
  readonly sequence: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly isWrite: boolean;
}

/** Changes in rows of numbers: an object each would take several times as much. */
class Changes {
  readonly #sequences = new NumberList();
  readonly #offsets = new NumberList();
  /** Negative for zeroes. */
  readonly #lengths = new NumberList();

  add({ sequence, offsetBytes, lengthBytes, kind }: Entry): void {
    this.#sequences.push(sequence);
    this.#offsets.push(offsetBytes);
    this.#lengths.push(kind === 'write' ? lengthBytes : -lengthBytes);
  }

  *newestFirst(): Generator<Change> {
    for (let index = this.#sequences.length - 1; index >= 0; index -= 1) {
      const length = this.#lengths.at(index);
      yield {
        sequence: this.#sequences.at(index),
        offsetBytes: this.#offsets.at(index),
        lengthBytes: Math.abs(length),
        isWrite: length > 0,
      };
    }
  }
}
