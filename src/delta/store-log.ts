/** What a delta store remembers of each of its logs. */

import { Coverage, type PartBudget } from './coverage.ts';
import type { RecordHeader } from './format.ts';

export class StoreLog {
  readonly number: number;
  readonly id: string;
  readonly startPoint: string;
  readonly pointMs: number;
  readonly beganMs: number;
  readonly previous: number;
  readonly coverage: Coverage;
  /** Time of its last record. */
  lastMs: number;
  records = 0;
  /** It has records that change the volume. */
  hasChanges = false;
  /** No member, nor all together, have all of it. */
  isDamaged = false;
  isCompacted = false;

  constructor(
    log: Pick<StoreLog, 'number' | 'id' | 'startPoint' | 'pointMs' | 'beganMs' | 'previous'>,
    trackBytes: number,
    budget: PartBudget,
  ) {
    this.number = log.number;
    this.id = log.id;
    this.startPoint = log.startPoint;
    this.pointMs = log.pointMs;
    this.beganMs = log.beganMs;
    this.previous = log.previous;
    this.lastMs = log.beganMs;
    this.coverage = new Coverage(trackBytes, budget);
  }

  /** The log has this record. */
  note({
    kind,
    timeMs,
    offsetBytes,
    lengthBytes,
  }: Pick<RecordHeader, 'kind' | 'timeMs' | 'offsetBytes' | 'lengthBytes'>): void {
    this.records += 1;
    this.lastMs = timeMs;
    if (kind !== 'write' && kind !== 'zeroes') return;
    this.hasChanges = true;
    this.coverage.add(offsetBytes, lengthBytes);
  }
}
