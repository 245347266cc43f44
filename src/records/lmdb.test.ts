/**
 * Goal: a database file gives back what was stored or says that it is damaged, and never kills the process.
 *
 * Method: unit tests of the rules of `lmdb.ts`; a property test against a plain map; then files cut short
 * and with flipped bits, read in a child process, since what must not happen is a signal. The child tries
 * many damages of one file and reports what each ended in.
 */

import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import t from 'tap';
import { AssertionError, CorruptionError, MIB, observeSyncs, type SyncEvent } from '../base/index.ts';
import { mountTmpfs } from '../sim/index.ts';
import { CHECKSUM_BYTES } from './digest.ts';
import { checkLmdbFile } from './lmdb-file.ts';
import { LmdbError, openLmdb } from './lmdb.ts';

const SELF = fileURLToPath(import.meta.url);
const PAGE = 4096;
const FLIPS = 250;
const TMPFS_BYTES = 2 * MIB;

function key(number: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
}

/** A file with a branch page, small and large values and a list of free pages. */
async function makeFile(path: string): Promise<void> {
  const file = openLmdb(path, { create: true, bulk: true, ownLock: true });
  const small = file.database('small');
  const large = file.database('large');
  for (let round = 0; round < 4; round += 1) {
    file.transaction(() => {
      for (let index = 0; index < 150; index += 1) {
        small.put(key(index), Buffer.from(`value ${index} of round ${round}`.repeat(3)));
      }
      for (let index = 0; index < 4; index += 1) large.put(key(index), Buffer.alloc(9000, round));
    });
  }
  await file.sync('volume-state');
  await file.close();
}

/** Opens the file and reads everything in it, as `verify` does. */
async function readAll(path: string, readOnly: boolean): Promise<'same' | 'corrupt'> {
  try {
    const file = openLmdb(path, { readOnly, bulk: true, whole: true, ownLock: true });
    try {
      let count = 0;
      for (const name of ['small', 'large']) {
        const database = file.database(name);
        for (const entry of database.range()) {
          const again = database.get(entry.key);
          if (again?.equals(entry.value) !== true) return 'corrupt';
          count += 1;
        }
      }
      if (!readOnly) {
        const database = file.database('small');
        file.transaction(() => database.put('new', Buffer.alloc(20_000)));
      }
      return count === 154 ? 'same' : 'corrupt';
    } finally {
      await file.close();
    }
  } catch (error) {
    // LMDB sees some damages itself.
    if (error instanceof CorruptionError || error instanceof LmdbError) return 'corrupt';
    throw error;
  }
}

interface ChildReport {
  readonly tried: number;
  readonly same: readonly string[];
}

async function childMain(directory: string, mode: string): Promise<ChildReport> {
  const original = readFileSync(`${directory}/original`);
  const same: string[] = [];
  let tried = 0;
  const attempt = async (name: string, prepare: (path: string) => void, readOnly: boolean): Promise<void> => {
    tried += 1;
    const path = `${directory}/${mode}-${tried}`;
    prepare(path);
    if ((await readAll(path, readOnly)) === 'same') same.push(name);
    rmSync(path);
  };
  if (mode === 'cut') {
    const lengths = [0, 1, 23, 100, 167, 168, PAGE - 1, PAGE, PAGE + 100, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE];
    for (let length = 5 * PAGE + 7; length < original.length; length += 2 * PAGE + 511) lengths.push(length);
    lengths.push(original.length - PAGE, original.length - 1);
    for (const length of lengths) {
      await attempt(`cut to ${length}`, (path) => writeFileSync(path, original.subarray(0, length)), true);
    }
    return { tried, same };
  }
  const random = new Uint32Array([Number(mode)]);
  const next = (bound: number): number => {
    random[0] = Math.imul(random[0] ?? 0, 1_664_525) + 1_013_904_223;
    return (random[0] ?? 0) % bound;
  };
  for (let round = 0; round < FLIPS; round += 1) {
    // Most flips go to page headers, node tables and meta pages, where they could lead LMDB astray.
    const page = next(original.length / PAGE);
    const offset = page * PAGE + (round % 3 === 0 ? next(PAGE) : round % 3 === 1 ? next(64) : next(500));
    const bit = next(8);
    const damage = (path: string): void => {
      const bytes = Buffer.from(original);
      bytes[offset] = (bytes[offset] ?? 0) ^ (1 << bit);
      writeFileSync(path, bytes);
    };
    await attempt(`bit ${bit} at ${offset}`, damage, round % 2 === 0);
  }
  return { tried, same };
}

function isReport(message: unknown): message is ChildReport {
  return typeof message === 'object' && message !== null && 'tried' in message && 'same' in message;
}

async function runChild(directory: string, mode: string): Promise<{ end: unknown; report: ChildReport }> {
  let report: unknown;
  const child = fork(SELF, ['child', directory, mode], { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
  child.on('message', (message) => {
    report = message;
  });
  await once(child, 'exit');
  return {
    end: child.signalCode ?? child.exitCode,
    report: isReport(report) ? report : { tried: 0, same: [] },
  };
}

if (process.argv[2] === 'child') {
  const report = await childMain(process.argv[3] ?? '', process.argv[4] ?? '');
  process.send?.(report);
  process.disconnect();
} else {
  runTests();
}

function runTests(): void {
  t.test('what was stored comes back, in order, and buffers belong to the caller', async (t) => {
    const path = `${t.testdir()}/state`;
    const file = openLmdb(path, { create: true, ownLock: true });
    const database = file.database('rows');
    file.transaction(() => {
      database.put('b', Buffer.from('two'), Buffer.from(' parts'));
      database.put('a', Buffer.from('one'));
      database.put(Buffer.from([0, 0]), Buffer.alloc(0));
      database.put('c', Buffer.alloc(100_000, 3));
    });
    t.equal(database.count(), 4);
    const kept = [...database.range()];
    t.same(
      kept.map((entry) => entry.key.toString()),
      ['\0\0', 'a', 'b', 'c'],
    );
    t.equal(database.get('b')?.toString(), 'two parts');
    t.same(kept[1]?.value, Buffer.from('one'), 'an earlier value survives later reads');
    t.same(kept[3]?.value, Buffer.alloc(100_000, 3));
    t.same(database.get('\0\0'), Buffer.alloc(0));
    t.equal(database.get('nothing'), undefined);
    const names = (range: object): string[] => [...database.range(range)].map((row) => row.key.toString());
    t.same(names({ start: Buffer.from('a'), end: Buffer.from('c') }), ['a', 'b']);
    t.same(names({ start: Buffer.from('a'), end: Buffer.from('c'), reverse: true }), ['b', 'a']);
    t.same(names({ reverse: true }), ['c', 'b', 'a', '\0\0']);
    file.transaction(() => {
      t.equal(database.remove('a'), true);
      t.equal(database.remove('a'), false);
    });
    await file.close();
    t.notOk(existsSync(`${path}-lock`), 'no lock file stays');
    const again = openLmdb(path, { readOnly: true, ownLock: true });
    t.equal(again.database('rows').get('a'), undefined);
    t.equal(again.database('rows').get('b')?.toString(), 'two parts');
    t.throws(() => again.database('missing'), CorruptionError);
    t.throws(() => again.transaction(() => undefined), AssertionError);
    await again.close();
  });

  t.test('a transaction that throws, or returns a promise, leaves nothing', async (t) => {
    const file = openLmdb(`${t.testdir()}/state`, { create: true });
    const rows = file.database('rows');
    const boom = new Error('boom');
    t.throws(
      () =>
        file.transaction(() => {
          rows.put('a', Buffer.from('1'));
          throw boom;
        }),
      boom,
    );
    t.throws(() => file.transaction(async () => rows.put('a', Buffer.from('1'))), AssertionError);
    t.throws(() => rows.put('a', Buffer.from('1')), AssertionError, 'outside a transaction');
    t.equal(rows.get('a'), undefined);
    file.transaction(() => rows.append('b', Buffer.from('1')));
    const room = Buffer.concat([Buffer.from('in place'), Buffer.alloc(CHECKSUM_BYTES)]);
    file.transaction(() => rows.appendInPlace('c', room));
    t.equal(rows.get('c')?.toString(), 'in place');
    t.throws(() => file.transaction(() => rows.appendInPlace('d', Buffer.alloc(3))), AssertionError);
    t.throws(() => file.transaction(() => rows.append('a', Buffer.from('1'))), AssertionError);
    t.equal(rows.count(), 2);
    await file.close();
  });

  t.test('commits and syncs are told to the observer, under the path and name', async (t) => {
    const path = `${t.testdir()}/state`;
    const events: SyncEvent[] = [];
    const file = openLmdb(path, { create: true, bulk: true });
    const rows = file.database('rows');
    observeSyncs({ after: (event) => events.push(event) });
    t.teardown(() => observeSyncs(undefined));
    file.transaction(() => rows.put('a', Buffer.from('1')));
    await file.sync('catalog');
    t.same(events, [
      { kind: 'commit', path },
      { kind: 'file', name: 'catalog', path },
    ]);
    await file.close();
  });

  t.test('error codes', async (t) => {
    const directory = t.testdir();
    t.throws(() => openLmdb(`${directory}/none`), { code: 'missing' });
    mkdirSync(`${directory}/folder`);
    t.throws(() => openLmdb(`${directory}/folder/none`, { readOnly: true }), { code: 'missing' });
    writeFileSync(`${directory}/text`, 'not a database');
    t.throws(() => openLmdb(`${directory}/text`), CorruptionError);
  });

  t.test('a full file system is one clean error, and the file goes on as it was', async (t) => {
    const directory = mountTmpfs(t, TMPFS_BYTES);
    if (directory === undefined) return;
    const file = openLmdb(`${directory}/state`, { create: true, bulk: true });
    const rows = file.database('rows');
    file.transaction(() => rows.put('kept', Buffer.from('1')));
    t.throws(() => file.transaction(() => rows.put('big', Buffer.alloc(4_000_000))), { code: 'no-space' });
    t.equal(rows.get('big'), undefined);
    t.equal(rows.get('kept')?.toString(), '1');
    file.transaction(() => rows.put('small', Buffer.from('2')));
    const { bavail, bsize } = statfsSync(directory);
    writeFileSync(`${directory}/filler`, Buffer.alloc((bavail - 8) * bsize));
    t.throws(() => file.transaction(() => rows.put('late', Buffer.from('3'))), {
      code: 'no-space',
      cause: undefined,
    });
    t.equal(rows.get('late'), undefined, 'given up before LMDB meets the end of the room');
    rmSync(`${directory}/filler`);
    await file.sync('volume-state');
    await file.close();
    const again = openLmdb(`${directory}/state`, { readOnly: true });
    t.equal(again.database('rows').count(), 2);
    await again.close();
  });

  t.test('opening on a file system without a free block is an error, not a signal', async (t) => {
    const directory = mountTmpfs(t, TMPFS_BYTES);
    if (directory === undefined) return;
    await makeFile(`${directory}/state`);
    const { bavail, bsize } = statfsSync(directory);
    for (const left of [0, 1, 2]) {
      writeFileSync(`${directory}/filler`, Buffer.alloc((bavail - left) * bsize));
      t.equal(statfsSync(directory).bavail, left);
      t.throws(() => openLmdb(`${directory}/state`, { readOnly: true, ownLock: true }), { code: 'no-space' });
      t.throws(() => openLmdb(`${directory}/new`, { create: true, ownLock: true }), { code: 'no-space' });
      t.same(readdirSync(directory).sort(), ['filler', 'state'], 'nothing half made stays');
      rmSync(`${directory}/filler`);
    }
    t.equal(await readAll(`${directory}/state`, true), 'same');
  });

  t.test('the lock file has all its blocks from the beginning', async (t) => {
    const path = `${t.testdir()}/state`;
    const file = openLmdb(path, { create: true, ownLock: true });
    const { size, blocks } = statSync(`${path}-lock`);
    t.ok(blocks * 512 >= size, `${blocks} blocks for ${size} bytes`);
    const other = openLmdb(path, { readOnly: true });
    await other.close();
    await file.close();
  });

  t.test('reads from a file system mounted read-only', async (t) => {
    const directory = mountTmpfs(t, TMPFS_BYTES);
    if (directory === undefined) return;
    await makeFile(`${directory}/state`);
    execFileSync('mount', ['-o', 'remount,ro', directory]);
    t.equal(await readAll(`${directory}/state`, true), 'same');
  });

  t.test('property: any sequence of commits equals a map', async (t) => {
    const directory = t.testdir();
    const change = fc.tuple(fc.integer({ min: 0, max: 40 }), fc.nat(20_000), fc.boolean());
    let run = 0;
    const seed = Date.now() % 2 ** 31;
    t.comment(`seed ${seed}`);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.array(change, { maxLength: 12 }), { maxLength: 12 }), async (commits) => {
        run += 1;
        const path = `${directory}/${run}`;
        const model = new Map<string, Buffer>();
        for (const commit of commits) {
          const file = openLmdb(path, { create: true, bulk: true, ownLock: true });
          const rows = file.database('rows');
          file.transaction(() => {
            for (const [number, length, removes] of commit) {
              const value = Buffer.alloc(length, number);
              if (removes) rows.remove(key(number));
              else rows.put(key(number), value);
              if (removes) model.delete(key(number).toString('hex'));
              else model.set(key(number).toString('hex'), value);
            }
          });
          await file.sync('volume-state');
          await file.close();
          checkLmdbFile(path, { whole: true, writable: true });
        }
        if (commits.length === 0) return;
        const file = openLmdb(path, { readOnly: true, whole: true, ownLock: true });
        const found = [...file.database('rows').range()].map((row) => [row.key.toString('hex'), row.value]);
        await file.close();
        const wanted = [...model].sort(([a], [b]) => (a < b ? -1 : 1));
        t.ok(JSON.stringify(found) === JSON.stringify(wanted), 'same content');
      }),
      { numRuns: 25, seed },
    );
  });

  t.test('a file cut short anywhere is refused, without a signal', async (t) => {
    const directory = t.testdir();
    await makeFile(`${directory}/original`);
    t.equal(await readAll(`${directory}/original`, true), 'same');
    const { end, report } = await runChild(directory, 'cut');
    t.equal(end, 0, 'the child ended by itself');
    t.ok(report.tried > 20, `${report.tried} lengths`);
    t.same(report.same, [], 'none was accepted');
  });

  t.test('flipped bits never end the process, and never change what is read', async (t) => {
    const directory = t.testdir();
    await makeFile(`${directory}/original`);
    const seed = 1 + (Date.now() % 1_000_000);
    t.comment(`seed ${seed}`);
    const { end, report } = await runChild(directory, String(seed));
    t.equal(end, 0, 'the child ended by itself');
    t.equal(report.tried, FLIPS);
    t.comment(`${report.tried - report.same.length} refused, ${report.same.length} in bytes without meaning`);
    t.ok(report.same.length < report.tried, 'damages were seen');
  });

  t.test('a flipped bit in a value names file, database and key', async (t) => {
    const path = `${t.testdir()}/state`;
    await makeFile(path);
    const at = readFileSync(path).lastIndexOf('value 77 of round 3');
    const descriptor = openSync(path, 'r+');
    writeSync(descriptor, 'V', at);
    closeSync(descriptor);
    const file = openLmdb(path, { readOnly: true });
    t.throws(() => file.database('small').get(key(77)), {
      message: `Value 0x0000004d in small of ${path} is damaged`,
    });
    t.equal(file.database('small').get(key(78))?.toString().slice(0, 8), 'value 78');
    await file.close();
  });

  t.test('a file that is not whole opens where nothing that is used is missing', async (t) => {
    const path = `${t.testdir()}/state`;
    await makeFile(path);
    copyFileSync(path, `${path}-copy`);
    truncateSync(`${path}-copy`, statSync(path).size - 1);
    t.throws(() => checkLmdbFile(`${path}-copy`, { whole: true }), CorruptionError);
  });
}
