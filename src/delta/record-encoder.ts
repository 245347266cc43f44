/** Puts records into bytes, in a buffer that is used again as long as nobody is still writing it. */

import { LIMITS } from '../base/index.ts';
import { checksumOf, encodeRecordHeader, RECORD_HEADER_BYTES, type RecordHeader } from './format.ts';
import type { RecordBytes } from './member-writer.ts';

export class RecordEncoder {
  #front = newFront();

  /** The bytes are good until the next call, or for good after `keep`. @param payload of a write. */
  encode(record: RecordHeader, logId: Buffer, payload: Buffer | undefined): RecordBytes {
    const front = this.#front;
    const check = payload === undefined ? undefined : checksumOf(payload);
    encodeRecordHeader(front, record, logId, check);
    const isJoined = payload !== undefined && payload.length <= LIMITS.deltaCopyBytesMax;
    if (isJoined) payload.copy(front, RECORD_HEADER_BYTES);
    return { front, isJoined, payload, previous: record.previous };
  }

  /** Somebody still writes what was encoded last. */
  keep(): void {
    this.#front = newFront();
  }
}

function newFront(): Buffer {
  return Buffer.alloc(RECORD_HEADER_BYTES + LIMITS.deltaCopyBytesMax);
}
