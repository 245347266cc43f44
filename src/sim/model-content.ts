/** The content of a set as a restore would see it, in one buffer. */

import type { ChainView } from '../blockset/index.ts';

/** The whole volume as a chain gives it. */
export function contentOfChain(chain: ChainView): Buffer {
  const content = Buffer.alloc(chain.sizeBytes);
  for (let track = 0; track < chain.trackCount; track += 1) {
    chain.readTrack(track)?.copy(content, track * chain.trackSizeBytes);
  }
  return content;
}
