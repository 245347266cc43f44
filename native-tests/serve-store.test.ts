/**
 * Goal: `serve --store` gives any point in time of a store at once: what clients read is what a restore of the set
 * gives, holes are told, and nothing can be written; with `--writable` clients write, and the store stays as it is.
 *
 * Method: a chain of a full set and two incrementals, each restored to a file. nbdcopy, qemu-img and qemu-io are the
 * clients; a filesystem goes through the overlay by nbdcopy and back.
 */
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  childrenOf,
  cowbell,
  must,
  mustCowbell,
  run,
  type Running,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { backUp, eventsOf, serveVolume, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

interface Chain {
  readonly at: (name: string) => string;
  readonly store: string;
  /** Oldest first. */
  readonly sets: readonly string[];
}

async function makeChain(t: Pick<Test, 'teardown'>, key: readonly string[] = []): Promise<Chain> {
  const { at, volume, server, uri } = await serveVolume(t, { size: '64M' });
  const store = at('store');
  await mustCowbell(['store', 'init', store, ...(key.length > 0 ? ['--encrypt', ...key] : [])]);
  const write = (...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  const sets: string[] = [];
  const changes = [
    ['write -P 1 0 8M', 'write -P 2 20M 5M', 'write -P 3 63M 1M'],
    ['write -P 4 512 1k', 'write -z 21M 1M', 'write -P 5 30M 64k'],
    ['write -P 6 3M 3M', 'write -z 30M 64k', 'write -P 7 63M 512'],
  ];
  for (const [index, commands] of changes.entries()) {
    await write(...commands, 'flush');
    const set = String((await backUp(volume, store, key))['set']);
    sets.push(set);
    await mustCowbell(['restore', store, set, at(`${index}.raw`), ...key]);
  }
  await server.stop();
  return { at, store, sets };
}

let made: Promise<Chain> | undefined;

/** The chain that those share who do not change it. */
function sharedChain(): Promise<Chain> {
  made ??= makeChain(t);
  return made;
}

/** A copy of its store, to damage. */
async function copyOf({ at, store }: Chain): Promise<string> {
  rmSync(at('copy'), { recursive: true, force: true });
  await must('cp', ['-a', store, at('copy')]);
  return at('copy');
}

/** A digest of every file of the store, its locks apart. */
function digestOf(store: string): string {
  const hash = createHash('sha256');
  for (const name of readdirSync(store, { recursive: true, encoding: 'utf8' }).toSorted()) {
    if (!statSync(join(store, name)).isFile() || name.endsWith('lock')) continue;
    hash.update(`${name}\0`).update(readFileSync(join(store, name)));
  }
  return hash.digest('hex');
}

t.test('sets of a chain are read as a restore gives them', async (t) => {
  if (!requireTools(t, ['qemu-io', 'qemu-img', 'nbdcopy', 'nbdinfo'])) return;
  const { at, store, sets } = await sharedChain();
  const words = ['--json', '--store', store, ...sets.flatMap((set) => ['--set', set])];
  const server = await startJson(t, [...words, '--socket', at('s.sock')]);
  await server.waitForLine(new RegExp(`"uri":"[^"]*${sets[2]}`));
  const ready = eventsOf(server.stdout);
  t.match(
    ready,
    sets.map((set) => ({
      event: 'ready',
      uri: `nbd+unix:///vol%40${set}?socket=${at('s.sock')}`,
      set,
      volume: 'vol',
    })),
  );
  for (const [index, event] of ready.entries()) {
    const uri = String(event['uri']);
    await must('nbdcopy', [uri, at('copy.raw')]);
    await must('cmp', [at('copy.raw'), at(`${index}.raw`)]);
    await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, at(`${index}.raw`)]);
    const info = await must('nbdinfo', ['--json', uri]);
    t.match(info, /"is_read_only": true/);
    t.match(info, /"can_multi_conn": true/);
  }
  // What is zero in the chain is a hole without being read.
  const map = await must('nbdinfo', ['--map', '--totals', String(ready[2]?.['uri'])]);
  t.match(map, /53477376 +79\.7% +3 hole,zero/);
  t.not((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', String(ready[0]?.['uri'])])).status, 0);

  const stopped = await server.stop();
  t.equal(stopped.status, 0, stopped.stderr);
  t.equal(stopped.stderr, '');
});

t.test('the volume lends a single set its name, and a child that dies is said', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy'])) return;
  const { at, store } = await sharedChain();
  const listen = ['--socket', at('s.sock'), '--listen', '127.0.0.1:0'];
  const { server, uri } = await startServer(t, ['--store', store, '--set', 'latest:vol', ...listen]);
  t.equal(uri, `nbd+unix:///vol?socket=${at('s.sock')}`);
  t.equal(statSync(at('s.sock')).mode & 0o777, 0o600);
  const tcp = (await server.waitForLine(/^ready nbd:/)).slice('ready '.length);
  await must('nbdcopy', [tcp, at('copy.raw')]);
  await must('cmp', [at('copy.raw'), at('2.raw')]);
  for (const child of childrenOf(server.child.pid)) process.kill(child, 'SIGKILL');
  for (let wait = 0; wait < 100 && server.stderr === ''; wait += 1) await sleep(50);
  t.match(server.stderr, /Export vol is lost: The process that reads set .* died \(signal SIGKILL\)/);
  const read = await run('qemu-io', ['-r', '-f', 'raw', '-c', 'read 20M 512', uri]);
  t.not(read.status, 0);
  t.match(read.stdout + read.stderr, /Input\/output error/);
  t.equal((await server.stop('SIGINT')).status, 0);
});

t.test('a file of the store that is cut short ends the reader and not the server', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const chain = await sharedChain();
  const { at, sets } = chain;
  const store = await copyOf(chain);
  const words = ['--store', store, ...sets.slice(0, 2).flatMap((set) => ['--set', set])];
  const { server } = await startServer(t, [...words, '--socket', at('s.sock')]);
  const read = (set: string | undefined, offset: string): ReturnType<typeof run> => {
    const uri = `nbd+unix:///vol%40${set}?socket=${at('s.sock')}`;
    return run('qemu-io', ['-r', '-f', 'raw', '-c', `read ${offset} 64k`, uri]);
  };
  t.equal((await read(sets[1], '30M')).status, 0);
  const children = childrenOf(server.child.pid);
  t.equal(children.length, 2);
  // The full set, which both need.
  await must('truncate', ['-s', '8192', ...filesOf(store, String(sets[0]))]);
  t.not((await read(sets[0], '20M')).status, 0);
  for (let wait = 0; wait < 100 && server.stderr === ''; wait += 1) await sleep(50);
  t.match(
    server.stderr,
    /^cowbell: Export vol@\w+ is lost: The process that reads set .* died \(signal SIGBUS\)/,
  );
  t.equal((await read(sets[1], '30M')).status, 0, 'the other export goes on, of what is kept');
  const [left] = childrenOf(server.child.pid);
  await server.stop('SIGKILL');
  for (let wait = 0; wait < 100 && existsSync(`/proc/${left}`); wait += 1) await sleep(50);
  t.notOk(existsSync(`/proc/${left}`), 'a reader ends with the server that is killed');
});

/** Its lanes. */
function filesOf(store: string, set: string): string[] {
  return readdirSync(join(store, 'sets'))
    .filter((name) => name.startsWith(set) && name.endsWith('.cbs'))
    .map((name) => join(store, 'sets', name));
}

t.test('with --writable clients write, and the store stays as it is', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'mke2fs', 'e2fsck'])) return;
  const { at, store, sets } = await sharedChain();
  const before = digestOf(store);
  const words = ['--store', store, '--set', String(sets[1]), '--writable', '--overlay-dir', at('')];
  const { server, uri } = await startServer(t, [...words, '--socket', at('s.sock')]);
  t.notOk(
    readdirSync(at('')).some((name) => name.startsWith('cowbell-')),
    'the overlay has no name',
  );
  t.ok(descriptorsOf(server.child.pid).some((path) => /cowbell-overlay-.*\(deleted\)$/.test(path)));
  const checks = [
    'read -P 1 2k 900k',
    'read -P 9 1000k 3000k',
    'read -P 0 20M 1M',
    'read -P 0 22M 1M',
    'read -P 2 23M 1M',
  ];
  const commands = ['write -P 9 1000k 3000k', 'write -z 20M 1M', 'discard 22M 1M', 'flush'];
  await must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  const read = await must('qemu-io', ['-r', '-f', 'raw', ...checks.flatMap((check) => ['-c', check]), uri]);
  t.notMatch(read, /Pattern verification failed/);

  await must('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', import.meta.dirname, at('fs.raw'), '64M']);
  await must('nbdcopy', ['--flush', at('fs.raw'), uri]);
  await must('nbdcopy', [uri, at('copy.raw')]);
  await must('cmp', [at('copy.raw'), at('fs.raw')]);
  await must('e2fsck', ['-fn', at('copy.raw')]);
  t.equal((await server.stop()).status, 0);
  t.equal(digestOf(store), before);

  const again = await startServer(t, ['--store', store, '--set', String(sets[1]), '--socket', at('s.sock')]);
  await must('nbdcopy', [again.uri, at('copy.raw')]);
  await must('cmp', [at('copy.raw'), at('1.raw')]);
  await again.server.stop();
});

t.test('an encrypted store wants its key', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy'])) return;
  const keys = temporaryDirectory(t);
  for (const name of ['key', 'other']) writeFileSync(join(keys, name), randomBytes(32));
  const key = ['--key-file', join(keys, 'key')];
  const { at, store } = await makeChain(t, key);
  const words = ['--store', store, '--set', 'latest', '--socket', at('s.sock')];
  const refused = await cowbell(['serve', ...words]);
  t.equal(refused.status, 2, refused.stderr);
  const wrong = await cowbell(['serve', ...words, '--key-file', join(keys, 'other')]);
  t.equal(wrong.status, 1, wrong.stderr);
  const { server, uri } = await startServer(t, [...words, ...key]);
  await must('nbdcopy', [uri, at('copy.raw')]);
  await must('cmp', [at('copy.raw'), at('2.raw')]);
  await server.stop();
});

t.test('what cannot be is refused, with the exit status of a restore', async (t) => {
  const chain = await sharedChain();
  const { at, sets } = chain;
  const store = await copyOf(chain);
  const socket = ['--socket', at('s.sock')];
  const set = ['--set', 'latest'];
  const cases: readonly [number, RegExp, readonly string[]][] = [
    [2, /No volume is given, wanted at least one, or --store/, []],
    [2, /No set of store .* is given, wanted --set <set>/, ['--store', store, ...socket]],
    [2, /Nobody could reach the sets, wanted --socket/, ['--store', store, ...set]],
    [2, /both given; serve them from two processes/, [at('vol'), '--store', store, ...set, ...socket]],
    [2, /--set is given without --store/, [at('vol'), ...set]],
    [2, /--writable is given without --store/, [at('vol'), '--writable']],
    [
      2,
      /--overlay-dir is given without --writable/,
      ['--store', store, ...set, ...socket, '--overlay-dir', '/x'],
    ],
    [2, /--read-only and --writable/, ['--store', store, ...set, ...socket, '--read-only', '--writable']],
    [2, /is named twice/, ['--store', store, ...set, '--set', 'latest:vol', ...socket]],
    [2, /no volume of that name is served/, ['--store', store, ...set, '--socket', `${at('s.sock')}=x`]],
    [1, /zzz/, ['--store', store, '--set', 'zzz', ...socket]],
    [1, /none/, ['--store', at('none'), ...set, ...socket]],
    [1, /overlay/, ['--store', store, ...set, ...socket, '--writable', '--overlay-dir', at('none')]],
  ];
  for (const [status, sentence, words] of cases) {
    const refused = await cowbell(['serve', ...words]);
    t.equal(refused.status, status, words.join(' '));
    t.match(refused.stderr, sentence);
    t.equal(refused.stderr.trim().split('\n').length, 1, refused.stderr);
  }
  await must('truncate', ['-s', '-4096', ...filesOf(store, String(sets[0]))]);
  const refused = await cowbell(['serve', '--store', store, ...set, ...socket]);
  t.equal(refused.status, 3, refused.stderr);
});

/** As `startServer`, for output that is JSON. */
async function startJson(t: Test, words: readonly string[]): Promise<Running> {
  const server = startCowbell(['serve', ...words]);
  t.teardown(async () => {
    if (server.ended === undefined) await server.stop('SIGKILL');
  });
  await server.waitForLine(/"event":"ready"/);
  return server;
}

function descriptorsOf(pid: number | undefined): string[] {
  const directory = `/proc/${pid}/fd`;
  return readdirSync(directory).flatMap((name) => {
    try {
      return [readlinkSync(join(directory, name))];
    } catch {
      return [];
    }
  });
}
