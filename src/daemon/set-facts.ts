/** What a process that reads a set tells of it. */

import type { SetHeader } from '../blockset/index.ts';

export interface SetFacts {
  /** Its whole id. */
  readonly set: string;
  readonly volumeId: string;
  readonly volumeName: string;
  readonly point: string;
  /** Milliseconds since the Unix epoch. */
  readonly createdMs: number;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
}

export function factsOf(header: SetHeader): SetFacts {
  const { id: set, volumeId, volumeName, point, createdMs, sizeBytes, trackSizeBytes } = header;
  return { set, volumeId, volumeName, point, createdMs, sizeBytes, trackSizeBytes };
}
