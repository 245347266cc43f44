/**
 * Goal: folding never loses a change, costs the boundaries that are needed nothing, and keeps the others few, also
 * when the power goes at any of its commits. Method: random histories of writes, points, consumers and folds, on the
 * real history and state, beside a model that never folds; at every commit the file is copied before and after, and
 * what is opened from either copy is held against the model.
 */

import { copyFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { LIMITS, SeededRandom } from '../base/index.ts';
import { makeScratchDirectory, makeTestVolume } from '../sim/index.ts';
import { TrackBits } from '../tracks/index.ts';
import { EpochHistory } from './epoch-history.ts';
import { boundariesToKeep } from './folding.ts';
import type { FoundSegment } from './intent-log.ts';
import type { BaseCandidate } from './base-choice.ts';
import { VolumeState } from './state.ts';

const TRACKS = 64;

/** What changed since every point ever made, told apart for ever. */
class Model {
  readonly since = new Map<string, Set<number>>();

  mark(track: number): void {
    for (const changed of this.since.values()) changed.add(track);
  }

  /** @returns the points whose answers miss a change, and those of `exact` whose answers have one too many. */
  wrongIn(history: EpochHistory, exact: Iterable<string>): string[] {
    const wrong: string[] = [];
    for (const [point, changed] of this.since) {
      const answer = history.changedSince(point);
      const part = history.changedIn(point, { first: 0, count: TRACKS });
      if (!answer.equals(part)) wrong.push(`${point} in parts`);
      for (const track of changed) if (!answer.has(track)) wrong.push(`${point} misses ${track}`);
    }
    for (const point of exact) {
      if (history.changedSince(point).size !== this.since.get(point)?.size)
        wrong.push(`${point} has too many`);
    }
    return wrong;
  }
}

function newHistory(): EpochHistory {
  const open = new TrackBits(TRACKS);
  return new EpochHistory({ trackCount: TRACKS, openNumber: 1, open, closed: [] });
}

const NOTHING = { folded: [], grown: [], oldest: 1, forgotten: [] } as const;

/** A history with its state on the disk; `path` is opened, `path + '-before'` is as it was before the last commit. */
class Disk {
  readonly directory = makeScratchDirectory();
  readonly path = join(this.directory, 'state.mdb');
  readonly model = new Model();
  readonly consumers = new Map<string, string>();
  readonly #unrecorded: ReturnType<EpochHistory['close']>[] = [];
  #history = newHistory();
  #state: VolumeState | undefined;
  #pointCount = 0;

  get history(): EpochHistory {
    return this.#history;
  }

  get state(): VolumeState {
    if (this.#state === undefined) throw new Error('The state is not open');
    return this.#state;
  }

  async create(): Promise<void> {
    await VolumeState.create(this.path, {
      volumeId: '0'.repeat(32),
      sizeBytes: TRACKS * 4096,
      trackSizeBytes: 4096,
      home: 'home.raw',
      createdMs: 0,
      directory: { device: '0', inode: '0' },
    });
    this.#state = VolumeState.open(this.path, { readOnly: false });
    await this.state.saveOpened({ history: this.#history, isClean: true });
  }

  async destroy(): Promise<void> {
    await this.#state?.close();
    rmSync(this.directory, { recursive: true });
  }

  mark(track: number): void {
    this.#history.mark({ first: track, count: 1 });
    this.model.mark(track);
  }

  freeze(): void {
    const point = `p${this.#pointCount}`;
    this.#pointCount += 1;
    this.model.since.set(point, new Set());
    this.#unrecorded.push(this.#history.close(point, 0));
  }

  fold(first: readonly string[], consumers: ReadonlyMap<string, string>): ReturnType<EpochHistory['fold']> {
    const unrecorded = new Set(this.#unrecorded.map(({ number }) => number));
    const points = [...first, ...consumers.values()];
    return this.#history.fold(boundariesToKeep(this.#history, { unrecorded, points }));
  }

  /** Records one of the points that are on their way, in any order. */
  async record(pick: number): Promise<string[]> {
    const place = pick % Math.max(1, this.#unrecorded.length);
    const closed = this.#unrecorded[place];
    if (closed === undefined) return [];
    return this.#commit(async () => {
      this.#unrecorded.splice(place, 1);
      await this.state.savePoint(closed, { fold: this.fold([closed.point], this.consumers), claims: [] });
    });
  }

  async consume(name: string, pick: number): Promise<string[]> {
    const unrecorded = new Set(this.#unrecorded.map(({ point }) => point));
    const known = this.#history.closed.filter(({ point }) => !unrecorded.has(point));
    const point = known[pick % Math.max(1, known.length)]?.point;
    if (point === undefined) return [];
    return this.#commit(async () => {
      this.consumers.set(name, point);
      const fold = this.fold([], this.consumers);
      await this.state.saveConsumer({ name, point, set: 's', atMs: 0 }, { fold, claims: [] });
    });
  }

  /** A clean stop and an opening. */
  async reopen(): Promise<string[]> {
    while (this.#unrecorded.length > 0) await this.record(0);
    await this.state.saveClean(this.#history, {});
    await this.state.close();
    this.#state = VolumeState.open(this.path, { readOnly: false });
    const loaded = this.state.load(TRACKS, []);
    this.#history = loaded.history;
    await this.state.saveOpened(loaded);
    return this.model.wrongIn(this.#history, this.consumers.values());
  }

  /** Commits, and opens what a power cut before or after the commit would leave. @returns what is wrong. */
  async #commit(body: () => Promise<void>): Promise<string[]> {
    const segments = this.#segments();
    const consumers = new Map(this.consumers);
    copyFileSync(this.path, `${this.path}-before`);
    await body();
    copyFileSync(this.path, `${this.path}-after`);
    return [
      ...(await this.#wrongAfter('before', segments, consumers)),
      // The segment of the epoch that was recorded may still be there.
      ...(await this.#wrongAfter('after', segments, this.consumers)),
      ...(await this.#wrongAfter('after', this.#segments(), this.consumers)),
      ...this.model.wrongIn(this.#history, this.consumers.values()),
      ...this.#tooMany(),
    ];
  }

  #tooMany(): string[] {
    const { length } = this.#history.closed;
    // Each that is on its way keeps the one before it; and so did the one that was just recorded.
    const allowed = LIMITS.pointRecentCount + this.consumers.size + 2 * this.#unrecorded.length + 1;
    return length > allowed ? [`${length} boundaries`] : [];
  }

  /** The intent log, with regions of one track: of the open epoch, and of each whose point is not recorded. */
  #segments(): FoundSegment[] {
    const sound = { condition: 'whole', isBegun: true } as const;
    const open = { epoch: this.#history.openNumber, tracks: this.#history.openTracks(), ...sound };
    return [...this.#unrecorded.map(({ number, tracks }) => ({ epoch: number, tracks, ...sound })), open];
  }

  async #wrongAfter(
    which: 'before' | 'after',
    segments: readonly FoundSegment[],
    consumers: ReadonlyMap<string, string>,
  ): Promise<string[]> {
    const state = VolumeState.open(`${this.path}-${which}`, { readOnly: true });
    try {
      const { history, isClean } = state.load(TRACKS, segments);
      if (isClean) return [`${which}: the stop looks clean`];
      const wrong = this.model.wrongIn(history, consumers.values());
      for (const point of consumers.values()) if (!history.knows(point)) wrong.push(`${point} is unknown`);
      return wrong.map((one) => `${which} the commit: ${one}`);
    } finally {
      await state.close();
    }
  }
}

type Step = {
  readonly kind: 'mark' | 'freeze' | 'record' | 'consume' | 'lose' | 'reopen';
  readonly value: number;
};

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('mark' as const), value: fc.nat(TRACKS - 1) }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('freeze' as const), value: fc.nat() }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('record' as const), value: fc.nat() }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('consume' as const), value: fc.nat() }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constantFrom('lose' as const, 'reopen' as const), value: fc.nat() }),
  },
);

async function take(disk: Disk, { kind, value }: Step): Promise<string[]> {
  if (kind === 'mark') disk.mark(value);
  if (kind === 'freeze') disk.freeze();
  if (kind === 'record') return disk.record(value);
  if (kind === 'consume') return disk.consume(`c${value % 3}`, value);
  // A transaction that failed: what was folded for it stays folded in memory alone.
  if (kind === 'lose') disk.fold([], disk.consumers);
  return kind === 'reopen' ? disk.reopen() : [];
}

t.test('property: no change is lost, whatever folds, and whatever a crash takes', async (t) => {
  const seed = Date.now() % 2 ** 31;
  t.comment(`seed ${seed}`);
  let foldedCount = 0;
  const property = fc.asyncProperty(fc.array(step, { minLength: 40, maxLength: 120 }), async (steps) => {
    const disk = new Disk();
    try {
      await disk.create();
      for (const taken of steps) {
        const wrong = await take(disk, taken);
        if (wrong.length > 0) throw new Error(`${taken.kind}: ${wrong.join(', ')}`);
      }
      const wrong = await disk.reopen();
      if (wrong.length > 0) throw new Error(`At the end: ${wrong.join(', ')}`);
      foldedCount += disk.model.since.size - disk.history.closed.length;
    } finally {
      await disk.destroy();
    }
  });
  // A failure is reported before everything was tried to make it shorter.
  const interruptAfterTimeLimit = 20_000;
  await fc.assert(property, { seed, numRuns: 25, interruptAfterTimeLimit, markInterruptAsFailure: false });
  t.ok(foldedCount > 0, 'some boundaries folded');
});

t.test('ten thousand points leave few boundaries, and every answer is right', async (t) => {
  const history = newHistory();
  const random = new SeededRandom(7);
  /** Of some points: what changed since. */
  const watched = new Map<string, Set<number>>();
  const consumers = new Map<string, string>();
  for (let index = 0; index < 10_000; index += 1) {
    const track = random.below(TRACKS);
    if (random.below(20) === 0) {
      history.mark({ first: track, count: 1 });
      for (const changed of watched.values()) changed.add(track);
    }
    const point = `p${index}`;
    history.close(point, 0);
    if (index % 500 === 0) watched.set(point, new Set());
    // One of them never moves.
    if (index % 500 === 0) consumers.set(index === 500 ? 'old' : `c${index % 3}`, point);
    history.fold(boundariesToKeep(history, { unrecorded: new Set(), points: consumers.values() }));
    if (history.closed.length > LIMITS.pointRecentCount + consumers.size) t.fail(`${history.closed.length}`);
  }
  t.equal(history.closed.length, LIMITS.pointRecentCount + consumers.size);
  for (const [point, changed] of watched) {
    const answer = history.changedSince(point);
    t.same(
      [...changed].filter((track) => !answer.has(track)),
      [],
      point,
    );
  }
  for (const point of consumers.values()) t.same(history.changedSince(point).size, watched.get(point)?.size);
  t.notOk(history.knows('p1'), 'older than all boundaries');
  t.ok(history.knows('p500') && !history.knows('p501'), 'of the aliases the oldest are forgotten');
  t.ok(history.knows('p8000'));
});

t.test('a folded point is answered as the next older boundary is, also when that folds', async (t) => {
  const history = newHistory();
  for (const [track, point] of ['a', 'b', 'c', 'd', 'e'].entries()) {
    history.mark({ first: track, count: 1 });
    history.close(point, 0);
  }
  history.mark({ first: 9, count: 1 });
  const keep = (...points: string[]): unknown =>
    history.fold(new Set(points.map((point) => history.boundaryOf(point) ?? 0)));
  t.match(keep('a', 'b', 'd', 'e'), {
    folded: [{ point: 'c' }],
    grown: [{ point: 'd' }],
    oldest: 1,
    forgotten: [],
  });
  t.same(history.changedSince('c').toArray(), [2, 3, 4, 9], 'as b');
  t.same(history.changedIn('c', { first: 2, count: 3 }).toArray(), [2, 3, 4]);
  t.same(history.changedSince('d').toArray(), [4, 9]);
  t.same(history.closedSince('c').toArray(), [2, 3, 4]);
  t.same(history.changedBetween('c', 'd').toArray(), [2, 3]);
  t.same(history.changedBetween('b', 'c').toArray(), [2, 3], 'to a folded one: to the next younger');
  t.ok(history.isBefore('b', 'c') && history.isBefore('c', 'd') && !history.isBefore('c', 'b'));
  keep('a', 'e');
  t.same(history.changedSince('c').toArray(), [1, 2, 3, 4, 9], 'as a');
  t.same(history.changedBetween('c', 'e').toArray(), [1, 2, 3, 4]);
  t.ok(history.isBefore('b', 'c') && history.isBefore('c', 'd') && history.isBefore('d', 'e'));
  t.match(keep('e'), { folded: [], grown: [], oldest: 5, forgotten: [] });
  t.same(
    ['a', 'b', 'c', 'd', 'e'].filter((point) => history.knows(point)),
    ['e'],
  );
  t.equal(history.changedSince('c').size, TRACKS);
});

t.test('aliases are bounded, and the oldest is forgotten first', async (t) => {
  const closed = Array.from({ length: LIMITS.pointAliasCountMax + 3 }, (_, index) => index + 2);
  const history = newHistory();
  for (const number of [1, ...closed]) history.close(`p${number}`, 0);
  const { forgotten } = history.fold(new Set([1]));
  t.same(forgotten, [2, 3], 'the first and the newest are boundaries');
  t.ok(!history.knows('p3') && history.knows('p4') && history.knows('p1'));
});

t.test(
  'boundaries are bounded by what is needed, and none folds into one on its way to the disk',
  async (t) => {
    const history = newHistory();
    for (let number = 1; number <= LIMITS.pointCountMax + 100; number += 1) history.close(`p${number}`, 0);
    const points = history.closed.map(({ point }) => point);
    t.equal(boundariesToKeep(history, { unrecorded: new Set(), points }).size, LIMITS.pointCountMax);
    const kept = boundariesToKeep(history, { unrecorded: new Set([50]), points: [] });
    t.same(kept.size, LIMITS.pointRecentCount + 2);
    t.ok(kept.has(49) && kept.has(50));
  },
);

t.test('a point that is taken back leaves its changes to the next epoch', async (t) => {
  const history = newHistory();
  history.close('a', 0);
  history.mark({ first: 3, count: 1 });
  const second = history.close('b', 0);
  history.mark({ first: 5, count: 1 });
  history.withdraw(second);
  t.notOk(history.knows('b'));
  t.same(history.openTracks().toArray(), [3, 5]);
  const third = history.close('c', 0);
  history.close('d', 0);
  history.withdraw(third);
  t.same(history.changedSince('a').toArray(), [3, 5]);
  t.same(history.changedBetween('a', 'd').toArray(), [3, 5]);
});

const AREAS = { consumer: 'store', areas: [] } as const;
const offer = (points: readonly string[], fulls = points): BaseCandidate[] =>
  points.map((point) => ({ point, isFull: fulls.includes(point), chainSetCount: 1 }));

t.test('what a store may have stays a boundary until the store has been asked', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8 });
  const make = async (request: { level: 'full' | 'auto'; candidates: string[] }): Promise<string> => {
    const session = await test.volume.beginSession({
      ...AREAS,
      level: request.level,
      candidates: offer(request.candidates),
    });
    session.confirm([{ first: 0, count: 8 }]);
    await session.mayComplete();
    session.fail(new Error('the power went after the set was sealed'));
    await session.whenEnded();
    return session.plan.point;
  };
  /** So many other points that none of those before is recent. */
  const goOn = async (): Promise<void> => {
    for (let index = 0; index < LIMITS.pointRecentCount + 1; index += 1) {
      await test.volume.write(Buffer.alloc(512, index), 7 * test.volume.geometry.trackSizeBytes);
      await test.volume.createSnapshot('other');
      await test.volume.deleteSnapshot('other');
    }
  };
  const changedIn0To6 = (point: string): number => test.volume.changedIn(point, { first: 0, count: 7 }).size;
  const write = async (track: number): Promise<void> =>
    test.volume.write(Buffer.alloc(512, 1), track * test.volume.geometry.trackSizeBytes);

  const first = await make({ level: 'full', candidates: [] });
  await write(1);
  await goOn();
  await write(2);
  const second = await make({ level: 'auto', candidates: [first] });
  await test.reopen();
  await goOn();
  t.same([first, second].map(changedIn0To6), [2, 0], 'the base and the point of the last session');
  const third = await make({ level: 'auto', candidates: [first] });
  await goOn();
  t.same([first, second, third].map(changedIn0To6), [2, 2, 0], 'the store has no set of the second one');
  t.ok(test.volume.status().points <= LIMITS.pointRecentCount + 2, `${test.volume.status().points}`);
});

t.test(
  'a consumer keeps its last set and its last full, a snapshot its point; one that moves on lets go',
  async (t) => {
    const test = await makeTestVolume(t, { trackCount: 8 });
    const backUp = async (level: 'full' | 'auto', candidates: string[]): Promise<string> => {
      const session = await test.volume.beginSession({ ...AREAS, level, candidates: offer(candidates, []) });
      session.confirm([{ first: 0, count: 8 }]);
      await session.mayComplete();
      await session.complete('set');
      return session.plan.point;
    };
    const { point: kept } = await test.volume.createSnapshot('kept');
    await test.volume.write(Buffer.alloc(512, 1), 0);
    const points = [await backUp('full', [])];
    for (let track = 1; track < 8; track += 1) {
      await test.volume.write(Buffer.alloc(512, 1), track * test.volume.geometry.trackSizeBytes);
      for (let turn = 0; turn < 2; turn += 1) points.push(await backUp('auto', points.slice(-1)));
    }
    const volume = await test.reopen();
    t.equal(volume.status().points, LIMITS.pointRecentCount + 2);
    t.equal(volume.changedSince(kept).size, 8);
    t.equal(volume.changedSince(points[0] ?? '').size, 7, 'the last full, exactly');
    const [consumer] = volume.consumers();
    t.same([consumer?.full, consumer?.point], [points[0], points.at(-1)]);
    t.equal(volume.changedSinceSnapshot('kept').size, 8);
    t.ok(points.every((point) => volume.changedSince(point).size <= 8));
    t.same(volume.changedSince(points.at(-1) ?? '').toArray(), []);
    t.same(volume.changedSince(points.at(-2) ?? '').toArray(), []);
    t.same(volume.changedSince(points.at(-4) ?? '').toArray(), [7]);
  },
);

t.test('a state without claims and folded points opens', async (t) => {
  const disk = new Disk();
  t.teardown(() => disk.destroy());
  await disk.create();
  t.same(disk.state.claims(), []);
  disk.freeze();
  disk.freeze();
  t.same(await disk.record(0), []);
  const [first] = disk.history.closed;
  if (first === undefined) throw new Error('There is no boundary');
  await disk.state.savePoint(first, { fold: NOTHING, claims: [{ name: 'x', points: ['p0'] }] });
  t.same(disk.state.claims(), [{ name: 'x', points: ['p0'] }]);
});

t.test('a boundary that folded for a transaction which failed goes with the next one', async (t) => {
  const disk = new Disk();
  t.teardown(() => disk.destroy());
  await disk.create();
  for (let index = 0; index < LIMITS.pointRecentCount; index += 1) {
    disk.mark(index);
    disk.freeze();
    t.same(await disk.record(0), []);
  }
  disk.freeze();
  // The oldest is unknown now, in memory alone; the tracks of the next one are about to be nobody's.
  disk.fold([], disk.consumers);
  disk.freeze();
  t.same([...(await disk.record(0)), ...(await disk.record(0)), ...(await disk.reopen())], []);
  t.equal(disk.history.closed.length, LIMITS.pointRecentCount);
  t.notOk(disk.history.knows('p0'));
});
