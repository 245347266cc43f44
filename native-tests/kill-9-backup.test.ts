/**
 * Goal: a backup of several lanes that is killed at any moment, with its command, its session's process, both, or the
 * server, costs nothing but itself: the volume opens again, the store opens and verifies, the next backup is exact, and
 * nothing partial stays after it on any of the disks.
 *
 * Method: SIGKILL after a random part of the time that a whole backup takes, so that it may also come before the
 * session begins or after it has ended. The seed is printed; COWBELL_SEED repeats the order of victims and moments.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { NbdClient } from '../src/nbd/index.ts';
import {
  childrenOf,
  must,
  mustCowbell,
  type Running,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { backUp, startServer, statusOf, visibleSets } from './support/served.ts';

const MIB = 1_048_576;
const SIZE_MIB = 64;
const TRACK_BYTES = 65_536;
const ROUNDS = 5;
/** After this time there are no more rounds than the fewest. */
const LIMIT_MS = 10_000;
const ROUNDS_MIN = 2;
/** While all came too late to cut a backup off, there are more rounds, up to this many. */
const ROUNDS_MAX = 10;
const VICTIMS = ['command', 'child', 'both'] as const;

interface Place {
  readonly at: (name: string) => string;
  readonly random: SeededRandom;
  /** What a backup of everything takes, of which the moments are parts. */
  readonly backupMs: number;
  /** Begins a full backup with lanes in two directories. */
  readonly startFull: () => Running;
}

const LANES = ['lane-a', 'lane-b'];

async function prepare(t: Test): Promise<Place> {
  const seed = Number(process.env['COWBELL_SEED'] ?? randomBytes(4).readUInt32LE());
  t.comment(`seed ${seed}, repeat with COWBELL_SEED=${seed}`);
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await must('dd', ['if=/dev/urandom', `of=${at('home.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await mustCowbell(['volume', 'create', at('vol'), '--size', `${SIZE_MIB}M`, '--home', at('home.raw')]);
  await mustCowbell(['store', 'init', at('store')]);
  for (const lane of LANES) mkdirSync(at(lane));
  const lanes = LANES.flatMap((lane) => ['--lane', at(lane)]);
  const words = ['--json', 'backup', '--store', at('store'), '--level', 'full', at('vol'), ...lanes];
  const startedMs = performance.now();
  await mustCowbell(words);
  const backupMs = Math.ceil(performance.now() - startedMs);
  return { at, random: new SeededRandom(seed), backupMs, startFull: () => startCowbell(words) };
}

/** Whether another round is to come. */
function goesOn(round: number, cutCount: number, startedMs: number): boolean {
  if (round < ROUNDS_MIN) return true;
  if (cutCount === 0) return round < ROUNDS_MAX;
  return round < ROUNDS && performance.now() - startedMs < LIMIT_MS;
}

/** A process that lost its parent ends by itself, soon. */
async function untilGone(pids: readonly number[]): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt += 1) {
    if (!pids.some((pid) => existsSync(`/proc/${pid}`))) return;
    await wait(10);
  }
  throw new Error(`Processes ${pids.join(', ')} outlive the session by 10 s`);
}

function childrenOrNone(process: Running): readonly number[] {
  try {
    return childrenOf(process.child.pid);
  } catch {
    return []; // It has ended.
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** The next backup restores to what the volume holds, and has cleared away what was left. */
async function assertExact(t: Test, { at }: Place, title: string): Promise<void> {
  const { level } = await backUp(at('vol'), at('store'), ['--lane', at('lane-a')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('home.raw'), at('out.raw')]);
  t.pass(`${title}: ${String(level)} is exact`);
  const names = ['store', ...LANES].flatMap((name) =>
    readdirSync(at(name), { recursive: true, encoding: 'utf8' }),
  );
  t.same(
    names.filter((name) => name.includes('.partial')),
    [],
    'nothing partial is left',
  );
}

/** The store opens and verifies, and has no more sets than backups that may have come to their seal. */
async function assertStore(t: Test, { at }: Place, setCountMax: number): Promise<void> {
  const count = (await visibleSets(at('store'))).length;
  t.ok(count <= setCountMax, `${count} sets`);
  t.equal((await mustCowbell(['store', 'verify', at('store')])).includes('damaged'), false);
}

t.test('an offline backup', async (t) => {
  const place = await prepare(t);
  const { at, random, backupMs, startFull } = place;
  const started = performance.now();
  let [round, cutCount] = [0, 0];
  while (goesOn(round, cutCount, started)) {
    const victim = VICTIMS[round % VICTIMS.length];
    const afterMs = random.below(backupMs);
    // Changed behind the volume's back, at rest: everything counts as changed.
    const home = openSync(at('home.raw'), 'r+');
    writeSync(home, randomBytes(TRACK_BYTES), 0, TRACK_BYTES, random.below(SIZE_MIB) * MIB);
    closeSync(home);
    const backup = startFull();
    await wait(afterMs);
    const children = childrenOrNone(backup);
    if (victim !== 'command') children.forEach(kill);
    if (victim !== 'child') backup.child.kill('SIGKILL');
    const { status, signal, stderr } = await backup.wait();
    if (status !== 0) cutCount += 1;
    if (status !== 0 && signal === null) t.match(stderr, /^cowbell: [^\n]+\n$/);
    await untilGone(children);
    await assertExact(t, place, `${victim} killed after ${afterMs} of ${backupMs} ms`);
    round += 1;
  }
  t.ok(cutCount > 0, `${round} rounds, ${cutCount} backups cut off`);
  await assertStore(t, place, 1 + 2 * round);
});

/** Writes whole tracks anywhere until the server is gone. */
async function writeUntilLost(client: NbdClient, random: SeededRandom): Promise<void> {
  try {
    for (;;) {
      await client.write(
        randomBytes(TRACK_BYTES),
        random.below((SIZE_MIB * MIB) / TRACK_BYTES) * TRACK_BYTES,
      );
    }
  } catch {
    // The server is killed.
  }
}

t.test('the server of an online backup', async (t) => {
  const place = await prepare(t);
  const { at, random, backupMs, startFull } = place;
  let { server, uri } = await startServer(t, [at('vol')]);
  const started = performance.now();
  let [round, cutCount] = [0, 0];
  while (goesOn(round, cutCount, started)) {
    const afterMs = random.below(backupMs);
    const written = NbdClient.connect(uri).then((client) => writeUntilLost(client, random));
    const backup = startFull();
    await wait(afterMs);
    const children = childrenOrNone(server);
    server.child.kill('SIGKILL');
    const { status, stderr } = await backup.wait();
    if (status !== 0) {
      cutCount += 1;
      t.equal(status, 1);
      t.match(stderr, /^cowbell: [^\n]+\n$/);
    }
    await Promise.all([written, untilGone(children)]);
    ({ server, uri } = await startServer(t, [at('vol')]));
    t.match(await statusOf(at('vol')), { served: true, sessions: [], writesWaiting: 0 });
    await assertExact(t, place, `server killed after ${afterMs} of ${backupMs} ms`);
    const client = await NbdClient.connect(uri);
    await client.write(randomBytes(TRACK_BYTES), MIB, { fua: true });
    await client.disconnect();
    round += 1;
  }
  t.ok(cutCount > 0, `${round} rounds, ${cutCount} backups cut off`);
  t.equal((await server.stop()).status, 0);
  await assertStore(t, place, 1 + 2 * round);
});
