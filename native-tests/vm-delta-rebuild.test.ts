/**
 * Goal: a database that commits under load loses no transaction that it was told is committed, where the server is killed
 * and the home is deleted: the volume is rebuilt from a backup and the delta logs.
 *
 * Method: in the virtual machine SQLite with `synchronous=FULL` on ext4 adds a row and counts it, in one transaction after
 * another, and notes in the guest's memory each that was committed; beside it files are written. A backup is taken in the
 * midst of it. Then the home is deleted and the server killed. After `volume rebuild` the filesystem is mounted again, which
 * replays its journal. The judges: SQLite's own check, the rows against what was noted, and e2fsck on this side.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { librariesOf } from './support/guest-cowbell.ts';
import { freePort, must, mustCowbell, temporaryDirectory } from './support/process.ts';
import { backUp, startServer, statusOf } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const DATABASE = '/mnt/database';
/** Transactions to be committed before something else happens. */
const TRANSACTIONS = 15;

/** What row `n` holds: some pages of text, told by the number alone. */
const PAYLOAD = `substr(replace(hex(zeroblob(200 + n * 37 % 4000)), '00', n || ','), 1, 200 + n * 37 % 4000)`;

/**
 * One transaction of row `$n`. With a journal that is deleted, as where nothing is said, the last transaction may be rolled
 * back after a power cut: FULL does not sync the directory.
 */
const TRANSACTION = `PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=FULL; BEGIN; INSERT INTO numbers VALUES ($n);
  INSERT INTO entries SELECT n, ${PAYLOAD} FROM numbers WHERE n = $n;
  UPDATE counted SET count = count + 1; COMMIT;`;

/** Goes on until something fails: when the server is gone. */
const LOAD = `touch /run/committed
  ( ( n=0
      while n=$((n + 1)); sqlite3 ${DATABASE} "${TRANSACTION}"; do echo $n >>/run/committed; done ) &
    ( i=0
      while i=$((i + 1)); do dd if=/run/block of=/mnt/file-$((i % 20)) bs=16k count=$((1 + i % 16)) || break; done ) &
    wait; touch /run/ended
  ) >/run/load 2>&1 &`;

async function attach(vm: Vm, port: number): Promise<void> {
  await vm.must(
    `nbd-client ${HOST_ADDRESS} ${port} ${DEVICE} -N vol -b 4096 >/dev/null
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`,
  );
}

/** Waits until some more transactions are committed. */
async function moreTransactions(vm: Vm): Promise<void> {
  await vm.must(`wanted=$(($(wc -l </run/committed) + ${TRANSACTIONS}))
    until [ "$(wc -l </run/committed)" -ge $wanted ] || [ -e /run/ended ]; do sleep 0.1; done
    [ ! -e /run/ended ] || { tail /run/load; exit 1; }`);
}

async function query(vm: Vm, sql: string): Promise<string> {
  return (await vm.must(`sqlite3 ${DATABASE} "${sql}"`)).trim();
}

void t.test('a database commits, the home is deleted, and the server killed', async (t) => {
  if (!requireTools(t, ['sqlite3', 'e2fsck'])) return;
  const sqlite = findTool('sqlite3') ?? '';
  const libraries = [...(await librariesOf([sqlite]))].map((path) => [path, path] as const);
  const vm = await bootVm(t, { files: { '/usr/bin/sqlite3': sqlite, ...Object.fromEntries(libraries) } });
  if (vm === undefined) return;
  const port = await freePort();
  const listen = ['--listen', `127.0.0.1:${port}`];
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const [volume, store, home] = [at('vol'), at('store'), at('home.raw')];
  const deltas = ['--delta', at('d1'), '--delta', at('d2')];
  await mustCowbell(['volume', 'create', volume, '--size', '128M', '--home', home, ...deltas]);
  const { server } = await startServer(t, [volume, ...listen]);
  await mustCowbell(['store', 'init', store]);
  await attach(vm, port);
  await vm.must(`mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 ${DEVICE}; mount -t ext4 ${DEVICE} /mnt
    dd if=/dev/urandom of=/run/block bs=16k count=16 2>/dev/null
    sqlite3 ${DATABASE} 'CREATE TABLE numbers (n INTEGER PRIMARY KEY); CREATE TABLE counted (count INTEGER);
      CREATE TABLE entries (n INTEGER PRIMARY KEY, payload TEXT); INSERT INTO counted VALUES (0);'
    ${LOAD}`);
  await moreTransactions(vm);
  await backUp(volume, store);
  await moreTransactions(vm);
  rmSync(home);
  t.equal((await server.stop('SIGKILL')).signal, 'SIGKILL');

  // What is in flight would wait for its timeout; disconnecting ends it.
  const committed =
    await vm.must(`nbd-client -d ${DEVICE} >/dev/null; until [ -e /run/ended ]; do sleep 0.1; done
    umount /mnt; while [ -e /sys/block/nbd0/pid ]; do sleep 0.05; done; cat /run/committed`);
  const noted = committed.trim().split('\n').map(Number);
  await mustCowbell(['volume', 'rebuild', volume, '--store', store]);
  const again = await startServer(t, [volume, ...listen]);
  t.match(await statusOf(volume), { served: true, copies: { notBackedUp: { count: 3 } } });
  await attach(vm, port);
  await vm.must(`mount -t ext4 ${DEVICE} /mnt`);

  t.equal(await query(vm, 'PRAGMA integrity_check'), 'ok');
  const found = (await query(vm, 'SELECT n FROM entries ORDER BY n')).split('\n').map(Number);
  t.same(found.slice(0, noted.length), noted, `all ${noted.length} committed transactions are there`);
  t.ok(found.length <= noted.length + 1, 'and perhaps the one that was under way');
  t.equal(await query(vm, 'SELECT count FROM counted'), String(found.length), 'each of them whole');
  t.equal(await query(vm, `SELECT count(*) FROM entries WHERE payload <> ${PAYLOAD}`), '0');
  await vm.must(`umount /mnt; nbd-client -d ${DEVICE} >/dev/null`);
  t.match(await backUp(volume, store), { level: 'incremental' });
  t.equal((await again.server.stop()).status, 0);
  await vm.powerOff();
  await must(findTool('e2fsck') ?? 'e2fsck', ['-fn', home]);
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  await must('cmp', [home, at('out.raw')]);
});
