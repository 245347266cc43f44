/**
 * The remap table: what goes where on a restore, in bytes.
 *
 * A row sends one extent of the set's volume to an address of a target. Because every stored track carries
 * its place, the table lets the store be read in any order, by any number of writers: each track finds its
 * destination by itself.
 *
 *     volume   |--A--|     |--B--|  |C|
 *                 \  ______/   ______/
 *     target a    |/|--B--|  |C|         rows: B > a:0, C > a:9 ...
 *
 * Rules, checked when a table is made:
 *
 * - the unit is the 512-byte block, finer than a track: an object that owns single blocks of a track is
 *   restored without its neighbours;
 * - each byte of a target is written at most once, so the order of writes cannot matter;
 * - each byte of the source goes to at most one place. Copies of a restored extent are made from the target,
 *   where that is cheaper and does not read the store twice;
 * - source bytes that no row names are not restored, target bytes that no row names are not touched.
 *
 * The table does not know the size of the volume or of the targets: `planner.ts` checks those.
 */

import { LIMITS } from '../base/index.ts';
import { RestoreError } from './errors.ts';

/** One extent of the source and where it goes. All numbers are multiples of 512. */
export interface RemapRow {
  readonly sourceOffsetBytes: number;
  readonly lengthBytes: number;
  /** The name of the target. */
  readonly target: string;
  readonly targetOffsetBytes: number;
}

/** A range of bytes of the source. */
export interface SourceRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** The room a table wants on one target. */
export interface TargetRoom {
  /** Bytes written. */
  readonly mappedBytes: number;
  /** The end of the last row: the smallest size that fits. */
  readonly endBytes: number;
}

/** A target and its size, for tables made from sizes. */
export interface SizedTarget {
  readonly name: string;
  readonly sizeBytes: number;
}

export class RemapTable {
  /** Sorted by source, adjacent ones joined to extents. */
  readonly rows: readonly RemapRow[];

  private constructor(rows: readonly RemapRow[]) {
    this.rows = rows;
  }

  /**
   * Checks, sorts and joins rows, given in any order.
   *
   * @throws {RestoreError} `bad-table` for a row that is no range of 512-byte blocks, two rows that share
   *   source or target bytes, or too many rows; `row` in its details is the index in `rows`.
   */
  static of(rows: Iterable<RemapRow>): RemapTable {
    const indexed: IndexedRow[] = [];
    for (const row of rows) {
      if (indexed.length === LIMITS.remapRowCountMax) {
        throw badTable(indexed.length, `is one more than the limit of ${LIMITS.remapRowCountMax} rows`);
      }
      checkRow(row, indexed.length);
      indexed.push({ row, index: indexed.length });
    }
    indexed.sort(byTarget);
    refuseOverlaps(indexed, 'target');
    indexed.sort((a, b) => a.row.sourceOffsetBytes - b.row.sourceOffsetBytes);
    refuseOverlaps(indexed, 'source');
    return new RemapTable(joinAdjacent(indexed.map((entry) => entry.row)));
  }

  /** Each byte to its own address on one target; `range` is the whole volume or a part of it. */
  static identity(target: string, range: SourceRange): RemapTable {
    if (range.lengthBytes === 0) return RemapTable.of([]);
    return RemapTable.of([
      {
        sourceOffsetBytes: range.offsetBytes,
        lengthBytes: range.lengthBytes,
        target,
        targetOffsetBytes: range.offsetBytes,
      },
    ]);
  }

  /**
   * The volume laid over several targets one after the other, each filled before the next. A rest of a
   * target below 512 bytes is left out; targets beyond the end of the volume get nothing.
   *
   * @throws {RestoreError} `target-too-small` when they do not hold `sizeBytes` together.
   */
  static sequence(sizeBytes: number, targets: readonly SizedTarget[]): RemapTable {
    const rows: RemapRow[] = [];
    let offsetBytes = 0;
    for (const { name, sizeBytes: roomBytes } of targets) {
      const wholeBytes = roomBytes - (roomBytes % LIMITS.blockSizeBytesMin);
      const lengthBytes = Math.min(wholeBytes, sizeBytes - offsetBytes);
      if (lengthBytes <= 0) continue;
      rows.push({ sourceOffsetBytes: offsetBytes, lengthBytes, target: name, targetOffsetBytes: 0 });
      offsetBytes += lengthBytes;
    }
    if (offsetBytes < sizeBytes) {
      const names = targets.map((target) => target.name).join(', ');
      throw new RestoreError(
        'target-too-small',
        `Restore needs ${sizeBytes} bytes, the targets ${names} hold ${offsetBytes} together`,
        { target: names, sizeBytes: offsetBytes, wantedBytes: sizeBytes },
      );
    }
    return RemapTable.of(rows);
  }

  /** The part of the table whose source lies in `range`, with the same destinations. */
  slice(range: SourceRange): RemapTable {
    return RemapTable.of(this.rowsIn(range));
  }

  /** The rows that meet `range`, cut to it, ascending by source. */
  *rowsIn(range: SourceRange): Generator<RemapRow> {
    const endBytes = range.offsetBytes + range.lengthBytes;
    for (let index = this.#firstEndingAfter(range.offsetBytes); index < this.rows.length; index += 1) {
      const row = this.rows[index];
      if (row === undefined || row.sourceOffsetBytes >= endBytes) return;
      const startBytes = Math.max(row.sourceOffsetBytes, range.offsetBytes);
      const cutBytes = startBytes - row.sourceOffsetBytes;
      yield {
        sourceOffsetBytes: startBytes,
        lengthBytes: Math.min(row.sourceOffsetBytes + row.lengthBytes, endBytes) - startBytes,
        target: row.target,
        targetOffsetBytes: row.targetOffsetBytes + cutBytes,
      };
    }
  }

  /** Bytes that the table restores. */
  get mappedBytes(): number {
    return this.rows.reduce((sum, row) => sum + row.lengthBytes, 0);
  }

  /** The room wanted on each target, known before anything is read or written. */
  roomNeeded(): Map<string, TargetRoom> {
    const rooms = new Map<string, TargetRoom>();
    for (const row of this.rows) {
      const room = rooms.get(row.target) ?? { mappedBytes: 0, endBytes: 0 };
      rooms.set(row.target, {
        mappedBytes: room.mappedBytes + row.lengthBytes,
        endBytes: Math.max(room.endBytes, row.targetOffsetBytes + row.lengthBytes),
      });
    }
    return rooms;
  }

  /** The index of the first row that ends after `offsetBytes`, by bisection. */
  #firstEndingAfter(offsetBytes: number): number {
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const row = this.rows[middle];
      if (row !== undefined && row.sourceOffsetBytes + row.lengthBytes <= offsetBytes) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

interface IndexedRow {
  readonly row: RemapRow;
  readonly index: number;
}

function badTable(row: number, reason: string): RestoreError<'bad-table'> {
  return new RestoreError('bad-table', `Remap row ${row} ${reason}`, { row, reason });
}

function checkRow(row: RemapRow, index: number): void {
  const block = LIMITS.blockSizeBytesMin;
  const fields = {
    'source offset': row.sourceOffsetBytes,
    length: row.lengthBytes,
    'target offset': row.targetOffsetBytes,
  };
  for (const [name, value] of Object.entries(fields)) {
    if (!Number.isSafeInteger(value) || value < 0 || value % block !== 0) {
      throw badTable(index, `has the ${name} ${value}, wanted a multiple of ${block} bytes`);
    }
  }
  if (row.lengthBytes === 0) throw badTable(index, 'has the length 0, wanted at least one block');
  const endBytes = Math.max(row.sourceOffsetBytes, row.targetOffsetBytes) + row.lengthBytes;
  if (!Number.isSafeInteger(endBytes)) throw badTable(index, `ends beyond ${Number.MAX_SAFE_INTEGER} bytes`);
}

function byTarget(a: IndexedRow, b: IndexedRow): number {
  if (a.row.target !== b.row.target) return a.row.target < b.row.target ? -1 : 1;
  return a.row.targetOffsetBytes - b.row.targetOffsetBytes;
}

/** Refuses the first overlap of neighbours in `sorted`, which is sorted by the named side. */
function refuseOverlaps(sorted: readonly IndexedRow[], side: 'source' | 'target'): void {
  let before: IndexedRow | undefined;
  for (const entry of sorted) {
    if (before !== undefined && overlaps(before.row, entry.row, side)) {
      const place = side === 'source' ? 'source' : `target ${entry.row.target}`;
      const offsetBytes = side === 'source' ? entry.row.sourceOffsetBytes : entry.row.targetOffsetBytes;
      const [first, second] = [before.index, entry.index].sort((a, b) => a - b);
      throw badTable(
        second ?? entry.index,
        `meets row ${first} at byte ${offsetBytes} of the ${place}, wanted each byte at most once`,
      );
    }
    before = entry;
  }
}

/** Whether `next`, which starts no earlier than `row`, shares bytes with it. */
function overlaps(row: RemapRow, next: RemapRow, side: 'source' | 'target'): boolean {
  if (side === 'source') return row.sourceOffsetBytes + row.lengthBytes > next.sourceOffsetBytes;
  return row.target === next.target && row.targetOffsetBytes + row.lengthBytes > next.targetOffsetBytes;
}

/** Joins neighbours in the list that continue each other on both sides. */
export function joinAdjacent(rows: readonly RemapRow[]): RemapRow[] {
  const result: RemapRow[] = [];
  for (const row of rows) {
    const last = result.at(-1);
    if (last !== undefined && continues(last, row)) {
      result[result.length - 1] = { ...last, lengthBytes: last.lengthBytes + row.lengthBytes };
    } else {
      result.push(row);
    }
  }
  return result;
}

function continues(row: RemapRow, next: RemapRow): boolean {
  return (
    row.target === next.target &&
    row.sourceOffsetBytes + row.lengthBytes === next.sourceOffsetBytes &&
    row.targetOffsetBytes + row.lengthBytes === next.targetOffsetBytes
  );
}
