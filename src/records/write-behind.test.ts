/**
 * Goal: a file in bulk that grows is written back and leaves the page cache while it grows, and its content is as
 * if nothing of that had happened.
 *
 * Method: what is cached shows by reads that do not wait; on a filesystem in memory, which has nothing to drop,
 * that part is passed over.
 */

import { closeSync, openSync, statSync } from 'node:fs';
import t from 'tap';
import { forcePlainNode, LIMITS, MIB, NO_WAIT, readNoWait } from '../base/index.ts';
import { openLmdb } from './lmdb.ts';

const COUNT = (4 * LIMITS.writeBehindBytes) / MIB;

function key(number: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
}

/** Stores values of 1 MiB; the file stays open. */
function grow(path: string) {
  const file = openLmdb(path, { create: true, bulk: true, ownLock: true });
  const rows = file.database('rows');
  for (let index = 0; index < COUNT; index += 1) {
    file.transaction(() => rows.append(key(index), Buffer.alloc(MIB, index)));
  }
  return { file, rows };
}

/** The share of a file's MiB whose middle is in memory; undefined where that cannot be told. */
function cachedShare(path: string): number | undefined {
  const descriptor = openSync(path, 'r');
  try {
    const count = Math.floor(statSync(path).size / MIB);
    let cached = 0;
    for (let index = 0; index < count; index += 1) {
      const got = readNoWait(descriptor, Buffer.alloc(1), index * MIB + MIB / 2);
      if (got === NO_WAIT.unsupported) return undefined;
      if (got > 0) cached += 1;
    }
    return cached / count;
  } finally {
    closeSync(descriptor);
  }
}

t.test('what was written long ago is out of the page cache, and still there', async (t) => {
  const path = `${t.testdir()}/rows`;
  const { file, rows } = grow(path);
  const share = cachedShare(path);
  if (share === undefined) t.comment('This filesystem does not tell what it has in memory');
  else t.ok(share < 0.9, `${share} of the file is in memory`);
  for (let index = 0; index < COUNT; index += 1) {
    t.ok(rows.get(key(index))?.equals(Buffer.alloc(MIB, index)), `value ${index}`);
  }
  await file.close();
});

t.test('without the native calls the file is the same', async (t) => {
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  const { file, rows } = grow(`${t.testdir()}/rows`);
  t.equal(rows.count(), COUNT);
  t.ok(rows.get(key(7))?.equals(Buffer.alloc(MIB, 7)));
  await file.close();
});
