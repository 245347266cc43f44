/**
 * How a served volume goes on without its home: from a store's newest set that the deltas join, read by a process of its
 * own, onto a new file (`volume/survival.ts`).
 */

import { join } from 'node:path';
import { randomId } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import type { Clock } from '../base/index.ts';
import type { NewestContent, RecoveryRecord, SurvivalPlan } from '../volume/index.ts';
import { openBackupSide } from './backup-side.ts';
import { openStoreReader } from './store-reader.ts';

/** What `serve --survive` was told. */
export interface ServingSurvival {
  /** The store with the volumes' sets, absolute; sets are needed where the deltas do not reach back to the beginning. */
  readonly storePath: string;
  readonly key?: StoreKey | undefined;
  /** Where new homes go; the volume's directory where left out. */
  readonly spareDirectory?: string | undefined;
}

export interface SurvivalOptions {
  /** What holds at the moment. @throws where the volume is not to go on any more, or the key cannot be read. */
  readonly current: () => ServingSurvival;
  /** The volume's. */
  readonly directory: string;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly clock: Clock;
  /** The program of the process that reads a store. */
  readonly readerPath: string;
  readonly warn: (sentence: string) => void;
}

export function survivalPlan(options: SurvivalOptions): SurvivalPlan {
  const { current, readerPath: program, directory } = options;
  return {
    newHome: () => join(current().spareDirectory ?? directory, `home-${randomId().slice(0, 8)}.raw`),
    openNewest: async (volumeId, places): Promise<NewestContent> => {
      const { storePath, key } = current();
      const logs = { places, volumeId };
      const reader = await openStoreReader({
        storePath,
        set: '',
        logs,
        program,
        ...(key === undefined ? {} : { key }),
      });
      try {
        const found = reader.logs;
        const { set, point } = reader.set;
        const record: Omit<RecoveryRecord, 'startedMs'> = {
          side: { kind: 'store', storePath, set, ...(found === undefined ? {} : { logs: found }) },
          ...(point === '' ? {} : { point }),
        };
        const side = await openBackupSide({ ...record, startedMs: 0 }, { ...options, key, reader });
        return { record, side, tracks: reader.tracks };
      } catch (error) {
        await reader.close();
        throw error;
      }
    },
  };
}
