/**
 * How a command reaches a volume: through the process that serves it, or by opening it itself.
 *
 * Both ways give the same calls. Offline the command owns the volume as long as it has it, and its death
 * fails what it runs; online the server does (DESIGN section 6).
 */

import type { DryRun, SavingProgress } from '../backup/index.ts';
import { allFinished, type Clock, present, systemClock } from '../base/index.ts';
import { openBackupSide } from './backup-side.ts';
import type { BackupOutcome, BackupParams, SnapshotParams } from './backup-params.ts';
import { ControlClient, type RequestListener } from './control-client.ts';
import type { SnapshotChanges, SnapshotClone } from './control-protocol.ts';
import type { RequestEvents } from './control-server.ts';
import type { CopyForecast, CopyOutcome, CopyParams } from './copy-params.ts';
import { createDeviceRegistry } from './devices.ts';
import { DaemonError } from './errors.ts';
import { type CheckOptions, type CheckResult, checkVolume as checkOffline } from '../volume/index.ts';
import { type FillOutcome, type FillParams, isFillOutcome } from './fill-from-media.ts';
import {
  isReplaceOutcome,
  isScrubReport,
  type ReplaceOutcome,
  type ReplaceParams,
  type ScrubParams,
  type ScrubReport,
} from './mirror-params.ts';
import { type GrowOutcome, VolumeHost } from './volume-host.ts';

export type StatusRecord = Readonly<Record<string, unknown>>;

export interface VolumeAccess {
  /** Whether another process serves the volume. */
  readonly online: boolean;
  status(): Promise<StatusRecord>;
  /** One outcome for each volume. */
  backup(params: BackupParams, events: RequestEvents): Promise<readonly BackupOutcome[]>;
  /** What that would read and store, of each volume. */
  backupPlan(params: BackupParams): Promise<readonly DryRun[]>;
  copy(params: CopyParams, events: RequestEvents): Promise<CopyOutcome>;
  /** What that would send. */
  copyPlan(params: CopyParams): Promise<CopyForecast>;
  fillFromMedia(params: FillParams, events: RequestEvents): Promise<FillOutcome>;
  snapshotCreate(params: SnapshotParams, events: RequestEvents): Promise<readonly StatusRecord[]>;
  snapshotList(): Promise<readonly StatusRecord[]>;
  snapshotDelete(name: string): Promise<unknown>;
  snapshotRollback(name: string, events: RequestEvents): Promise<StatusRecord>;
  snapshotChanges(changes: SnapshotChanges): Promise<StatusRecord>;
  /** The new volume, and what was copied. */
  snapshotClone(clone: SnapshotClone, events: RequestEvents): Promise<StatusRecord>;
  cancel(session: string | undefined): Promise<unknown>;
  /** See `Volume.grow`. */
  grow(sizeBytes: number): Promise<GrowOutcome>;
  /** Compares the members of its mirrors. */
  scrub(params: ScrubParams, events: RequestEvents): Promise<ScrubReport>;
  /** Puts another device in the place of a member of a mirror, and brings it everything. */
  replace(params: ReplaceParams, events: RequestEvents): Promise<ReplaceOutcome>;
  /** Gives the volume, or the connection, up. */
  close(): Promise<void>;
}

export interface ReachOptions {
  /** Recorded in the volume's lock when it is opened here. */
  readonly activity: string;
  readonly clock: Clock;
  readonly readOnly?: boolean;
  /** Is told, offline, what would be said by the serving process. */
  readonly warn?: (sentence: string) => void;
  /** Needed for backups. */
  readonly workerPath?: string;
  /** The program of the process that reads a store: without it a volume is not opened that is being recovered from one. */
  readonly readerPath?: string;
  /** The program of the process that reads media; needed to fill from them. */
  readonly feedPath?: string;
}

/** @throws whatever connecting, or `Volume.open`, does: `in-use` when another command has the volume. */
export function reachVolume(directory: string, options: ReachOptions): Promise<VolumeAccess> {
  return reachVolumes([directory], options);
}

/**
 * Reaches volumes that are to freeze together: those after the first are named again in the calls, as `others`.
 *
 * @param directories at least one.
 * @throws {DaemonError} `not-served-together`, also when the calls are made; else as `reachVolume`.
 */
export async function reachVolumes(
  directories: readonly string[],
  options: ReachOptions,
): Promise<VolumeAccess> {
  const [first = ''] = directories;
  const client = await ControlClient.connect(first);
  if (client !== undefined) return new OnlineAccess(client);
  const hosts = new Map<string, VolumeHost>();
  const close = async (): Promise<void> => {
    await allFinished(Array.from(hosts.values(), (host) => host.close()));
  };
  try {
    for (const directory of directories)
      hosts.set(directory, await openHere(directory, first, options, hosts));
  } catch (error) {
    await close();
    throw error;
  }
  const host = present(hosts.get(first), 'A volume that was opened is not there');
  // The owner is this command, and one of the two ways that a warning takes is enough.
  const once = (events: RequestEvents): RequestEvents =>
    options.warn === undefined ? events : { ...events, warning: () => undefined };
  return {
    online: false,
    status: () => host.status(),
    backup: (params, events) => host.backup(params, once(events)),
    backupPlan: (params) => host.backupPlan(params),
    copy: (params, events) => host.copy(params, once(events)),
    copyPlan: (params) => host.copyPlan(params),
    fillFromMedia: (params, events) => host.fillFromMedia(params, once(events)),
    snapshotCreate: async (params, events) =>
      (await host.snapshotCreate(params, once(events))).map((one) => ({ ...one })),
    snapshotList: async () => (await host.snapshotList()).map((one) => ({ ...one })),
    snapshotDelete: (name) => host.snapshotDelete(name),
    snapshotRollback: (name, events) => host.snapshotRollback(name, once(events)),
    snapshotChanges: (changes) => host.snapshotChanges(changes),
    snapshotClone: async (clone, events) => ({ ...(await host.snapshotClone(clone, events)) }),
    cancel: (session) => host.cancel(session),
    grow: (sizeBytes) => host.grow(sizeBytes),
    scrub: (params, events) => host.scrub(params, once(events)),
    replace: (params, events) => host.replace(params, once(events)),
    close,
  };
}

async function openHere(
  directory: string,
  first: string,
  options: ReachOptions,
  peers: ReadonlyMap<string, VolumeHost>,
): Promise<VolumeHost> {
  const server = directory === first ? undefined : await ControlClient.connect(directory);
  if (server !== undefined) {
    server.close();
    const message = `Volume ${directory} is served and ${first} is not: they cannot freeze together, wanted both served by one process or none served`;
    throw new DaemonError('not-served-together', message, { directories: [first, directory] });
  }
  const registry = createDeviceRegistry();
  const { clock, readerPath } = options;
  return VolumeHost.open(directory, {
    registry,
    openSide: (record) => openBackupSide(record, { registry, clock, readerPath }),
    activity: options.activity,
    readOnly: options.readOnly ?? false,
    clock: options.clock,
    workerPath: options.workerPath ?? '',
    feedPath: options.feedPath,
    peers,
    ...(options.warn === undefined ? {} : { warn: options.warn }),
  });
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
 * Checks a volume and repairs it; see `checkVolume` of the volume. Never while it is served: nothing may write.
 *
 * @throws {VolumeError} `in-use`, with who has it; what `onProgress` throws ends it.
 */
export function checkVolume(
  directory: string,
  options: Omit<CheckOptions, 'registry' | 'openSide'> & { readonly readerPath?: string },
): Promise<CheckResult> {
  const registry = createDeviceRegistry();
  const { clock = systemClock, readerPath } = options;
  return checkOffline(directory, {
    ...options,
    registry,
    openSide: (record) => openBackupSide(record, { registry, clock, readerPath }),
  });
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

  async backup(params: BackupParams, events: RequestEvents): Promise<readonly BackupOutcome[]> {
    const result = await this.#client.request({ command: 'backup', params }, listenerOf(events));
    if (!Array.isArray(result) || !result.every(isBackupOutcome)) throw badReply('backup', result);
    return result;
  }

  async backupPlan(params: BackupParams): Promise<readonly DryRun[]> {
    const result = await this.#client.request({ command: 'backup-plan', params });
    if (!Array.isArray(result) || !result.every(isDryRun)) throw badReply('backup-plan', result);
    return result;
  }

  async copy(params: CopyParams, events: RequestEvents): Promise<CopyOutcome> {
    const result = await this.#client.request({ command: 'copy', params }, listenerOf(events));
    if (!isCopyOutcome(result)) throw badReply('copy', result);
    return result;
  }

  async copyPlan(params: CopyParams): Promise<CopyForecast> {
    const result = await this.#client.request({ command: 'copy-plan', params });
    if (!isCopyForecast(result)) throw badReply('copy-plan', result);
    return result;
  }

  async fillFromMedia(params: FillParams, events: RequestEvents): Promise<FillOutcome> {
    const result = await this.#client.request({ command: 'fill', params }, listenerOf(events));
    if (!isFillOutcome(result)) throw badReply('fill', result);
    return result;
  }

  async snapshotCreate(params: SnapshotParams, events: RequestEvents): Promise<readonly StatusRecord[]> {
    return this.#list('snapshot-create', { command: 'snapshot-create', params }, events);
  }

  snapshotList(): Promise<readonly StatusRecord[]> {
    return this.#list('snapshot-list', { command: 'snapshot-list' });
  }

  snapshotDelete(name: string): Promise<unknown> {
    return this.#client.request({ command: 'snapshot-delete', params: { name } });
  }

  async snapshotRollback(name: string, events: RequestEvents): Promise<StatusRecord> {
    const request = { command: 'snapshot-rollback', params: { name } } as const;
    return asRecord('snapshot-rollback', await this.#client.request(request, listenerOf(events)));
  }

  async snapshotChanges(params: SnapshotChanges): Promise<StatusRecord> {
    return asRecord('snapshot-changes', await this.#client.request({ command: 'snapshot-changes', params }));
  }

  async snapshotClone(params: SnapshotClone, events: RequestEvents): Promise<StatusRecord> {
    const request = { command: 'snapshot-clone', params } as const;
    return asRecord('snapshot-clone', await this.#client.request(request, listenerOf(events)));
  }

  async #list(
    command: string,
    request: Parameters<ControlClient['request']>[0],
    events?: RequestEvents,
  ): Promise<readonly StatusRecord[]> {
    const result = await this.#client.request(request, events === undefined ? {} : listenerOf(events));
    if (!Array.isArray(result) || !result.every(isRecord)) throw badReply(command, result);
    return result;
  }

  cancel(session: string | undefined): Promise<unknown> {
    return this.#client.request({ command: 'cancel', params: session === undefined ? {} : { session } });
  }

  async grow(sizeBytes: number): Promise<GrowOutcome> {
    const result = await this.#client.request({ command: 'grow', params: { sizeBytes } });
    if (!isGrowOutcome(result)) throw badReply('grow', result);
    return result;
  }

  async scrub(params: ScrubParams, events: RequestEvents): Promise<ScrubReport> {
    const result = await this.#client.request({ command: 'scrub', params }, listenerOf(events));
    if (!isScrubReport(result)) throw badReply('scrub', result);
    return result;
  }

  async replace(params: ReplaceParams, events: RequestEvents): Promise<ReplaceOutcome> {
    const result = await this.#client.request({ command: 'replace', params }, listenerOf(events));
    if (!isReplaceOutcome(result)) throw badReply('replace', result);
    return result;
  }

  async close(): Promise<void> {
    this.#client.close();
  }
}

// Both ends come from one package, so a look at what the command line counts with is enough.

function isRecord(value: unknown): value is StatusRecord {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function asRecord(command: string, result: unknown): StatusRecord {
  if (!isRecord(result)) throw badReply(command, result);
  return result;
}

function listenerOf(events: RequestEvents): RequestListener {
  return {
    onSession: (id) => events.session(id),
    onWarning: (sentence) => events.warning(sentence),
    onProgress: (progress) => {
      if (isProgress(progress)) events.progress(progress);
    },
  };
}

function isProgress(value: unknown): value is SavingProgress {
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

function isDryRun(value: unknown): value is DryRun {
  if (!isRecord(value) || typeof value['volume'] !== 'string') return false;
  return ['tracks', 'zeroTracks', 'bytes'].every((member) => typeof value[member] === 'number');
}

function isCopyOutcome(value: unknown): value is CopyOutcome {
  return (
    isRecord(value) && ['tracks', 'bytesWritten', 'durationMs'].every((one) => typeof value[one] === 'number')
  );
}

function isCopyForecast(value: unknown): value is CopyForecast {
  return isRecord(value) && ['tracks', 'zeroTracks', 'bytes'].every((one) => typeof value[one] === 'number');
}

function isGrowOutcome(value: unknown): value is GrowOutcome {
  return (
    isRecord(value) && typeof value['volume'] === 'string' && typeof value['sizeBytesBefore'] === 'number'
  );
}

function badReply(command: string, result: unknown): DaemonError<'bad-reply'> {
  const reason = `it answers ${command} with ${JSON.stringify(result)?.slice(0, 60) ?? 'nothing'}`;
  return new DaemonError('bad-reply', `The server is none of this version: ${reason}`, { reason });
}
