/** What a copy is asked for: the same words on the command line, in the control protocol and offline. */

import type { CopyPlan, CopyResult } from '../restore/index.ts';
import type { ContainerSpec } from './backup-params.ts';

export interface CopyParams {
  /** Absolute paths and URIs: the targets in sequence, or those of the remap file in its order. */
  readonly targets: readonly string[];
  /** Absolute path of a remap file; each byte to its own address where left out. */
  readonly remap?: string;
  /** Copies this snapshot of the volume instead of what it holds now. */
  readonly snapshot?: string;
  /** Everything, whatever the targets hold. */
  readonly full: boolean;
  readonly container: readonly ContainerSpec[];
  /** The copy fails where a write has waited this long for room; left out, writes wait. */
  readonly maxWaitMs?: number;
  /** Bytes read in a second at the most. */
  readonly rateBytesPerSecond?: number;
}

export interface CopyOutcome extends CopyResult {
  readonly targets: readonly string[];
  readonly snapshot: string | undefined;
  readonly durationMs: number;
}

export interface CopyForecast extends CopyPlan {
  readonly targets: readonly string[];
  readonly snapshot: string | undefined;
}
