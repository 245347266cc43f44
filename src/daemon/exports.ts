/**
 * What a serving process exports: its volumes, and the snapshots of each under `<volume>@<snapshot>`, read-only.
 *
 * Snapshots come and go while clients are connected. An export of one holds it, so that nobody deletes it under a
 * client; it is withdrawn before it is deleted, where no client has it.
 */

import { LIMITS } from '../base/index.ts';
import { type Export, NbdServer, NbdServerError } from '../nbd/index.ts';
import { type SnapshotDevice, type Volume, VolumeError } from '../volume/index.ts';
import { findChangedContext, listChangedContexts } from './changed-contexts.ts';
import { DaemonError } from './errors.ts';

/** Between the names of a volume and its snapshot. */
const SEPARATOR = '@';

export class VolumeExports {
  readonly #server: NbdServer;
  readonly #readOnly: boolean;
  readonly #warn: (sentence: string) => void;
  /** Open snapshots and the names of their volumes, by the names of their exports. */
  readonly #snapshots = new Map<string, { readonly device: SnapshotDevice; readonly volume: string }>();

  constructor(options: {
    readonly server: NbdServer;
    /** Volumes are exported read-only. */
    readonly readOnly: boolean;
    readonly warn: (sentence: string) => void;
  }) {
    this.#server = options.server;
    this.#readOnly = options.readOnly;
    this.#warn = options.warn;
  }

  /** The exports of snapshots. */
  get snapshotNames(): readonly string[] {
    return [...this.#snapshots.keys()];
  }

  /**
   * Exports volumes and the snapshots that they have. A volume named as a snapshot of another wins.
   *
   * @throws {NbdServerError} for a name that no export may have.
   */
  addVolumes(volumes: readonly Volume[]): void {
    for (const volume of volumes) this.#server.addExport(exportOfVolume(volume, this.#readOnly));
    for (const volume of volumes) {
      for (const { name, state } of volume.snapshots()) if (state === 'ready') this.addSnapshot(volume, name);
    }
  }

  /** Withdraws a volume and its snapshots; their clients are cut off. Nothing of it is in use when this returns. */
  async removeVolume(volume: Volume): Promise<void> {
    const { name } = volume.identity;
    await this.#server.removeExport(name);
    const own = [...this.#snapshots].filter(([, snapshot]) => snapshot.volume === name);
    for (const [exportName] of own) await this.#withdraw(exportName);
  }

  /** Whether an export is a volume of one of the names, or a snapshot of one. */
  belongsTo(exportName: string, volumes: readonly string[]): boolean {
    return volumes.includes(this.#snapshots.get(exportName)?.volume ?? exportName);
  }

  /** Exports a snapshot; where that cannot be, it is said, and the snapshot is none the worse. */
  addSnapshot(volume: Volume, name: string): void {
    const exportName = snapshotExportName(volume.identity.name, name);
    let device: SnapshotDevice | undefined;
    try {
      device = volume.openSnapshot(name);
      this.#server.addExport(exportOfSnapshot(exportName, device, volume));
      this.#snapshots.set(exportName, { device, volume: volume.identity.name });
    } catch (error) {
      void device?.close();
      // It may have been dropped for want of room meanwhile.
      if (!(error instanceof NbdServerError || error instanceof VolumeError)) throw error;
      this.#warn(`Snapshot ${name} of ${volume.identity.name} is not exported: ${error.message}`);
    }
  }

  /**
   * Withdraws a snapshot's export.
   *
   * @throws {DaemonError} `clients-connected`; the export stays then.
   */
  async removeSnapshot(volume: Volume, name: string): Promise<void> {
    const exportName = snapshotExportName(volume.identity.name, name);
    if (this.#snapshots.has(exportName)) this.#refuseClients(exportName);
    await this.#withdraw(exportName);
  }

  /** Withdraws the export of a snapshot that is gone already; its clients are cut off. */
  async dropSnapshot(volume: Volume, name: string): Promise<void> {
    await this.#withdraw(snapshotExportName(volume.identity.name, name));
  }

  /**
   * Withdraws the volume's own export while `body` rolls it back, and for longer where that was begun and failed:
   * what it left is then neither the one thing nor the other.
   *
   * @throws {DaemonError} `clients-connected`; what `body` throws.
   */
  async without<T>(volume: Volume, body: () => Promise<T>): Promise<T> {
    const { name } = volume.identity;
    this.#refuseClients(name);
    await this.#server.removeExport(name);
    try {
      return await body();
    } finally {
      if (volume.unfinishedRollback === undefined)
        this.#server.addExport(exportOfVolume(volume, this.#readOnly));
    }
  }

  /** Lets all snapshots go. The server serves nobody any more. */
  async close(): Promise<void> {
    for (const { device } of this.#snapshots.values()) await device.close();
    this.#snapshots.clear();
  }

  async #withdraw(exportName: string): Promise<void> {
    const open = this.#snapshots.get(exportName);
    if (open === undefined) return;
    // Before anything is awaited: another one of that name may come meanwhile.
    this.#snapshots.delete(exportName);
    await this.#server.removeExport(exportName);
    await open.device.close();
  }

  #refuseClients(exportName: string): void {
    const count = this.#server.connectionCountOf(exportName);
    if (count === 0) return;
    const message = `Export ${exportName} has clients connected (${count}); disconnect them first`;
    throw new DaemonError('clients-connected', message, { exportName, count });
  }
}

/** The name of a snapshot's export. */
export function snapshotExportName(volume: string, snapshot: string): string {
  return `${volume}${SEPARATOR}${snapshot}`;
}

function exportOfVolume(volume: Volume, readOnly: boolean): Export {
  return {
    name: volume.identity.name,
    // Clients may be strangers, so nothing of where it is.
    description: `Cowbell volume ${volume.identity.volumeId}`,
    device: volume,
    readOnly,
    multiConn: true,
    preferredBlockSizeBytes: LIMITS.blockSizeBytesPreferred,
    get contexts() {
      return listChangedContexts(volume);
    },
    findContext: (name) => findChangedContext(volume, name),
  };
}

function exportOfSnapshot(name: string, device: SnapshotDevice, volume: Volume): Export {
  const { point } = device.snapshot;
  return {
    name,
    description: `Cowbell volume ${volume.identity.volumeId} at point ${point}`,
    device,
    readOnly: true,
    multiConn: true,
    preferredBlockSizeBytes: LIMITS.blockSizeBytesPreferred,
  };
}
