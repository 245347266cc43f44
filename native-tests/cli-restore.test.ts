/**
 * Goal: `restore` from the command line does the parts: ranges, a plan, a file with what goes where, a smaller device,
 * reading back, going on after an interruption, and a salvage that ends with status 3 and says what is missing.
 *
 * Method: a volume of 16 MiB whose upper half is zero, restored to files that are compared byte by byte. The restore that
 * is interrupted writes to an NBD export that takes its time.
 */
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, Running, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const TRACK = 65_536;

/** A volume at rest with random bytes in its lower half, backed up in one set of frames that are not compressed. */
async function stored(
  directory: string,
  lanes: readonly string[] = [],
): Promise<{ store: string; content: Buffer }> {
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', '16M', '--home', at('home.raw')]);
  await mustCowbell(['store', 'init', at('store')]);
  await must('dd', [
    'if=/dev/urandom',
    `of=${at('home.raw')}`,
    'bs=1M',
    'count=8',
    'conv=notrunc',
    'status=none',
  ]);
  await mustCowbell(['backup', '--store', at('store'), at('vol'), '--codec', 'none', ...lanes]);
  return { store: at('store'), content: readFileSync(at('home.raw')) };
}

async function restoreEvent(words: readonly string[]): Promise<Readonly<Record<string, unknown>>> {
  const events = eventsOf(await mustCowbell(['--json', 'restore', ...words]));
  return events.find(({ event }) => event === 'restored' || event === 'plan') ?? {};
}

t.test('plans, ranges and smaller devices', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const { store, content } = await stored(directory);

  const plan = at('plan.json');
  const words = [store, 'latest', at('copy.raw')];
  const planned = await restoreEvent([...words, '--dry-run', '--write-remap', plan]);
  t.match(planned, {
    event: 'plan',
    targets: [{ isNew: true, sizeBytes: 16 * MIB, bytesToWrite: 8 * MIB, bytesToSkip: 8 * MIB }],
    tracks: (8 * MIB) / TRACK,
    sets: [String(planned['set'])],
  });
  t.notOk(existsSync(at('copy.raw')));
  t.match(await mustCowbell(['restore', ...words, '--dry-run']), /128 tracks to read in 8 frames of 1 set\n/);
  const again = await cowbell(['restore', ...words, '--dry-run', '--write-remap', plan]);
  t.equal(again.status, 2, 'a file that is there may have been edited');

  // Edited: what was at the beginning goes behind the volume.
  const edited = readFileSync(plan, 'utf8')
    .replace('"offset":"0"', '"offset":"4M"')
    .replace('"sizeBytes":"16M"', '"sizeBytes":"20M"');
  writeFileSync(plan, edited);
  t.match(await restoreEvent([store, 'latest', '--remap', plan, '--verify']), {
    tracks: 128,
    verified: true,
  });
  t.ok(readFileSync(at('copy.raw')).equals(Buffer.concat([Buffer.alloc(4 * MIB), content])));

  const ranges = ['--range', '1M+64K', '--range', '6M+4M'];
  writeFileSync(at('old.raw'), Buffer.alloc(16 * MIB, '-'));
  await mustCowbell(['restore', store, 'latest', at('old.raw'), ...ranges]);
  const wanted = Buffer.alloc(16 * MIB, '-');
  content.copy(wanted, MIB, MIB, MIB + TRACK);
  content.copy(wanted, 6 * MIB, 6 * MIB, 10 * MIB);
  t.ok(readFileSync(at('old.raw')).equals(wanted), 'nothing else has changed');
  await mustCowbell(['restore', store, 'latest', at('packed.raw'), ...ranges, '--pack']);
  t.ok(
    readFileSync(at('packed.raw')).equals(
      Buffer.concat([content.subarray(MIB, MIB + TRACK), content.subarray(6 * MIB, 10 * MIB)]),
    ),
  );
  for (const [range, message] of [
    ['1M', /wanted <offset>\+<length>/],
    ['16M+64K', /is outside of the set's volume/],
    ['100+512', /is not in whole blocks/],
  ] as const) {
    const refused = await cowbell(['restore', store, 'latest', at('none.raw'), '--range', range]);
    t.equal(refused.status, 2);
    t.match(refused.stderr, message);
  }
  t.notOk(existsSync(at('none.raw')));

  writeFileSync(at('small.raw'), Buffer.alloc(9 * MIB, '-'));
  const smaller = await mustCowbell(['restore', store, 'latest', at('small.raw')]);
  t.match(smaller, /The last 7 MiB of the volume are zeroes and were left out: the targets end before/);
  t.ok(readFileSync(at('small.raw')).equals(content.subarray(0, 9 * MIB)));
  writeFileSync(at('smaller.raw'), Buffer.alloc(7 * MIB, '-'));
  const refused = await cowbell(['restore', store, 'latest', at('smaller.raw')]);
  t.equal(refused.status, 1);
  t.match(refused.stderr, new RegExp(`needs ${8 * MIB} bytes`));
  t.ok(readFileSync(at('smaller.raw')).equals(Buffer.alloc(7 * MIB, '-')), 'untouched');
});

t.test('a salvage', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const { store, content } = await stored(directory);
  const [name = ''] = readdirSync(join(store, 'sets')).filter((file) => file.endsWith('.cbs'));
  const set = join(store, 'sets', name);
  copyFileSync(set, at('whole.cbs'));
  const bytes = readFileSync(set);
  const place = bytes.indexOf(content.subarray(3 * MIB, 3 * MIB + 512));
  bytes[place] = (bytes[place] ?? 0) ^ 1;
  writeFileSync(set, bytes);

  writeFileSync(at('copy.raw'), Buffer.alloc(16 * MIB, '-'));
  t.equal((await cowbell(['restore', store, 'latest', at('copy.raw')])).status, 3);
  writeFileSync(at('copy.raw'), Buffer.alloc(16 * MIB, '-'));
  const { status, stdout, stderr } = await cowbell([
    '--json',
    'restore',
    store,
    'latest',
    at('copy.raw'),
    '--salvage',
    '--verify',
  ]);
  t.equal(status, 3);
  const restored = eventsOf(stdout).find(({ event }) => event === 'restored');
  t.match(restored, { missing: [{ offsetBytes: 3 * MIB, lengthBytes: MIB }], tracks: 112, verified: true });
  t.match(stderr, /1048576 bytes in one range of the volume are missing and were left alone on the targets/);
  const wanted = Buffer.from(content);
  wanted.fill('-', 3 * MIB, 4 * MIB);
  t.ok(readFileSync(at('copy.raw')).equals(wanted));
  const told = await cowbell(['restore', store, 'latest', at('copy.raw'), '--salvage']);
  t.match(told.stdout, /^ {2}missing: bytes 3145728 to 4194303 of the volume$/m);
  t.equal(
    (await cowbell(['restore', store, 'latest', at('copy.raw'), '--salvage', '--range', '4M+4M'])).status,
    0,
  );

  copyFileSync(at('whole.cbs'), set);
  t.equal(
    (await cowbell(['restore', store, 'latest', at('copy.raw'), '--salvage'])).status,
    0,
    'nothing is missing',
  );
  await mustCowbell(['store', 'export', store, 'latest', '--to', at('medium.tar')]);
  truncateSync(at('medium.tar'), statSync(at('medium.tar')).size / 2);
  const cut = await cowbell([
    '--json',
    'restore',
    at('medium.tar'),
    'latest',
    at('cut.raw'),
    '--salvage',
    '--verify',
  ]);
  t.equal(cut.status, 3, cut.stderr);
  const cutEvent = eventsOf(cut.stdout).find(({ event }) => event === 'restored');
  t.match(cutEvent, { missing: [{ lengthBytes: Number }] }, 'a medium that was cut short');
});

t.test('B13: one of two lanes is missing', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const { store, content } = await stored(directory, ['--lane', at('lane')]);
  const found = await must('find', [at('lane'), '-name', '*-1.cbs']);
  rmSync(found.trim());
  const refused = await cowbell(['restore', store, 'latest', at('none.raw')]);
  t.equal(refused.status, 3);
  t.match(refused.stderr, /lane 1: its file is missing/);
  const { status, stdout } = await cowbell([
    '--json',
    'restore',
    store,
    'latest',
    at('copy.raw'),
    '--salvage',
  ]);
  t.equal(status, 3);
  const restored = eventsOf(stdout).find(({ event }) => event === 'restored') ?? {};
  const missing = [restored['missing']].flat().map((range: unknown) => {
    const { offsetBytes, lengthBytes } = {
      offsetBytes: 0,
      lengthBytes: 0,
      ...(typeof range === 'object' ? range : {}),
    };
    return { offsetBytes, lengthBytes };
  });
  const wanted = Buffer.from(content);
  for (const { offsetBytes, lengthBytes } of missing) wanted.fill(0, offsetBytes, offsetBytes + lengthBytes);
  t.ok(missing.length > 0);
  t.ok(readFileSync(at('copy.raw')).equals(wanted));
});

t.test('going on after an interruption', async (t) => {
  if (!requireTools(t, ['nbdkit'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const { store, content } = await stored(directory);
  writeFileSync(at('target.raw'), '');
  truncateSync(at('target.raw'), 16 * MIB);
  const serve = async (...filters: string[]): Promise<Running> => {
    const options = filters.flatMap((filter) => (filter.startsWith('delay') ? ['--filter=delay'] : []));
    const server = new Running('nbdkit', [
      '-f',
      '-v',
      '-U',
      at('sock'),
      ...options,
      'file',
      at('target.raw'),
      ...filters,
    ]);
    t.teardown(() => server.stop('SIGKILL'));
    await must('sh', ['-c', `until [ -S ${at('sock')} ]; do :; done`], { timeoutMs: 20_000 });
    return server;
  };
  const words = ['restore', store, 'latest', `nbd+unix:///?socket=${at('sock')}`, '--resume'];
  const slow = await serve('delay-write=50ms');
  t.equal((await cowbell(words)).status, 2, 'nowhere to note it');
  words.push('--progress-file', at('progress'));
  const running = startCowbell(['--json', ...words]);
  await running.waitForLine(/"tracksDone":(1[6-9]|[2-9][0-9])/);
  const { status, stderr } = await running.stop();
  t.equal(status, 1);
  t.match(stderr, /cancelled/);
  await slow.stop();
  rmSync(at('sock'), { force: true });
  t.ok(existsSync(at('progress')));

  const fast = await serve();
  const other = await cowbell([...words, '--range', '1M+1M']);
  t.equal(other.status, 2);
  t.match(other.stderr, /is of a restore with another remap table, ranges or targets/);
  const resumed = eventsOf(await mustCowbell(['--json', ...words, '--verify'])).find(
    ({ event }) => event === 'restored',
  );
  const before = Number(resumed?.['tracksBefore']);
  t.ok(before >= 16 && before < 128, `${before} tracks were not written again`);
  t.equal(Number(resumed?.['tracks']) + before, 128);
  await fast.stop();
  t.ok(readFileSync(at('target.raw')).equals(content));
  t.notOk(existsSync(at('progress')));
});
