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
 * Volumes may come and go while others are served (`reload`); listeners may not, but for the volumes' own.
 *
 * It never opens a store: a damaged one could kill the process by SIGBUS (DESIGN section 2).
 */

import { join } from 'node:path';
import { allFinished, type Clock, messageOf } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import {
  formatNbdUri,
  loadTlsServerCredentials,
  type NbdAddress,
  type NbdListenerTls,
  type NbdListenPlace,
  type NbdLog,
  NbdServer,
} from '../nbd/index.ts';
import {
  type BackupSide,
  readVolumeIdentity,
  type RecoveryRecord,
  type Volume,
  type VolumeIdentity,
} from '../volume/index.ts';
import { openBackupSide, openMirror } from './backup-side.ts';
import { CONTROL_SOCKET_NAME } from './control-client.ts';
import { ControlServer } from './control-server.ts';
import { createDeviceRegistry } from './devices.ts';
import { DaemonError } from './errors.ts';
import { VolumeExports } from './exports.ts';
import { MirrorCare } from './mirror-care.ts';
import { MirrorFill } from './mirror-fill.ts';
import type { PolicedVolume, VolumeSurvival } from './policy-config.ts';
import type { PolicyRunner } from './policy-runner.ts';
import { type PolicingOptions, startPolicies } from './policing.ts';
import { type FillProgress, RecoveryFill } from './recovery-fill.ts';
import { openSocketPath, removeDeadSocket, removeStaleSocket, type SocketPath } from './socket-path.ts';
import { type ServingSurvival, survivalPlan } from './survival.ts';
import { VolumeCare } from './volume-care.ts';
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
  /** How volumes with deltas go on when their home is lost; without it they refuse writes then. */
  readonly survive?: ServingSurvival | undefined;
  /** A path or URI of a device that becomes the equal of the volume, of which there is just one, and stays it. */
  readonly mirror?: ServingMirror | undefined;
  /** Read for the rebuild of members of mirrors, of each volume; as fast as it goes behind its clients where left out. */
  readonly rebuildRateBytesPerSecond?: number | undefined;
  /** Runs policies; of volumes that it has nothing of, none. */
  readonly policing?: ServingPolicies | undefined;
  /** Is told what no client can be told, a sentence each. */
  readonly warn: (sentence: string) => void;
}

/** The policies of the volumes, and how they are run. */
export interface ServingPolicies extends PolicingOptions {
  readonly volumes: readonly PolicedVolume[];
}

/** What a reload came to. */
export interface ReloadOutcome {
  /** Of the volumes that came. */
  readonly uris: readonly string[];
  /** Directories. */
  readonly added: readonly string[];
  readonly removed: readonly string[];
}

/** A volume and all that there is only for it. */
interface Member {
  readonly host: VolumeHost;
  /** Ends its own listener. */
  readonly leaving: AbortController;
  place?: SocketPath;
  control?: ControlServer;
  runner?: PolicyRunner;
  readonly fills: (RecoveryFill | MirrorFill | MirrorCare | VolumeCare)[];
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
  #members: Member[] = [];
  readonly #peers = new Map<string, VolumeHost>();
  readonly #exports: VolumeExports;
  readonly #server: NbdServer;
  readonly #registry = createDeviceRegistry();
  readonly #places: SocketPath[] = [];
  readonly #uris: string[] = [];
  readonly #options: ServingOptions;
  /** Of a config, as it was read last. */
  #configs: readonly PolicedVolume[];
  #stopped: Promise<void> | undefined;
  #tls: NbdListenerTls | undefined;
  /** One reload after the other. */
  #reloading: Promise<unknown> = Promise.resolve();

  private constructor(options: ServingOptions) {
    this.#options = options;
    this.#configs = options.policing?.volumes ?? [];
    this.#server = new NbdServer({ log: this.#log });
    const { readOnly, warn } = options;
    this.#exports = new VolumeExports({ server: this.#server, readOnly, warn });
  }

  /**
   * Opens the volumes and lets clients in.
   *
   * @throws {DaemonError} duplicate-name, unknown-export, cannot-listen, cannot-survive; {NbdTlsError} where the files
   *   of TLS cannot be used; {NbdServerError} listen-failed, descriptor-unusable; {VolumeError} in-use, not-a-volume
   *   and others. On failure everything that was opened is closed again.
   */
  static async start(options: ServingOptions): Promise<Serving> {
    const names = await distinctNames(options.volumes);
    assertKnownExports(options.listeners, names);
    const serving = new Serving(options);
    serving.#tls = await loadTls(options);
    try {
      for (const directory of options.volumes)
        serving.#members.push(await serving.#open(directory, serving.#configs));
      serving.#exports.addVolumes(serving.#members.map(({ host }) => host.volume));
      for (const member of serving.#members) await serving.#listenOwn(member);
      await serving.#listenFurther();
      for (const member of serving.#members) await serving.#begin(member);
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

  /**
   * Serves these volumes from now on, and goes by their policies. Volumes that are new are opened before anything
   * changes; those that are gone are taken from their clients and closed durably.
   *
   * @throws {DaemonError} duplicate-name, stopping, cannot-survive; {VolumeError} where a new volume cannot be opened.
   *   Everything is as it was then. What fails later, such as listening for a new volume, leaves that one volume out.
   */
  reload(volumes: readonly PolicedVolume[]): Promise<ReloadOutcome> {
    const reloaded = this.#reloading.then(() => this.#reload(volumes));
    this.#reloading = reloaded.catch(() => undefined);
    return reloaded;
  }

  async #reload(volumes: readonly PolicedVolume[]): Promise<ReloadOutcome> {
    const wanted = volumes.map(({ directory }) => directory);
    if (this.#stopped !== undefined) {
      const message = 'The server is stopping and takes no other volumes';
      throw new DaemonError('stopping', message, { volume: wanted.join(', ') });
    }
    await distinctNames(wanted, (directory) => this.#peers.get(directory)?.volume.identity);
    const leaving = this.#members.filter(({ host }) => !wanted.includes(directoryOf(host)));
    const coming = await this.#openAll(
      wanted.filter((directory) => !this.#peers.has(directory)),
      volumes,
    );
    this.#configs = volumes;
    for (const member of leaving) await this.#remove(member);
    const before = this.#uris.length;
    for (const member of coming) await this.#add(member);
    for (const { host, runner } of this.#members) {
      const config = volumes.find(({ directory }) => directory === directoryOf(host));
      if (config !== undefined) runner?.setConfig(config);
      if (config?.survive !== undefined && host.options.survive === undefined)
        this.#options.warn(
          `Volume ${host.volume.identity.name} goes on without its home only when it is served anew: it was opened without survive`,
        );
    }
    return {
      uris: this.#uris.slice(before),
      added: coming.filter((member) => this.#members.includes(member)).map(({ host }) => directoryOf(host)),
      removed: leaving.map(({ host }) => directoryOf(host)),
    };
  }

  /** Opens all or none. */
  async #openAll(
    directories: readonly string[],
    configs: readonly PolicedVolume[],
  ): Promise<readonly Member[]> {
    const opened: Member[] = [];
    try {
      for (const directory of directories) opened.push(await this.#open(directory, configs));
      return opened;
    } catch (error) {
      for (const { host } of opened) {
        this.#peers.delete(directoryOf(host));
        await host.close();
      }
      throw error;
    }
  }

  /** Lets clients in to a volume beside those that are served already. Never rejects. */
  async #add(member: Member): Promise<void> {
    this.#members.push(member);
    try {
      this.#exports.addVolumes([member.host.volume]);
      await this.#listenOwn(member);
      await this.#begin(member);
    } catch (error) {
      const { name } = member.host.volume.identity;
      this.#options.warn(`Volume ${name} cannot be served: ${messageOf(error)}`);
      await this.#remove(member);
    }
  }

  /** Takes a volume from its clients and closes it. Never rejects: nobody could do anything about it. */
  async #remove(member: Member): Promise<void> {
    const { host, leaving } = member;
    const { name } = host.volume.identity;
    this.#members = this.#members.filter((one) => one !== member);
    try {
      leaving.abort();
      await Promise.all([this.#quiesce(member), this.#exports.removeVolume(host.volume)]);
      await member.control?.close();
      await member.place?.release();
      await host.close();
    } catch (error) {
      this.#options.warn(`Volume ${name} was not closed in good order: ${messageOf(error)}`);
    } finally {
      this.#peers.delete(directoryOf(host));
    }
  }

  /** Ends what goes on behind the clients of a volume, and starts nothing more. */
  async #quiesce({ host, runner, fills }: Member): Promise<void> {
    await Promise.all(fills.map((fill) => fill.stop()));
    await Promise.all([runner?.stop(), host.stopSessions()]);
  }

  /** Stops in good order; may be called again. Every volume is closed, even where another one fails to. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    await this.#reloading;
    const members = this.#members;
    await Promise.all(members.flatMap(({ fills }) => fills.map((fill) => fill.stop())));
    await Promise.all([...members.map((member) => this.#quiesce(member)), this.#server.close()]);
    await Promise.all(members.map(async ({ control }) => control?.close()));
    const places = [...members.flatMap(({ place }) => place ?? []), ...this.#places];
    await Promise.all(places.map((place) => place.release()));
    await this.#exports.close();
    await allFinished(members.map(({ host }) => host.close()));
  }

  async #open(directory: string, configs: readonly PolicedVolume[]): Promise<Member> {
    const { readOnly, clock, workerPath, readerPath, feedPath, recovery, mirror, warn } = this.#options;
    const registry = this.#registry;
    const openSide = (record: RecoveryRecord): Promise<BackupSide> =>
      recovery?.openSide?.(record) ??
      openBackupSide(record, {
        registry,
        clock,
        readerPath,
        warn,
        key: this.#keyOf(configs, directory, record),
      });
    const survives = this.#survivalIn(configs, directory) !== undefined;
    if (survives) await assertMaySurvive(directory);
    const host = await VolumeHost.open(directory, {
      activity: 'serving',
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
      survive:
        survives && readerPath !== undefined
          ? survivalPlan({
              current: () => this.#survivalOf(this.#configs, directory),
              directory,
              registry,
              clock,
              readerPath,
              warn,
            })
          : undefined,
      onTakenOver: () => this.#fillRecovery(member),
    });
    this.#peers.set(directory, host);
    const member: Member = { host, leaving: new AbortController(), fills: [] };
    return member;
  }

  #survivalIn(
    configs: readonly PolicedVolume[],
    directory: string,
  ): VolumeSurvival | ServingSurvival | undefined {
    return this.#options.survive ?? configs.find((one) => one.directory === directory)?.survive;
  }

  /** As it was said last. @throws where nothing is said any more, or the key cannot be read. */
  #survivalOf(configs: readonly PolicedVolume[], directory: string): ServingSurvival {
    const { survive, policing } = this.#options;
    if (survive !== undefined) return survive;
    const said = configs.find((one) => one.directory === directory)?.survive;
    if (said === undefined) throw new Error('the config does not say any more how');
    const { key, ...places } = said;
    return key === undefined || policing === undefined ? places : { ...places, key: policing.readKey(key) };
  }

  /** Of an encrypted store that a volume is filled from, where it is the one that it survives with. */
  #keyOf(
    configs: readonly PolicedVolume[],
    directory: string,
    { side }: RecoveryRecord,
  ): StoreKey | undefined {
    if (side.kind !== 'store' || this.#survivalIn(configs, directory) === undefined) return undefined;
    const { storePath, key } = this.#survivalOf(configs, directory);
    return storePath === side.storePath ? key : undefined;
  }

  /** Listens on the volume's own socket. */
  async #listenOwn(member: Member): Promise<void> {
    const { directory, name } = member.host.volume.identity;
    const path = join(directory, NBD_SOCKET_NAME);
    await removeStaleSocket(path);
    member.place = await openSocketPath(path);
    const tls: NbdListenerTls | undefined = this.#tls && { ...this.#tls, policy: 'optional' };
    await this.#listen({ place: { kind: 'unix', path }, exports: [name] }, tls, {
      address: { kind: 'unix', path: member.place.address },
      signal: member.leaving.signal,
    });
  }

  async #listenFurther(): Promise<void> {
    for (const listener of this.#options.listeners) {
      if (listener.place.kind === 'unix') await removeDeadSocket(listener.place.path);
      const address = await this.#addressOf(listener.place);
      await this.#listen(listener, this.#tls, { address });
    }
  }

  /** Answers commands, and begins what goes on behind the clients. */
  async #begin(member: Member): Promise<void> {
    const { host } = member;
    const path = join(host.volume.identity.directory, CONTROL_SOCKET_NAME);
    member.control = await ControlServer.start({ path, handlers: host });
    this.#fill(member);
    const { policing } = this.#options;
    if (policing === undefined) return;
    const config = policing.volumes.find(({ directory }) => directory === directoryOf(host));
    member.runner = startPolicies(host, config ?? { policies: [] }, policing);
  }

  async #listen(
    { place, exports }: FurtherListener,
    tls: NbdListenerTls | undefined,
    { address, signal }: { readonly address: NbdListenPlace; readonly signal?: AbortSignal },
  ): Promise<void> {
    // Volumes may come and go, and the snapshots of a volume are wherever it is.
    const namesNow = (): readonly string[] => this.#names.filter((name) => exports?.includes(name) ?? true);
    const transport = await this.#server.listen(address, {
      exports: { has: (name: string) => this.#exports.belongsTo(name, namesNow()) },
      get defaultExport() {
        const [only, ...others] = namesNow();
        return others.length === 0 ? only : undefined;
      },
      ...(tls === undefined ? {} : { tls }),
      ...(signal === undefined ? {} : { signal }),
    });
    // People are told the path they gave, not its short form.
    const reached = { transport: place.kind === 'unix' ? place : transport };
    this.#announce(tls?.policy === 'required' ? { ...reached, tls: {} } : reached, namesNow());
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
    return this.#members.map(({ host }) => host.volume.identity.name);
  }

  #fill(member: Member): void {
    const { warn, readOnly, clock, rebuildRateBytesPerSecond } = this.#options;
    const { host, fills } = member;
    const { volume } = host;
    if (readOnly) return;
    fills.push(new VolumeCare(volume));
    if (volume.mirrors?.isMirrored === true)
      fills.push(new MirrorCare({ volume, warn, clock, rebuildRateBytesPerSecond }));
    if (volume.mirroring !== undefined) fills.push(this.#mirrorFill(volume));
    if (volume.recovery !== undefined) this.#fillRecovery(member);
  }

  #fillRecovery({ host, fills }: Member): void {
    const { clock, warn, recovery = {} } = this.#options;
    const { first = [], rateBytesPerSecond, onProgress, onRecovered } = recovery;
    const { volume } = host;
    const { name } = volume.identity;
    fills.push(
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

/** Before the home is lost, rather than then. @throws {DaemonError} cannot-survive */
async function assertMaySurvive(directory: string): Promise<void> {
  const { name, deltas, layout } = await readVolumeIdentity(directory);
  const reason =
    layout !== undefined
      ? 'its home has several parts, and must be in one piece'
      : deltas === undefined
        ? 'it has no deltas; give it some with volume deltas'
        : undefined;
  if (reason === undefined) return;
  throw new DaemonError('cannot-survive', `Volume ${name} cannot go on without its home: ${reason}`, {
    directory,
  });
}

function directoryOf(host: VolumeHost): string {
  return host.volume.identity.directory;
}

/** The names of the exports. Clients tell them apart by name alone. */
async function distinctNames(
  directories: readonly string[],
  /** Of a volume that is open here, which is not read a second time. */
  openOne: (directory: string) => VolumeIdentity | undefined = () => undefined,
): Promise<readonly string[]> {
  const seen = new Map<string, string>();
  for (const directory of directories) {
    const { name } = openOne(directory) ?? (await readVolumeIdentity(directory));
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
