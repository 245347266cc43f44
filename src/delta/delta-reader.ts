/**
 * Reads the logs of a volume from the places that keep them: for another process than the one that writes them, and
 * where nobody does any more.
 *
 * It needs no locks. Of a store that is being written it sees what was there when it was opened, and of the open log
 * what comes in order up to where it stops. Each record is taken from a member where it is whole; damage that another
 * member makes good is told, damage that none does is an error, and so is a log that is missing. What a crash cut off
 * at the end was never durable, and is not there.
 */

import { assert, CorruptionError, messageOf, present } from '../base/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { DeltaIndex } from './delta-index.ts';
import { DeltaError } from './errors.ts';
import type { RecordKind, SegmentHeader } from './format.ts';
import { payloadOf } from './log-copy.ts';
import { LogMerge, newestFacts } from './log-merge.ts';
import { limitOf, type Log, logOfPoint, logsOf, mergeLogs } from './log-set.ts';
import { Areas, type Entry, readPayload } from './log-stream.ts';
import { type Member, openMember } from './member.ts';

export interface DeltaVolume {
  readonly volumeId: string;
  readonly name: string;
  /** The newest that the logs know. */
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
}

export interface DeltaPoint {
  /** Empty for the beginning of the volume. */
  readonly point: string;
  readonly createdMs: number;
  /** The number of the first record after it. */
  readonly sequence: number;
}

/** Up to where records are taken; to the end where nothing is said. */
export interface DeltaUntil {
  /** Records of this time and later are left out. */
  readonly beforeMs?: number | undefined;
  /** Records of a higher sequence number are left out. */
  readonly upTo?: number | undefined;
  /** Records from the log on that begins at this point are left out. */
  readonly point?: string | undefined;
}

export interface DeltaRecord {
  readonly kind: RecordKind;
  readonly sequence: number;
  readonly timeMs: number;
  /** Of a change. */
  readonly offsetBytes: number;
  /** Of a change; of a size, the volume's. */
  readonly lengthBytes: number;
  /** Of a point. */
  readonly point?: string;
  /** Of a write: fills `target`, which is as long as the change. @throws {CorruptionError} where no member has it whole. */
  read(target: Buffer): Promise<void>;
}

export interface DeltaReaderOptions {
  readonly registry: Pick<DeviceRegistry, 'open'>;
  /** Whose logs; the one volume's that is there where left out. */
  readonly volumeId?: string | undefined;
  /** Is told of damage that another member makes good, and of places that cannot be read, a sentence each. */
  readonly onDamage?: ((sentence: string) => void) | undefined;
}

export class DeltaReader {
  readonly volume: DeltaVolume;
  /** What the logs begin at, oldest first. */
  readonly points: readonly DeltaPoint[];
  readonly #members: readonly Member[];
  readonly #logs: readonly Log[];
  /** Everything up to here was durable. */
  readonly #durable: number;
  readonly #areas: Areas;
  readonly #onDamage: (sentence: string) => void;
  readonly #told = new Set<string>();

  private constructor(parts: {
    readonly members: readonly Member[];
    readonly logs: readonly Log[];
    readonly areas: Areas;
    readonly durable: number;
    readonly volumeBytes: number | undefined;
    readonly onDamage: (sentence: string) => void;
  }) {
    this.#members = parts.members;
    this.#logs = parts.logs;
    this.#areas = parts.areas;
    this.#durable = parts.durable;
    this.#onDamage = parts.onDamage;
    const header = newestHeader(parts.logs);
    this.volume = {
      volumeId: header.volumeId,
      name: header.volumeName,
      sizeBytes: Math.max(header.volumeBytes, parts.volumeBytes ?? 0),
      trackSizeBytes: header.trackSizeBytes,
    };
    this.points = pointsOf(parts.logs);
  }

  /**
   * Opens the logs that are in these places.
   *
   * @throws {DeltaError} 'no-logs', 'wrong-volume', 'member-unusable'; what opening the only place failed with.
   */
  static async open(places: readonly string[], options: DeltaReaderOptions): Promise<DeltaReader> {
    const { registry, onDamage = () => undefined } = options;
    const failures: unknown[] = [];
    const members: Member[] = [];
    let { volumeId } = options;
    for (const place of places) {
      try {
        const member = await openMember({ place, volumeId, readOnly: true, registry });
        members.push(member);
        volumeId ??= member.volumeIds[0];
      } catch (error) {
        failures.push(error);
        onDamage(messageOf(error));
      }
    }
    const areas = new Areas();
    try {
      const logs = mergeLogs(await logsOfAll(members, onDamage));
      if (logs.length === 0) throw failures[0] ?? noLogs(places);
      const { durable, volumeBytes } = await newestFacts(logs, areas);
      return new DeltaReader({ members, logs, areas, durable, volumeBytes, onDamage });
    } catch (error) {
      await areas.close();
      for (const member of members) await member.close();
      throw error;
    }
  }

  /**
   * The records in order, from the log that begins at `startPoint`.
   *
   * @throws {DeltaError} 'delta-gap' where the logs do not reach back to the point or on to `until.point`,
   *   'delta-compacted' where what was at `until.beforeMs` was given up.
   * @throws {CorruptionError} where a part is damaged on all members.
   */
  async *records(startPoint: string, until: DeltaUntil = {}): AsyncGenerator<DeltaRecord> {
    for await (const { log, limit, batch } of this.#batches(startPoint, until)) {
      for (const entry of batch) yield this.#recordOf(entry, log, limit);
    }
  }

  /** What the records leave of each track. @throws as `records` does. */
  async index(startPoint: string, until: DeltaUntil = {}): Promise<DeltaIndex> {
    const begun = this.#logsBetween(startPoint, until).filter(
      ({ beganMs }) => until.beforeMs === undefined || beganMs < until.beforeMs,
    );
    const sizes = begun.flatMap(({ copies }) => copies.map(({ first }) => first.volumeBytes));
    const index = new DeltaIndex({
      trackBytes: this.volume.trackSizeBytes,
      volumeBytes: Math.max(0, ...sizes),
      areas: this.#areas,
      onDamage: (sentence) => this.#tell(sentence),
    });
    for await (const { log, limit, batch } of this.#batches(startPoint, until)) index.add(log, limit, batch);
    index.finish();
    return index;
  }

  /** Whether the logs begin at this point. */
  has(startPoint: string): boolean {
    return logOfPoint(this.#logs, startPoint) !== undefined;
  }

  async close(): Promise<void> {
    await this.#areas.close();
    for (const member of this.#members) await member.close();
  }

  async *#batches(
    startPoint: string,
    until: DeltaUntil,
  ): AsyncGenerator<{ readonly log: Log; readonly limit: number; readonly batch: readonly Entry[] }> {
    const logs = this.#logsBetween(startPoint, until);
    const { beforeMs = Number.POSITIVE_INFINITY, upTo = Number.POSITIVE_INFINITY } = until;
    let end = logs[0]?.previous ?? 0;
    for (const log of logs) {
      const limit = limitOf(this.#logs, this.#logs.indexOf(log));
      const merge = new LogMerge(log, end, { areas: this.#areas, limit, verifyBeyond: this.#durable });
      try {
        for (let batch = await merge.next(); batch !== undefined; batch = await merge.next()) {
          const last = batch.at(-1);
          const isCut = last !== undefined && (last.timeMs >= beforeMs || last.sequence > upTo);
          const isTaken = ({ timeMs, sequence }: Entry): boolean => timeMs < beforeMs && sequence <= upTo;
          yield { log, limit, batch: isCut ? batch.filter(isTaken) : batch };
          if (isCut) return;
        }
        end = merge.end;
        this.#judge(log, merge, Math.min(limit, Math.max(this.#durable, until.upTo ?? 0)));
      } finally {
        await merge.stop();
      }
      // What comes later was never durable either.
      if (end < limit) return;
    }
  }

  #logsBetween(startPoint: string, { beforeMs, upTo, point }: DeltaUntil): readonly Log[] {
    const first = logOfPoint(this.#logs, startPoint);
    const end = point === undefined ? this.#logs.length : logOfPoint(this.#logs, point);
    if (first === undefined || end === undefined || end < first) {
      const missing = first === undefined ? startPoint : (point ?? '');
      const name = missing === '' ? 'the beginning of the volume' : `point ${missing}`;
      const message = `The delta logs of volume ${this.volume.name} do not reach to ${name}, wanted a log that begins there`;
      throw new DeltaError('delta-gap', message, { point: missing });
    }
    const logs = this.#logs.slice(first, end);
    for (const [index, { beganMs, compactedMs, previous }] of logs.entries()) {
      const isAskedByTime = beforeMs !== undefined && beforeMs > beganMs && beforeMs <= compactedMs;
      const isAskedByNumber =
        upTo !== undefined && upTo > previous && upTo < limitOf(this.#logs, first + index);
      if (compactedMs === 0 || !(isAskedByTime || isAskedByNumber)) continue;
      const wanted =
        beforeMs === undefined ? `record ${upTo}` : `what was before ${new Date(beforeMs).toISOString()}`;
      const message = `Delta logs of volume ${this.volume.name} were compacted up to ${new Date(compactedMs).toISOString()}, wanted ${wanted}`;
      throw new DeltaError('delta-compacted', message, { wantedMs: beforeMs ?? 0, keptMs: compactedMs });
    }
    return logs;
  }

  /** A log was read to its end: is it whole, and is it on every member? */
  #judge(log: Log, merge: LogMerge, required: number): void {
    const failure = merge.streams.find((stream) => stream.failure !== undefined)?.failure;
    if (merge.end < required) {
      if (failure !== undefined) throw failure;
      throw new CorruptionError(
        `Delta log ${log.number} of volume ${this.volume.name} is damaged after record ${merge.end} on every member, wanted records up to ${required}`,
        { where: log.copies.map(({ member }) => member.place).join(', ') },
      );
    }
    for (const { log: copy, end, failure: why } of merge.streams) {
      if (end >= Math.min(required, merge.end) && why === undefined) continue;
      const what = why === undefined ? `is damaged after record ${end}` : `cannot be read: ${messageOf(why)}`;
      this.#tell(`Delta log ${log.number} in ${copy.member.place} ${what}; another member has it whole`);
    }
  }

  #tell(sentence: string): void {
    if (this.#told.has(sentence)) return;
    this.#told.add(sentence);
    this.#onDamage(sentence);
  }

  #recordOf(entry: Entry, log: Log, limit: number): DeltaRecord {
    const { kind, sequence, timeMs, offsetBytes, lengthBytes, point } = entry;
    return {
      kind,
      sequence,
      timeMs,
      offsetBytes: kind === 'point' ? 0 : offsetBytes,
      lengthBytes,
      ...(kind === 'point' ? { point } : {}),
      read: async (target) => {
        assert(kind === 'write' && target.length === lengthBytes, `A record of ${kind} is read`);
        if (await readPayload(this.#areas, entry, target)) return;
        (await payloadOf({ log, areas: this.#areas, limit }, entry)).copy(target);
        this.#tell(
          `Delta record ${sequence} in ${entry.member.place} is damaged; another member has it whole`,
        );
      },
    };
  }
}

/** What is on each member; one that is being made anew does not count beside others. */
async function logsOfAll(
  members: readonly Member[],
  onDamage: (sentence: string) => void,
): Promise<ReturnType<typeof logsOf>[]> {
  const found: ReturnType<typeof logsOf>[] = [];
  for (const member of members) {
    try {
      if (!(await member.isComplete()))
        throw new DeltaError(
          'member-unusable',
          `Delta place ${member.place} is a part of what it was to become when it was made anew`,
          { place: member.place },
        );
      found.push(logsOf(member, await member.find()));
    } catch (error) {
      if (members.length === 1) throw error;
      onDamage(messageOf(error));
    }
  }
  return found;
}

function noLogs(places: readonly string[]): DeltaError {
  return new DeltaError('no-logs', `No delta logs are in ${places.join(', ')}, wanted those of a volume`, {
    places,
  });
}

function newestHeader(logs: readonly Log[]): SegmentHeader {
  const last = present(logs.at(-1), 'There are logs');
  const headers = last.copies.flatMap(({ segments }) => segments.map(({ header }) => header));
  return headers.reduce((a, b) => (b.volumeBytes > a.volumeBytes ? b : a));
}

function pointsOf(logs: readonly Log[]): DeltaPoint[] {
  const points: DeltaPoint[] = [];
  for (const { startPoint, pointMs, previous } of logs) {
    if (points.some(({ point }) => point === startPoint)) continue;
    points.push({ point: startPoint, createdMs: pointMs, sequence: previous + 1 });
  }
  return points;
}
