/**
 * What shall go where, before the targets are known: a remap table, or the volume over the targets in sequence, whole
 * or in ranges.
 *
 *     whole      |---------volume---------|   over the targets, each filled before the next
 *     ranges        |-B-|      |--D--|        at their own addresses, everything else left alone
 *     packed     |-B-|--D--|                  the ranges alone, one after the other from 0
 *
 * Targets that are smaller than the volume do where everything behind their end is zero: that is left out, and
 * counted. Ranges and tables say themselves what is wanted, and nothing of them is left out.
 *
 * Pure: sizes in, a table out. `targets.ts` opens what the table goes to.
 */

import { LIMITS } from '../base/index.ts';
import { RestoreError } from './errors.ts';
import { type RemapRow, RemapTable, type SizedTarget, type SourceRange } from './remap-table.ts';

/** The volume over the targets in sequence. */
export interface VolumeLayout {
  /** Bytes of the volume. */
  readonly sequenceBytes: number;
  /** From here on the volume is zero; `sequenceBytes` when absent. */
  readonly usedBytes?: number;
  /** The ranges of the volume that are restored; all of it when absent. In the order in which they are packed. */
  readonly ranges?: readonly SourceRange[];
  /** Put the ranges one after the other from 0, and not at their own addresses. */
  readonly pack?: boolean;
}

/** What a remap table says, or the part of it whose source lies in the ranges. */
export interface TableLayout {
  readonly table: RemapTable;
  readonly ranges?: readonly SourceRange[];
}

export type TargetLayout = TableLayout | VolumeLayout;

/** A layout of which all is known but the sizes of the targets. */
export interface SettledLayout {
  /** Room wanted of all targets together that have no room of their own; 0 where `rooms` says it of each. */
  readonly spaceBytes: number;
  /** The room that each target must have, by name; undefined where they are filled in sequence. */
  readonly rooms: ReadonlyMap<string, number> | undefined;
  /**
   * The table for targets of these sizes, and the bytes of the volume that it leaves out, all of them zero.
   *
   * @throws {RestoreError} `target-too-small`.
   */
  tableFor(targets: readonly SizedTarget[]): { readonly table: RemapTable; readonly leftOutBytes: number };
}

/** @throws {RestoreError} `bad-table` for ranges that are not whole blocks or meet, `outside-source`. */
export function settleLayout(layout: TargetLayout): SettledLayout {
  const { ranges } = layout;
  if ('table' in layout) {
    if (ranges !== undefined) checkRanges(ranges, Number.MAX_SAFE_INTEGER);
    const table = ranges === undefined ? layout.table : sliceTable(layout.table, ranges);
    const rooms = new Map([...table.roomNeeded()].map(([name, room]) => [name, room.endBytes]));
    return { spaceBytes: 0, rooms, tableFor: () => ({ table, leftOutBytes: 0 }) };
  }
  const { sequenceBytes } = layout;
  if (ranges === undefined) {
    return {
      spaceBytes: sequenceBytes,
      rooms: undefined,
      tableFor: (targets) => wholeVolume(layout, targets),
    };
  }
  checkRanges(ranges, sequenceBytes);
  const isPacked = layout.pack === true;
  const spaceBytes = isPacked
    ? ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)
    : Math.max(0, ...ranges.map(endOf));
  const tableFor = (targets: readonly SizedTarget[]) => {
    const space = RemapTable.sequence(spaceBytes, targets);
    return { table: isPacked ? packed(space, ranges) : sliceTable(space, ranges), leftOutBytes: 0 };
  };
  return { spaceBytes, rooms: undefined, tableFor };
}

function wholeVolume(
  layout: VolumeLayout,
  targets: readonly SizedTarget[],
): ReturnType<SettledLayout['tableFor']> {
  const { sequenceBytes, usedBytes = sequenceBytes } = layout;
  const roomBytes = targets.reduce((sum, { sizeBytes }) => sum + wholeBlocks(sizeBytes), 0);
  if (roomBytes >= sequenceBytes)
    return { table: RemapTable.sequence(sequenceBytes, targets), leftOutBytes: 0 };
  // What is used does not fit either: this says so, with the bytes wanted.
  const table = RemapTable.sequence(Math.max(roomBytes, usedBytes), targets);
  return { table, leftOutBytes: sequenceBytes - roomBytes };
}

/** A rest of a target below one block takes nothing. */
export function wholeBlocks(sizeBytes: number): number {
  return sizeBytes - (sizeBytes % LIMITS.blockSizeBytesMin);
}

function endOf({ offsetBytes, lengthBytes }: SourceRange): number {
  return offsetBytes + lengthBytes;
}

function sliceTable(table: RemapTable, ranges: readonly SourceRange[]): RemapTable {
  return RemapTable.of(ranges.flatMap((range) => [...table.rowsIn(range)]));
}

/** The ranges in the space that `space` lays over the targets, one after the other. */
function packed(space: RemapTable, ranges: readonly SourceRange[]): RemapTable {
  const rows: RemapRow[] = [];
  let atBytes = 0;
  for (const { offsetBytes, lengthBytes } of ranges) {
    for (const row of space.rowsIn({ offsetBytes: atBytes, lengthBytes })) {
      rows.push({ ...row, sourceOffsetBytes: offsetBytes + row.sourceOffsetBytes - atBytes });
    }
    atBytes += lengthBytes;
  }
  return RemapTable.of(rows);
}

function checkRanges(ranges: readonly SourceRange[], sizeBytes: number): void {
  const block = LIMITS.blockSizeBytesMin;
  const bad = (index: number, { offsetBytes, lengthBytes }: SourceRange, reason: string) =>
    new RestoreError('bad-table', `Range ${offsetBytes}+${lengthBytes} ${reason}`, { row: index, reason });
  for (const [index, range] of ranges.entries()) {
    const { offsetBytes, lengthBytes } = range;
    if (offsetBytes % block !== 0 || lengthBytes % block !== 0 || lengthBytes <= 0) {
      throw bad(index, range, `is not in whole blocks, wanted multiples of ${block} bytes`);
    }
    if (endOf(range) > sizeBytes) {
      throw new RestoreError(
        'outside-source',
        `Range ${offsetBytes}+${lengthBytes} is outside of the set's volume of ${sizeBytes} bytes`,
        { offsetBytes, lengthBytes, sizeBytes },
      );
    }
  }
  const sorted = [...ranges.entries()].sort(([, a], [, b]) => a.offsetBytes - b.offsetBytes);
  for (const [place, [index, range]] of sorted.entries()) {
    const before = sorted[place - 1]?.[1];
    if (before === undefined || endOf(before) <= range.offsetBytes) continue;
    throw bad(
      index,
      range,
      `meets the range ${before.offsetBytes}+${before.lengthBytes}, wanted each byte once`,
    );
  }
}
