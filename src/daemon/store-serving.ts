/**
 * Serves points in time from a store: each set is an export, read-only, at once, and stays where it is.
 *
 *     client -> NBD -> [overlay] -> reader's device -> child -> store
 *
 * The process that serves never opens the store (DESIGN section 2); each set has a child of its own (`store-reader.ts`).
 * One that dies takes its export's reads with it, which fail from then on, and it is said; the other exports go on. It
 * is not started anew: what killed it mostly lies in the store's files, and whoever serves again finds it out at once.
 *
 * With an overlay, clients may write: what they write is kept in a temporary file as long as the process serves, and the
 * store is never touched.
 */

import { allFinished, type Clock, LIMITS } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { formatNbdUri, type NbdListenerTls, type NbdLog, NbdServer } from '../nbd/index.ts';
import { openOverlay } from '../restore/index.ts';
import { DaemonError } from './errors.ts';
import { assertKnownExports, type FurtherListener, loadTls, type ServingTls } from './serving.ts';
import type { LogsWish } from './store-reader-messages.ts';
import { openSocketPath, removeDeadSocket, type SocketPath } from './socket-path.ts';
import { openStoreReader, type StoreReader, type StoreReaderOptions } from './store-reader.ts';

export interface StoreServingOptions {
  /** Absolute. */
  readonly storePath: string;
  /** As `openStoreReader` takes them, at least one. */
  readonly sets: readonly string[];
  /** Of an encrypted store. */
  readonly key?: StoreKey;
  /** What delta logs tell since is laid over each set; see `LogsWish`. */
  readonly logs?: LogsWish | undefined;
  /** At least one, or nobody gets in. */
  readonly listeners: readonly FurtherListener[];
  /** Without it nothing is encrypted. */
  readonly tls?: ServingTls | undefined;
  /** Lets clients write, into temporary files in this directory. */
  readonly overlay?: { readonly directory: string };
  /** The program of a reader; see `StoreReaderOptions`. */
  readonly program: string;
  /** Takes the place of the first of them; see `StoreReaderOptions`. */
  readonly started?: StoreReaderOptions['started'];
  readonly clock: Clock;
  /** Is told what no client can be told, a sentence each. */
  readonly warn: (sentence: string) => void;
  /** Gives the start up. */
  readonly signal?: AbortSignal;
}

/** An export as clients reach it. */
export interface ServedSet {
  readonly uri: string;
  readonly exportName: string;
  readonly set: StoreReader['set'];
}

/** One set and what clients see of it. */
interface Served {
  readonly name: string;
  readonly reader: StoreReader;
  readonly device: BlockDevice;
}

export class StoreServing {
  readonly #options: StoreServingOptions;
  readonly #server: NbdServer;
  readonly #readers: StoreReader[] = [];
  readonly #served: Served[] = [];
  readonly #places: SocketPath[] = [];
  readonly #reached: ServedSet[] = [];
  #stopped: Promise<void> | undefined;

  private constructor(options: StoreServingOptions) {
    this.#options = options;
    this.#server = new NbdServer({ log: this.#log });
  }

  /**
   * Opens the sets and lets clients in.
   *
   * @throws as `openStoreReader` for the sets; {DaemonError} `duplicate-name`, `unknown-export`, `cannot-listen`;
   *   {NbdTlsError}, {NbdServerError}; {DeviceError} where there can be no overlay. On failure everything that was
   *   opened is closed again.
   */
  static async start(options: StoreServingOptions): Promise<StoreServing> {
    const tls = await loadTls(options);
    const serving = new StoreServing(options);
    try {
      await serving.#openSets();
      assertKnownExports(options.listeners, serving.#names);
      for (const listener of options.listeners) await serving.#listen(listener, tls);
    } catch (error) {
      await serving.stop();
      throw error;
    }
    return serving;
  }

  /** One for each export and listener, in the order of the command line. */
  get reached(): readonly ServedSet[] {
    return this.#reached;
  }

  /** Answers what is in flight and stops; may be called again. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    await this.#server.close();
    await Promise.all(this.#places.map((place) => place.release()));
    await allFinished(this.#served.map(({ device }) => device.close()));
    await allFinished(this.#readers.map((reader) => reader.close()));
  }

  async #openSets(): Promise<void> {
    const { storePath, sets, key, logs, program, signal } = this.#options;
    const common = { storePath, program, logs, ...(key && { key }), ...(signal && { signal }) };
    await allFinished(
      sets.map(async (set, index) => {
        const { started } = index === 0 ? this.#options : {};
        this.#readers[index] = await openStoreReader({ ...common, set, started });
      }),
    );
    const names = namesOf(this.#readers);
    for (const [index, reader] of this.#readers.entries()) {
      const name = names[index] ?? '';
      const device = await this.#withOverlay(reader);
      this.#served.push({ name, reader, device });
      this.#server.addExport({
        name,
        // Clients may be strangers, so nothing of where it is.
        description: `Cowbell volume ${reader.set.volumeId} at point ${reader.set.point}`,
        device,
        readOnly: device.capabilities.readOnly,
        multiConn: true,
        preferredBlockSizeBytes: LIMITS.blockSizeBytesPreferred,
      });
      reader.signal.addEventListener('abort', () => this.#lost(name, reader));
    }
  }

  async #withOverlay(reader: StoreReader): Promise<BlockDevice> {
    const { overlay } = this.#options;
    if (overlay === undefined) return reader.device;
    return await openOverlay(reader.device, {
      directory: overlay.directory,
      unitBytes: reader.set.trackSizeBytes,
    });
  }

  #lost(name: string, { signal }: StoreReader): void {
    const reason = signal.reason instanceof Error ? signal.reason.message : String(signal.reason);
    const rest = 'reads from the store fail from now on, and nothing but serving it anew mends that';
    this.#options.warn(`Export ${name} is lost: ${reason}; ${rest}`);
  }

  async #listen(listener: FurtherListener, tls: NbdListenerTls | undefined): Promise<void> {
    const { place, exports } = listener;
    if (place.kind === 'unix') await removeDeadSocket(place.path);
    const served = this.#served.filter(({ name }) => exports?.includes(name) ?? true);
    const address = place.kind === 'unix' ? await this.#addressOf(place.path) : place;
    const transport = await this.#server.listen(address, {
      exports: new Set(served.map(({ name }) => name)),
      ...(tls === undefined ? {} : { tls }),
    });
    // People are told the path they gave, not its short form.
    const reached = { transport: place.kind === 'unix' ? place : transport };
    for (const { name: exportName, reader } of served) {
      const uri = formatNbdUri({ ...reached, exportName, ...(tls?.policy === 'required' && { tls: {} }) });
      this.#reached.push({ uri, exportName, set: reader.set });
    }
  }

  async #addressOf(path: string): Promise<{ readonly kind: 'unix'; readonly path: string }> {
    const socketPath = await openSocketPath(path);
    this.#places.push(socketPath);
    return { kind: 'unix', path: socketPath.address };
  }

  get #names(): readonly string[] {
    return this.#served.map(({ name }) => name);
  }

  readonly #log: NbdLog = ({ level, message, peer, exportName }) => {
    if (level === 'info') return;
    const where = [exportName, peer].filter((part) => part !== undefined && part !== '').join(', ');
    this.#options.warn(where === '' ? message : `${message} (${where})`);
  };
}

/**
 * The exports' names: those of the volumes, with the set where two would have one name.
 *
 * @throws {DaemonError} `duplicate-name` where two selectors name one set.
 */
function namesOf(readers: readonly StoreReader[]): readonly string[] {
  const bySet = new Set<string>();
  for (const { set } of readers) {
    if (bySet.has(set.set)) {
      const message = `Set ${set.set} of volume ${set.volumeName} is named twice, wanted each set once`;
      throw new DaemonError('duplicate-name', message, { name: set.set, directories: [] });
    }
    bySet.add(set.set);
  }
  return readers.map(({ set }) => {
    const isAlone = readers.filter((other) => other.set.volumeName === set.volumeName).length === 1;
    return isAlone ? set.volumeName : `${set.volumeName}@${set.set}`;
  });
}
