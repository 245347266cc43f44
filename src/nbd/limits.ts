/**
 * The limits of one server, taken from the project's one place for them (`base/limits.ts`, where the
 * reasons are). A server may be given smaller ones: a test reaches them sooner, an embedder with little
 * memory needs them.
 */

import { LIMITS } from '../base/index.ts';

export interface NbdLimits {
  readonly payloadBytesMax: number;
  readonly nameBytesMax: number;
  readonly optionBytesMax: number;
  readonly optionCountMax: number;
  readonly handshakeMsMax: number;
  readonly closeMsMax: number;
  readonly connectionCountMax: number;
  readonly inFlightCountMax: number;
  readonly inFlightBytesMax: number;
  readonly memoryBytesMax: number;
  readonly waitingBytesMax: number;
  readonly waitingCountMax: number;
  readonly replyBytesMax: number;
  readonly metaContextCountMax: number;
  readonly extentCountMax: number;
  readonly cacheBytesMax: number;
  readonly sparseReadBytesMin: number;
}

const DEFAULTS: NbdLimits = {
  payloadBytesMax: LIMITS.nbdPayloadBytesMax,
  nameBytesMax: LIMITS.nbdNameBytesMax,
  optionBytesMax: LIMITS.nbdOptionBytesMax,
  optionCountMax: LIMITS.nbdOptionCountMax,
  handshakeMsMax: LIMITS.nbdHandshakeMsMax,
  closeMsMax: LIMITS.nbdCloseMsMax,
  connectionCountMax: LIMITS.nbdConnectionCountMax,
  inFlightCountMax: LIMITS.nbdInFlightCountMax,
  inFlightBytesMax: LIMITS.nbdInFlightBytesMax,
  memoryBytesMax: LIMITS.nbdMemoryBytesMax,
  waitingBytesMax: LIMITS.nbdWaitingBytesMax,
  waitingCountMax: LIMITS.nbdWaitingCountMax,
  replyBytesMax: LIMITS.nbdReplyBytesMax,
  metaContextCountMax: LIMITS.nbdMetaContextCountMax,
  extentCountMax: LIMITS.nbdExtentCountMax,
  cacheBytesMax: LIMITS.nbdCacheBytesMax,
  sparseReadBytesMin: LIMITS.nbdSparseReadBytesMin,
};

/** The project's limits with some replaced. */
export function nbdLimits(replaced: Partial<NbdLimits> = {}): NbdLimits {
  return { ...DEFAULTS, ...replaced };
}
