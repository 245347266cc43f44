/**
 * Opens what a volume under recovery is filled from: a set of a store, through a process that reads it
 * (`store-reader.ts`), or whatever device a URI names, which may be the mirror too.
 *
 * A reading process that died is replaced by another one when something is to be read again, though not more often than
 * once in a while: what killed it may kill the next one too.
 */

import type { Clock } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { BlockDevice, DeviceRegistry } from '../device/index.ts';
import type { TrackRun, TrackSet } from '../tracks/index.ts';
import type { BackupSide, RecoveryRecord, SidePlace } from '../volume/index.ts';
import { openStoreReader, type StoreReader } from './store-reader.ts';

/** So long a reading process must have lived, or been dead, before another one is started. */
const RESTART_MS_MIN = 5_000;

export interface SideOptions {
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly clock: Clock;
  /** The program of the process that reads a store; without it none is. */
  readonly readerPath: string | undefined;
  /** Of an encrypted store. */
  readonly key?: StoreKey | undefined;
  /** The set that the record names, where it is open already; the side closes it. */
  readonly reader?: StoreReader | undefined;
  readonly warn?: ((sentence: string) => void) | undefined;
}

/** @throws what opening a store's set or a device throws. */
export async function openBackupSide(record: RecoveryRecord, options: SideOptions): Promise<BackupSide> {
  const { side, mirror, mirrorLost } = record;
  const mirrorUri = mirrorLost === undefined ? mirror : undefined;
  if (side.kind === 'device') {
    const isMirror = mirrorUri === side.uri;
    const device = await open(options.registry, side.uri, !isMirror);
    if (isMirror) return { device, mirror: device, close: () => device.close() };
    return await withMirror({ device, close: () => device.close() }, mirrorUri, options);
  }
  return await withMirror(await StoreSide.open(side, options), mirrorUri, options);
}

async function withMirror(
  side: BackupSide,
  uri: string | undefined,
  { registry }: SideOptions,
): Promise<BackupSide> {
  if (uri === undefined) return side;
  try {
    const mirror = await openMirror(registry, uri);
    const { device } = side;
    const close = async (): Promise<void> => {
      await mirror.close();
      await side.close();
    };
    const order = side.order?.bind(side);
    return { device, mirror, close, ...(order === undefined ? {} : { order }) };
  } catch (error) {
    await side.close();
    throw error;
  }
}

/** A device that gets every change of a volume. */
export function openMirror(registry: SideOptions['registry'], uri: string): Promise<BlockDevice> {
  return open(registry, uri, false);
}

function open(registry: SideOptions['registry'], uri: string, readOnly: boolean): Promise<BlockDevice> {
  return registry.open(uri, { readOnly, syncName: 'home', lock: readOnly ? 'shared' : 'exclusive' });
}

class StoreSide implements BackupSide {
  readonly device: BackupSide['device'];
  readonly #open: () => Promise<StoreReader>;
  readonly #options: SideOptions;
  #reader: Promise<StoreReader>;
  #openedMs: number;

  private constructor(reader: StoreReader, openNext: () => Promise<StoreReader>, options: SideOptions) {
    this.#reader = Promise.resolve(reader);
    this.#open = openNext;
    this.#options = options;
    this.#openedMs = options.clock.monotonicMs();
    const { sizeBytes, description } = reader.device;
    this.device = {
      sizeBytes,
      description,
      read: async (target, offsetBytes) => (await this.#living()).device.read(target, offsetBytes),
    };
  }

  static async open(
    { storePath, set, logs }: Extract<SidePlace, { kind: 'store' }>,
    options: SideOptions,
  ): Promise<StoreSide> {
    const { key, readerPath: program } = options;
    if (program === undefined) throw new Error('this command reads no store; serve the volume');
    const openNext = (): Promise<StoreReader> =>
      openStoreReader({ storePath, set, logs, program, ...(key === undefined ? {} : { key }) });
    return new StoreSide(options.reader ?? (await openNext()), openNext, options);
  }

  async *order(tracks: TrackSet): AsyncGenerator<readonly TrackRun[], void, undefined> {
    yield* (await this.#living()).order(tracks);
  }

  async close(): Promise<void> {
    await (await this.#reader).close();
  }

  async #living(): Promise<StoreReader> {
    const reader = await this.#reader;
    const { clock, warn } = this.#options;
    const nowMs = clock.monotonicMs();
    if (!reader.signal.aborted || nowMs - this.#openedMs < RESTART_MS_MIN) return reader;
    this.#openedMs = nowMs;
    warn?.(`${this.device.description} is opened again: the process that read it has died`);
    // Until another one is open, the dead one says why nothing is read.
    this.#reader = this.#open().then(
      async (next) => {
        await reader.close();
        return next;
      },
      () => reader,
    );
    return await this.#reader;
  }
}
