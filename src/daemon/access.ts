/**
 * How a command reaches a volume: through the process that serves it, or by opening it itself.
 *
 * Both ways give the same calls. Offline the command owns the volume as long as it has it, and its death
 * fails what it runs; online the server does (DESIGN section 6).
 */

import type { LaneProgress } from '../backup/index.ts';
import type { Clock } from '../base/index.ts';
import type { BackupOutcome, BackupParams } from './backup-params.ts';
import { ControlClient } from './control-client.ts';
import type { RequestEvents } from './control-server.ts';
import { createDeviceRegistry } from './devices.ts';
import { DaemonError } from './errors.ts';
import { Volume } from '../volume/index.ts';
import { VolumeHost } from './volume-host.ts';

export type StatusRecord = Readonly<Record<string, unknown>>;

export interface VolumeAccess {
  /** Whether another process serves the volume. */
  readonly online: boolean;
  status(): Promise<StatusRecord>;
  backup(params: BackupParams, events: RequestEvents): Promise<BackupOutcome>;
  cancel(session: string | undefined): Promise<unknown>;
  /** Gives the volume, or the connection, up. */
  close(): Promise<void>;
}

export interface ReachOptions {
  /** Recorded in the volume's lock when it is opened here. */
  readonly activity: string;
  readonly clock: Clock;
  readonly readOnly?: boolean;
  /** Needed for backups. */
  readonly workerPath?: string;
}

/** @throws whatever connecting, or `Volume.open`, does: `in-use` when another command has the volume. */
export async function reachVolume(directory: string, options: ReachOptions): Promise<VolumeAccess> {
  const client = await ControlClient.connect(directory);
  if (client !== undefined) return new OnlineAccess(client);
  const host = await VolumeHost.open(directory, {
    registry: createDeviceRegistry(),
    activity: options.activity,
    readOnly: options.readOnly ?? false,
    clock: options.clock,
    workerPath: options.workerPath ?? '',
  });
  return {
    online: false,
    status: () => host.status(),
    backup: (params, events) => host.backup(params, events),
    cancel: (session) => host.cancel(session),
    close: () => host.close(),
  };
}

/**
 * Cancels a session of a served volume and waits for its end.
 *
 * @throws {DaemonError} not-served
 */
export async function cancelSession(
  directory: string,
  session: string | undefined,
): Promise<{ readonly session: string }> {
  const client = await ControlClient.connect(directory);
  if (client === undefined) {
    const message = `No process serves ${directory}, so no session can be cancelled; interrupt the command that runs it`;
    throw new DaemonError('not-served', message, { directory });
  }
  try {
    const result = await client.request({
      command: 'cancel',
      params: session === undefined ? {} : { session },
    });
    if (!isRecord(result) || typeof result['session'] !== 'string') throw badReply('cancel', result);
    return { session: result['session'] };
  } finally {
    client.close();
  }
}

/**
 * Reads a volume through and clears the mark of a failed flush. Never while it is served: nothing may write.
 *
 * @throws {VolumeError} `in-use` and whatever `Volume.open` and reading throw; what `onProgress` throws ends it.
 */
export async function checkVolume(
  directory: string,
  options: {
    readonly clock: Clock;
    /** The directory was moved, not copied. */
    readonly moved: boolean;
    readonly onProgress: (bytesRead: number, sizeBytes: number) => void;
  },
): Promise<StatusRecord> {
  const { clock, moved, onProgress } = options;
  const registry = createDeviceRegistry();
  const volume = await Volume.open(directory, { registry, activity: 'volume check', clock, moved });
  try {
    const before = volume.status();
    await volume.check((bytesRead) => onProgress(bytesRead, volume.sizeBytes));
    const { startedClean, poisoned } = before;
    return { ...volume.identity, startedClean, clearedFailure: poisoned?.reason ?? null };
  } finally {
    await volume.close();
  }
}

class OnlineAccess implements VolumeAccess {
  readonly online = true;
  readonly #client: ControlClient;

  constructor(client: ControlClient) {
    this.#client = client;
  }

  async status(): Promise<StatusRecord> {
    const result = await this.#client.request({ command: 'status' });
    if (!isRecord(result)) throw badReply('status', result);
    return result;
  }

  async backup(params: BackupParams, events: RequestEvents): Promise<BackupOutcome> {
    const result = await this.#client.request(
      { command: 'backup', params },
      {
        onSession: (id) => events.session(id),
        onWarning: (sentence) => events.warning(sentence),
        onProgress: (progress) => {
          if (isProgress(progress)) events.progress(progress);
        },
      },
    );
    if (!isBackupOutcome(result)) throw badReply('backup', result);
    return result;
  }

  cancel(session: string | undefined): Promise<unknown> {
    return this.#client.request({ command: 'cancel', params: session === undefined ? {} : { session } });
  }

  async close(): Promise<void> {
    this.#client.close();
  }
}

// Both ends come from one package, so a look at what the command line counts with is enough.

function isRecord(value: unknown): value is StatusRecord {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isProgress(value: unknown): value is LaneProgress {
  return (
    isRecord(value) && typeof value['tracksDone'] === 'number' && typeof value['tracksTotal'] === 'number'
  );
}

function isBackupOutcome(value: unknown): value is BackupOutcome {
  if (!isRecord(value) || typeof value['set'] !== 'string') return false;
  return ['tracks', 'bytesRead', 'bytesStored', 'freezeMs', 'durationMs'].every(
    (member) => typeof value[member] === 'number',
  );
}

function badReply(command: string, result: unknown): DaemonError<'bad-reply'> {
  const reason = `it answers ${command} with ${JSON.stringify(result)?.slice(0, 60) ?? 'nothing'}`;
  return new DaemonError('bad-reply', `The server is none of this version: ${reason}`, { reason });
}
