/**
 * What a model run does: commands drawn by weight from the seed, each on a world in whatever state the others
 * left it, with writes, sessions and syncs under way.
 */

import { systemCode } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { MemoryDevice } from '../device/index.ts';
import { type RemapRow, RemapTable, restore } from '../restore/index.ts';
import { MemoryArea } from '../volume/index.ts';
import { contentOf, SECTOR_BYTES, valuesOf } from './model.ts';
import { RunningBackup } from './model-backup.ts';
import { isInjected, type World } from './model-world.ts';
import { must } from './promises.ts';
import { issueChange, issueFlush, issueRead } from './model-writes.ts';
import { turns, within } from './scheduler.ts';

const hasSnapshot = ({ snapshots }: World): boolean => snapshots.hasReady;

interface Command {
  readonly weight: number;
  readonly isPossible?: (world: World) => boolean;
  readonly run: (world: World) => Promise<void> | void;
}

const isRunning = ({ backups }: World): boolean => backups.some(({ isOver }) => !isOver);
/** One of the backups that run. */
const aBackup = ({ backups, random }: World): RunningBackup =>
  random.pick(backups.filter(({ isOver }) => !isOver));
/** No backup to it runs, or has ended just now. */
const idleStores = ({ stores, backups }: World): Store[] =>
  stores.filter((store) => backups.every((backup) => backup.store !== store));
/** Nobody else writes while a volume is rolled back. */
const mayWrite = ({ snapshots }: World): boolean => !snapshots.isRollingBack;
const isIdle = (world: World): boolean => !isRunning(world);

export const COMMANDS: Readonly<Record<string, Command>> = {
  write: { weight: 40, isPossible: mayWrite, run: (world) => issueChange(world, 'write') },
  zeroes: { weight: 8, isPossible: mayWrite, run: (world) => issueChange(world, 'zeroes') },
  trim: { weight: 8, isPossible: mayWrite, run: (world) => issueChange(world, 'trim') },
  flush: { weight: 5, run: issueFlush },
  read: { weight: 6, run: issueRead },
  release: { weight: 40, run: ({ scheduler }) => scheduler.releaseOne() },
  'let files go on': { weight: 15, run: ({ random }) => turns(1 + random.below(4)) },
  'begin a backup': { weight: 12, isPossible: (world) => idleStores(world).length > 0, run: beginBackup },
  'end the backups': { weight: 4, isPossible: isRunning, run: endBackups },
  cancel: { weight: 1, isPossible: isRunning, run: (world) => aBackup(world).cancel() },
  'cancel and begin anew': { weight: 1, isPossible: isRunning, run: replaceBackup },
  'kill the worker': { weight: 1, isPossible: isRunning, run: (world) => aBackup(world).kill() },
  'hang the worker': { weight: 1, isPossible: isRunning, run: hangWorker },
  'fail the container': {
    weight: 1,
    isPossible: isRunning,
    run: (world) => {
      aBackup(world).failContainer(world.random);
    },
  },
  'fail a sync': { weight: 1, isPossible: ({ failingSyncs }) => failingSyncs.size === 0, run: failSync },
  'make a snapshot': { weight: 10, run: ({ snapshots }) => snapshots.make() },
  'delete a snapshot': { weight: 8, isPossible: hasSnapshot, run: ({ snapshots }) => snapshots.delete() },
  'read a snapshot': { weight: 8, isPossible: hasSnapshot, run: ({ snapshots }) => snapshots.read() },
  'roll back': {
    weight: 5,
    isPossible: (world) => hasSnapshot(world) && mayWrite(world),
    run: ({ snapshots }) => snapshots.rollBack(),
  },
  'fill the disk': {
    weight: 2,
    isPossible: ({ full }) => !full.isFull,
    run: ({ snapshots }) => snapshots.setFull(true),
  },
  'make room': {
    weight: 5,
    isPossible: ({ full }) => full.isFull,
    run: ({ snapshots }) => snapshots.setFull(false),
  },
  'second session': {
    weight: 1,
    isPossible: ({ volume }) => volume.sessions.length > 0,
    run: secondSession,
  },
  'check the store': { weight: 1, isPossible: isIdle, run: checkStore },
  restore: { weight: 3, isPossible: isIdle, run: restoreSome },
  'reopen cleanly': { weight: 2, run: reopenCleanly },
  'reopen uncleanly': { weight: 1, isPossible: ({ faulty }) => faulty !== undefined, run: reopenUncleanly },
  kill: { weight: 1, isPossible: ({ faulty }) => faulty !== undefined, run: (world) => world.kill() },
  'kill at a sync': { weight: 1, isPossible: ({ faulty }) => faulty !== undefined, run: killAtSync },
  'fail the home': { weight: 1, isPossible: ({ faulty }) => faulty !== undefined, run: failHome },
};

/**
 * How much of what a run does: each run has likings of its own, since what is rare in all of them together is
 * met by none.
 */
export function drawWeights(
  { random }: World,
  favours: Readonly<Record<string, number>> = {},
): ReadonlyMap<string, number> {
  return new Map(
    Object.entries(COMMANDS).map(([name, { weight }]) => [
      name,
      weight * (favours[name] ?? 1) * random.pick([0.1, 1, 1, 4, 15]),
    ]),
  );
}

/** One of the commands that are possible now, by weight. */
export function drawCommand(world: World, weights: ReadonlyMap<string, number>): string {
  const possible = [...weights].filter(([name]) => COMMANDS[name]?.isPossible?.(world) ?? true);
  let at = world.random.next() * possible.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [name, weight] of possible) {
    if (at < weight) return name;
    at -= weight;
  }
  return 'release';
}

function beginBackup(world: World): void {
  world.backups.push(new RunningBackup(world, world.random.pick(idleStores(world))));
}

/** Lets the backups come to their end, in small steps of which writes may still make use. */
export async function endBackups(world: World): Promise<void> {
  for (const backup of world.backups) await within(letEnd(world, backup), 'A backup');
}

async function letEnd({ scheduler, backups }: World, backup: RunningBackup): Promise<void> {
  for (let step = 0; !backup.isOver; step += 1) {
    if (scheduler.parkedCount > 0) scheduler.releaseOne();
    // A worker that hangs is killed in the end, as its host would; it has had the time by then.
    if (step > 200) for (const one of backups) if (one.isHanging && !one.isOver) one.kill();
    await turns(1);
  }
  await backup.ended;
}

/** The writes that waited for the first are still on their way when the next one freezes. */
async function replaceBackup(world: World): Promise<void> {
  const backup = aBackup(world);
  backup.cancel();
  // A session that may have sealed its set goes on.
  if (!backup.isSabotaged) return;
  await within(letEnd(world, backup), 'A backup');
  world.backups.splice(world.backups.indexOf(backup), 1, new RunningBackup(world, backup.store));
}

function hangWorker(world: World): void {
  aBackup(world).hang(
    world.random.pick(['read', 'confirm', 'take', 'acknowledge', 'mayComplete', 'complete'] as const),
  );
}

function failSync(world: World): void {
  const { backups, failingSyncs, random } = world;
  // Without a backup only writes need a sync.
  const name = isRunning(world)
    ? random.pick(['set-data', 'set-seal', 'set-directory', 'catalog', 'volume-state', 'intent-log'] as const)
    : random.pick(['intent-log', 'snapshot-store', 'snapshot-directory'] as const);
  for (const backup of backups) backup.sabotage(`sync ${name} failed`);
  failingSyncs.add(name);
  world.mayBeUnclean ||= name === 'volume-state';
}

/** The power is cut when the volume next gets there. */
function killAtSync(world: World): void {
  const { random } = world;
  const name = random.pick([
    'intent-log',
    'volume-state',
    'volume-directory',
    'snapshot-store',
    'snapshot-directory',
  ] as const);
  world.cutAt(`${random.pick(['before', 'after'] as const)} ${name}`);
}

/** To the same store. It may have to wait for the freeze of a snapshot before it is refused. */
function secondSession(world: World): void {
  const { volume } = world;
  const area = new MemoryArea({ sizeBytes: world.trackBytes, trackSizeBytes: world.trackBytes });
  const [first] = volume.sessions;
  const consumer = first?.consumer ?? 'other';
  const request = { consumer, level: 'full', candidates: [], areas: [area] } as const;
  const beginning = async (): Promise<void> => {
    try {
      const second = await volume.beginSession(request);
      second.fail(new Error('enough'));
      must('nothing fails by itself', first?.state !== 'running', 'A second session began beside the first');
    } catch (error) {
      const code = systemCode(error) ?? '';
      const isFine =
        ['session-running', 'poisoned', 'closed', 'freeze-timeout'].includes(code) || isInjected(error);
      must('nothing fails by itself', isFine, `A second session failed otherwise: ${String(error)}`);
    }
  };
  world.follow(beginning());
}

async function checkStore(world: World): Promise<void> {
  const store = world.random.pick(world.stores);
  // As the next command would: what a session left behind is put in order first.
  const clock = world.storeClock;
  if (world.random.chance(0.5)) await world.straight(() => Store.open(store.path, { clock }));
  await world.checkStore(store, { everySet: false });
}

/** Any set, any part of it, in pieces anywhere on targets that held something else. */
async function restoreSome(world: World): Promise<void> {
  const { random } = world;
  const store = random.pick(world.stores);
  const sets = await store.list();
  if (sets.length === 0) return;
  const set = random.pick(sets);
  const image = world.images.get(set.header?.point ?? '');
  must('complete or invisible', image !== undefined, `Set ${set.id} is of an unknown point`);
  const { rows, targets } = someTable(world);
  const chain = await store.chain(set.id);
  try {
    await restore(
      chain,
      [...targets.keys()].map((name) => ({ name, uri: `memory://${name}` })),
      {
        registry: { open: async (uri) => targets.get(uri.slice('memory://'.length))?.device ?? missing(uri) },
        isVolumeHome: async () => false,
        layout: { table: RemapTable.of(rows) },
        writers: random.pick([1, 2, 8]),
      },
    );
  } finally {
    await chain.close();
  }
  for (const [name, { device, before }] of targets) {
    const content = Buffer.alloc(device.sizeBytes);
    device.read(content, 0);
    for (const row of rows.filter(({ target }) => target === name)) {
      const end = row.targetOffsetBytes + row.lengthBytes;
      const problem = image?.mismatch(
        content.subarray(row.targetOffsetBytes, end),
        row.sourceOffsetBytes / SECTOR_BYTES,
      );
      must(
        'restored as saved',
        problem === undefined,
        `Set ${set.id} was restored wrongly onto ${name}: ${problem}`,
      );
      before.copy(content, row.targetOffsetBytes, row.targetOffsetBytes, end);
    }
    must(
      'restored as saved',
      content.equals(before),
      `The restore of set ${set.id} touched more of ${name} than its table names`,
    );
  }
  world.count('restores');
}

function missing(uri: string): never {
  throw new Error(`No target ${uri}`);
}

interface Target {
  readonly device: MemoryDevice;
  readonly before: Buffer;
}

/** The volume cut into pieces, some left out, the others shuffled onto up to three targets with gaps between. */
function someTable({ random, model }: World): { rows: RemapRow[]; targets: Map<string, Target> } {
  const pieces: { first: number; count: number }[] = [];
  for (let first = 0; first < model.sectorCount;) {
    const count = Math.min(1 + random.below(random.pick([4, 40, 400])), model.sectorCount - first);
    if (random.chance(0.85)) pieces.push({ first, count });
    first += count;
  }
  if (pieces.length === 0) pieces.push({ first: 0, count: 1 });
  const names = ['a', 'b', 'c'].slice(0, 1 + random.below(3));
  const ends = new Map(names.map((name) => [name, random.below(4)]));
  const rows: RemapRow[] = [];
  while (pieces.length > 0) {
    const [piece] = pieces.splice(random.below(pieces.length), 1);
    const target = random.pick(names);
    if (piece === undefined) break;
    const at = ends.get(target) ?? 0;
    rows.push({
      sourceOffsetBytes: piece.first * SECTOR_BYTES,
      lengthBytes: piece.count * SECTOR_BYTES,
      target,
      targetOffsetBytes: at * SECTOR_BYTES,
    });
    ends.set(target, at + piece.count + random.pick([0, 0, random.below(9)]));
  }
  const targets = new Map<string, Target>();
  for (const [name, end] of ends) {
    if (!rows.some((row) => row.target === name)) continue;
    const before = contentOf(Array.from({ length: end + 1 }, (_, sector) => 4_000_000_000 + sector));
    const device = new MemoryDevice({ sizeBytes: before.length });
    device.write(before, 0);
    must('restored as saved', valuesOf(before)[0] === 4_000_000_000, 'Targets hold something before');
    targets.set(name, { device, before });
  }
  return { rows, targets };
}

/** A stop, with whatever session runs and whoever waits for it. */
async function reopenCleanly(world: World): Promise<void> {
  const { volume } = world;
  await stop(world);
  world.failingSyncs.clear();
  // A failure that was injected may have come as late as now.
  const mayFail = volume.status().poisoned !== undefined || world.mayFail || world.mayBeUnclean;
  await volume.close();
  await settleStop(world);
  await world.open();
  must('changes are known', world.volume.startedClean || mayFail, 'A clean stop was not seen as one');
  world.mayBeUnclean = false;
  world.observe(true);
  world.checkChanges();
  await world.snapshots.check();
  world.count('clean reopens');
}

/** A failed flush at the stop is as unclean as a kill, and the home keeps what it had. */
async function reopenUncleanly(world: World): Promise<void> {
  const { volume, faulty } = world;
  await stop(world);
  world.mayFail = true;
  const rule = faulty?.fail({ kind: 'flush' });
  await volume.close().catch(() => undefined);
  rule?.remove();
  await settleStop(world);
  await world.open();
  must('changes are known', !world.volume.startedClean, 'An unclean stop was seen as a clean one');
  world.checkChanges();
  world.mayBeUnclean = false;
  world.observe(true);
  world.count('unclean reopens');
}

/** The session's end is not its own fault; writes that can go on do. */
async function stop(world: World): Promise<void> {
  for (const backup of world.backups) backup.sabotage('stopped');
  world.scheduler.open();
  await turns(3);
}

async function settleStop(world: World): Promise<void> {
  for (const backup of world.backups) backup.kill();
  world.scheduler.open();
  for (const backup of world.backups) await within(backup.ended, 'A backup');
  await world.writesEnd();
}

/** A write or flush of the home fails: the volume refuses writing until it is checked, also over a stop. */
async function failHome(world: World): Promise<void> {
  const { random, faulty } = world;
  for (const backup of world.backups) backup.sabotage('the home failed');
  world.mayFail = true;
  const kind = random.pick(mayWrite(world) ? (['write', 'flush'] as const) : (['flush'] as const));
  const rule = faulty?.fail({ kind, nth: 1 });
  if (kind === 'flush') issueFlush(world);
  else issueChange(world, 'write');
  await turns(random.below(10));
  rule?.remove();
  world.count(`failures of the home: ${kind}`);
}

/** What an operator does about a poisoned volume: stops it, opens it and has it checked. */
export async function recoverFromPoison(world: World): Promise<void> {
  const { volume } = world;
  for (const backup of world.backups) backup.sabotage('the home failed');
  await stop(world);
  await volume.close();
  await settleStop(world);
  await world.open();
  must(
    'poison stays',
    world.volume.status().poisoned !== undefined,
    'The poisoned state was forgotten over a stop',
  );
  must('poison stays', !world.volume.startedClean, 'A poisoned volume was seen as stopped cleanly');
  await world.dropCache();
  const before = world.onDisk();
  world.scheduler.open();
  await world.volume.check();
  world.scheduler.close();
  world.snapshots.opened(before, world.onDisk());
  must(
    'poison stays',
    world.volume.status().poisoned === undefined,
    'A check did not clear the poisoned state',
  );
  world.mayFail = false;
  world.observe(false);
  world.checkChanges();
  world.count('recoveries');
}
