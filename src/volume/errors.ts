/** The operating errors of a volume. Each code is documented here, with what its details say. */

import { BlockError } from '../base/index.ts';

export interface VolumeErrorDetails {
  /** The directory holds no volume, or a format this version does not know. */
  'not-a-volume': { readonly directory: string };
  /** `create`: something is there already. */
  exists: { readonly directory: string };
  /** A size, track size or home that cannot be. */
  'invalid-geometry': { readonly value: number | string };
  /** Another process owns the volume or a piece of its home. */
  'in-use': { readonly directory: string; readonly pid?: number; readonly activity?: string };
  /** The home is missing or smaller than the volume. */
  'home-unusable': { readonly home: string };
  'read-only': { readonly directory: string };
  /** A flush or a home write failed earlier; only `volume check` clears it (promise 10). */
  poisoned: { readonly directory: string; readonly reason: string };
  /** The gate did not empty in time; nothing has changed. */
  'freeze-timeout': { readonly waitedMs: number };
  /** One session per volume. */
  'session-running': { readonly session: string };
  /** The session ended before it was complete. */
  'session-ended': { readonly session: string; readonly reason: string };
  /** Zeroes were to be fast, and `track` has to be copied for a backup first. Nothing has changed. */
  'not-fast': { readonly track: number };
  closed: { readonly directory: string };
}

export type VolumeErrorCode = keyof VolumeErrorDetails;

export class VolumeError<Code extends VolumeErrorCode = VolumeErrorCode> extends BlockError<
  VolumeErrorDetails,
  Code
> {}
