/**
 * What the policies of a served volume do: the same backups and snapshots that commands ask for, of the same host, and
 * afterwards the removal of what is not kept any more. And what the conditions of policies ask of the volume.
 */

import { messageOf } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { VolumeFacts } from '../policy/index.ts';
import type { Volume } from '../volume/index.ts';
import type { RequestEvents } from './control-server.ts';
import { errorCode } from './errors.ts';
import type { BackupAction, KeyPlace, SnapshotAction, VolumePolicy } from './policy-config.ts';
import type { PolicyOutcome } from './policy-record.ts';
import type { Performed } from './policy-runner.ts';
import type { PruneReport, PruneRequest } from './store-prune.ts';
import { recordOf } from './untyped.ts';
import type { VolumeHost } from './volume-host.ts';

export interface ActionOptions {
  /** Reads the key of a store where it is kept. */
  readonly readKey: (place: KeyPlace) => StoreKey;
  /** Removes what a store does not keep, in a process of its own. */
  readonly prune: (request: PruneRequest) => Promise<PruneReport>;
}

/** Nobody listens: what becomes of it is the outcome, and warnings go to the server's operator. */
const SILENT: RequestEvents = {
  session: () => undefined,
  progress: () => undefined,
  warning: () => undefined,
};

/** Does what a policy says. @throws what the backup or the snapshot throws. */
export function performPolicy(
  host: VolumeHost,
  { action }: VolumePolicy,
  signal: AbortSignal,
  options: ActionOptions,
): Promise<Performed> {
  return action.kind === 'backup' ? backUp(host, action, signal, options) : makeSnapshot(host, action);
}

async function backUp(
  host: VolumeHost,
  { params, key, retention }: BackupAction,
  signal: AbortSignal,
  { readKey, prune }: ActionOptions,
): Promise<Performed> {
  const [outcome] = await host.backup(
    { ...params, ...(key === undefined ? {} : { key: readKey(key) }) },
    SILENT,
  );
  const { set, level, bytesRead, bytesStored, hookWarning } = outcome ?? {};
  const consumer = host.volume.status().consumers.find((one) => one.set === set)?.name;
  const performed = { set, level, bytesRead, bytesStored, consumer };
  const warnings = hookWarning === undefined ? [] : [hookWarning];
  if (retention === undefined) return withWarnings(performed, warnings);
  try {
    const { volumeId } = host.volume.identity;
    const { removed } = await prune({ store: params.store, key, volume: volumeId, retention, signal });
    return withWarnings({ ...performed, removed }, warnings);
  } catch (error) {
    // What the end of the server broke off is done after the next backup.
    if (signal.aborted) return withWarnings(performed, warnings);
    return withWarnings(performed, [...warnings, `Retention failed: ${messageOf(error)}`]);
  }
}

async function makeSnapshot(host: VolumeHost, action: SnapshotAction): Promise<Performed> {
  const { prefix, suffix, keep, hooks } = action;
  const name = `${prefix}${timeText(host.options.clock.now())}${suffix}`;
  const [outcome] = await host.snapshotCreate({ name, ...(hooks === undefined ? {} : { hooks }) }, SILENT);
  const hookWarning = recordOf(outcome)['hookWarning'];
  const warnings = typeof hookWarning === 'string' ? [hookWarning] : [];
  // Oldest first, as the volume lists them.
  const own = host.volume
    .snapshots()
    .filter((one) => one.state === 'ready' && isNamed(one.name, { prefix, suffix }));
  let removed = 0;
  for (const { name: old } of own.slice(0, Math.max(0, own.length - keep))) {
    try {
      await host.snapshotDelete(old);
      removed += 1;
    } catch (error) {
      // One that a client reads stays until the next time.
      if (errorCode(error) !== 'clients-connected')
        warnings.push(`Snapshot ${old} is not deleted: ${messageOf(error)}`);
    }
  }
  return withWarnings({ snapshot: name, removed }, warnings);
}

function withWarnings(performed: Performed, warnings: readonly string[]): Performed {
  return warnings.length === 0 ? performed : { ...performed, warning: warnings.join('; ') };
}

/** `20261122T020000Z`. */
function timeText(timeMs: number): string {
  return new Date(timeMs).toISOString().replace(/\.\d+/, '').replace(/[-:]/g, '');
}

/** Whether a snapshot has one of the names that a policy gives. */
export function isNamed(
  name: string,
  { prefix, suffix }: Pick<SnapshotAction, 'prefix' | 'suffix'>,
): boolean {
  if (!name.startsWith(prefix) || !name.endsWith(suffix)) return false;
  return /^\d{8}T\d{6}Z$/.test(name.slice(prefix.length, name.length - suffix.length));
}

/** What the conditions of a policy ask for, where it was last done so. */
export function factsOf(
  { volume }: { readonly volume: Pick<Volume, 'status' | 'changedSinceSnapshot'> },
  { action }: VolumePolicy,
  lastDone: PolicyOutcome | undefined,
): VolumeFacts {
  const status = volume.status();
  const { bytesUsed, bytesMax } = status.deltas ?? {};
  const deltaFill = bytesUsed === undefined || bytesMax === undefined ? undefined : bytesUsed / bytesMax;
  return { changedBytes: changedTracks() * status.trackSizeBytes, deltaFill };

  /** Infinite where nobody knows since when: everything counts then. */
  function changedTracks(): number {
    if (action.kind === 'backup') {
      const consumer = status.consumers.find(({ name }) => name === lastDone?.consumer);
      return consumer?.changedTracks ?? Number.POSITIVE_INFINITY;
    }
    const last = status.snapshots.find(({ name, state }) => name === lastDone?.snapshot && state === 'ready');
    return last === undefined ? Number.POSITIVE_INFINITY : volume.changedSinceSnapshot(last.name).size;
  }
}
