/**
 * When a volume was written, flushed and frozen, from its delta logs: for who looks for the moment before a mistake.
 *
 * Writes that follow each other closely are one burst, and so are flushes that come with nothing between. It only reads
 * the logs, so it works beside the process that serves the volume.
 */

import { LIMITS } from '../base/index.ts';
import { DeltaReader, type DeltaRecord } from '../delta/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { readVolumeIdentity } from '../volume/index.ts';
import { DaemonError } from './errors.ts';

export type HistoryEvent =
  | { readonly kind: 'point'; readonly timeMs: number; readonly point: string; readonly sequence: number }
  /** Everything before the first of them was durable then. */
  | {
      readonly kind: 'flush';
      readonly timeMs: number;
      readonly lastMs: number;
      readonly count: number;
      readonly sequence: number;
    }
  | {
      readonly kind: 'writes';
      readonly timeMs: number;
      readonly lastMs: number;
      readonly writes: number;
      readonly bytes: number;
      readonly tracks: number;
      /** Of the last one. */
      readonly sequence: number;
    };

export interface HistoryOptions {
  /** The volume's, absolute. */
  readonly directory: string;
  /** Places of the logs; those of the volume where left out. */
  readonly deltas?: readonly string[] | undefined;
  readonly fromMs?: number | undefined;
  /** Not included. */
  readonly toMs?: number | undefined;
  /** Writes further apart are two bursts; LIMITS.historyBurstMs where left out. */
  readonly burstMs?: number | undefined;
  readonly registry: DeviceRegistry;
  readonly warn: (sentence: string) => void;
}

/** The events in order. @throws {DaemonError} `no-deltas`; {DeltaError}; {CorruptionError} */
export async function* readHistory(options: HistoryOptions): AsyncGenerator<HistoryEvent> {
  const { directory, registry, warn, fromMs = 0, toMs = Number.POSITIVE_INFINITY } = options;
  const identity = options.deltas === undefined ? await readVolumeIdentity(directory) : undefined;
  const places = options.deltas ?? identity?.deltas?.places.map(({ place }) => place) ?? [];
  if (places.length === 0) {
    const message = `Volume ${directory} keeps no delta logs, wanted one with deltas, or --delta <place>`;
    throw new DaemonError('no-deltas', message, { directory });
  }
  const reader = await DeltaReader.open(places, { registry, volumeId: identity?.volumeId, onDamage: warn });
  try {
    const bursts = new Bursts(reader.volume.trackSizeBytes, options.burstMs ?? LIMITS.historyBurstMs);
    const seen = new Set<string>();
    for await (const record of reader.records(reader.points[0]?.point ?? '')) {
      if (record.timeMs >= toMs) break;
      // Each opening of the volume begins a log at the same point.
      const isAgain = record.kind === 'point' && seen.has(record.point ?? '');
      if (record.kind === 'point') seen.add(record.point ?? '');
      if (record.timeMs < fromMs) continue;
      yield* bursts.add(record);
      if (record.kind !== 'point' || isAgain) continue;
      yield* bursts.end();
      yield { kind: 'point', timeMs: record.timeMs, point: record.point ?? '', sequence: record.sequence };
    }
    yield* bursts.end();
  } finally {
    await reader.close();
  }
}

type Writes = Extract<HistoryEvent, { kind: 'writes' }>;
type Flushes = Extract<HistoryEvent, { kind: 'flush' }>;

/** What may still grow. */
class Bursts {
  readonly #trackBytes: number;
  readonly #burstMs: number;
  #writes: { event: Writes; readonly tracks: TrackSet } | undefined;
  #flushes: Flushes | undefined;

  constructor(trackBytes: number, burstMs: number) {
    this.#trackBytes = trackBytes;
    this.#burstMs = burstMs;
  }

  *add(record: DeltaRecord): Generator<HistoryEvent> {
    const { kind, timeMs, sequence } = record;
    if (kind === 'flush') {
      // Those of a burst say nothing more than the last one does.
      const before = this.#flushes;
      const isNear = before !== undefined && timeMs - before.lastMs <= this.#burstMs;
      if (before !== undefined && !isNear) yield* this.end();
      this.#flushes =
        before !== undefined && isNear
          ? { ...before, lastMs: timeMs, count: before.count + 1, sequence }
          : { kind: 'flush', timeMs, lastMs: timeMs, count: 1, sequence };
    }
    if (kind !== 'write' && kind !== 'zeroes') return;
    const last = Math.max(this.#writes?.event.lastMs ?? 0, this.#flushes?.lastMs ?? 0);
    if (last > 0 && timeMs - last > this.#burstMs) yield* this.end();
    this.#addWrite(record);
  }

  /** What comes next is not part of it. */
  *end(): Generator<HistoryEvent> {
    const ended = [
      this.#writes && { ...this.#writes.event, tracks: this.#writes.tracks.size },
      this.#flushes,
    ];
    this.#writes = undefined;
    this.#flushes = undefined;
    for (const event of ended.filter((one) => one !== undefined).toSorted((a, b) => a.timeMs - b.timeMs))
      yield event;
  }

  #addWrite({ timeMs, sequence, offsetBytes, lengthBytes }: DeltaRecord): void {
    const begun = this.#writes ?? {
      event: { kind: 'writes', timeMs, lastMs: timeMs, writes: 0, bytes: 0, tracks: 0, sequence },
      tracks: TrackSet.empty(),
    };
    const first = Math.floor(offsetBytes / this.#trackBytes);
    const last = Math.floor((offsetBytes + lengthBytes - 1) / this.#trackBytes);
    begun.tracks.addRun({ first, count: last - first + 1 });
    const { writes, bytes } = begun.event;
    const event = {
      ...begun.event,
      lastMs: timeMs,
      writes: writes + 1,
      bytes: bytes + lengthBytes,
      sequence,
    };
    this.#writes = { event, tracks: begun.tracks };
  }
}
