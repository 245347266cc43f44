/**
 * One open volume with its sessions and snapshots: what answers the control protocol, and what a command uses that
 * opens the volume itself. The two are one code, so that a command does the same online and offline.
 */

import type { Clock } from '../base/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { createSnapshots, Volume } from '../volume/index.ts';
import { backUpTogether } from './backup-together.ts';
import type { BackupOutcome, BackupParams, SnapshotParams } from './backup-params.ts';
import type { SnapshotChanges } from './control-protocol.ts';
import type { ControlHandlers, RequestEvents } from './control-server.ts';
import { DaemonError } from './errors.ts';
import type { VolumeExports } from './exports.ts';
import { withFreezeHooks } from './freeze-hooks.ts';
import { SessionRegistry } from './sessions.ts';

export interface HostOptions {
  /** What the owner is doing, for whoever is refused: `serving`. */
  readonly activity: string;
  readonly registry: DeviceRegistry;
  readonly readOnly: boolean;
  readonly clock: Clock;
  /** The program of a session's child process; an owner without one runs no backups. */
  readonly workerPath: string;
  /** Is told what the owner's operator must know, whoever asked for it and still listens; a sentence each. */
  readonly warn?: (sentence: string) => void;
  /** Where clients reach the volume and its snapshots; nowhere, where left out. */
  readonly exports?: VolumeExports;
  /** The hosts of one process, by their directories: those that can freeze together. */
  readonly peers: ReadonlyMap<string, VolumeHost>;
}

/** What `snapshot-create` answers for each volume. */
export interface SnapshotOutcome {
  readonly volume: string;
  readonly name: string;
  readonly point: string;
  readonly createdMs: number;
  readonly freezeMs: number;
}

export class VolumeHost implements ControlHandlers {
  readonly volume: Volume;
  readonly sessions: SessionRegistry;
  readonly options: HostOptions;

  private constructor(volume: Volume, options: HostOptions) {
    this.volume = volume;
    this.options = options;
    this.sessions = new SessionRegistry({ volumeName: volume.identity.name, clock: options.clock });
  }

  /** Takes the volume's lock and opens it. Errors are those of `Volume.open`. */
  static async open(directory: string, options: HostOptions): Promise<VolumeHost> {
    const { registry, readOnly, clock, activity, warn, exports } = options;
    const volume: Volume = await Volume.open(directory, {
      registry,
      readOnly,
      clock,
      activity,
      onWarning: (sentence) => warn?.(sentence),
      onSnapshotDropped: (name) => void exports?.dropSnapshot(volume, name),
    });
    return new VolumeHost(volume, options);
  }

  async show(): Promise<Readonly<Record<string, unknown>>> {
    return { ...this.volume.identity };
  }

  async status(): Promise<Readonly<Record<string, unknown>>> {
    const { session, ...status } = this.volume.status();
    // One session at a time: what the volume counts and what the registry knows are of the same one.
    return { ...status, sessions: this.sessions.list().map((running) => ({ ...session, ...running })) };
  }

  /** Backs this volume up, and further ones of the same instant; see `backUpTogether`. */
  async backup(params: BackupParams, events: RequestEvents): Promise<readonly BackupOutcome[]> {
    const { others = [], snapshot } = params;
    const first = { host: this, snapshot };
    const further = others.map((other) => ({ host: this.#peer(other.volume), snapshot: other.snapshot }));
    return backUpTogether([first, ...further], params, events);
  }

  async cancel(session: string | undefined): Promise<{ readonly session: string }> {
    return { session: await this.sessions.cancel(session) };
  }

  /** Makes a snapshot of this volume, and of further ones at the same instant: all or none. */
  async snapshotCreate(params: SnapshotParams, events: RequestEvents): Promise<readonly SnapshotOutcome[]> {
    const { name, others = [], hooks } = params;
    const hosts = [this, ...others.map((directory) => this.#peer(directory))];
    const volumes = hosts.map(({ volume }) => volume);
    const context = {
      volumes: volumes.map(({ identity }) => identity.name),
      snapshot: name,
      clock: this.options.clock,
      warn: (sentence: string) => this.warn(sentence, events),
    };
    const { value: made, report } = await withFreezeHooks(hooks, context, () =>
      createSnapshots(name, volumes),
    );
    return hosts.map(({ volume, options }, index) => {
      options.exports?.addSnapshot(volume, name);
      const created = made[index];
      if (created === undefined) throw new Error(`A snapshot of ${volume.identity.name} was not made`);
      return { volume: volume.identity.name, ...created, ...report };
    });
  }

  async snapshotList(): Promise<readonly object[]> {
    return this.volume.snapshots().map((info) => ({ ...info }));
  }

  /** Deletes a snapshot that no client and no session reads. */
  async snapshotDelete(name: string): Promise<{ readonly name: string }> {
    const { exports } = this.options;
    await exports?.removeSnapshot(this.volume, name);
    try {
      await this.volume.deleteSnapshot(name);
    } catch (error) {
      const isThere = this.volume.snapshots().some((info) => info.name === name && info.state === 'ready');
      if (isThere) exports?.addSnapshot(this.volume, name);
      throw error;
    }
    return { name };
  }

  /** Rolls the volume back; no client may be connected, and none gets in meanwhile. */
  async snapshotRollback(
    name: string,
    events: RequestEvents,
  ): Promise<{ readonly name: string; readonly tracks: number }> {
    const { exports } = this.options;
    const rollBack = (): Promise<number> =>
      this.volume.rollBack(name, (tracksDone, tracksTotal) =>
        events.progress({ tracksDone, tracksTotal, bytesRead: 0 }),
      );
    const tracks = exports === undefined ? await rollBack() : await exports.without(this.volume, rollBack);
    return { name, tracks };
  }

  /** What changed between two snapshots, as extents of bytes. */
  async snapshotChanges({ from, to }: SnapshotChanges): Promise<Readonly<Record<string, unknown>>> {
    const { geometry } = this.volume;
    const tracks = this.volume.changedSinceSnapshot(from, to);
    const extents = [...tracks.runs()].map((run) => ({
      offsetBytes: geometry.offsetOf(run.first),
      lengthBytes: geometry.lengthOf(run),
    }));
    return { from, to: to ?? null, tracks: tracks.size, extents };
  }

  /** Cancels what runs, waits for it, and starts nothing more. */
  stopSessions(): Promise<void> {
    return this.sessions.stop();
  }

  /** Cancels what runs and closes the volume, durably and with its clean mark where it can be. */
  async close(): Promise<void> {
    await this.sessions.stop();
    await this.volume.close();
  }

  warn(sentence: string, events: RequestEvents): void {
    this.options.warn?.(sentence);
    events.warning(sentence);
  }

  #peer(directory: string): VolumeHost {
    const host = this.options.peers.get(directory);
    if (host !== undefined) return host;
    const own = this.volume.identity.directory;
    const message = `Volumes ${own} and ${directory} cannot freeze together, wanted both served by one process or none served`;
    throw new DaemonError('not-served-together', message, { directories: [own, directory] });
  }
}
