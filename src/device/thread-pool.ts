/**
 * The share of Node's thread pool that reads and writes of files may take, for the whole process.
 *
 * A sync on the pool waits behind whatever was queued before it, and everything that was written waits for the
 * sync. So two threads are left to syncs, opens and native calls: the rest run what is here.
 */

import { read, write } from 'node:fs';
import { Slots, threadPoolSize } from '../base/index.ts';
import type { Pace } from './pace.ts';

const THREADS_LEFT_FREE = 2;

export const poolSlots = new Slots(Math.max(1, threadPoolSize() - THREADS_LEFT_FREE));

/**
 * Reads into all of `target`, or as far as the system goes in one call.
 *
 * @param pace measures the call, without its wait for a slot.
 * @returns bytes read; 0 at the end.
 */
export function poolRead(
  descriptor: number,
  target: Buffer,
  offsetBytes: number,
  pace?: Pace,
): Promise<number> {
  return run(pace, target.length, (done) => read(descriptor, target, 0, target.length, offsetBytes, done));
}

/**
 * Writes `source`, or as much of it as the system takes in one call.
 *
 * @param pace measures the call, without its wait for a slot.
 * @returns bytes written.
 */
export function poolWrite(
  descriptor: number,
  source: Buffer,
  offsetBytes: number,
  pace?: Pace,
): Promise<number> {
  return run(pace, source.length, (done) => write(descriptor, source, 0, source.length, offsetBytes, done));
}

type Done = (error: NodeJS.ErrnoException | null, count: number) => void;

function run(pace: Pace | undefined, lengthBytes: number, start: (done: Done) => void): Promise<number> {
  return poolSlots.run(
    () =>
      new Promise<number>((resolve, reject) => {
        const beganMs = pace?.pooledBegan() ?? 0;
        start((error, count) => {
          pace?.pooledEnded(beganMs, lengthBytes);
          if (error === null) resolve(count);
          else reject(error);
        });
      }),
  );
}
