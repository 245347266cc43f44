/** Waits for servers that do not say when they listen, as nbdkit and qemu-nbd. */
import { createConnection } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import type { Running } from './process.ts';

const ATTEMPT_COUNT_MAX = 200;
const ATTEMPT_MS = 50;

/** Returns once `server` accepts a connection on its Unix socket; fails where it ends first, or takes too long. */
export async function listening(socket: string, server: Running): Promise<void> {
  for (let attempt = 0; attempt < ATTEMPT_COUNT_MAX; attempt += 1) {
    if (await accepts(socket)) return;
    if (server.ended !== undefined) throw new Error(`The server ended: ${server.ended.stderr}`);
    await wait(ATTEMPT_MS);
  }
  throw new Error(`The server does not listen on ${socket} after ${ATTEMPT_COUNT_MAX * ATTEMPT_MS} ms`);
}

function accepts(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const connection = createConnection(socket, () => {
      connection.destroy();
      resolve(true);
    });
    connection.on('error', () => resolve(false));
  });
}
