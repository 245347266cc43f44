/**
 * Makes remap rows from two lists in logical order: where an object was, and where its new room is.
 *
 * An object (a file, a partition, a whole volume) is a sequence of logical positions. The set's metadata
 * says at which addresses of the volume the positions were; the allocation says at which addresses of which
 * targets they shall be. The rows are the two lists joined by position, cut wherever either list has a seam:
 *
 *     position     1    2    3    4    5    6
 *     metadata     4    5    20   9    0    13
 *     allocation   2    11   3    7    8    0
 *     rows         4>2  5>11 20>3 9>7  0>8  13>0
 *
 * Both lists may come in any order, for metadata is written as blocks arrive.
 */

import { RestoreError } from './errors.ts';
import { joinAdjacent, type RemapRow, type SourceRange } from './remap-table.ts';

/** Logical bytes of an object and the address in the volume where they were. */
export interface SourceExtent {
  readonly logicalOffsetBytes: number;
  readonly lengthBytes: number;
  readonly offsetBytes: number;
}

/** Logical bytes of an object and the room allocated for them. */
export interface AllocatedExtent extends SourceExtent {
  readonly target: string;
}

/**
 * Joins both lists by logical position. Positions that the metadata leaves out (holes of a sparse object)
 * get no row; room that nothing needs is left over.
 *
 * @returns rows in logical order, adjacent ones joined, for `RemapTable.of`.
 * @throws {RestoreError} `target-too-small` when the allocation does not reach all positions, `bad-table`
 *   when extents of one list share positions.
 */
export function mergeRemap(
  metadata: readonly SourceExtent[],
  allocation: readonly AllocatedExtent[],
): RemapRow[] {
  const sources = inLogicalOrder(metadata, 'metadata');
  const rooms = inLogicalOrder(allocation, 'allocation');
  const wantedBytes = logicalBytes(sources);
  const rows: RemapRow[] = [];
  let index = 0;
  for (const source of sources) {
    const endBytes = source.logicalOffsetBytes + source.lengthBytes;
    for (let positionBytes = source.logicalOffsetBytes; positionBytes < endBytes;) {
      let room = rooms[index];
      while (room !== undefined && room.logicalOffsetBytes + room.lengthBytes <= positionBytes) {
        index += 1;
        room = rooms[index];
      }
      if (room === undefined || room.logicalOffsetBytes > positionBytes) {
        throw noRoom(allocation, { positionBytes, wantedBytes });
      }
      const lengthBytes = Math.min(endBytes, room.logicalOffsetBytes + room.lengthBytes) - positionBytes;
      rows.push({
        sourceOffsetBytes: source.offsetBytes + (positionBytes - source.logicalOffsetBytes),
        lengthBytes,
        target: room.target,
        targetOffsetBytes: room.offsetBytes + (positionBytes - room.logicalOffsetBytes),
      });
      positionBytes += lengthBytes;
    }
  }
  return joinAdjacent(rows);
}

/** The parts of `extents` inside a range of logical positions; positions keep their numbers. */
export function sliceLogical(extents: readonly SourceExtent[], range: SourceRange): SourceExtent[] {
  const rangeEndBytes = range.offsetBytes + range.lengthBytes;
  return extents.flatMap((extent) => {
    const startBytes = Math.max(extent.logicalOffsetBytes, range.offsetBytes);
    const endBytes = Math.min(extent.logicalOffsetBytes + extent.lengthBytes, rangeEndBytes);
    if (startBytes >= endBytes) return [];
    return [
      {
        logicalOffsetBytes: startBytes,
        lengthBytes: endBytes - startBytes,
        offsetBytes: extent.offsetBytes + (startBytes - extent.logicalOffsetBytes),
      },
    ];
  });
}

/** The room that metadata wants, in bytes: known before anything is read or written. */
export function logicalBytes(extents: readonly SourceExtent[]): number {
  return extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
}

function inLogicalOrder<Extent extends SourceExtent>(extents: readonly Extent[], list: string): Extent[] {
  const sorted = extents.toSorted((a, b) => a.logicalOffsetBytes - b.logicalOffsetBytes);
  let endBytes = 0;
  for (const extent of sorted) {
    if (extent.logicalOffsetBytes < endBytes) {
      const row = extents.indexOf(extent);
      const reason = `of the ${list} starts at position ${extent.logicalOffsetBytes}, wanted ${endBytes} or later`;
      throw new RestoreError('bad-table', `Extent ${row} ${reason}`, { row, reason });
    }
    endBytes = extent.logicalOffsetBytes + extent.lengthBytes;
  }
  return sorted;
}

function noRoom(
  allocation: readonly AllocatedExtent[],
  at: { readonly positionBytes: number; readonly wantedBytes: number },
): RestoreError<'target-too-small'> {
  const sizeBytes = logicalBytes(allocation);
  const target = [...new Set(allocation.map((extent) => extent.target))].join(', ');
  return new RestoreError(
    'target-too-small',
    `Restore needs ${at.wantedBytes} bytes, the ${sizeBytes} allocated on ${target || 'no target'} have no room for position ${at.positionBytes}`,
    { target, sizeBytes, wantedBytes: at.wantedBytes },
  );
}
