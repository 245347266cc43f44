/**
 * The serving side of a backup: starts the child, answers its calls from the volume's session, and ends the
 * session whatever happens to the child. A child's death is a failed session, never a failed volume.
 *
 * The volume's owner calls this, serving or not. It never opens the store.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { assert, deferred, type Deferred, toWireError, unreachable } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { SessionStep } from '../media/index.ts';
import {
  type BackupSession,
  type ContainerArea,
  homePathOf,
  type SessionRequest,
  type Volume,
} from '../volume/index.ts';
import { BackupError } from './errors.ts';
import type { SavingProgress } from './saving.ts';
import {
  type CallMessage,
  type Calls,
  type ChildMessage,
  type CallName,
  type HostMessage,
  isChildMessage,
  type Level,
  type MediumTarget,
  type SetOutcome,
  type WriteStyle,
} from './messages.ts';
import { fromWireError } from './remote-source.ts';

/** How long a child may take to clean up after a cancel before it is killed. */
const CANCEL_MS_MAX = 10_000;
/** What is kept of a child's error output, for the message when it dies. */
const STDERR_BYTES_MAX = 4096;

export interface BackupOptions {
  readonly volume: Volume;
  /** The session's id, where its owner has one for it. */
  readonly session?: string;
  readonly storePath: string;
  /** Media that are written in the place of the store. */
  readonly medium?: MediumTarget;
  /** Of an encrypted store. It goes to the child over their channel, and nowhere else. */
  readonly key?: StoreKey;
  readonly level: Level;
  /** See `SessionRequest`. */
  readonly fullEvery?: number;
  /** See `SessionRequest`. */
  readonly waitMsMax?: number;
  readonly style: WriteStyle;
  /** Room for diverted content; closed by the session, also where it does not begin. */
  readonly areas: readonly ContainerArea[];
  /** The module that the child runs; it calls `runWorker`. */
  readonly workerPath: string;
  readonly onProgress?: (progress: SavingProgress) => void;
  /** A step of the session's states, in the child. */
  readonly onStep?: (step: SessionStep) => void;
  /**
   * Called once, with what freezes the volume and begins the session, which it must call once at the most. It
   * may take its time before and after: the copying goes on beside what it does after the freeze, and the
   * backup has not ended before it has. What it throws before the freeze fails the backup. The signal fires
   * when the backup has failed or was cancelled.
   */
  readonly aroundFreeze?: (freeze: () => Promise<void>, signal: AbortSignal) => Promise<void>;
  /** Saves this snapshot instead of what the volume holds at a freeze. */
  readonly snapshot?: string;
  /** Begins the session; the volume's own `beginSession` where left out. */
  readonly begin?: (volume: Volume, request: SessionRequest) => Promise<BackupSession>;
  /** Called when everything is saved; the set is sealed when it has finished. */
  readonly onSaved?: () => Promise<void>;
  /** The volume was frozen and the session has begun. */
  readonly onBegun?: (session: BackupSession) => void;
  /** Cancels the session. */
  readonly signal?: AbortSignal;
  /** The child was started; for tests that kill it. */
  readonly onChild?: (pid: number) => void;
}

/**
 * Backs a volume up into a store: freeze, save, seal, catalogue; then the consumer's point.
 *
 * @throws {BackupError} `cancelled`, `worker-died`, `worker-failed`
 * @throws {VolumeError} where the session cannot begin
 * @throws {CorruptionError} where the store is damaged
 */
export async function runBackupSession(options: BackupOptions): Promise<SetOutcome> {
  try {
    options.signal?.throwIfAborted();
  } catch (error) {
    for (const area of options.areas) await area.close();
    throw error;
  }
  return new Host(options).run();
}

class Host {
  readonly #options: BackupOptions;
  readonly #child: ChildProcess;
  readonly #result: Deferred<SetOutcome> = deferred();
  #session: BackupSession | undefined;
  #stderr = '';
  #killTimer: NodeJS.Timeout | undefined;
  #areasAreTaken = false;
  /** Fires when the backup has failed. */
  readonly #over = new AbortController();
  /** The freeze and what was asked to run around it; never rejects. */
  #freezing: Promise<void> | undefined;

  constructor(options: BackupOptions) {
    this.#options = options;
    this.#child = fork(options.workerPath, [], {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    });
  }

  async run(): Promise<SetOutcome> {
    const { signal, onChild } = this.#options;
    const exited = deferred();
    this.#listen(exited);
    if (this.#child.pid !== undefined) onChild?.(this.#child.pid);
    const cancel = (): void => this.#cancel();
    signal?.addEventListener('abort', cancel);
    try {
      this.#start();
      const outcome = await this.#result.promise;
      return outcome;
    } catch (error) {
      this.#over.abort(error);
      this.#session?.fail(error);
      throw error;
    } finally {
      signal?.removeEventListener('abort', cancel);
      // The child ends by itself once it has cleaned up.
      this.#killTimer ??= setTimeout(() => this.#child.kill('SIGKILL'), CANCEL_MS_MAX);
      await exited.promise;
      clearTimeout(this.#killTimer);
      await this.#freezing;
      await this.#session?.whenEnded();
      if (!this.#areasAreTaken) for (const area of this.#options.areas) await area.close();
    }
  }

  #listen(exited: Deferred): void {
    const child = this.#child;
    child.on('message', (message: unknown) => {
      if (isChildMessage(message)) this.#receive(message);
    });
    child.on('error', (error) => this.#result.reject(error));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_BYTES_MAX);
    });
    // `close` comes after the last message and the last of stderr.
    child.on('close', (exitCode, signal) => {
      exited.resolve();
      const { name } = this.#options.volume.identity;
      const how = signal === null ? `exit status ${exitCode}` : `signal ${signal}`;
      const last = this.#stderr.trim().split('\n').at(-1) ?? '';
      this.#result.reject(
        new BackupError(
          'worker-died',
          `Backup process of volume ${name} died (${how})${last === '' ? '' : `: ${last}`}`,
          { volume: name, exitCode, signal },
        ),
      );
    });
  }

  #start(): void {
    const { volume, storePath, medium, key, level, style } = this.#options;
    const { volumeId, name, directory, home, trackSizeBytes } = volume.identity;
    this.#send({
      kind: 'start',
      volume: { volumeId, name, trackSizeBytes },
      // What is not there yet only the volume itself can get.
      homePath: volume.recovery === undefined ? homePathOf(directory, home) : undefined,
      storePath,
      ...(medium === undefined ? {} : { medium }),
      key,
      level,
      style,
    });
  }

  #send(message: HostMessage): void {
    if (this.#child.connected) this.#child.send(message, () => undefined);
  }

  #receive(message: ChildMessage): void {
    switch (message.kind) {
      case 'call':
        void this.#answer(message);
        return;
      case 'progress':
        this.#options.onProgress?.(message.progress);
        return;
      case 'step':
        this.#options.onStep?.(message.step);
        return;
      case 'offer':
        // Nobody asked for a dry run.
        return;
      case 'done':
        this.#result.resolve(message.outcome);
        return;
      case 'failed':
        this.#result.reject(
          this.#session?.signal.reason ?? fromWireError(message.error, this.#options.volume.identity.name),
        );
        return;
      default:
        unreachable(message);
    }
  }

  async #answer(call: CallMessage): Promise<void> {
    try {
      this.#send({ kind: 'reply', id: call.id, gives: await this.#perform(call) });
    } catch (error) {
      // What the volume refuses at the beginning is the session's own failure, with its own code.
      if (call.name === 'begin') this.#result.reject(error);
      this.#send({ kind: 'reply', id: call.id, error: toWireError(error) });
    }
  }

  async #perform(call: CallMessage): Promise<Calls[CallName]['gives']> {
    const { volume } = this.#options;
    if (call.name === 'begin') return this.#begin(call.takes);
    if (call.name === 'read') {
      const target = Buffer.allocUnsafe(call.takes.lengthBytes);
      await volume.read(target, call.takes.offsetBytes);
      return target;
    }
    if (call.name === 'extents') return volume.extents(call.takes.offsetBytes, call.takes.lengthBytes);
    const session = this.#running();
    switch (call.name) {
      case 'confirm':
        return session.confirm(call.takes.runs);
      case 'take':
        return session.take(call.takes.countMax);
      case 'acknowledge':
        session.acknowledge(call.takes.ids);
        return undefined;
      case 'mayComplete':
        await this.#options.onSaved?.();
        await session.mayComplete();
        return undefined;
      case 'complete':
        await session.complete(call.takes.set);
        return undefined;
      case 'covered':
        await session.covered();
        return undefined;
      case 'logsDamaged':
        session.logsDamaged(call.takes.reason);
        return undefined;
      default:
        return unreachable(call);
    }
  }

  #running(): BackupSession {
    if (this.#session !== undefined) return this.#session;
    const { name } = this.#options.volume.identity;
    throw new BackupError('worker-failed', `Backup process of volume ${name} called before it began`, {
      volume: name,
      workerCode: undefined,
    });
  }

  async #begin(request: Calls['begin']['takes']): Promise<Calls['begin']['gives']> {
    const { aroundFreeze = (freeze) => freeze() } = this.#options;
    const begun = deferred<BackupSession>();
    const freeze = async (): Promise<void> => begun.resolve(await this.#freeze(request));
    this.#freezing = aroundFreeze(freeze, this.#over.signal).then(
      () => assert(this.#session !== undefined, 'What runs around the freeze left the freeze out'),
      (error: unknown) => {
        begun.reject(error);
        // After the freeze nobody waits for it any more.
        this.#result.reject(error);
      },
    );
    // The child begins to copy while what runs after the freeze still does.
    const { plan } = await begun.promise;
    const { tracks, deltas, ...rest } = plan;
    return {
      ...rest,
      tracks: tracks.serialize(),
      ...(deltas === undefined ? {} : { deltas: { ...deltas, tracks: deltas.tracks.serialize() } }),
    };
  }

  async #freeze(request: Calls['begin']['takes']): Promise<BackupSession> {
    const { volume, areas, onBegun, signal } = this.#options;
    signal?.throwIfAborted();
    this.#over.signal.throwIfAborted();
    this.#areasAreTaken = true;
    const { begin = (one, wish) => one.beginSession(wish) } = this.#options;
    const { session: id, snapshot, fullEvery, waitMsMax } = this.#options;
    const session = await begin(volume, {
      ...request,
      ...(snapshot === undefined ? {} : { snapshot }),
      ...(id === undefined ? {} : { session: id }),
      ...(fullEvery === undefined ? {} : { fullEvery }),
      ...(waitMsMax === undefined ? {} : { waitMsMax }),
      areas,
    });
    this.#session = session;
    session.signal.addEventListener('abort', () => this.#ended(session.signal.reason));
    // The backup may have failed meanwhile, when there was no session yet that could be told.
    if (this.#over.signal.aborted) session.fail(this.#over.signal.reason);
    else onBegun?.(session);
    return session;
  }

  /** The user's cancel. A session that is completing goes on: its set may be sealed already. */
  #cancel(): void {
    if (this.#session?.state === 'completing' || this.#session?.state === 'done') return;
    const { name } = this.#options.volume.identity;
    const error = new BackupError('cancelled', `Backup of volume ${name} was cancelled`, { volume: name });
    if (this.#session === undefined) this.#ended(error);
    else this.#session.fail(error);
  }

  /** The session failed here: the child is told, and killed where it does not listen. */
  #ended(reason: unknown): void {
    this.#over.abort(reason);
    this.#send({ kind: 'cancel' });
    this.#result.reject(reason);
    this.#killTimer ??= setTimeout(() => this.#child.kill('SIGKILL'), CANCEL_MS_MAX);
  }
}
