/**
 * One open volume with its sessions and snapshots: what answers the control protocol, and what a command uses that
 * opens the volume itself. The two are one code, so that a command does the same online and offline.
 */

import { type Clock, LIMITS, present } from '../base/index.ts';
import type { DryRun } from '../backup/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import {
  type ClonedVolume,
  cloneSnapshot,
  createSnapshots,
  type OpenVolumeOptions,
  Volume,
  type VolumeStatus,
} from '../volume/index.ts';
import { backUpTogether, type Member, planTogether } from './backup-together.ts';
import type { BackupOutcome, BackupParams, SnapshotParams } from './backup-params.ts';
import type { SnapshotChanges, SnapshotClone } from './control-protocol.ts';
import type { ControlHandlers, RequestEvents } from './control-server.ts';
import { type Copies, copiesOf } from './copies.ts';
import type { CopyForecast, CopyOutcome, CopyParams } from './copy-params.ts';
import { DaemonError } from './errors.ts';
import type { VolumeExports } from './exports.ts';
import { fillFromMedia, type FillOutcome, type FillParams } from './fill-from-media.ts';
import { withFreezeHooks } from './freeze-hooks.ts';
import type { ReplaceOutcome, ReplaceParams, ScrubParams, ScrubReport } from './mirror-params.ts';
import { readPolicyRecords } from './policy-record.ts';
import { type PoliciesStatus, policiesAtRest } from './policy-runner.ts';
import { realPathOf } from './real-path.ts';
import { SessionRegistry, severalSessions } from './sessions.ts';
import { copyOnto, planCopyOnto } from './volume-copy.ts';
import { replaceMember, scrubVolume } from './volume-mirrors.ts';

export interface HostOptions {
  /** What the owner is doing, for whoever is refused: `serving`. */
  readonly activity: string;
  readonly registry: DeviceRegistry;
  readonly readOnly: boolean;
  readonly clock: Clock;
  /** The program of a session's child process; an owner without one runs no backups. */
  readonly workerPath: string;
  /** Opens what a volume under recovery is filled from; an owner without it opens no such volume. */
  readonly openSide?: OpenVolumeOptions['openSide'];
  /** Opens a device that is to become the volume's equal. */
  readonly openMirror?: OpenVolumeOptions['openMirror'];
  /** How the volume goes on when its home is lost. */
  readonly survive?: OpenVolumeOptions['survive'];
  /** The home was lost, and the volume goes on in another one that has to be filled. */
  readonly onTakenOver?: (volume: Volume) => void;
  /** The program of the process that reads media for a fill; an owner without it fills from none. */
  readonly feedPath?: string | undefined;
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

/** What growing a volume came to; both sizes are the same where it had that one. */
export interface GrowOutcome {
  readonly volume: string;
  readonly sizeBytes: number;
  readonly sizeBytesBefore: number;
}

export class VolumeHost implements ControlHandlers {
  readonly volume: Volume;
  readonly sessions: SessionRegistry;
  /** Apart from the sessions: a clone is in no backup's way. */
  readonly clones: SessionRegistry;
  readonly options: HostOptions;
  /** Tells of the volume's policies, where this process runs them. */
  policies: (() => PoliciesStatus) | undefined;
  /** Ends the hooks of snapshots that are being made. */
  readonly #stopping = new AbortController();
  #isRollingBack = false;

  private constructor(volume: Volume, options: HostOptions) {
    this.volume = volume;
    this.options = options;
    const names = { volumeName: volume.identity.name, clock: options.clock };
    this.sessions = new SessionRegistry(names);
    this.clones = new SessionRegistry(names);
  }

  /** Takes the volume's lock and opens it. Errors are those of `Volume.open`. */
  static async open(directory: string, options: HostOptions): Promise<VolumeHost> {
    const { registry, readOnly, clock, activity, warn, exports, openSide, openMirror, survive } = options;
    const opened: { volume?: Volume } = {};
    const volume = await Volume.open(directory, {
      registry,
      readOnly,
      clock,
      activity,
      ...(openSide === undefined ? {} : { openSide }),
      openMirror,
      survive,
      onTakenOver: () => {
        if (opened.volume !== undefined) options.onTakenOver?.(opened.volume);
      },
      onWarning: (sentence) => warn?.(sentence),
      onSnapshotDropped: (name) => {
        // While the volume is being opened nothing of it is exported.
        if (opened.volume !== undefined) void exports?.dropSnapshot(opened.volume, name);
      },
    });
    opened.volume = volume;
    return new VolumeHost(volume, options);
  }

  async show(): Promise<Readonly<Record<string, unknown>>> {
    return { ...this.volume.identity };
  }

  async status(): Promise<Readonly<Record<string, unknown>>> {
    // What its members are is told with their state.
    const { layout: _layout, ...status } = this.volume.status();
    const sessions = this.sessions.list().map((running) => {
      // Until the freeze the volume knows nothing of it.
      const begun = status.sessions.find(({ session }) => session === running.session);
      return { state: 'starting', ...begun, ...running };
    });
    const all = { ...status, sessions: [...sessions, ...this.clones.list()] };
    return { ...all, ...this.#copies(status), ...(this.policies?.() ?? this.#policiesAtRest()) };
  }

  /** Who opens the volume to look at it alone does not open its delta store, and cannot say how many copies that has. */
  #copies(status: VolumeStatus): { readonly copies?: Copies } {
    const isUnknown = this.volume.identity.deltas !== undefined && status.deltas === undefined;
    return isUnknown ? {} : { copies: copiesOf(status) };
  }

  #policiesAtRest(): PoliciesStatus | undefined {
    const { directory, volumeId } = this.volume.identity;
    const warn = (sentence: string): void => this.options.warn?.(sentence);
    return policiesAtRest(readPolicyRecords(directory, volumeId, warn), this.options.clock.now());
  }

  /** Backs this volume up, and further ones of the same instant; see `backUpTogether`. */
  async backup(params: BackupParams, events: RequestEvents): Promise<readonly BackupOutcome[]> {
    return backUpTogether(await this.#members(params), params, events);
  }

  /** What that would read and store; see `planTogether`. */
  async backupPlan(params: BackupParams): Promise<readonly DryRun[]> {
    return planTogether(await this.#members(params), params);
  }

  /** Fills this volume, which is under recovery, from media; see `fillFromMedia`. It may be cancelled as a session may. */
  fillFromMedia(params: FillParams, events: RequestEvents): Promise<FillOutcome> {
    return this.sessions.run(
      'fill',
      (session) => {
        events.session(session.id);
        return fillFromMedia({
          volume: this.volume,
          params,
          program: present(this.options.feedPath, 'An owner that fills from media has the program for it'),
          signal: session.signal,
          warn: (sentence) => this.warn(sentence, events),
          onProgress: (tracksDone, tracksTotal) => {
            const progress = { tracksDone, tracksTotal, bytesRead: 0 };
            session.note(progress);
            events.progress(progress);
          },
        });
      },
      params.places.join(', '),
    );
  }

  /** Copies this volume, or a snapshot of it, to other devices; see `copyOnto`. */
  copy(params: CopyParams, events: RequestEvents): Promise<CopyOutcome> {
    return copyOnto(this, params, events);
  }

  /** What that would send; see `planCopyOnto`. */
  copyPlan(params: CopyParams): Promise<CopyForecast> {
    return planCopyOnto(this, params);
  }

  async cancel(session: string | undefined): Promise<{ readonly session: string }> {
    const clones = this.clones.list().map((one) => one.session);
    const running = [...this.sessions.list().map((one) => one.session), ...clones];
    if (session === undefined && running.length > 1) {
      throw severalSessions(this.volume.identity.name, running);
    }
    const [wanted = session] = session === undefined ? running : [session];
    const isClone = wanted !== undefined && clones.includes(wanted);
    return { session: await (isClone ? this.clones : this.sessions).cancel(wanted) };
  }

  /** Makes a snapshot of this volume, and of further ones at the same instant: all or none. */
  async snapshotCreate(params: SnapshotParams, events: RequestEvents): Promise<readonly SnapshotOutcome[]> {
    const { name, others = [], hooks } = params;
    const hosts = await this.#group(others);
    const volumes = hosts.map(({ volume }) => volume);
    const context = {
      volumes: volumes.map(({ identity }) => identity.name),
      snapshot: name,
      clock: this.options.clock,
      signal: this.#stopping.signal,
      warn: (sentence: string) => this.warn(sentence, events),
    };
    const { value: made, report } = await withFreezeHooks(hooks, context, async () => {
      for (const host of hosts) host.refuseRollingBack();
      const created = await createSnapshots(name, volumes);
      // Before the post-hook, which may take its time; somebody may delete it meanwhile.
      for (const { options, volume } of hosts) options.exports?.addSnapshot(volume, name);
      return created;
    });
    return volumes.map(({ identity }, index) => ({
      volume: identity.name,
      ...present(made[index], 'A snapshot was not made'),
      ...report,
    }));
  }

  async snapshotList(): Promise<readonly object[]> {
    return this.volume.snapshots().map((info) => ({ ...info }));
  }

  /** Deletes a snapshot that no client and no session reads. */
  async snapshotDelete(name: string): Promise<{ readonly name: string }> {
    const { exports } = this.options;
    const { unfinishedRollback } = this.volume;
    if (this.volume.snapshots().some((info) => info.name === name && info.number === unfinishedRollback))
      this.refuseRollingBack();
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
    // One that failed may be tried again, or another one in its place.
    if (this.#isRollingBack) this.refuseRollingBack();
    this.#isRollingBack = true;
    try {
      const tracks = exports === undefined ? await rollBack() : await exports.without(this.volume, rollBack);
      return { name, tracks };
    } finally {
      this.#isRollingBack = false;
    }
  }

  /** What changed between two snapshots, as extents of bytes; as many as go into one answer. */
  async snapshotChanges(changes: SnapshotChanges): Promise<Readonly<Record<string, unknown>>> {
    const { from, to, offsetBytes = 0 } = changes;
    const { geometry } = this.volume;
    const tracks = this.volume.changedSinceSnapshot(from, to);
    const extents: { readonly offsetBytes: number; readonly lengthBytes: number }[] = [];
    let nextOffsetBytes: number | null = null;
    for (const run of tracks.runs()) {
      const startBytes = Math.max(offsetBytes, geometry.offsetOf(run.first));
      const lengthBytes = geometry.offsetOf(run.first) + geometry.lengthOf(run) - startBytes;
      if (lengthBytes <= 0) continue;
      if (extents.length === LIMITS.controlExtentCountMax) {
        nextOffsetBytes = startBytes;
        break;
      }
      extents.push({ offsetBytes: startBytes, lengthBytes });
    }
    return { from, to: to ?? null, tracks: tracks.size, extents, nextOffsetBytes };
  }

  /** @throws {DaemonError} `rolling-back`: what the volume holds now nobody may keep. */
  refuseRollingBack(): void {
    const { unfinishedRollback, identity } = this.volume;
    if (unfinishedRollback === undefined && !this.#isRollingBack) return;
    const message = this.#isRollingBack
      ? `Volume ${identity.name} is being rolled back; wait for it`
      : `Volume ${identity.name} was rolled back in part only; roll it back again`;
    throw new DaemonError('rolling-back', message, { volume: identity.name });
  }

  /** Makes a volume of its own of what a snapshot holds. One at a time; it may be cancelled as a session may. */
  snapshotClone({ name, directory, home }: SnapshotClone, events: RequestEvents): Promise<ClonedVolume> {
    return this.clones.run('clone', (session) => {
      events.session(session.id);
      return cloneSnapshot(this.volume, name, directory, {
        clock: this.options.clock,
        signal: session.signal,
        onProgress: (tracksDone, tracksTotal) => {
          const progress = { tracksDone, tracksTotal, bytesRead: 0 };
          session.note(progress);
          events.progress(progress);
        },
        ...(home === undefined ? {} : { home }),
      });
    });
  }

  /** Compares the members of its mirrors; see `scrubVolume`. */
  scrub(params: ScrubParams, events: RequestEvents): Promise<ScrubReport> {
    return scrubVolume(this, params, events);
  }

  /** Puts another device in the place of a member of a mirror; see `replaceMember`. */
  replace(params: ReplaceParams, events: RequestEvents): Promise<ReplaceOutcome> {
    return replaceMember(this, params, events);
  }

  /** See `Volume.grow`. */
  async grow(sizeBytes: number): Promise<GrowOutcome> {
    const { identity } = this.volume;
    await this.volume.grow(sizeBytes);
    return { volume: identity.name, sizeBytes, sizeBytesBefore: identity.sizeBytes };
  }

  /** Cancels what runs, waits for it, and starts nothing more; writes wait for no room any more. */
  async stopSessions(): Promise<void> {
    const { name } = this.volume.identity;
    const message = `The server of volume ${name} is stopping and makes no snapshot`;
    this.#stopping.abort(new DaemonError('stopping', message, { volume: name }));
    await Promise.all([this.sessions.stop(), this.clones.stop()]);
    // Nothing makes room any more.
    this.volume.stopWaiting();
  }

  /** Cancels what runs and closes the volume, durably and with its clean mark where it can be. */
  async close(): Promise<void> {
    await this.stopSessions();
    await this.volume.close();
  }

  warn(sentence: string, events: RequestEvents): void {
    this.options.warn?.(sentence);
    events.warning(sentence);
  }

  async #members({ others = [], snapshot }: BackupParams): Promise<readonly Member[]> {
    const snapshots = [snapshot, ...others.map((other) => other.snapshot)];
    const hosts = await this.#group(others.map((other) => other.volume));
    return hosts.map((host, index) => ({ host, snapshot: snapshots[index] }));
  }

  /** This host and those of further volumes. */
  async #group(others: readonly string[]): Promise<readonly VolumeHost[]> {
    const hosts: VolumeHost[] = [this];
    for (const directory of others) {
      const host = await this.#peer(directory);
      if (hosts.includes(host)) {
        throw new DaemonError('named-twice', `Volume ${directory} is named twice, wanted once`, {
          directory,
        });
      }
      hosts.push(host);
    }
    return hosts;
  }

  /** The host of a directory, by whatever links it is named. */
  async #peer(directory: string): Promise<VolumeHost> {
    const place = await realPathOf(directory);
    for (const host of this.options.peers.values()) {
      if ((await realPathOf(host.volume.identity.directory)) === place) return host;
    }
    const own = this.volume.identity.directory;
    const message = `Volumes ${own} and ${directory} cannot freeze together, wanted both served by one process or none served`;
    throw new DaemonError('not-served-together', message, { directories: [own, directory] });
  }
}
