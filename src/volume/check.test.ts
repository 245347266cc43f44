/**
 * Goal: `volume check` finds each kind of damage and nothing else, repairs what needs no guessing, and a repaired volume
 * opens with every changed track, whatever was harmed.
 * Method: real volumes in real directories, with points and an unclean stop, harmed by hand: records rewritten through
 * LMDB with a bad checksum, files cut, flipped and removed. At the end random flips and cuts against what was written.
 */

import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { env } from 'node:process';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { CorruptionError } from '../base/index.ts';
import { DeviceError, DeviceRegistry, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { openLmdb } from '../records/index.ts';
import { writeLabel } from '../sim/index.ts';
import { type CheckResult, checkVolume, createVolume, type Finding, Volume, VolumeError } from './index.ts';

const TRACK = 4096;
const TRACK_COUNT = 64;
const FULL = { consumer: 'store', level: 'full', candidates: [], areas: [] } as const;
const registry = new DeviceRegistry();

interface Made {
  readonly directory: string;
  /** Oldest first. */
  readonly points: readonly string[];
  /** What changed since each point. */
  readonly changed: readonly (readonly number[])[];
}

function openVolume(directory: string): Promise<Volume> {
  return Volume.open(directory, { registry, activity: 'testing', intentRegionTracks: 2 });
}

/** A volume with two points, stopped cleanly or killed, below `parent`. */
async function makeVolume(parent: string, stop: 'clean' | 'killed'): Promise<Made> {
  const live = join(parent, 'live');
  await createVolume(live, { sizeBytes: TRACK_COUNT * TRACK, trackSizeBytes: TRACK });
  const volume = await openVolume(live);
  const points: string[] = [];
  for (const track of [3, 20]) {
    await writeLabel(volume, track, 'x');
    const session = await volume.beginSession(FULL);
    session.confirm([{ first: 0, count: TRACK_COUNT }]);
    await session.mayComplete();
    await session.complete('set');
    points.push(session.plan.point);
  }
  await writeLabel(volume, 41, 'x');
  await writeLabel(volume, 9, 'x');
  const directory = join(parent, 'v');
  // What a kill leaves is what is there now: LMDB commits are complete, and the page cache is one for all.
  if (stop === 'killed') cpSync(live, directory, { recursive: true });
  await volume.close();
  if (stop === 'clean') cpSync(live, directory, { recursive: true, preserveTimestamps: true });
  const changed = [
    [9, 20, 41],
    [9, 41],
  ];
  return { directory, points, changed };
}

function scratch(t: Test): string {
  const parent = mkdtempSync(join(tmpdir(), 'cowbell-check-'));
  t.teardown(() => rmSync(parent, { recursive: true, force: true }));
  return parent;
}

function check(directory: string, options: { dryRun?: boolean } = {}): Promise<CheckResult> {
  return checkVolume(directory, { registry, moved: true, ...options });
}

/** Without what is said of every copied directory. */
function told(result: CheckResult): Finding[] {
  return result.findings.filter(({ where }) => where !== 'directory');
}

const lines = (result: CheckResult): string[] => told(result).map(({ where, what }) => `${where}: ${what}`);

async function assertSuperset(t: Test, made: Made): Promise<void> {
  const volume = await openVolume(made.directory);
  for (const [index, point] of made.points.entries()) {
    const found = volume.changedSince(point);
    for (const track of made.changed[index] ?? []) {
      if (!found.has(track)) t.fail(`track ${track} is lost since point ${index}`);
    }
  }
  await volume.close();
}

/** Rewrites records of a state file; a value of `bad` fails its checksum, undefined goes away. */
async function edit(
  directory: string,
  name: string,
  key: string | Buffer,
  change: 'bad' | 'remove' | Buffer,
): Promise<void> {
  const path = join(directory, 'state.mdb');
  const file = openLmdb(path, { ownLock: true });
  const database = file.database(name);
  const before = database.get(key);
  file.transaction(() => {
    if (change === 'remove') database.remove(key);
    else database.put(key, change === 'bad' ? Buffer.concat([before ?? Buffer.from('?'), MARK]) : change);
  });
  await file.close();
  if (change !== 'bad') return;
  const bytes = readFileSync(path);
  for (let at = bytes.indexOf(MARK); at >= 0; at = bytes.indexOf(MARK, at + 1)) bytes[at] = 0;
  writeFileSync(path, bytes);
}

/** Found again in the file, so that the value can be harmed there. */
const MARK = Buffer.from('harm me here');

const epoch = (number: number): Buffer => Buffer.from([0, 0, 0, number]);

t.test('a sound volume has nothing to tell, stopped cleanly or killed', async (t) => {
  for (const stop of ['clean', 'killed'] as const) {
    const made = await makeVolume(scratch(t), stop);
    const dry = await check(made.directory, { dryRun: true });
    t.same(told(dry), [], stop);
    t.equal(dry.startedClean, undefined);
    const before = readFileSync(join(made.directory, 'state.mdb'));
    await check(made.directory, { dryRun: true });
    t.ok(before.equals(readFileSync(join(made.directory, 'state.mdb'))), 'a dry run writes nothing');
    const result = await check(made.directory);
    t.same(told(result), []);
    t.equal(result.startedClean, stop === 'clean' ? result.startedClean : false);
    await assertSuperset(t, made);
  }
});

interface Harm {
  readonly name: string;
  readonly stop: 'clean' | 'killed';
  readonly harm: (directory: string) => Promise<void> | void;
  readonly finds: readonly RegExp[];
  /** Of the volume as repaired, since the older and the newer point; 64 for an unknown one. */
  readonly changed?: readonly [number, number];
}

const HARMS: readonly Harm[] = [
  {
    name: 'the tracks of an epoch',
    stop: 'clean',
    harm: (directory) => edit(directory, 'epochs', epoch(2), 'bad'),
    finds: [/^state.mdb epoch 2: its changed tracks are damaged$/],
    changed: [64, 2],
  },
  {
    name: 'an epoch that is not there',
    stop: 'clean',
    harm: (directory) => edit(directory, 'epochs', epoch(2), 'remove'),
    finds: [/^state.mdb epoch 2: its changed tracks are missing$/],
    changed: [64, 2],
  },
  {
    name: 'a track set that is none behind a good checksum',
    stop: 'clean',
    harm: (directory) => edit(directory, 'epochs', epoch(2), Buffer.from('no track set')),
    finds: [/^state.mdb epoch 2: its changed tracks are damaged$/],
    changed: [64, 2],
  },
  {
    name: 'a point',
    stop: 'clean',
    harm: (directory) => edit(directory, 'points', epoch(1), 'bad'),
    finds: [/^state.mdb point 1: the record is damaged$/, /^state.mdb epoch 1: it has no point$/],
    changed: [64, 2],
  },
  {
    name: 'the newest point, whose epoch belongs to the open one then',
    stop: 'clean',
    harm: (directory) => edit(directory, 'points', epoch(2), 'remove'),
    finds: [/^state.mdb epoch 2: it has no point$/],
    changed: [64, 64],
  },
  {
    name: 'the tracks of the open epoch',
    stop: 'clean',
    harm: (directory) => edit(directory, 'state', 'open-tracks', 'bad'),
    finds: [/^state.mdb open-tracks: the record is damaged$/],
    changed: [64, 64],
  },
  {
    name: 'what the volume grew by, in whatever epoch',
    stop: 'killed',
    harm: (directory) => edit(directory, 'state', 'grown', 'bad'),
    finds: [/^state.mdb grown: the record of what the volume grew by is damaged$/],
    changed: [64, 64],
  },
  {
    name: 'the record of the open epoch',
    stop: 'killed',
    harm: (directory) => edit(directory, 'state', 'open', 'bad'),
    finds: [/^state.mdb open epoch: its record is damaged or missing$/],
    changed: [64, 64],
  },
  {
    name: 'a number of the open epoch that is not above the points',
    stop: 'clean',
    harm: (directory) =>
      edit(directory, 'state', 'open', Buffer.from(JSON.stringify({ number: 2, isClean: true }))),
    finds: [/^state.mdb open epoch: its number 2 is not above that of the last point, 2$/],
    changed: [64, 64],
  },
  {
    name: 'a consumer',
    stop: 'clean',
    harm: (directory) => edit(directory, 'consumers', 'store', 'bad'),
    finds: [/^state.mdb consumer store: the record is damaged$/],
    changed: [3, 2],
  },
  {
    name: 'the points that stores may have sets of',
    stop: 'clean',
    harm: (directory) => edit(directory, 'state', 'claims', 'bad'),
    finds: [/^state.mdb claims: the record is damaged$/],
    changed: [3, 2],
  },
  {
    name: 'a folded point, which needs no epoch',
    stop: 'clean',
    harm: async (directory) => {
      const folded = { point: 'f'.repeat(32), createdMs: 1, folded: true };
      await edit(directory, 'points', epoch(1), Buffer.from(JSON.stringify(folded)));
      await edit(directory, 'epochs', epoch(1), 'remove');
    },
    finds: [],
    changed: [64, 2],
  },
  {
    name: 'the mark of a failure',
    stop: 'killed',
    harm: (directory) => edit(directory, 'state', 'poison', 'bad'),
    finds: [/^state.mdb poison: the record of a failed flush is damaged$/, /tracks 0-63 may not hold/],
    changed: [64, 64],
  },
  {
    name: 'an intent log of another volume',
    stop: 'killed',
    harm: (directory) => flipEach(directory, /^intent-/, (bytes) => bytes.fill(7, 20, 36)),
    finds: [/^intent-0000000003.log: the intent log is damaged$/],
    changed: [64, 64],
  },
  {
    name: 'an intent log cut to nothing',
    stop: 'killed',
    harm: (directory) => flipEach(directory, /^intent-/, () => Buffer.alloc(0)),
    finds: [/^intent-0000000003.log: the intent log has lost its beginning$/],
    changed: [64, 64],
  },
  {
    name: 'no intent log',
    stop: 'killed',
    harm: (directory) => rmSync(join(directory, 'intent-0000000003.log')),
    finds: [/^intent-0000000003.log: the intent log of the open epoch is missing after an unclean stop$/],
    changed: [64, 64],
  },
  {
    name: 'the last entry of the intent log',
    stop: 'killed',
    harm: (directory) => flipEach(directory, /^intent-/, (bytes) => flip(bytes, bytes.length - 512 + 37)),
    finds: [/^intent-0000000003.log: the intent log is damaged$/],
    changed: [64, 64],
  },
  {
    name: 'a torn end, which is none',
    stop: 'killed',
    harm: (directory) =>
      flipEach(directory, /^intent-/, (bytes) => Buffer.concat([bytes, Buffer.alloc(512)])),
    finds: [/^intent-0000000003.log: the last entry of the intent log is torn$/],
  },
  {
    name: 'files left over',
    stop: 'clean',
    harm: (directory) => {
      writeFileSync(join(directory, 'intent-0000000001.log'), Buffer.alloc(512, 1));
      writeFileSync(join(directory, 'state.mdb.new'), 'half');
    },
    finds: [/^intent-0000000001.log: the file is left over/, /^state.mdb.new: the file is left over/],
    changed: [3, 2],
  },
];

t.test('each kind of damage is found, alone, and repaired', async (t) => {
  const parents = { clean: scratch(t), killed: scratch(t) };
  const originals = {
    clean: await makeVolume(parents.clean, 'clean'),
    killed: await makeVolume(parents.killed, 'killed'),
  };
  for (const { name, stop, harm, finds, changed } of HARMS) {
    await t.test(name, async (t) => {
      const made = { ...originals[stop], directory: join(scratch(t), 'v') };
      cpSync(originals[stop].directory, made.directory, { recursive: true, preserveTimestamps: true });
      await keepStamp(made.directory);
      await harm(made.directory);
      const dry = await check(made.directory, { dryRun: true });
      t.equal(told(dry).length, finds.length, lines(dry).join('\n'));
      t.ok(told(dry).every(({ repaired }) => !repaired));
      const result = await check(made.directory);
      const found = lines(result);
      t.equal(found.length, finds.length, found.join('\n'));
      for (const [index, expected] of finds.entries()) t.match(found[index], expected);
      t.ok(
        told(result).every(({ severity, repaired }) => severity === 'note' || repaired),
        'all damage is repaired',
      );
      await assertSuperset(t, made);
      t.same(told(await check(made.directory)), [], 'and stays so');
      if (changed === undefined) return;
      const volume = await openVolume(made.directory);
      t.same(
        made.points.map((point) => volume.changedSince(point).size),
        changed,
      );
      await volume.close();
    });
  }
});

/** A copied home looks touched; here it is to look as it did at the stop. */
async function keepStamp(directory: string): Promise<void> {
  const path = join(directory, 'state.mdb');
  const file = openLmdb(path, { ownLock: true });
  const database = file.database('state');
  const open: { isClean: boolean; stamp?: object } = JSON.parse(database.get('open')?.toString() ?? '{}');
  if (open.isClean) {
    delete open.stamp;
    file.transaction(() => database.put('open', Buffer.from(JSON.stringify(open))));
  }
  await file.close();
}

function flip(bytes: Buffer, at: number): Buffer {
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  return bytes;
}

function flipEach(directory: string, name: RegExp, change: (bytes: Buffer) => Buffer): void {
  for (const found of readdirSync(directory).filter((one) => name.test(one))) {
    const path = join(directory, found);
    writeFileSync(path, change(readFileSync(path)));
  }
}

t.test('a lost identity is no guess: the finding says what can be done', async (t) => {
  const harms: readonly ((directory: string) => Promise<void> | void)[] = [
    (directory) => edit(directory, 'state', 'volume', 'remove'),
    (directory) => truncateSync(join(directory, 'state.mdb'), 20_000),
    (directory) => truncateSync(join(directory, 'state.mdb'), 0),
    (directory) => rmSync(join(directory, 'state.mdb')),
  ];
  for (const harm of harms) {
    const { directory } = await makeVolume(scratch(t), 'clean');
    await harm(directory);
    const result = await check(directory);
    const [finding] = told(result);
    t.equal(told(result).length, 1);
    t.match(finding, { severity: 'damage', isRepairable: false, repaired: false });
    t.match(finding?.how, /volume create <new> --size/);
    t.equal(result.identity, undefined);
  }
});

t.test('a home that cannot be used is named', async (t) => {
  const made = await makeVolume(scratch(t), 'clean');
  const home = join(made.directory, 'home.raw');
  truncateSync(home, 8192);
  t.match(lines(await check(made.directory)), [/home .*: it has 8192 bytes, wanted 262144$/]);
  rmSync(home);
  t.match(lines(await check(made.directory)), [/home .*: it cannot be opened: .*home.raw/]);
  await t.rejects(check(join(made.directory, 'nothing')), { code: 'not-a-volume' });
  t.notOk(existsSync(join(made.directory, 'nothing')));
});

t.test(
  'tracks that cannot be read are listed, and a poisoned volume stays poisoned until they can',
  async (t) => {
    const made = await makeVolume(scratch(t), 'clean');
    const device = new FaultyDevice(new MemoryDevice({ sizeBytes: TRACK_COUNT * TRACK }));
    const faulty = { open: async () => new Proxy(device, { get: keepOpen }) };
    const volume = await Volume.open(made.directory, { registry: faulty, activity: 'testing', moved: true });
    await writeLabel(volume, 30, 'x');
    device.fail({ kind: 'flush', nth: 1 });
    await t.rejects(volume.flush());
    await volume.close();
    const rules = [7, 8, 9, 50].map((track) =>
      device.fail({ kind: 'read', range: { offsetBytes: track * TRACK, lengthBytes: 1 } }),
    );
    const bad = await checkVolume(made.directory, { registry: faulty });
    t.match(lines(bad), [/tracks 7-9, 50 cannot be read/, /track 30 may not hold what was written last/]);
    t.match(
      told(bad).map(({ repaired }) => repaired),
      [false, false],
    );
    t.equal(bad.clearedFailure, undefined);
    for (const rule of rules) rule.remove();
    const good = await checkVolume(made.directory, { registry: faulty });
    t.match(lines(good), [/track 30 may not hold what was written last/]);
    t.match(good.clearedFailure, /Injected/);
    t.same(lines(await checkVolume(made.directory, { registry: faulty })), []);
  },
);

function keepOpen(target: FaultyDevice, name: string | symbol): unknown {
  if (name === 'close') return async () => undefined;
  const value: unknown = Reflect.get(target, name, target);
  return typeof value === 'function' ? value.bind(target) : value;
}

t.test('a volume that somebody has is refused', async (t) => {
  const { directory } = await makeVolume(scratch(t), 'clean');
  const volume = await openVolume(directory);
  await t.rejects(check(directory), { code: 'in-use', message: /in use by process \d+ \(testing\)/ });
  await volume.close();
});

t.test('no flip or cut ever loses a changed track or shows as anything but an error', async (t) => {
  const parent = scratch(t);
  const made = await makeVolume(parent, 'killed');
  const names = readdirSync(made.directory).filter((name) => /^(?:state\.mdb|intent-\d+\.log)$/.test(name));
  t.equal(names.length, 2);
  let repairedCount = 0;
  const harm = fc.record({
    name: fc.constantFrom(...names),
    isCut: fc.boolean(),
    at: fc.nat(2 ** 30),
    bit: fc.nat(7),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(harm, { minLength: 1, maxLength: 3 }), async (harms) => {
      const directory = join(parent, 'harmed');
      rmSync(directory, { recursive: true, force: true });
      cpSync(made.directory, directory, { recursive: true });
      for (const { name, isCut, at, bit } of harms) {
        const path = join(directory, name);
        const bytes = readFileSync(path);
        const place = at % Math.max(1, bytes.length);
        // A log that is cut between its entries is what a crash leaves of a shorter one: nobody can tell.
        if (isCut && name !== 'state.mdb') truncateSync(path, 0);
        else if (isCut) truncateSync(path, place);
        else if (bytes.length > 0) {
          bytes[place] = (bytes[place] ?? 0) ^ (1 << bit);
          writeFileSync(path, bytes);
        }
      }
      const result = await check(directory);
      const isLeft = result.findings.some(({ severity, repaired }) => severity === 'damage' && !repaired);
      if (isLeft) {
        // What cannot be repaired may not be opened either.
        const refusal: unknown = await openVolume(directory).catch((error: unknown) => error);
        const isClear = [CorruptionError, VolumeError, DeviceError].some((kind) => refusal instanceof kind);
        if (!isClear) throw new Error('It opens in spite of damage', { cause: refusal });
        return;
      }
      repairedCount += 1;
      await assertSuperset(t, { ...made, directory });
    }),
    { numRuns: Number(env['COWBELL_RUNS'] ?? 100) },
  );
  t.ok(repairedCount > 10, `${repairedCount} could be repaired`);
});
