/**
 * The serving process: opens volumes, exports them over NBD, and answers the control protocol.
 *
 *     <volume>/nbd.sock, <volume>/control.sock      of each volume, that volume alone
 *     --socket, --listen                            all volumes
 *
 * Everything is open before the first client is let in, and `uris` is known only then. Stopping goes the
 * other way round: sessions are cancelled, which lets writes go on that waited for them; clients get their
 * answers; the volumes are closed last, and with them the lock that guards the sockets.
 *
 * It never opens a store: a damaged one could kill the process by SIGBUS (DESIGN section 2).
 */

import { join } from 'node:path';
import { type Clock, LIMITS } from '../base/index.ts';
import { type Export, formatNbdUri, type NbdLog, NbdServer, type NbdTransport } from '../nbd/index.ts';
import { readVolumeIdentity } from '../volume/index.ts';
import { findChangedContext, listChangedContexts } from './changed-contexts.ts';
import { CONTROL_SOCKET_NAME } from './control-client.ts';
import { ControlServer } from './control-server.ts';
import { createDeviceRegistry } from './devices.ts';
import { DaemonError } from './errors.ts';
import { openSocketPath, removeDeadSocket, removeStaleSocket, type SocketPath } from './socket-path.ts';
import { VolumeHost } from './volume-host.ts';

export const NBD_SOCKET_NAME = 'nbd.sock';

export interface ServingOptions {
  /** Directories of volumes, absolute, at least one. */
  readonly volumes: readonly string[];
  /** Further Unix sockets, absolute, that serve all volumes. */
  readonly sockets: readonly string[];
  /** Further TCP addresses that serve all volumes; port 0 takes a free one. */
  readonly listens: readonly { readonly host: string; readonly port: number }[];
  readonly readOnly: boolean;
  readonly clock: Clock;
  readonly workerPath: string;
  /** Is told what no client can be told, a sentence each. */
  readonly warn: (sentence: string) => void;
}

export class Serving {
  readonly #hosts: VolumeHost[] = [];
  readonly #servers: NbdServer[] = [];
  readonly #controls: ControlServer[] = [];
  readonly #places: SocketPath[] = [];
  readonly #uris: string[] = [];
  readonly #options: ServingOptions;
  #stopped: Promise<void> | undefined;

  private constructor(options: ServingOptions) {
    this.#options = options;
  }

  /**
   * Opens the volumes and lets clients in.
   *
   * @throws {DaemonError} duplicate-name, cannot-listen; {VolumeError} in-use, not-a-volume and others. On
   *   failure everything that was opened is closed again.
   */
  static async start(options: ServingOptions): Promise<Serving> {
    await assertDistinctNames(options.volumes);
    const serving = new Serving(options);
    try {
      await serving.#openVolumes();
      await serving.#listenDefaults();
      await serving.#listenForAll();
      await serving.#answerControl();
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
    const sessionsEnded = this.#hosts.map((host) => host.stopSessions());
    await Promise.all([...sessionsEnded, ...this.#servers.map((server) => server.close())]);
    await Promise.all(this.#controls.map((control) => control.close()));
    await Promise.all(this.#places.map((place) => place.release()));
    const closed = await Promise.allSettled(this.#hosts.map((host) => host.close()));
    for (const outcome of closed) if (outcome.status === 'rejected') throw outcome.reason;
  }

  async #openVolumes(): Promise<void> {
    const { readOnly, clock, workerPath } = this.#options;
    const registry = createDeviceRegistry();
    for (const directory of this.#options.volumes) {
      const activity = 'serving';
      this.#hosts.push(await VolumeHost.open(directory, { activity, registry, readOnly, clock, workerPath }));
    }
  }

  async #listenDefaults(): Promise<void> {
    for (const host of this.#hosts) {
      const server = this.#createServer([host]);
      const path = join(host.volume.identity.directory, NBD_SOCKET_NAME);
      await removeStaleSocket(path);
      await this.#listenUnix(server, path);
      this.#announce([host], { kind: 'unix', path });
    }
  }

  async #listenForAll(): Promise<void> {
    const { sockets, listens } = this.#options;
    if (sockets.length + listens.length === 0) return;
    const server = this.#createServer(this.#hosts);
    for (const path of sockets) {
      await removeDeadSocket(path);
      await this.#listenUnix(server, path);
      this.#announce(this.#hosts, { kind: 'unix', path });
    }
    for (const listen of listens)
      this.#announce(this.#hosts, await server.listen({ kind: 'tcp', ...listen }));
  }

  async #answerControl(): Promise<void> {
    for (const host of this.#hosts) {
      const path = join(host.volume.identity.directory, CONTROL_SOCKET_NAME);
      this.#controls.push(await ControlServer.start({ path, handlers: host }));
    }
  }

  #createServer(hosts: readonly VolumeHost[]): NbdServer {
    const exports = hosts.map((host): Export => ({
      name: host.volume.identity.name,
      description: host.volume.identity.directory,
      device: host.volume,
      readOnly: this.#options.readOnly,
      multiConn: true,
      preferredBlockSizeBytes: LIMITS.blockSizeBytesPreferred,
      get contexts() {
        return listChangedContexts(host.volume);
      },
      findContext: (name) => findChangedContext(host.volume, name),
    }));
    const server = new NbdServer({ exports, log: this.#log });
    this.#servers.push(server);
    return server;
  }

  async #listenUnix(server: NbdServer, path: string): Promise<void> {
    const place = await openSocketPath(path);
    this.#places.push(place);
    await server.listen({ kind: 'unix', path: place.address });
  }

  #announce(hosts: readonly VolumeHost[], transport: NbdTransport): void {
    for (const host of hosts)
      this.#uris.push(formatNbdUri({ transport, exportName: host.volume.identity.name }));
  }

  readonly #log: NbdLog = ({ level, message, peer, exportName }) => {
    if (level === 'info') return;
    const where = [exportName, peer].filter((part) => part !== undefined && part !== '').join(', ');
    this.#options.warn(where === '' ? message : `${message} (${where})`);
  };
}

/** Clients tell exports apart by name alone. */
async function assertDistinctNames(directories: readonly string[]): Promise<void> {
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
}
