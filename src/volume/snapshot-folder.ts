/** The folder of a volume in which the files of its snapshots lie. */

import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CorruptionError, syncDirectory, systemCode } from '../base/index.ts';
import { SnapshotClone } from './snapshot-clone.ts';
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

  /** The name of a snapshot's file. */
  static nameOf({ storeId, by }: SnapshotRecord): string {
    return by === 'clone' ? SnapshotClone.nameOf(storeId) : SnapshotStore.nameOf(storeId);
  }

  /** Whether a file of that name is some snapshot's. */
  static isName(name: string): boolean {
    return SnapshotClone.isName(name) || SnapshotStore.isName(name);
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

  /** Makes the file of a snapshot by clone, durably, with nothing in it yet. */
  createClone(record: SnapshotRecord): Promise<SnapshotClone> {
    return SnapshotClone.create(this.#placeOf(record), record.sizeBytes);
  }

  /** @returns the reason where the file is missing or shorter than it was. */
  async openClone(record: SnapshotRecord): Promise<SnapshotClone | CorruptionError> {
    try {
      return await SnapshotClone.open(this.#placeOf(record), record.sizeBytes);
    } catch (error) {
      if (error instanceof CorruptionError) return error;
      throw error;
    }
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
    const place = this.#placeOf(record);
    await rm(record.by === 'clone' ? SnapshotClone.pathOf(place) : SnapshotStore.pathOf(place), {
      force: true,
    });
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
    const known = new Set(records.map((record) => SnapshotFolder.nameOf(record)));
    for (const name of names) {
      if (SnapshotFolder.isName(name) && !known.has(name))
        await rm(join(this.#directory, name), { force: true });
    }
  }

  #placeOf({ storeId }: SnapshotRecord): StorePlace {
    return { directory: this.#directory, storeId, trackSizeBytes: this.#options.trackSizeBytes };
  }
}
