/**
 * Goal: what a volume remembers of the targets of copies is durable when it says so, and never says more than is so.
 *
 * Method: sessions of copies on real volumes, with the syncs of the state counted and failed; the records as the next
 * opening finds them.
 */

import t, { type Test } from 'tap';
import { observeSyncs } from '../base/index.ts';
import { makeTestVolume, type TestVolume, writeLabel } from '../sim/index.ts';
import type { BackupSession, CopiedTarget, Volume } from './index.ts';

const STAMP = { sizeBytes: '32768', inode: '7', modifiedNs: '5' };
const TARGETS: readonly CopiedTarget[] = [{ place: '/copy.raw', sizeBytes: 32_768, stamp: STAMP }];

function begin(volume: Volume, consumer: string, base?: string): Promise<BackupSession> {
  const candidates = base === undefined ? [] : [{ point: base, isFull: false, chainSetCount: 1 }];
  return volume.beginSession({ consumer, level: 'incremental', candidates, areas: [] });
}

/** A complete copy. @returns its point. */
async function copy(volume: Volume, consumer: string, base?: string): Promise<string> {
  const session = await begin(volume, consumer, base);
  await session.beginReplacing();
  session.confirm([{ first: 0, count: volume.geometry.trackCount }]);
  await session.mayComplete();
  await session.complete(session.plan.session, { targets: TARGETS });
  return session.plan.point;
}

const start = (t: Test): Promise<TestVolume> => makeTestVolume(t, { trackCount: 8 });

t.test('a complete copy is remembered, without a point to differ from', async (t) => {
  const test = await start(t);
  const point = await copy(test.volume, 'copy 1');
  const volume = await test.reopen();
  const [record] = volume.consumers();
  t.match(record, { name: 'copy 1', point, copy: { targets: TARGETS } });
  t.equal(record?.full, undefined);
  t.equal(record?.copy?.isIncomplete, undefined);
  await writeLabel(volume, 3, 'b3');
  t.same(volume.changedSince(point).toArray(), [3]);
});

t.test('the mark is durable when it says so, and stays however the session ends', async (t) => {
  const test = await start(t);
  const point = await copy(test.volume, 'copy 1');
  await writeLabel(test.volume, 3, 'b3');
  const session = await begin(test.volume, 'copy 1', point);
  t.same(session.plan.tracks.toArray(), [3]);
  t.notOk(test.volume.consumers()[0]?.copy?.isIncomplete, 'not before it is said');
  const synced: string[] = [];
  observeSyncs({ after: (event) => void synced.push(event.kind === 'commit' ? 'commit' : event.name) });
  await session.beginReplacing();
  observeSyncs(undefined);
  t.same(synced.slice(-2), ['commit', 'volume-state']);
  session.fail(new Error('The end'));
  await session.whenEnded();
  const volume = await test.reopen();
  t.same(volume.consumers()[0]?.copy, {
    targets: [{ place: '/copy.raw', sizeBytes: 32_768 }],
    isIncomplete: true,
  });
  t.equal(volume.consumers()[0]?.point, point);
  // What it may have written is among what changed since.
  t.ok(volume.changedSince(point).has(3));
});

t.test('how the targets were left is kept beside the mark, until they are complete', async (t) => {
  const { volume } = await start(t);
  const point = await copy(volume, 'copy 1');
  const session = await begin(volume, 'copy 1', point);
  await session.leaveIncomplete(TARGETS);
  t.notOk(volume.consumers()[0]?.copy?.isIncomplete, 'nothing was written');
  await session.beginReplacing();
  session.fail(new Error('The end'));
  await session.leaveIncomplete(TARGETS);
  t.match(volume.consumers(), [{ point, copy: { targets: TARGETS, isIncomplete: true } }]);
  const next = await copy(volume, 'copy 1', point);
  t.match(volume.consumers(), [{ point: next, copy: { targets: TARGETS } }]);
  t.equal(volume.consumers()[0]?.copy?.isIncomplete, undefined);
});

t.test('a copy without a base makes what was held count for nothing', async (t) => {
  const { volume } = await start(t);
  await copy(volume, 'copy 1');
  const session = await begin(volume, 'copy 1');
  await session.beginReplacing();
  t.same(volume.consumers(), []);
  session.fail(new Error('The end'));
  await session.leaveIncomplete(TARGETS);
  t.same(volume.consumers(), []);
});

t.test('others with something in the same place are forgotten with the mark', async (t) => {
  const { volume } = await start(t);
  const first = await copy(volume, 'copy 1');
  await copy(volume, 'copy 2');
  await copy(volume, 'copy 3');
  const session = await begin(volume, 'copy 1', first);
  await session.beginReplacing(['copy 3']);
  t.same(
    volume.consumers().map(({ name, copy: record }) => [name, record?.isIncomplete]),
    [
      ['copy 1', true],
      ['copy 2', undefined],
    ],
  );
  session.fail(new Error('The end'));
});

t.test('a mark that cannot be made durable fails, and nothing may be written', async (t) => {
  const { volume } = await start(t);
  const point = await copy(volume, 'copy 1');
  const session = await begin(volume, 'copy 1', point);
  observeSyncs({
    before: () => {
      throw new Error('The disk is gone');
    },
  });
  await t.rejects(session.beginReplacing());
  observeSyncs(undefined);
  session.fail(new Error('The end'));
  await t.rejects(session.beginReplacing(), { code: 'session-ended' });
});
