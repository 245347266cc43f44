/**
 * The serving process: opens volumes, exports them over NBD, and answers the control protocol.
 *
 *     <volume>/nbd.sock, <volume>/control.sock      of each volume, that volume and its snapshots
 *     further listeners                             all volumes, or those they are restricted to
 *
 * With TLS, further listeners require it or offer it, as is asked for. The volumes' own sockets only offer it:
 * the kernel's driver, which cannot do TLS, must get in somewhere, and only their owner can connect to them.
 *
 * One `NbdServer` has all listeners, so that the order of changes holds between them: a client that loses its
 * connection on one and comes back on another must not meet its own stale writes.
 *
 * Everything is open before the first client is let in, and `uris` is known only then. Stopping goes the
 * other way round: sessions are cancelled, which lets writes go on that waited for them; clients get their
 * answers; the volumes are closed last, and with them the lock that guards the sockets.
 *
 * It never opens a store: a damaged one could kill the process by SIGBUS (DESIGN section 2).
 */

import { join } from 'node:path';
import { allFinished, type Clock } from '../base/index.ts';
import {
  formatNbdUri,
  loadTlsServerCredentials,
  type NbdAddress,
  type NbdListenerTls,
  type NbdListenPlace,
  type NbdLog,
  NbdServer,
} from '../nbd/index.ts';
import { type BackupSide, readVolumeIdentity, type RecoveryRecord, type Volume } from '../volume/index.ts';
import { openBackupSide, openMirror } from './backup-side.ts';
import { CONTROL_SOCKET_NAME } from './control-client.ts';
import { ControlServer } from './control-server.ts';
import { createDeviceRegistry } from './devices.ts';
import { DaemonError } from './errors.ts';
import { VolumeExports } from './exports.ts';
import { MirrorCare } from './mirror-care.ts';
import { MirrorFill } from './mirror-fill.ts';
import { type FillProgress, RecoveryFill } from './recovery-fill.ts';
import { openSocketPath, removeDeadSocket, removeStaleSocket, type SocketPath } from './socket-path.ts';
import { VolumeHost } from './volume-host.ts';

export const NBD_SOCKET_NAME = 'nbd.sock';

/** A listener besides the volumes' own sockets. */
export interface FurtherListener {
  /** A Unix socket's path is absolute. Port 0 takes a free one. */
  readonly place: NbdListenPlace;
  /** Names of the exports it serves; every one where absent. */
  readonly exports?: readonly string[] | undefined;
}

export interface ServingTls {
  /** Where certificates and keys are, absolute; see `nbd/README.md`. */
  readonly directory: string;
  /** What further listeners say to clients that do not ask for TLS. */
  readonly policy: NbdListenerTls['policy'];
  /** Whether clients without a pre-shared key must show a certificate. */
  readonly verifyPeer: boolean;
}

export interface ServingOptions {
  /** Directories of volumes, absolute, at least one. */
  readonly volumes: readonly string[];
  readonly listeners: readonly FurtherListener[];
  /** Without it nothing is encrypted. */
  readonly tls?: ServingTls | undefined;
  readonly readOnly: boolean;
  readonly clock: Clock;
  readonly workerPath: string;
  /** The program of the process that reads a store, for volumes under recovery. */
  readonly readerPath?: string;
  /** The program of the process that reads media, for fills from them. */
  readonly feedPath?: string;
  /** What is known better of volumes under recovery than their records tell. */
  readonly recovery?: ServingRecovery | undefined;
  /** A path or URI of a device that becomes the equal of the volume, of which there is just one, and stays it. */
  readonly mirror?: ServingMirror | undefined;
  /** Is told what no client can be told, a sentence each. */
  readonly warn: (sentence: string) => void;
}

/** How a new backup side is brought up. */
export interface ServingMirror {
  readonly uri: string;
  readonly rateBytesPerSecond?: number | undefined;
  readonly onProgress?: (volume: string, progress: FillProgress) => void;
  /** Both hold the same from now on. */
  readonly onEqual?: (volume: string) => void;
}

/** How volumes under recovery are filled. */
export interface ServingRecovery {
  /** Opens the backup side; as the volume's record says, where left out. */
  readonly openSide?: (record: RecoveryRecord) => Promise<BackupSide>;
  /** Ranges of bytes that are brought in before the rest. */
  readonly first?: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[];
  readonly rateBytesPerSecond?: number | undefined;
  readonly onProgress?: (volume: string, progress: FillProgress) => void;
  readonly onRecovered?: (volume: string) => void;
}

export class Serving {
  readonly #hosts: VolumeHost[] = [];
  readonly #peers = new Map<string, VolumeHost>();
  readonly #exports: VolumeExports;
  readonly #server: NbdServer;
  readonly #controls: ControlServer[] = [];
  readonly #places: SocketPath[] = [];
  readonly #uris: string[] = [];
  readonly #fills: (RecoveryFill | MirrorFill | MirrorCare)[] = [];
  readonly #options: ServingOptions;
  #stopped: Promise<void> | undefined;

  private constructor(options: ServingOptions) {
    this.#options = options;
    this.#server = new NbdServer({ log: this.#log });
    const { readOnly, warn } = options;
    this.#exports = new VolumeExports({ server: this.#server, readOnly, warn });
  }

  /**
   * Opens the volumes and lets clients in.
   *
   * @throws {DaemonError} duplicate-name, unknown-export, cannot-listen; {NbdTlsError} where the files of TLS
   *   cannot be used; {NbdServerError} listen-failed, descriptor-unusable; {VolumeError} in-use, not-a-volume
   *   and others. On failure everything that was opened is closed again.
   */
  static async start(options: ServingOptions): Promise<Serving> {
    const names = await distinctNames(options.volumes);
    assertKnownExports(options.listeners, names);
    const tls = await loadTls(options);
    const serving = new Serving(options);
    try {
      await serving.#openVolumes();
      await serving.#listenDefaults(tls && { ...tls, policy: 'optional' });
      await serving.#listenFurther(tls);
      await serving.#answerControl();
      serving.#fill();
    } catch (error) {
      await serving.stop();
      throw error;
    }
    return serving;
  }

  /** One URI for each export and listener, in the order of the command line. */
  get uris(): readonly string[] {
    return this.#uris;
  }

  /** Stops in good order; may be called again. Every volume is closed, even where another one fails to. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    await Promise.all(this.#fills.map((fill) => fill.stop()));
    const sessionsEnded = this.#hosts.map((host) => host.stopSessions());
    await Promise.all([...sessionsEnded, this.#server.close()]);
    await Promise.all(this.#controls.map((control) => control.close()));
    await Promise.all(this.#places.map((place) => place.release()));
    await this.#exports.close();
    await allFinished(this.#hosts.map((host) => host.close()));
  }

  async #openVolumes(): Promise<void> {
    const { readOnly, clock, workerPath, readerPath, feedPath, recovery, mirror, warn } = this.#options;
    const registry = createDeviceRegistry();
    const openSide = (record: RecoveryRecord): Promise<BackupSide> =>
      recovery?.openSide?.(record) ?? openBackupSide(record, { registry, clock, readerPath, warn });
    for (const directory of this.#options.volumes) {
      const activity = 'serving';
      const host = await VolumeHost.open(directory, {
        activity,
        registry,
        readOnly,
        clock,
        workerPath,
        warn,
        openSide,
        openMirror: mirror && (() => openMirror(registry, mirror.uri)),
        feedPath,
        exports: this.#exports,
        peers: this.#peers,
      });
      this.#hosts.push(host);
      this.#peers.set(directory, host);
    }
    this.#exports.addVolumes(this.#hosts.map(({ volume }) => volume));
  }

  async #listenDefaults(tls: NbdListenerTls | undefined): Promise<void> {
    for (const { volume } of this.#hosts) {
      const { directory, name } = volume.identity;
      const path = join(directory, NBD_SOCKET_NAME);
      await removeStaleSocket(path);
      await this.#listen({ place: { kind: 'unix', path }, exports: [name] }, tls);
    }
  }

  async #listenFurther(tls: NbdListenerTls | undefined): Promise<void> {
    for (const listener of this.#options.listeners) {
      if (listener.place.kind === 'unix') await removeDeadSocket(listener.place.path);
      await this.#listen(listener, tls);
    }
  }

  async #listen({ place, exports }: FurtherListener, tls: NbdListenerTls | undefined): Promise<void> {
    const names = this.#names.filter((name) => exports?.includes(name) ?? true);
    const [only] = names;
    const options = {
      // The snapshots of a volume are wherever it is, those of the future too.
      exports: { has: (name: string) => this.#exports.belongsTo(name, names) },
      ...(only === undefined || names.length > 1 ? {} : { defaultExport: only }),
      ...(tls === undefined ? {} : { tls }),
    };
    const transport = await this.#server.listen(await this.#addressOf(place), options);
    // People are told the path they gave, not its short form.
    const reached = { transport: place.kind === 'unix' ? place : transport };
    this.#announce(tls?.policy === 'required' ? { ...reached, tls: {} } : reached, names);
  }

  async #addressOf(place: NbdListenPlace): Promise<NbdListenPlace> {
    if (place.kind !== 'unix') return place;
    const socketPath = await openSocketPath(place.path);
    this.#places.push(socketPath);
    return { kind: 'unix', path: socketPath.address };
  }

  #announce(reached: Omit<NbdAddress, 'exportName'>, names: readonly string[]): void {
    const snapshots = this.#exports.snapshotNames.filter((name) => this.#exports.belongsTo(name, names));
    for (const exportName of [...names, ...snapshots])
      this.#uris.push(formatNbdUri({ ...reached, exportName }));
  }

  get #names(): readonly string[] {
    return this.#hosts.map((host) => host.volume.identity.name);
  }

  /** Behind the clients, who are let in by now. */
  #fill(): void {
    const { clock, warn, recovery = {}, readOnly } = this.#options;
    const { first = [], rateBytesPerSecond, onProgress, onRecovered } = recovery;
    for (const { volume } of this.#hosts) {
      const { name } = volume.identity;
      if (readOnly) continue;
      if (volume.mirrors?.isMirrored === true) this.#fills.push(new MirrorCare({ volume, warn }));
      if (volume.mirroring !== undefined) this.#fills.push(this.#mirrorFill(volume));
      if (volume.recovery === undefined) continue;
      this.#fills.push(
        new RecoveryFill({
          volume,
          clock,
          warn,
          first: first.map(({ offsetBytes, lengthBytes }) =>
            volume.geometry.tracksOf(offsetBytes, lengthBytes),
          ),
          rateBytesPerSecond,
          onProgress: (progress) => onProgress?.(name, progress),
          onRecovered: () => onRecovered?.(name),
        }),
      );
    }
  }

  #mirrorFill(volume: Volume): MirrorFill {
    const { clock, mirror } = this.#options;
    const { name } = volume.identity;
    return new MirrorFill({
      volume,
      clock,
      rateBytesPerSecond: mirror?.rateBytesPerSecond,
      onProgress: (progress) => mirror?.onProgress?.(name, progress),
      onEqual: () => mirror?.onEqual?.(name),
    });
  }

  async #answerControl(): Promise<void> {
    for (const host of this.#hosts) {
      const path = join(host.volume.identity.directory, CONTROL_SOCKET_NAME);
      this.#controls.push(await ControlServer.start({ path, handlers: host }));
    }
  }

  readonly #log: NbdLog = ({ level, message, peer, exportName }) => {
    if (level === 'info') return;
    const where = [exportName, peer].filter((part) => part !== undefined && part !== '').join(', ');
    this.#options.warn(where === '' ? message : `${message} (${where})`);
  };
}

/** @throws {NbdTlsError} where the files of TLS cannot be used. */
export async function loadTls({
  tls,
  warn,
  clock,
}: Pick<ServingOptions, 'tls' | 'warn' | 'clock'>): Promise<NbdListenerTls | undefined> {
  if (tls === undefined) return undefined;
  const { directory, policy, verifyPeer } = tls;
  const credentials = await loadTlsServerCredentials(directory, { verifyPeer, clock });
  for (const warning of credentials.warnings) warn(warning);
  return { policy, credentials };
}

/** The names of the exports. Clients tell them apart by name alone. */
async function distinctNames(directories: readonly string[]): Promise<readonly string[]> {
  const seen = new Map<string, string>();
  for (const directory of directories) {
    const { name } = await readVolumeIdentity(directory);
    const other = seen.get(name);
    if (other !== undefined) {
      const message = `Volumes ${other} and ${directory} would both be exported as ${name}; serve them from two processes`;
      throw new DaemonError('duplicate-name', message, { name, directories: [other, directory] });
    }
    seen.set(name, directory);
  }
  return [...seen.keys()];
}

/** A listener that is restricted to a name nobody has would serve nothing, and nobody would be told. */
export function assertKnownExports(listeners: readonly FurtherListener[], names: readonly string[]): void {
  const unknown = listeners.flatMap(({ exports = [] }) => exports).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  const message = `Cannot serve only '${unknown}' on a socket: no volume of that name is served, wanted ${names.join(', ')}`;
  throw new DaemonError('unknown-export', message, { name: unknown, served: names });
}
