/**
 * Goal: the members of a group begin at one instant, seal only when all have saved everything, and all hear of the
 * first failure, whenever it comes: nobody hangs, no session goes on, and every area is closed.
 *
 * Method: real volumes; a member of the test does what the backup of one volume does with a group. Members fail
 * before they arrive, while the hooks run, in the freeze, before all have saved, and after it.
 */

import t, { type Test } from 'tap';
import { deferred } from '../base/index.ts';
import { makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { type BackupSession, MemoryArea, type Volume } from '../volume/index.ts';
import { FreezeGroup, type FreezeGroupOptions } from './freeze-group.ts';

const TRACKS = 4;

/** Counts how often it was closed. */
class CountedArea extends MemoryArea {
  closeCount = 0;

  constructor() {
    super({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
  }

  override async close(): Promise<void> {
    this.closeCount += 1;
    await super.close();
  }
}

interface Wishes {
  readonly snapshot?: string;
  /** Points that the store has sets of. */
  readonly candidates?: readonly string[];
}

/** One volume's way through a group, as a backup goes it. */
class Member {
  readonly area = new CountedArea();
  readonly volume: Volume;
  readonly #group: FreezeGroup;
  readonly #wishes: Wishes;
  session: BackupSession | undefined;

  constructor(group: FreezeGroup, volume: Volume, wishes: Wishes = {}) {
    this.#group = group;
    this.volume = volume;
    this.#wishes = wishes;
  }

  /** Arrives, and has begun when this resolves. */
  async begin(): Promise<BackupSession> {
    let session: BackupSession | undefined;
    await this.#group.arrive(async () => {
      const { candidates = [] } = this.#wishes;
      const request = {
        consumer: 'store',
        level: 'full',
        areas: [this.area],
        ...this.#wishes,
        candidates: candidates.map((point) => ({ point, isFull: true, chainSetCount: 1 })),
      } as const;
      session = await this.#group.begin(this.volume, request);
      this.session = session;
    });
    if (session === undefined) throw new Error('The freeze is over and the session has not begun');
    return session;
  }

  /** Saves everything, waits for the others and seals. */
  async finish(): Promise<void> {
    const session = this.session ?? (await this.begin());
    session.confirm([{ first: 0, count: TRACKS }]);
    await this.#group.save();
    await session.mayComplete();
    await session.complete('set');
  }
}

async function makeVolume(t: Test): Promise<Volume> {
  const { volume } = await makeTestVolume(t, { trackCount: TRACKS });
  await writeLabel(volume, 0, 'a');
  return volume;
}

const around: FreezeGroupOptions['around'] = (freeze) => freeze();

t.test(
  'all arrive: one freeze with the hooks around it, and nobody seals before all have saved',
  async (t) => {
    const volumes = [await makeVolume(t), await makeVolume(t), await makeVolume(t)];
    const steps: string[] = [];
    const group = new FreezeGroup({
      count: 3,
      around: async (freeze) => {
        steps.push('pre');
        await freeze();
        steps.push('post');
      },
    });
    const members = volumes.map((volume) => new Member(group, volume));
    const [a, b, c] = members;
    if (a === undefined || b === undefined || c === undefined) return;
    const early = [a.begin(), b.begin()];
    t.strictSame(steps, [], 'nothing before the last one is there');
    await Promise.all([...early, c.begin()]);
    t.strictSame(steps, ['pre', 'post']);
    t.equal(new Set(members.map(({ session }) => session?.plan.freezeMs)).size, 1, 'one freeze');

    const [finishedA, finishedB] = [a.finish(), b.finish()];
    // What is asked of the volume meanwhile shows that the two wait.
    await b.volume.flush();
    t.strictSame([a.session?.state, b.session?.state], ['running', 'running']);
    await Promise.all([c.finish(), finishedA, finishedB]);
    t.strictSame(
      members.map(({ session }) => session?.state),
      ['done', 'done', 'done'],
    );
    t.strictSame(
      members.map(({ area }) => area.closeCount),
      [1, 1, 1],
    );
    t.equal(group.signal.aborted, false);
    group.fail(new Error('too late'));
    t.strictSame(
      members.map(({ session }) => session?.state),
      ['done', 'done', 'done'],
    );
  },
);

t.test('a snapshot in the group needs no freeze', async (t) => {
  const [first, second] = [await makeVolume(t), await makeVolume(t)];
  const { point } = await second.createSnapshot('kept');
  const group = new FreezeGroup({ count: 2, around });
  const members = [new Member(group, first), new Member(group, second, { snapshot: 'kept' })];
  await Promise.all(members.map((member) => member.finish()));
  t.equal(members[1]?.session?.plan.point, point);
  t.strictSame(
    members.map(({ area }) => area.closeCount),
    [1, 1],
  );
});

t.test('one fails before it arrives: who waits hears why, and who comes later too', async (t) => {
  let hooks = 0;
  const group = new FreezeGroup({ count: 3, around: async () => void (hooks += 1) });
  const [a, c] = [new Member(group, await makeVolume(t)), new Member(group, await makeVolume(t))];
  const waiting = a.begin();
  const failure = new Error('b failed');
  group.fail(failure);
  group.fail(new Error('and again'));
  await t.rejects(waiting, failure);
  await t.rejects(c.begin(), failure);
  await t.rejects(group.save(), failure);
  t.equal(group.signal.reason, failure);
  t.equal(hooks, 0);
  t.strictSame(
    [a.area.closeCount, c.area.closeCount],
    [0, 0],
    'areas that were never given are the caller’s',
  );
});

t.test('one fails while the hooks run: no member begins', async (t) => {
  const held = deferred();
  const group = new FreezeGroup({
    count: 2,
    around: async (freeze) => {
      await held.promise;
      await freeze();
    },
  });
  const members = [new Member(group, await makeVolume(t)), new Member(group, await makeVolume(t))];
  const begun = members.map((member) => member.begin());
  const failure = new Error('cancelled');
  group.fail(failure);
  held.resolve();
  for (const one of begun) await t.rejects(one, failure);
  t.strictSame(
    members.map(({ area }) => area.closeCount),
    [1, 1],
  );
  t.strictSame(
    members.map(({ volume }) => volume.sessions),
    [[], []],
  );
});

t.test('the hooks fail: everybody hears it', async (t) => {
  const failure = new Error('hook');
  const group = new FreezeGroup({ count: 2, around: () => Promise.reject(failure) });
  const members = [new Member(group, await makeVolume(t)), new Member(group, await makeVolume(t))];
  for (const one of members.map((member) => member.begin())) await t.rejects(one, failure);
});

t.test('one does not come to its freeze: the other gives its wish back', async (t) => {
  const group = new FreezeGroup({ count: 2, around });
  const member = new Member(group, await makeVolume(t));
  const failure = new Error('cancelled just now');
  const waiting = member.begin();
  const failing = group.arrive(() => Promise.reject(failure));
  await t.rejects(failing, failure);
  await t.rejects(waiting, failure);
  t.same(member.volume.sessions, []);
  group.fail(failure);
  t.equal(member.area.closeCount, 1);
});

t.test('one cannot freeze: nobody has', async (t) => {
  const [first, second] = [await makeVolume(t), await makeVolume(t)];
  const other = await second.beginSession({ consumer: 'store', level: 'full', candidates: [], areas: [] });
  const group = new FreezeGroup({ count: 2, around });
  const members = [new Member(group, first), new Member(group, second)];
  for (const one of members.map((member) => member.begin()))
    await t.rejects(one, { code: 'session-running' });
  t.same(first.sessions, []);
  t.equal(first.status().epoch, 1);
  t.strictSame(second.sessions, [other], 'the session that ran goes on');
  t.strictSame(
    members.map(({ area }) => area.closeCount),
    [1, 1],
  );
});

t.test('a snapshot cannot be saved: the volumes that have begun end with the group', async (t) => {
  const volumes = [await makeVolume(t), await makeVolume(t), await makeVolume(t)];
  const [first, second, third] = volumes;
  if (first === undefined || second === undefined || third === undefined) return;
  const { point } = await second.createSnapshot('kept');
  await third.createSnapshot('kept');
  const group = new FreezeGroup({ count: 3, around });
  const members = [
    new Member(group, first),
    new Member(group, second, { snapshot: 'kept', candidates: [point] }),
    new Member(group, third, { snapshot: 'kept' }),
  ];
  for (const one of members.map((member) => member.begin()))
    await t.rejects(one, { code: 'snapshot-behind' });
  // A member's backup ends its own session when the group has failed.
  const [begun] = first.sessions;
  begun?.fail(new Error('the group has failed'));
  await begun?.whenEnded();
  t.strictSame(
    members.map(({ area }) => area.closeCount),
    [1, 1, 1],
    'also of those that were not asked any more',
  );
  t.match(third.snapshots(), [{ readers: 0 }]);
});

t.test('one fails before all have saved: nobody seals', async (t) => {
  const group = new FreezeGroup({ count: 2, around });
  const members = [new Member(group, await makeVolume(t)), new Member(group, await makeVolume(t))];
  const [a, b] = members;
  if (a === undefined || b === undefined) return;
  await Promise.all(members.map((member) => member.begin()));
  const finished = a.finish();
  const failure = new Error('b failed');
  group.fail(failure);
  await t.rejects(finished, failure);
  t.equal(a.session?.state, 'running', 'and its backup ends it');
  await t.rejects(b.finish(), failure);
});

t.test('one fails after all have saved: the others may seal', async (t) => {
  const group = new FreezeGroup({ count: 2, around });
  const members = [new Member(group, await makeVolume(t)), new Member(group, await makeVolume(t))];
  const [a, b] = members;
  if (a === undefined || b === undefined) return;
  await Promise.all(members.map((member) => member.begin()));
  b.session?.confirm([{ first: 0, count: TRACKS }]);
  const [finished] = [a.finish(), await group.save()];
  group.fail(new Error('the store of b is full'));
  await finished;
  t.equal(a.session?.state, 'done');
});
