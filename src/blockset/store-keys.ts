/**
 * The keys of a store on disk: `keys.json` beside `store.json`.
 *
 * Slots are added, exchanged and removed by writing this one file anew, whatever the store holds: draft,
 * sync, rename, sync of the directory. Cut anywhere, the old file or the new one is there, whole. The store's
 * lock keeps two changes apart.
 *
 * A key that was removed opens nothing any more that is in the store. Whoever kept a copy of the old file
 * and its key still has the master key: against that only a new store helps. Without the file, or the last of
 * its keys, everything in the store is lost; a copy of it elsewhere is worth having.
 */

import { readFileSync, renameSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type Clock,
  CorruptionError,
  LIMITS,
  syncDirectory,
  syncFile,
  systemClock,
  systemCode,
} from '../base/index.ts';
import { asStoreErrorsLater, StoreError } from './errors.ts';
import {
  decodeSlots,
  encodeSlots,
  type KeySlot,
  openSlot,
  type ScryptCost,
  type StoreKey,
  type WrappedSlot,
  wrapMaster,
} from './key-slots.ts';
import { MasterKey } from './master-key.ts';
import { withStoreLock } from './store-lock.ts';
import { readMarker, type StoreMarker } from './store-marker.ts';

export const KEYS_NAME = 'keys.json';
const FIRST_SLOT = 1;

export interface NewKeyOptions {
  readonly clock?: Clock;
  /** What a new passphrase's slot costs to open; for tests. */
  readonly cost?: ScryptCost;
}

/** Where a store is, and its id. */
type StorePlace = Pick<StoreMarker, 'path' | 'id'>;

/** Makes the keys of a new store with one slot; the file is durable, its name is once the directory is synced. */
export async function createKeys(
  store: StorePlace,
  key: StoreKey,
  options: NewKeyOptions,
): Promise<MasterKey> {
  const master = MasterKey.random();
  await writeSlots(store.path, [await newSlot({ master, key, store: store.id, slot: FIRST_SLOT }, options)]);
  return master;
}

/** Slots of a lost store's keys that a key opens, to be written where the store is made anew. */
export interface KeptKeys {
  readonly slots: readonly WrappedSlot[];
  readonly master: MasterKey;
}

/**
 * Opens a copy of a store's `keys.json`.
 *
 * @throws {StoreError} `key-needed`, `wrong-key` or `bad-key`. @throws {CorruptionError} where the copy is damaged,
 *   or of another store.
 */
export async function openKeptKeys(
  store: StorePlace,
  copy: Buffer,
  key: StoreKey | undefined,
): Promise<KeptKeys> {
  const slots = checkedSlots(decodeSlots(copy, 'a copy of keys.json'), store, 'a copy of keys.json');
  if (key === undefined) throw keyNeeded(store.path);
  return { slots, master: (await unlockSlot(store, slots, key)).master };
}

/** Writes keys that were kept as those of a new store; durable as `createKeys` says. */
export async function writeKeptKeys(path: string, { slots }: KeptKeys): Promise<void> {
  await writeSlots(path, slots);
}

/**
 * The key of an encrypted store; undefined for any other.
 *
 * @throws {StoreError} `key-needed`, `not-encrypted`, `wrong-key`, `bad-key`, `newer-format` or `io`.
 * @throws {CorruptionError} where the keys are damaged or missing.
 */
export async function masterOf(
  store: StoreMarker,
  key: StoreKey | undefined,
): Promise<MasterKey | undefined> {
  const { path, isEncrypted } = store;
  if (isEncrypted && key !== undefined) return (await unlockSlot(store, readSlots(store), key)).master;
  if (isEncrypted) throw keyNeeded(path);
  // Whoever has a key must not write in the clear because somebody exchanged the store.
  if (key !== undefined) throw notEncrypted(path);
  return undefined;
}

/** The keys of one encrypted store. Every change needs a key that opens it. */
export class StoreKeys {
  readonly #store: StorePlace;
  readonly #options: NewKeyOptions;

  /**
   * @param path the directory of an encrypted store.
   * @throws {StoreError} `not-a-store`, `not-encrypted`.
   */
  constructor(path: string, options: NewKeyOptions = {}) {
    const marker = readMarker(path);
    if (!marker.isEncrypted) throw notEncrypted(path);
    this.#store = marker;
    this.#options = options;
  }

  /** The slots, oldest first; needs no key. @throws {CorruptionError} where the keys are damaged or missing. */
  list(): readonly KeySlot[] {
    return readSlots(this.#store).map(({ slot, kind, createdMs }) => ({ slot, kind, createdMs }));
  }

  /**
   * Lets one more passphrase or key file open the store; durable when it returns.
   *
   * @throws {StoreError} `too-many-keys`, or as `masterOf`.
   */
  async add(key: StoreKey, added: StoreKey): Promise<KeySlot> {
    return await this.#change(key, async (slots, master) => {
      if (slots.length >= LIMITS.keySlotCountMax) {
        const message = `Store ${this.#store.path} has ${slots.length} keys, wanted fewer than ${LIMITS.keySlotCountMax} to add one`;
        throw new StoreError('too-many-keys', message, { path: this.#store.path });
      }
      const slot = await this.#newSlot(slots, master, added);
      return { slots: [...slots, slot], result: slot };
    });
  }

  /**
   * Puts a passphrase or key file in the place of the one that is given; durable when it returns. The old one then
   * opens the store no more. Sets are not written again.
   *
   * @throws {StoreError} as `masterOf`.
   */
  async change(key: StoreKey, changed: StoreKey): Promise<KeySlot> {
    return await this.#change(key, async (slots, master, used) => {
      const slot = await this.#newSlot(slots, master, changed);
      return { slots: [...slots.filter((other) => other !== used), slot], result: slot };
    });
  }

  /**
   * Removes a slot; durable when it returns.
   *
   * @param key of another slot, so that nobody locks himself out.
   * @throws {StoreError} `unknown-slot`, `key-in-use`, or as `masterOf`.
   */
  async remove(key: StoreKey, slot: number): Promise<void> {
    const { path } = this.#store;
    await this.#change(key, async (slots, _master, used) => {
      if (!slots.some((other) => other.slot === slot)) {
        const known = slots.map((other) => other.slot).join(', ');
        const message = `Store ${path} has no key ${slot}, wanted one of ${known}`;
        throw new StoreError('unknown-slot', message, { path, slot });
      }
      if (used.slot === slot) {
        const message = `Key ${slot} of store ${path} is the one that was given, wanted another that stays`;
        throw new StoreError('key-in-use', message, { path, slot });
      }
      return { slots: slots.filter((other) => other.slot !== slot), result: undefined };
    });
  }

  #newSlot(slots: readonly WrappedSlot[], master: MasterKey, key: StoreKey): Promise<WrappedSlot> {
    const slot = Math.max(...slots.map((other) => other.slot)) + 1;
    return newSlot({ master, key, store: this.#store.id, slot }, this.#options);
  }

  async #change<T>(
    key: StoreKey,
    body: (
      slots: readonly WrappedSlot[],
      master: MasterKey,
      used: WrappedSlot,
    ) => Promise<{ readonly slots: readonly WrappedSlot[]; readonly result: T }>,
  ): Promise<T> {
    const store = this.#store;
    return await asStoreErrorsLater(store.path, () =>
      withStoreLock(join(store.path, 'lock'), 'exclusive', async () => {
        const before = readSlots(store);
        const { master, slot } = await unlockSlot(store, before, key);
        const { slots, result } = await body(before, master, slot);
        await writeSlots(store.path, slots);
        await syncDirectory('store-directory', store.path);
        return result;
      }),
    );
  }
}

function keyNeeded(path: string): StoreError {
  const message = `Store ${path} is encrypted, wanted its key: --key-file, --passphrase-file or COWBELL_PASSPHRASE`;
  return new StoreError('key-needed', message, { path });
}

function notEncrypted(path: string): StoreError {
  return new StoreError('not-encrypted', `Store ${path} is not encrypted, wanted no key for it`, { path });
}

function newSlot(
  wanted: {
    readonly master: MasterKey;
    readonly key: StoreKey;
    readonly store: string;
    readonly slot: number;
  },
  { clock = systemClock, cost }: NewKeyOptions,
): Promise<WrappedSlot> {
  const { master, key, store, slot } = wanted;
  const createdMs = clock.now();
  return wrapMaster(master, key, { store, slot, createdMs, ...(cost === undefined ? {} : { cost }) });
}

async function unlockSlot(
  { path }: StorePlace,
  slots: readonly WrappedSlot[],
  key: StoreKey,
): Promise<{ master: MasterKey; slot: WrappedSlot }> {
  const kind = 'passphrase' in key ? 'passphrase' : 'key-file';
  for (const slot of slots) {
    if (slot.kind !== kind) continue;
    const master = await openSlot(slot, key);
    if (master !== undefined) return { master, slot };
  }
  const what = 'keyFile' in key ? `Key file ${key.keyFile}` : 'The passphrase';
  throw new StoreError('wrong-key', `${what} does not open store ${path}`, { path });
}

function readSlots(store: StorePlace): readonly WrappedSlot[] {
  const path = join(store.path, KEYS_NAME);
  try {
    const { size } = statSync(path);
    if (size <= LIMITS.keysFileBytesMax) {
      return checkedSlots(decodeSlots(readFileSync(path), path), store, path);
    }
    throw new CorruptionError(
      `Keys ${path} are damaged: there are ${size} bytes, wanted at most ${LIMITS.keysFileBytesMax}`,
      { where: path },
    );
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
    const message = `Keys ${path} of an encrypted store are missing; put back a copy of that file`;
    throw new CorruptionError(message, { where: path }, { cause: error });
  }
}

function checkedSlots(
  slots: readonly WrappedSlot[],
  store: StorePlace,
  where: string,
): readonly WrappedSlot[] {
  const other = slots.find((slot) => slot.store !== store.id);
  if (other === undefined) return slots;
  const message = `Keys ${where} are those of store ${other.store}, wanted those of ${store.id}`;
  throw new CorruptionError(message, { where, expected: store.id, found: other.store });
}

/** Leaves the old file or the new one; the caller syncs the directory. */
async function writeSlots(store: string, slots: readonly WrappedSlot[]): Promise<void> {
  const path = join(store, KEYS_NAME);
  const draft = `${path}.new`;
  const file = await open(draft, 'w', 0o600);
  try {
    await file.writeFile(encodeSlots(slots));
    await syncFile('store-keys', file.fd, draft);
  } finally {
    await file.close();
  }
  renameSync(draft, path);
}
