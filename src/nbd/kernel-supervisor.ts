/**
 * Keeps a kernel device connected while servers come and go.
 *
 *     wait -> a socket hung up, or the driver says a link is dead
 *          -> is the device still ours? no: done
 *          -> connect and negotiate, with pauses that double, until the device has taken new sockets
 *
 * The hang-up of a socket is what counts, since it stays visible and announcements may be dropped; the
 * announcements are needed for sockets of a device that was taken over, which this process does not hold.
 *
 * A server that offers something else than the device was made from (size, name, read-only, fewer commands)
 * is not used: the kernel would write one volume's blocks into another. It is asked again like one that is not
 * there, because whoever started the wrong server may still start the right one. An export that became larger is
 * used where it describes itself in the same words: that of a volume names its id. The device keeps its size.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { type Clock, LIMITS, messageOf, systemClock } from '../base/index.ts';
import type { NbdExportInfo } from './client-handshake.ts';
import type { KernelDriver } from './kernel-driver.ts';
import { KernelDeviceError } from './kernel-error.ts';
import type { KernelSocket, OpenKernelSocket } from './kernel-socket.ts';
import { formatNbdUri, type NbdAddress } from './uri.ts';

/** What supervision saw. */
export type KernelDeviceEvent =
  | { readonly kind: 'lost'; readonly device: string }
  /** The server is not back; said once for each new reason. */
  | { readonly kind: 'waiting'; readonly device: string; readonly error: unknown }
  | { readonly kind: 'restored'; readonly device: string; readonly pauseMs: number };

export interface KernelSupervisorOptions {
  readonly device: string;
  readonly index: number;
  readonly backend: string;
  readonly address: NbdAddress;
  readonly exportInfo: NbdExportInfo;
  /** Sockets that the device holds; the supervisor closes them, and the driver. */
  readonly sockets: readonly KernelSocket[];
  readonly connections: number;
  /** The device holds sockets that this process does not know. */
  readonly isTakenOver: boolean;
  readonly driver: KernelDriver;
  readonly openSocket: OpenKernelSocket;
  readonly onEvent: (event: KernelDeviceEvent) => void;
  readonly clock?: Clock;
  readonly pause?: (milliseconds: number, signal: AbortSignal) => Promise<void>;
}

/** After the announcement of a dead link the driver may need a moment to have room for another. */
const TAKE_OVER_ATTEMPT_COUNT = 3;

export class KernelSupervisor {
  readonly #options: KernelSupervisorOptions;
  readonly #clock: Clock;
  #sockets: KernelSocket[];

  constructor(options: KernelSupervisorOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#sockets = [...options.sockets];
  }

  /** Until the device is detached, or until the signal. */
  async run(signal: AbortSignal): Promise<'detached' | 'left'> {
    const { device, isTakenOver, onEvent } = this.#options;
    try {
      let isLacking = isTakenOver;
      while (!signal.aborted) {
        if (isLacking && (await this.#restore(signal)) === 'detached') return 'detached';
        isLacking = !signal.aborted && (await this.#hasLost(LIMITS.kernelWaitMsMax));
        if (isLacking) onEvent({ kind: 'lost', device });
      }
      return 'left';
    } finally {
      for (const socket of this.#sockets) socket.close();
      this.#options.driver.close();
    }
  }

  /** One wait; sockets that the device has lost are let go. */
  async #hasLost(timeoutMs: number): Promise<boolean> {
    const { driver, index, isTakenOver } = this.#options;
    const descriptors = this.#sockets.map(({ descriptor }) => descriptor);
    const { dead, isLinkDead } = await driver.wait(index, descriptors, timeoutMs);
    for (const socket of this.#sockets) if (dead.includes(socket.descriptor)) socket.close();
    this.#sockets = this.#sockets.filter(({ descriptor }) => !dead.includes(descriptor));
    return dead.length > 0 || (isTakenOver && isLinkDead);
  }

  /** Brings the device back to all its sockets. */
  async #restore(signal: AbortSignal): Promise<'restored' | 'detached' | 'left'> {
    const { driver, index, device, backend, connections, isTakenOver, onEvent } = this.#options;
    const start = this.#clock.monotonicMs();
    let restoredCount = 0;
    let refusedCount = 0;
    let complaint = '';
    let pauseMs: number = LIMITS.kernelRetryMsMin;
    while (this.#sockets.length < connections) {
      if (signal.aborted) return 'left';
      // A server that ends takes several sockets with it, one after the other.
      await this.#hasLost(0);
      if (!(await driver.reconfigure(index, backend, []))) return 'detached';
      const outcome = await this.#add();
      if (outcome === 'added') {
        restoredCount += 1;
        pauseMs = LIMITS.kernelRetryMsMin;
        continue;
      }
      if (outcome === 'not-taken') {
        refusedCount += 1;
        if (isTakenOver && (restoredCount > 0 || refusedCount >= TAKE_OVER_ATTEMPT_COUNT)) break;
      } else if (complaint !== messageOf(outcome.failed)) {
        complaint = messageOf(outcome.failed);
        onEvent({ kind: 'waiting', device, error: outcome.failed });
      }
      await (this.#options.pause ?? pauseFor)(pauseMs, signal);
      pauseMs = Math.min(pauseMs * 2, LIMITS.kernelRetryMsMax);
    }
    if (restoredCount > 0) onEvent({ kind: 'restored', device, pauseMs: this.#clock.monotonicMs() - start });
    return 'restored';
  }

  /** Opens one connection and offers it to the device. */
  async #add(): Promise<'added' | 'not-taken' | { readonly failed: unknown }> {
    const { driver, index, backend, address, openSocket } = this.#options;
    let socket: KernelSocket;
    try {
      socket = await openSocket(address);
    } catch (error) {
      return { failed: error };
    }
    const change = changeOf(this.#options.exportInfo, socket.exportInfo);
    if (change !== undefined) {
      socket.close();
      return { failed: this.#changed(change) };
    }
    const isOurs = await driver.reconfigure(index, backend, [socket.descriptor]);
    if (!isOurs || !driver.isTaken(socket.descriptor)) {
      socket.close();
      return 'not-taken';
    }
    this.#sockets.push(socket);
    return 'added';
  }

  #changed(change: string): KernelDeviceError {
    const { device } = this.#options;
    const address = formatNbdUri(this.#options.address);
    const message = `The export ${address} is not what ${device} was attached to, ${change}; start the right server, or detach the device`;
    return new KernelDeviceError('export-changed', message, { device, address });
  }
}

/** What makes `after` unfit for a device that was made from `before`, or undefined. */
function changeOf(before: NbdExportInfo, after: NbdExportInfo): string | undefined {
  const isSame = before.description !== '' && after.description === before.description;
  const hasGrown = isSame && after.sizeBytes > before.sizeBytes;
  if (after.sizeBytes !== before.sizeBytes && !hasGrown) {
    return `its size is ${after.sizeBytes} bytes and was ${before.sizeBytes}`;
  }
  if (after.name !== before.name) {
    return `its name is ${JSON.stringify(after.name)} and was ${JSON.stringify(before.name)}`;
  }
  if (after.readOnly !== before.readOnly) return `it ${after.readOnly ? 'became' : 'was'} read-only`;
  const lost = (['canFlush', 'canFua', 'canTrim', 'canWriteZeroes', 'canMultiConn'] as const).filter(
    (capability) => before[capability] && !after[capability],
  );
  if (lost.length > 0) return `it lost ${lost.join(', ')}`;
  if (after.minimumBlockSizeBytes > before.minimumBlockSizeBytes) {
    return `its minimum block size is ${after.minimumBlockSizeBytes} bytes and was ${before.minimumBlockSizeBytes}`;
  }
  return undefined;
}

async function pauseFor(milliseconds: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(milliseconds, undefined, { signal });
  } catch {
    // The signal cut the pause short, which is what it is for.
  }
}
