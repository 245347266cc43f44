/**
 * An export as a block device of the kernel, `/dev/nbdN`, that outlives its server.
 *
 *     attach:     connect, handshake (here) -> sockets -> CONNECT -> the kernel reads and writes by itself
 *     supervise:  a socket hangs up -> connect, handshake again -> RECONFIGURE -> held requests go on
 *
 * While no server is there, requests wait in the kernel (`deadConnectionSeconds`), so that a filesystem above
 * sees a pause and no error. Only a process that watches the sockets can end the pause: `supervise`. The
 * device does not depend on that process otherwise; when it ends, the device goes on, and whoever attaches
 * the same export to the same device again takes it over.
 *
 * Requests that the server had taken and not answered are sent again by the kernel when `timeoutSeconds` have
 * passed since they were sent. That is safe, because each is a whole write of the same bytes, and the
 * server holds it until the first sending has ended (README, order between connections).
 *
 * What it does not do: load the module, partition scans, TLS.
 */

import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { assert, LIMITS, messageOf, randomId, systemCode } from '../base/index.ts';
import type { NbdExportInfo } from './client-handshake.ts';
import { type KernelDriver, NetlinkKernelDriver } from './kernel-driver.ts';
import { KernelDeviceError } from './kernel-error.ts';
import { type KernelSocket, type OpenKernelSocket, openKernelSocket } from './kernel-socket.ts';
import { type KernelDeviceEvent, KernelSupervisor } from './kernel-supervisor.ts';
import { formatNbdUri, type NbdAddress, parseNbdUri } from './uri.ts';

export interface KernelDeviceOptions {
  /** `/dev/nbdN`. */
  readonly device: string;
  /** An NBD URI or its address. A relative Unix socket path is the process's, now and later. */
  readonly address: string | NbdAddress;
  /** Sockets, 1 unless given; more only where the export allows several connections. */
  readonly connections?: number;
  /**
   * How long a request may go unanswered before its connection counts as dead and it is sent again; 30 unless
   * given, at least 1. After a restart of the server what was in flight waits up to this long.
   */
  readonly timeoutSeconds?: number;
  /** How long requests wait for a server before they fail; 3600 unless given, at least 1. */
  readonly deadConnectionSeconds?: number;
  /** 512 to 4096; unless given the largest that divides the size, at most a page. */
  readonly blockSizeBytes?: number;
  /** Hears what supervision sees; called without waiting. */
  readonly onEvent?: (event: KernelDeviceEvent) => void;
}

/** What tests replace. */
export interface KernelWorld {
  readonly openDriver: () => Promise<KernelDriver>;
  readonly openSocket: OpenKernelSocket;
}

const WORLD: KernelWorld = {
  openDriver: () => NetlinkKernelDriver.open(),
  openSocket: openKernelSocket,
};

const TIMEOUT_SECONDS = 30;
const DEAD_CONNECTION_SECONDS = 3600;
const SECONDS_MAX = 1_000_000;

export interface KernelDevice {
  readonly device: string;
  readonly exportInfo: NbdExportInfo;
  /** The device was attached already, by a supervisor that is gone; its sockets are still in use. */
  readonly isTakenOver: boolean;
  /**
   * Watches the device until it is detached, by whomever, or until the signal; then the device goes on
   * unwatched. Call it once. Returns within about half a second of either.
   *
   * @throws {NativeError} where the driver fails in a way it should not.
   */
  supervise(signal: AbortSignal): Promise<'detached' | 'left'>;
}

/**
 * Attaches an export to a device of the kernel. Needs root and the module `nbd`.
 *
 * @throws {KernelDeviceError} driver-missing, not-permitted, device-invalid, device-attached, export-unusable,
 *   export-changed (at a take-over), driver-refused
 * @throws {NbdClientError} connect-failed, export-unknown, tls-required, option-refused, protocol-violation
 * @throws {NbdUriError} uri-invalid
 */
export async function attachKernelDevice(
  options: KernelDeviceOptions,
  world: KernelWorld = WORLD,
): Promise<KernelDevice> {
  const { device } = options;
  const address = typeof options.address === 'string' ? parseNbdUri(options.address) : options.address;
  const index = indexOf(device);
  const wanted = countsOf(options);
  if (address.tls !== undefined) {
    const uri = formatNbdUri(address);
    const message = `The export ${uri} cannot be ${device}: the kernel's driver speaks no TLS, wanted nbd or nbd+unix`;
    throw new KernelDeviceError('export-unusable', message, { device, address: uri });
  }
  const driver = await openDriver(device, world);
  const sockets: KernelSocket[] = [];
  try {
    const uri = formatNbdUri(address);
    const isTakenOver = await asDeviceError(device, () => driver.isAttached(index));
    const found = isTakenOver ? takeOver(driver, { device, index, uri }) : undefined;
    const first = await world.openSocket(address);
    sockets.push(first);
    const info = first.exportInfo;
    const backend = found ?? `${uri}#${randomId()}`;
    if (isTakenOver) {
      requireSize(driver.sizeBytesOf(index), info, { device, uri });
      // Only to learn about the export: every socket of the device may still be alive.
      sockets.pop()?.close();
    } else {
      const blockSizeBytes = chooseBlockSize(info, options.blockSizeBytes, { device, uri });
      requireConnections(info, wanted.connections, { device, uri });
      while (sockets.length < wanted.connections) sockets.push(await world.openSocket(address));
      const { sizeBytes, transmissionFlags } = info;
      const descriptors = sockets.map(({ descriptor }) => descriptor);
      const setup = { ...wanted, index, sizeBytes, blockSizeBytes, transmissionFlags, backend, descriptors };
      await asDeviceError(device, () => driver.connect(setup));
    }
    const supervisor = new KernelSupervisor({
      device,
      index,
      backend,
      address,
      driver,
      sockets,
      isTakenOver,
      exportInfo: info,
      connections: wanted.connections,
      openSocket: world.openSocket,
      onEvent: options.onEvent ?? (() => {}),
    });
    return { device, exportInfo: info, isTakenOver, supervise: (signal) => supervisor.run(signal) };
  } catch (error) {
    for (const socket of sockets) socket.close();
    driver.close();
    throw error;
  }
}

/**
 * Takes a device off its export; requests in flight fail. A device that is mounted or held in another way is
 * refused unless `force`, which lets everything on it fail.
 *
 * @throws {KernelDeviceError} driver-missing, not-permitted, device-invalid, device-detached, device-in-use,
 *   driver-refused
 */
export async function detachKernelDevice(
  device: string,
  options: { readonly force?: boolean } = {},
  world: Pick<KernelWorld, 'openDriver'> = WORLD,
): Promise<void> {
  const index = indexOf(device);
  const driver = await openDriver(device, world);
  try {
    if (!(await asDeviceError(device, () => driver.isAttached(index)))) {
      throw new KernelDeviceError('device-detached', `${device} is not attached to anything`, { device });
    }
    if (options.force !== true) await requireIdle(device);
    await asDeviceError(device, () => driver.disconnect(index));
  } finally {
    driver.close();
  }
}

function indexOf(device: string): number {
  const match = /^\/dev\/nbd(\d{1,5})$/.exec(device);
  if (match !== null) return Number(match[1]);
  const message = `Device ${JSON.stringify(device)} cannot be attached to, wanted a path such as /dev/nbd0`;
  throw new KernelDeviceError('device-invalid', message, { device });
}

function countsOf(options: KernelDeviceOptions): {
  readonly connections: number;
  readonly timeoutSeconds: number;
  readonly deadConnectionSeconds: number;
} {
  const { connections = 1, timeoutSeconds = TIMEOUT_SECONDS } = options;
  const { deadConnectionSeconds = DEAD_CONNECTION_SECONDS } = options;
  const isCount = (value: number, max: number): boolean =>
    Number.isInteger(value) && value >= 1 && value <= max;
  assert(
    isCount(connections, LIMITS.kernelConnectionCountMax),
    `${connections} connections are not possible`,
  );
  assert(isCount(timeoutSeconds, SECONDS_MAX), `A time limit of ${timeoutSeconds} s is not possible`);
  assert(isCount(deadConnectionSeconds, SECONDS_MAX), `A wait of ${deadConnectionSeconds} s is not possible`);
  return { connections, timeoutSeconds, deadConnectionSeconds };
}

interface Place {
  readonly device: string;
  readonly uri: string;
}

/** @returns the identifier of a device that this export was attached to before. */
function takeOver(driver: KernelDriver, place: Place & { readonly index: number }): string {
  const { device, index, uri } = place;
  const backend = driver.backendOf(index) ?? '';
  if (backend.startsWith(`${uri}#`)) return backend;
  const what = backend === '' ? 'something else' : backend.replace(/#[^#]*$/, '');
  const message = `${device} is attached to ${what} already; detach it first or choose another device`;
  throw new KernelDeviceError('device-attached', message, { device, backend });
}

function requireSize(sizeBytes: number | undefined, info: NbdExportInfo, { device, uri }: Place): void {
  if (sizeBytes === info.sizeBytes) return;
  const message = `${device} has ${sizeBytes} bytes and the export ${uri} has ${info.sizeBytes}; detach the device first`;
  throw new KernelDeviceError('export-changed', message, { device, address: uri });
}

function requireConnections(info: NbdExportInfo, connections: number, { device, uri }: Place): void {
  if (connections === 1 || info.canMultiConn) return;
  const message = `The export ${uri} allows one connection at a time, ${connections} are wanted for ${device}`;
  throw new KernelDeviceError('export-unusable', message, { device, address: uri });
}

/** The driver takes powers of two from a sector to a page, and cuts the device to whole blocks. */
function chooseBlockSize(info: NbdExportInfo, wanted: number | undefined, { device, uri }: Place): number {
  const { sizeBytes, minimumBlockSizeBytes: minimum } = info;
  const possible = [4096, 2048, 1024, 512].filter((size) => size >= minimum && sizeBytes % size === 0);
  const chosen = wanted === undefined ? possible[0] : possible.find((size) => size === wanted);
  if (chosen !== undefined && sizeBytes > 0) return chosen;
  const asked = wanted === undefined ? 'a block size from 512 to 4096' : `blocks of ${wanted} bytes`;
  const message = `The export ${uri} of ${sizeBytes} bytes cannot be ${device}: wanted ${asked} that divides it, and at least its minimum of ${minimum}`;
  throw new KernelDeviceError('export-unusable', message, { device, address: uri });
}

/** Whoever mounts a device claims it, and a claim excludes others. */
async function requireIdle(device: string): Promise<void> {
  try {
    const handle = await open(device, constants.O_RDONLY | constants.O_EXCL);
    await handle.close();
  } catch (error) {
    if (systemCode(error) !== 'EBUSY') return;
    const message = `${device} is mounted or held by another program; unmount it first`;
    throw new KernelDeviceError('device-in-use', message, { device }, { cause: error });
  }
}

async function openDriver(device: string, world: Pick<KernelWorld, 'openDriver'>): Promise<KernelDriver> {
  try {
    return await world.openDriver();
  } catch (error) {
    const why = systemCode(error) === 'ENOENT' ? 'the kernel has no nbd driver loaded' : messageOf(error);
    const message = `Cannot use ${device}: ${why}; run modprobe nbd`;
    throw new KernelDeviceError('driver-missing', message, { device }, { cause: error });
  }
}

/** Gives the driver's refusals our own form. */
async function asDeviceError<T>(device: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const code = systemCode(cause);
    if (code === 'EPERM') {
      const message = `Cannot use ${device}: the kernel allows it to root only`;
      throw new KernelDeviceError('not-permitted', message, { device }, { cause });
    }
    if (code === 'EBUSY') {
      const message = `${device} is attached to something else already; detach it first or choose another device`;
      throw new KernelDeviceError('device-attached', message, { device, backend: '' }, { cause });
    }
    const reason = messageOf(cause);
    const message = `The nbd driver refused a request for ${device}: ${reason}`;
    throw new KernelDeviceError('driver-refused', message, { device, reason }, { cause });
  }
}
