/**
 * Clients for the room's tests that say exactly what a test wants, and no more; and what goes with them.
 */

import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { encodeClientFlags, encodeInfoRequest, encodeOption, OPTION } from './codec.ts';
import type { Export } from './export.ts';
import type { NbdServer } from './server.ts';
import type { TestDevice } from './test-device.ts';

export function exportOf(device: TestDevice, name = 'disk'): Export {
  return { name, description: '', device, readOnly: false, multiConn: true };
}

/** A client that speaks in bytes. */
export class RawClient {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  output: Buffer = Buffer.alloc(0);
  #watchers: (() => void)[] = [];

  constructor(place: NetConnectOpts) {
    this.socket = connect({ ...place, allowHalfOpen: true });
    this.socket.on('error', () => {});
    this.closed = new Promise((resolve) => this.socket.once('close', () => resolve()));
    this.socket.on('data', (chunk: Buffer) => {
      this.output = Buffer.concat([this.output, chunk]);
      for (const watcher of this.#watchers.splice(0)) watcher();
    });
    this.socket.on('end', () => this.socket.end());
  }

  /** Resolves when as many bytes have come in all. */
  async received(lengthBytes: number): Promise<void> {
    while (this.output.length < lengthBytes) {
      await new Promise<void>((resolve) => this.#watchers.push(resolve));
    }
  }

  /** Enters the transmission; what comes next is what the requests are answered with. */
  static async transmit(place: NetConnectOpts, name = 'disk'): Promise<RawClient> {
    const client = new RawClient(place);
    const go = encodeInfoRequest({ name: Buffer.from(name), infos: [] });
    client.socket.write(Buffer.concat([encodeClientFlags(3), encodeOption(OPTION.go, go)]));
    // The greeting, two information replies and the acknowledgement.
    await client.received(18 + 32 + 34 + 20);
    client.output = Buffer.alloc(0);
    return client;
  }
}

/** Resolves when the server has `but` connections left. */
export async function untilNoConnections(server: NbdServer, but = 0): Promise<void> {
  while (server.connectionCount > but) await nextTurn();
}
