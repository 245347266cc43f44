/**
 * One log from all members that have it: each record from a member where it is whole.
 *
 * A record names the one before it. So a gap is seen wherever a member lost something, and another member's record
 * closes it; where a member has the log compacted, what it gave up is no gap, and what another one still has of it does
 * no harm, as records are taken in order.
 */

import type { Log } from './log-set.ts';
import { type Entry, LogStream, type StreamOptions } from './log-stream.ts';

const BATCH_COUNT_MAX = 1024;

export class LogMerge {
  /** The last record that follows without a gap. */
  end: number;
  readonly streams: readonly LogStream[];

  /** @param from the sequence number that is followed. */
  constructor(log: Log, from: number, options: StreamOptions) {
    this.end = from;
    this.streams = log.copies.map((copy) => new LogStream(copy, options));
  }

  /** The next records; undefined where no member has one that follows. */
  async next(): Promise<readonly Entry[] | undefined> {
    const batch: Entry[] = [];
    while (batch.length < BATCH_COUNT_MAX) {
      const isWaiting = this.#passOver();
      if (isWaiting) {
        // Before the wait: whoever reads along has something to do meanwhile.
        if (batch.length > 0) return batch;
        for (const stream of this.streams) if (stream.needsFill) await stream.fill();
        continue;
      }
      const next = this.#nextEntry();
      if (next === undefined) break;
      batch.push(next);
      this.end = next.sequence;
    }
    return batch.length === 0 ? undefined : batch;
  }

  /** Reads on to the end, for what the streams know then: how far each member has the log. */
  async finish(): Promise<void> {
    for (const stream of this.streams) {
      for (;;) {
        while (stream.head !== undefined) stream.shift();
        if (!stream.needsFill) break;
        await stream.fill();
      }
    }
  }

  async stop(): Promise<void> {
    for (const stream of this.streams) await stream.stop();
  }

  /** Leaves behind what was taken from another member. @returns whether a member has to read on first. */
  #passOver(): boolean {
    let isWaiting = false;
    for (const stream of this.streams) {
      for (let head = stream.head; head !== undefined && head.sequence <= this.end; head = stream.head)
        stream.shift();
      isWaiting ||= stream.needsFill;
    }
    return isWaiting;
  }

  #nextEntry(): Entry | undefined {
    let next: Entry | undefined;
    for (const { head } of this.streams) {
      if (head === undefined || head.previous > this.end) continue;
      if (next === undefined || head.sequence < next.sequence) next = head;
    }
    return next;
  }
}

/** What the newest records say: how far everything was durable, and how large the volume is. */
export interface NewestFacts {
  readonly durable: number;
  /** Undefined where no record tells; a segment's header does then. */
  readonly volumeBytes: number | undefined;
}

/** Looks for them in the last log that has any record. */
export async function newestFacts(logs: readonly Log[], areas: StreamOptions['areas']): Promise<NewestFacts> {
  for (const [index, log] of [...logs.entries()].toReversed()) {
    const limit = logs[index + 1]?.previous ?? Number.POSITIVE_INFINITY;
    let hasRecords = false;
    let durable = 0;
    let volumeBytes: number | undefined;
    for (const copy of log.copies) {
      const stream = new LogStream(copy, { areas, limit, verifyBeyond: Number.POSITIVE_INFINITY });
      for (;;) {
        for (let head = stream.head; head !== undefined; head = stream.head) {
          hasRecords = true;
          durable = Math.max(durable, head.durable);
          if (head.kind === 'size') volumeBytes = Math.max(volumeBytes ?? 0, head.lengthBytes);
          stream.shift();
        }
        if (!stream.needsFill) break;
        await stream.fill();
      }
    }
    if (hasRecords) return { durable, volumeBytes };
  }
  return { durable: 0, volumeBytes: undefined };
}
