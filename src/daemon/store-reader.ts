/**
 * A set of a store as a block device, read through a process of its own: this one never opens the store (DESIGN section
 * 2), and the death of that one is an error of the reads.
 *
 *     device -> NBD over a socket that nobody else can reach -> child: ChainDevice -> the store's files
 *
 * The socket lies in a directory for its owner alone, which is gone as soon as the connection stands. What is no read
 * goes over the channel that Node gives to child processes; so does the key of an encrypted store.
 *
 * The child keeps the sets of the chain leased until it ends, so nobody removes them meanwhile.
 *
 * What it does not do: it does not start another child for one that died. What killed it lies in the store's files
 * mostly, and would do so again.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deferred, type Deferred, errorFromWire } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import { assertRange, type BlockDevice, type DeviceExtent } from '../device/index.ts';
import { type NbdDevice, openNbdDevice } from '../nbd/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { DaemonError } from './errors.ts';
import { openSocketPath } from './socket-path.ts';
import {
  type CallGives,
  type CallMessage,
  type ChildMessage,
  isChildMessage,
  type LogsWish,
  type ParentMessage,
} from './store-reader-messages.ts';
import type { LogsPlace } from '../volume/index.ts';
import type { SetFacts } from './set-facts.ts';

/** How long a child may take to end before it is killed. */
const END_MS_MAX = 5_000;
/** What is kept of a child's error output, for the message when it dies. */
const STDERR_BYTES_MAX = 4096;

export interface StoreReaderOptions {
  /** Absolute; empty where logs are all there is. */
  readonly storePath: string;
  /** Empty where logs are all there is. A set id or unique prefix, `latest` or `latest:<volume id or name>`. */
  readonly set: string;
  /** Of an encrypted store. It goes to the child over their channel, and nowhere else. */
  readonly key?: StoreKey;
  /** What delta logs tell since is laid over the set; see `LogsWish`. */
  readonly logs?: LogsWish | undefined;
  /** The module that the child runs; it calls `runStoreReader`. */
  readonly program: string;
  /** A process that runs this program already, and was told nothing yet; one is started where left out. */
  readonly started?: ChildProcess | undefined;
  /** Gives the opening up. A reader that is open is ended by `close`. */
  readonly signal?: AbortSignal;
  /** The child was started; for tests that kill it. */
  readonly onChild?: (pid: number) => void;
}

/** A set that is open for reading. */
export interface StoreReader {
  /**
   * The volume as it was, read-only. Reads fail with {CorruptionError} where the set is damaged, and with {DaemonError}
   * `reader-died` once the child has died. Closing it is `close`.
   */
  readonly device: BlockDevice;
  /** Without a set, of the volume that the logs are of. Its size is that of the volume after the logs. */
  readonly set: SetFacts;
  /** The logs that are laid over the set, as they were found. */
  readonly logs: LogsPlace | undefined;
  /** The tracks whose content is not zero. Not to be changed. */
  readonly tracks: TrackSet;
  /**
   * The runs of these tracks in storage order, the tracks of a frame together, in batches. Read through `device` in this
   * order, at most a batch ahead, each frame is unpacked once. Tracks of zeroes are left out.
   */
  order(tracks: TrackSet): AsyncIterable<readonly TrackRun[]>;
  /** Aborted with the reason when the child has died, and not by `close`. */
  readonly signal: AbortSignal;
  /** Ends the child; what is being read fails. May be called again. */
  close(): Promise<void>;
}

/**
 * Opens a set for reading, in a child process.
 *
 * @throws with the code that the store's error has in the child, such as `unknown-set`, `ambiguous-set`, `missing-base`,
 *   `not-a-store`, `key-needed` or `wrong-key`; {CorruptionError} where a set of the chain is damaged; {DaemonError}
 *   `reader-died`; the signal's reason.
 */
export async function openStoreReader(options: StoreReaderOptions): Promise<StoreReader> {
  options.signal?.throwIfAborted();
  const directory = await mkdtemp(join(tmpdir(), 'cowbell-reader-'));
  const child = new ReaderChild(options);
  const giveUp = (): void => child.kill(options.signal?.reason);
  options.signal?.addEventListener('abort', giveUp);
  if (options.signal?.aborted === true) giveUp();
  try {
    const socketPath = await openSocketPath(join(directory, 'nbd.sock'));
    child.send({
      kind: 'start',
      storePath: options.storePath,
      set: options.set,
      key: options.key,
      logs: options.logs,
      socketPath: socketPath.path,
    });
    try {
      const { set, tracks, logs } = await child.ready;
      const transport = { kind: 'unix', path: socketPath.address } as const;
      const nbd = await child.unlessDead(openNbdDevice({ transport, exportName: '' }));
      return new OpenReader(child, { nbd, set, tracks, logs, storePath: options.storePath });
    } finally {
      await socketPath.release();
    }
  } catch (error) {
    await child.end();
    options.signal?.throwIfAborted();
    throw error;
  } finally {
    options.signal?.removeEventListener('abort', giveUp);
    await rm(directory, { recursive: true, force: true });
  }
}

class OpenReader implements StoreReader {
  readonly device: BlockDevice;
  readonly set: SetFacts;
  readonly logs: LogsPlace | undefined;
  readonly tracks: TrackSet;
  readonly #child: ReaderChild;
  readonly #nbd: NbdDevice;
  #closed: Promise<void> | undefined;

  constructor(
    child: ReaderChild,
    opened: {
      readonly nbd: NbdDevice;
      readonly set: SetFacts;
      readonly tracks: Uint8Array;
      readonly logs: LogsPlace | undefined;
      readonly storePath: string;
    },
  ) {
    const { set, storePath, nbd } = opened;
    const trackCount = Math.ceil(set.sizeBytes / set.trackSizeBytes);
    this.#child = child;
    this.#nbd = nbd;
    this.set = set;
    this.logs = opened.logs;
    this.tracks = TrackSet.deserialize(Buffer.from(opened.tracks), 'the reading process', trackCount);
    const from = set.set === '' ? `volume ${set.volumeName}` : `set ${set.set} of store ${storePath}`;
    const description = opened.logs === undefined ? from : `${from} with its delta logs`;
    this.device = new ReaderDevice(description, { nbd, child, close: () => this.close() });
  }

  get signal(): AbortSignal {
    return this.#child.died.signal;
  }

  async *order(tracks: TrackSet): AsyncGenerator<readonly TrackRun[], void, undefined> {
    const order = this.#child.nextId;
    await this.#child.call({ name: 'order', tracks: tracks.serialize() });
    try {
      for (;;) {
        const runs = await this.#child.call({ name: 'more', order });
        if (!Array.isArray(runs) || runs.length === 0) return;
        yield runs;
      }
    } finally {
      await this.#child.call({ name: 'leave', order }).catch(() => undefined);
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#child.isWanted = false;
    // The child's end ends the connection, should it not take the goodbye.
    await Promise.all([this.#nbd.close(), this.#child.end()]);
  }
}

/** The child's export, with the errors that the child can tell. */
class ReaderDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: BlockDevice['capabilities'];
  readonly description: string;
  readonly #nbd: NbdDevice;
  readonly #child: ReaderChild;
  readonly #close: () => Promise<void>;

  constructor(
    description: string,
    parts: { readonly nbd: NbdDevice; readonly child: ReaderChild; readonly close: () => Promise<void> },
  ) {
    const { nbd, child, close } = parts;
    this.sizeBytes = nbd.sizeBytes;
    this.blockSizeBytes = nbd.blockSizeBytes;
    this.capabilities = nbd.capabilities;
    this.description = description;
    this.#nbd = nbd;
    this.#child = child;
    this.#close = close;
  }

  async read(target: Buffer, offsetBytes: number): Promise<void> {
    assertRange(this, offsetBytes, target.length);
    try {
      await this.#nbd.read(target, offsetBytes);
    } catch (error) {
      throw await this.#causeOf(error, offsetBytes, target.length);
    }
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    try {
      return await this.#nbd.extents(offsetBytes, lengthBytes);
    } catch (error) {
      throw await this.#causeOf(error, offsetBytes, lengthBytes);
    }
  }

  write(): never {
    throw new TypeError(`${this.description} is read-only`);
  }

  writeZeroes(): never {
    return this.write();
  }

  trim(): never {
    return this.write();
  }

  /** There is nothing that could be lost. */
  flush(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return this.#close();
  }

  async #causeOf(error: unknown, offsetBytes: number, lengthBytes: number): Promise<unknown> {
    if (!this.#nbd.client.isConnected) return await this.#child.lost(error);
    try {
      const cause = await this.#child.call({ name: 'why', offsetBytes, lengthBytes });
      return cause === undefined || !('message' in cause) ? error : errorFromWire(cause);
    } catch (death) {
      return death;
    }
  }
}

type CallOf<Message> = Message extends CallMessage ? Omit<Message, 'kind' | 'id'> : never;

/** The process, its channel, and what waits for either. */
class ReaderChild {
  readonly ready: Promise<Extract<ChildMessage, { kind: 'ready' }>>;
  /** Fires with the reason when the child has died and was wanted. */
  readonly died = new AbortController();
  /** False once it is to end. */
  isWanted = true;
  readonly #options: StoreReaderOptions;
  readonly #process: ChildProcess;
  readonly #ready: Deferred<Extract<ChildMessage, { kind: 'ready' }>> = deferred();
  readonly #exited = deferred();
  readonly #waiting = new Map<number, Deferred<CallGives>>();
  #lastId = 0;
  #death: unknown;
  #stderr = '';

  constructor(options: StoreReaderOptions) {
    this.#options = options;
    this.#process = options.started ?? startProgram(options.program);
    // One that was started beforehand did not keep this process from ending.
    this.#process.ref();
    this.#process.channel?.ref();
    this.ready = this.#ready.promise;
    this.ready.catch(() => undefined);
    this.#listen();
    if (this.#process.pid !== undefined) options.onChild?.(this.#process.pid);
  }

  /** The number of the next call. */
  get nextId(): number {
    return this.#lastId + 1;
  }

  send(message: ParentMessage): void {
    if (this.#process.connected) this.#process.send(message, () => undefined);
  }

  call(call: CallOf<CallMessage>): Promise<CallGives> {
    if (this.#death !== undefined) return Promise.reject(this.#death);
    this.#lastId += 1;
    const id = this.#lastId;
    const answer = deferred<CallGives>();
    this.#waiting.set(id, answer);
    this.send({ kind: 'call', id, ...call });
    return answer.promise;
  }

  /** What `promise` comes to; what the child died of, where that came first. */
  async unlessDead<T>(promise: Promise<T>): Promise<T> {
    try {
      return await promise;
    } catch (error) {
      throw await this.lost(error);
    }
  }

  /**
   * The connection to the child was lost: it has died, or is of no use any more and is killed.
   *
   * @returns what it died of; `error` where it was to end.
   */
  async lost(error: unknown): Promise<unknown> {
    this.#process.kill('SIGKILL');
    await this.#exited.promise;
    return this.isWanted ? this.#death : error;
  }

  /** Gives it up before it is ready. */
  kill(reason: unknown): void {
    this.#ready.reject(reason);
    this.#process.kill('SIGKILL');
  }

  /** Returns when the process has ended. */
  async end(): Promise<void> {
    this.isWanted = false;
    // Not by closing the channel from here: Node does not tell of a process's end then.
    this.send({ kind: 'end' });
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), END_MS_MAX);
    await this.#exited.promise;
    clearTimeout(timer);
  }

  #listen(): void {
    const child = this.#process;
    child.on('message', (message: unknown) => {
      if (isChildMessage(message)) this.#receive(message);
    });
    child.on('error', (error) => this.#die(error));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_BYTES_MAX);
    });
    // `close` comes after the last message and the last of stderr.
    child.on('close', (exitCode, signal) => {
      this.#die(this.#describeDeath(exitCode, signal));
      this.#exited.resolve();
    });
  }

  #receive(message: ChildMessage): void {
    if (message.kind === 'ready') this.#ready.resolve(message);
    else if (message.kind === 'failed') this.#ready.reject(errorFromWire(message.error));
    else {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if ('error' in message) waiting?.reject(errorFromWire(message.error));
      else waiting?.resolve(message.gives);
    }
  }

  #die(error: unknown): void {
    this.#death ??= error;
    this.#ready.reject(this.#death);
    for (const waiting of this.#waiting.values()) waiting.reject(this.#death);
    this.#waiting.clear();
    if (this.isWanted) this.died.abort(this.#death);
  }

  #describeDeath(exitCode: number | null, signal: string | null): DaemonError {
    const { storePath: store, set } = this.#options;
    const how = signal === null ? `exit status ${exitCode}` : `signal ${signal}`;
    const last = this.#stderr.trim().split('\n').at(-1) ?? '';
    return new DaemonError(
      'reader-died',
      `The process that reads set ${set} of store ${store} died (${how})${last === '' ? '' : `: ${last}`}`,
      { store, set, exitCode, signal },
    );
  }
}

function startProgram(program: string): ChildProcess {
  return fork(program, [], { serialization: 'advanced', stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
}
