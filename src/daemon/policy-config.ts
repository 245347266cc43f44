/** What a serving process is told of volumes and their policies, as it comes from a config file. */

import type { RetentionPolicy } from '../blockset/index.ts';
import type { PolicySpec } from '../policy/index.ts';
import type { BackupParams } from './backup-params.ts';
import type { FreezeHooks } from './freeze-hooks.ts';

/** Where the key of an encrypted store is, absolute paths. It is read when it is needed, never kept. */
export type KeyPlace = { readonly keyFile: string } | { readonly passphraseFile: string };

export interface BackupAction {
  readonly kind: 'backup';
  readonly params: Omit<BackupParams, 'key' | 'snapshot' | 'others' | 'medium'>;
  readonly key?: KeyPlace | undefined;
  /** What of the volume's sets in the store is kept afterwards; everything where left out. */
  readonly retention?: RetentionPolicy | undefined;
}

export interface SnapshotAction {
  readonly kind: 'snapshot';
  /** What a snapshot's name has before and behind the time. */
  readonly prefix: string;
  readonly suffix: string;
  /** Of the snapshots with such names, so many of the newest stay. */
  readonly keep: number;
  readonly hooks?: FreezeHooks | undefined;
}

export type PolicyAction = BackupAction | SnapshotAction;

export interface VolumePolicy extends PolicySpec {
  readonly action: PolicyAction;
}

/** How a volume with deltas goes on when its home is lost; see `ServingSurvival`. */
export interface VolumeSurvival {
  readonly storePath: string;
  readonly key?: KeyPlace | undefined;
  readonly spareDirectory?: string | undefined;
}

export interface PolicedVolume {
  /** Absolute. */
  readonly directory: string;
  /** Where left out it refuses writes when its home is lost. */
  readonly survive?: VolumeSurvival | undefined;
  /** Of data that is not backed up yet; nothing is watched where left out. */
  readonly minimumCopies?: number | undefined;
  readonly policies: readonly VolumePolicy[];
}
