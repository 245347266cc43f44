/**
 * Turns a source, a remap table and opened targets into a plan, and refuses what cannot work.
 *
 * Everything that can be known beforehand is checked here, before the first write: a target that does not
 * fit is refused untouched. A plan says which tracks to read, where the pieces of a track go, and which
 * mapped ranges are zero in the source. Those are zeroed on the target, because a target in use before holds
 * something else there; on a target known to be all zero they are left alone, so that it stays sparse.
 *
 * The plan writes nothing and reads no track.
 */

import { present } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { RestoreError } from './errors.ts';
import type { RemapRow, RemapTable, SourceRange } from './remap-table.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';

/** A device that a remap table names. */
export interface RestoreTarget {
  readonly name: string;
  readonly device: BlockDevice;
  /** The device reads as zeroes throughout: it was created for this restore. */
  readonly knownZero: boolean;
  /** The directory in which the target was created, to be made durable with it. */
  readonly createdIn?: string;
  /** As it was asked for. */
  readonly uri?: string;
  /** Tells the file or device from another one that later has its name, as far as can be seen. */
  readonly identity?: string;
  /** Drops what of the target is cached on this machine and durable; false where that cannot be done. */
  readonly dropCache?: () => Promise<boolean>;
}

/** Bytes of one track and where they go. */
export interface TrackPiece {
  readonly target: RestoreTarget;
  readonly targetOffsetBytes: number;
  readonly offsetInTrackBytes: number;
  readonly lengthBytes: number;
}

/** A range of a target that shall read as zeroes. */
export interface ZeroRange {
  readonly target: RestoreTarget;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What comes to one target. */
export interface TargetShare {
  readonly target: RestoreTarget;
  /** The end of its last row: the smallest size that fits. */
  readonly wantedBytes: number;
  /** Bytes of data that go there. */
  readonly writeBytes: number;
  readonly zeroBytes: number;
  /** Bytes that are zero on both sides. */
  readonly skippedBytes: number;
  /** Bytes that are lost in the source, and left alone. */
  readonly lostBytes: number;
}

export interface RestorePlan {
  /** The targets that the table names, each once. */
  readonly targets: readonly RestoreTarget[];
  /** The tracks to read: mapped and not zero. */
  readonly tracks: TrackSet;
  /** Bytes of those tracks that go to a target. */
  readonly dataBytes: number;
  /** Bytes to be zeroed. */
  readonly zeroBytes: number;
  /** Mapped bytes that are zero in the source and on the target already. */
  readonly skippedBytes: number;
  /** Mapped tracks of which the source knows that it does not have them: they are not touched. */
  readonly lost: TrackSet;
  /** The same by target, in order of the table. */
  readonly shares: readonly TargetShare[];
  /** The pieces of a track, ascending; none for a track that is not mapped. */
  piecesOf(track: number): readonly TrackPiece[];
  /** What `zeroBytes` counts, in source order, adjacent ranges of one target joined. */
  zeroRanges(): Iterable<ZeroRange>;
  /** The mapped bytes of these tracks as ranges of the volume, ascending, adjacent ones joined. */
  rangesOf(tracks: TrackSet): SourceRange[];
}

/**
 * @param targets opened; those that the table does not name are left out of the plan.
 * @throws {RestoreError} `outside-source`, `unknown-target`, `target-too-small`, `target-read-only` or
 *   `misaligned`; nothing has been written then.
 */
export function planRestore<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  table: RemapTable,
  targets: readonly RestoreTarget[],
): RestorePlan {
  checkSource(source, table);
  const byName = new Map(targets.map((target) => [target.name, target]));
  const used = checkTargets(table, byName);
  const { trackSizeBytes } = source;
  const mapped = mappedTracks(table, trackSizeBytes);
  const stored = source.tracks();
  const lost = mapped.intersection(source.lost?.() ?? TrackSet.empty());
  const zeroTracks = mapped.difference(stored).difference(lost);
  const zeroes = (): Generator<ZeroRange> => zeroRangesOf({ source, table, zeroTracks, byName });
  const shares = sharesOf(used, table, { zeroes: zeroes(), lost: rowsOf(table, lost, trackSizeBytes) });
  const sum = (of: (share: TargetShare) => number): number =>
    shares.reduce((bytes, share) => bytes + of(share), 0);
  return {
    targets: used,
    tracks: mapped.intersection(stored),
    dataBytes: sum(({ writeBytes }) => writeBytes),
    zeroBytes: sum(({ zeroBytes }) => zeroBytes),
    skippedBytes: sum(({ skippedBytes }) => skippedBytes),
    lost,
    shares,
    piecesOf: (track) => piecesOf({ track, trackSizeBytes, table, byName }),
    *zeroRanges() {
      for (const range of zeroes()) if (!range.target.knownZero) yield range;
    },
    rangesOf: (tracks) => joined(rowsOf(table, tracks, trackSizeBytes)),
  };
}

function sharesOf(
  used: readonly RestoreTarget[],
  table: RemapTable,
  parts: { readonly zeroes: Iterable<ZeroRange>; readonly lost: Iterable<RemapRow> },
): TargetShare[] {
  const counts = new Map(used.map(({ name }) => [name, { zeroed: 0, lost: 0 }]));
  const countOf = (name: string) => present(counts.get(name), `Target ${name} was not checked`);
  for (const { target, lengthBytes } of parts.zeroes) countOf(target.name).zeroed += lengthBytes;
  for (const { target, lengthBytes } of parts.lost) countOf(target).lost += lengthBytes;
  const rooms = table.roomNeeded();
  return used.map((target) => {
    const { zeroed, lost } = countOf(target.name);
    const { mappedBytes, endBytes } = present(rooms.get(target.name), 'A target that is used has room');
    return {
      target,
      wantedBytes: endBytes,
      writeBytes: mappedBytes - zeroed - lost,
      zeroBytes: target.knownZero ? 0 : zeroed,
      skippedBytes: target.knownZero ? zeroed : 0,
      lostBytes: lost,
    };
  });
}

/** The rows of these tracks, ascending. */
function* rowsOf(table: RemapTable, tracks: TrackSet, trackSizeBytes: number): Generator<RemapRow> {
  for (const { first, count } of tracks.runs()) {
    yield* table.rowsIn({ offsetBytes: first * trackSizeBytes, lengthBytes: count * trackSizeBytes });
  }
}

function joined(rows: Iterable<RemapRow>): SourceRange[] {
  const ranges: { offsetBytes: number; lengthBytes: number }[] = [];
  for (const { sourceOffsetBytes, lengthBytes } of rows) {
    const last = ranges.at(-1);
    if (last !== undefined && last.offsetBytes + last.lengthBytes === sourceOffsetBytes) {
      last.lengthBytes += lengthBytes;
    } else ranges.push({ offsetBytes: sourceOffsetBytes, lengthBytes });
  }
  return ranges;
}

/** Refuses rows that go beyond the volume. */
function checkSource(source: Pick<RestoreSource, 'sizeBytes'>, table: RemapTable): void {
  const last = table.rows.at(-1);
  if (last === undefined || last.sourceOffsetBytes + last.lengthBytes <= source.sizeBytes) return;
  throw new RestoreError(
    'outside-source',
    `Remap row of ${last.lengthBytes} bytes at ${last.sourceOffsetBytes} is outside of the set's volume of ${source.sizeBytes} bytes`,
    {
      offsetBytes: last.sourceOffsetBytes,
      lengthBytes: last.lengthBytes,
      sizeBytes: source.sizeBytes,
    },
  );
}

/** Refuses targets that cannot take their rows; returns those that get any, in order of the table. */
function checkTargets(table: RemapTable, byName: ReadonlyMap<string, RestoreTarget>): RestoreTarget[] {
  const used: RestoreTarget[] = [];
  for (const [name, room] of table.roomNeeded()) {
    const target = byName.get(name);
    if (target === undefined) {
      throw new RestoreError('unknown-target', `Remap table names the target ${name}, which was not given`, {
        target: name,
      });
    }
    const { device } = target;
    if (device.capabilities.readOnly) {
      throw new RestoreError('target-read-only', `Target ${name} (${device.description}) is read-only`, {
        target: name,
      });
    }
    if (room.endBytes > device.sizeBytes) throw targetTooSmall(name, device, room.endBytes);
    used.push(target);
  }
  for (const row of table.rows) checkAlignment(row, byName);
  return used;
}

function targetTooSmall(
  target: string,
  device: BlockDevice,
  wantedBytes: number,
): RestoreError<'target-too-small'> {
  return new RestoreError(
    'target-too-small',
    `Target ${target} (${device.description}) has ${device.sizeBytes} bytes, wanted at least ${wantedBytes}`,
    { target, sizeBytes: device.sizeBytes, wantedBytes },
  );
}

/**
 * All three numbers of a row must be whole blocks of the target: pieces are cut where source tracks end, and
 * only then is every piece writable without reading its neighbours first.
 */
function checkAlignment(row: RemapRow, byName: ReadonlyMap<string, RestoreTarget>): void {
  const target = byName.get(row.target);
  if (target === undefined) return;
  const { blockSizeBytes, description } = target.device;
  const { sourceOffsetBytes, lengthBytes, targetOffsetBytes } = row;
  if ([sourceOffsetBytes, lengthBytes, targetOffsetBytes].every((value) => value % blockSizeBytes === 0))
    return;
  throw new RestoreError(
    'misaligned',
    `Remap row ${sourceOffsetBytes}+${lengthBytes} to ${row.target}:${targetOffsetBytes} is not in whole blocks of ${description}, wanted multiples of ${blockSizeBytes} bytes`,
    { target: row.target, row: { sourceOffsetBytes, lengthBytes, targetOffsetBytes }, blockSizeBytes },
  );
}

/** The tracks that any row touches. */
function mappedTracks(table: RemapTable, trackSizeBytes: number): TrackSet {
  const tracks = TrackSet.empty();
  for (const { sourceOffsetBytes, lengthBytes } of table.rows) {
    const first = Math.floor(sourceOffsetBytes / trackSizeBytes);
    const end = Math.ceil((sourceOffsetBytes + lengthBytes) / trackSizeBytes);
    tracks.addRun({ first, count: end - first });
  }
  return tracks;
}

function targetOf(row: RemapRow, byName: ReadonlyMap<string, RestoreTarget>): RestoreTarget {
  return present(byName.get(row.target), `Target ${row.target} was not checked`);
}

function piecesOf(at: {
  readonly track: number;
  readonly trackSizeBytes: number;
  readonly table: RemapTable;
  readonly byName: ReadonlyMap<string, RestoreTarget>;
}): TrackPiece[] {
  const startBytes = at.track * at.trackSizeBytes;
  const pieces: TrackPiece[] = [];
  for (const row of at.table.rowsIn({ offsetBytes: startBytes, lengthBytes: at.trackSizeBytes })) {
    pieces.push({
      target: targetOf(row, at.byName),
      targetOffsetBytes: row.targetOffsetBytes,
      offsetInTrackBytes: row.sourceOffsetBytes - startBytes,
      lengthBytes: row.lengthBytes,
    });
  }
  return pieces;
}

/** The mapped ranges of tracks without content, adjacent ones on one target joined. */
function* zeroRangesOf(of: {
  readonly source: Pick<RestoreSource, 'trackSizeBytes'>;
  readonly table: RemapTable;
  readonly zeroTracks: TrackSet;
  readonly byName: ReadonlyMap<string, RestoreTarget>;
}): Generator<ZeroRange> {
  const { trackSizeBytes } = of.source;
  let pending: ZeroRange | undefined;
  for (const run of of.zeroTracks.runs()) {
    const range = { offsetBytes: run.first * trackSizeBytes, lengthBytes: run.count * trackSizeBytes };
    for (const row of of.table.rowsIn(range)) {
      const target = targetOf(row, of.byName);
      if (pending?.target === target && pending.offsetBytes + pending.lengthBytes === row.targetOffsetBytes) {
        pending = { ...pending, lengthBytes: pending.lengthBytes + row.lengthBytes };
        continue;
      }
      if (pending !== undefined) yield pending;
      pending = { target, offsetBytes: row.targetOffsetBytes, lengthBytes: row.lengthBytes };
    }
  }
  if (pending !== undefined) yield pending;
}
