/** The folder of a volume in which the files of its snapshots lie. */

import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CorruptionError, syncDirectory, systemCode } from '../base/index.ts';
import { SnapshotStore, type StorePlace } from './snapshot-store.ts';
import type { SnapshotRecord } from './state.ts';

const FOLDER = 'snapshots';

export interface SnapshotFolderOptions {
  /** The volume's. */
  readonly volumeDirectory: string;
  readonly trackSizeBytes: number;
  readonly readOnly: boolean;
}

export class SnapshotFolder {
  readonly #options: SnapshotFolderOptions;
  readonly #directory: string;

  constructor(options: SnapshotFolderOptions) {
    this.#options = options;
    this.#directory = join(options.volumeDirectory, FOLDER);
  }

  /** Makes the folder where it is missing, durably. */
  async make(): Promise<void> {
    try {
      await mkdir(this.#directory, { mode: 0o700 });
    } catch (error) {
      if (systemCode(error) !== 'EEXIST') throw error;
      return;
    }
    await syncDirectory('volume-directory', this.#options.volumeDirectory);
  }

  /** Makes a snapshot's empty file, durably. */
  create(record: SnapshotRecord): Promise<SnapshotStore> {
    return SnapshotStore.create(this.#placeOf(record));
  }

  /** @returns the reason where the file is missing, damaged, or shorter than it was. */
  async open(record: SnapshotRecord): Promise<SnapshotStore | CorruptionError> {
    try {
      const { endBytes = 0 } = record;
      const options = { readOnly: this.#options.readOnly, durableBytes: endBytes };
      const store = await SnapshotStore.open(this.#placeOf(record), options);
      if (store.usedBytes >= endBytes) return store;
      await store.close();
      const message = `Snapshot file ${store.path} is whole for ${store.usedBytes} bytes only, and it had ${endBytes}`;
      return new CorruptionError(message, { where: store.path });
    } catch (error) {
      if (error instanceof CorruptionError) return error;
      throw error;
    }
  }

  /** Removes the file of a snapshot whose file cannot be opened. */
  async remove(record: SnapshotRecord): Promise<void> {
    await rm(SnapshotStore.pathOf(this.#placeOf(record)), { force: true });
  }

  /** Removes files of snapshots that were never recorded, or whose record has gone. */
  async removeStrays(records: readonly SnapshotRecord[]): Promise<void> {
    let names: string[];
    try {
      names = await readdir(this.#directory);
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return;
      throw error;
    }
    const known = new Set(records.map(({ storeId }) => SnapshotStore.nameOf(storeId)));
    for (const name of names) {
      if (SnapshotStore.isName(name) && !known.has(name))
        await rm(join(this.#directory, name), { force: true });
    }
  }

  #placeOf({ storeId }: SnapshotRecord): StorePlace {
    return { directory: this.#directory, storeId, trackSizeBytes: this.#options.trackSizeBytes };
  }
}
