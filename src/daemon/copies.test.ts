/**
 * Goal: copies are counted as what is there, never more: a part of a home with fewer copies counts for all of it, and
 * what is not in sync, lost or not a set is none.
 *
 * Method: statuses as volumes give them, or the part of them that is looked at.
 */
import t from 'tap';
import type { VolumeStatus } from '../volume/index.ts';
import { type CopiesInput, copiesOf } from './copies.ts';

const STORE = { name: 'feed', set: '01M', point: 'p', atMs: 0, changedTracks: 0 };
const PLAIN: CopiesInput = { home: '/h', consumers: [] };

/** Of what is not backed up yet. */
function countOf(more: Partial<CopiesInput>): number {
  return copiesOf({ ...PLAIN, ...more }).notBackedUp.count;
}

t.test('a plain home is one copy, stores are further ones of what is backed up', async (t) => {
  t.strictSame(copiesOf(PLAIN), {
    backedUp: { count: 1, where: ['/h'] },
    notBackedUp: { count: 1, where: ['/h'] },
  });
  const copied = { ...STORE, name: 'copy 0', copy: { targets: [] } };
  const consumers = [STORE, { ...STORE, name: 'medium tape' }, copied];
  t.strictSame(copiesOf({ ...PLAIN, consumers }).backedUp, {
    count: 3,
    where: ['/h', 'store feed', 'medium tape'],
  });
});

t.test('healthy members of the delta store are copies of what is not backed up yet', async (t) => {
  const states = ['healthy', 'lost', 'recreating'] as const;
  const members = states.map((state, index) => ({ state, place: `/d${index}`, bytesUsed: 0 }));
  const rest = { bytesUsed: 0, logs: 1, records: 0, lastSequence: 0, writesWaiting: 0, keepLogMs: 0 };
  t.strictSame(copiesOf({ ...PLAIN, deltas: { members, ...rest } }), {
    backedUp: { count: 1, where: ['/h'] },
    notBackedUp: { count: 2, where: ['/h', '/d0'] },
  });
  t.equal(countOf({ deltas: { members, ...rest, brokenOff: 'its logs are not there' } }), 1);
});

t.test('a mirror counts once it equals the home, and no more when it is lost', async (t) => {
  const mirroring = { mirror: 'nbd://m', startedMs: 0, trackCount: 9 };
  t.equal(countOf({ mirroring: { ...mirroring, missingTracks: 1 } }), 1);
  t.equal(countOf({ mirroring: { ...mirroring, missingTracks: 0 } }), 2);
  t.equal(countOf({ mirroring: { ...mirroring, missingTracks: 0, lost: 'gone' } }), 1);
});

type Part = NonNullable<VolumeStatus['parts']>[number];
const WHERE = { offsetBytes: 0, lengthBytes: 1 };

function mirror(...states: readonly ('in-sync' | 'away' | 'rebuilding')[]): Part {
  const members = states.map((state, index) => ({ state, place: `/m${index}`, readErrors: 0 }));
  return { kind: 'mirror', ...WHERE, members };
}

t.test('of a home of several parts the one with the fewest copies counts', async (t) => {
  const plain: Part = { kind: 'plain', ...WHERE, members: [{ place: '/p' }] };
  const stripe: Part = { kind: 'stripe', ...WHERE, members: [{ place: '/a' }, { place: '/b' }] };
  t.equal(countOf({ parts: [mirror('in-sync', 'in-sync', 'in-sync')] }), 3);
  t.equal(countOf({ parts: [mirror('in-sync', 'in-sync'), plain] }), 1);
  t.equal(countOf({ parts: [mirror('in-sync', 'in-sync'), mirror('in-sync', 'away')] }), 1);
  t.equal(countOf({ parts: [mirror('in-sync', 'rebuilding', 'in-sync')] }), 2);
  t.equal(countOf({ parts: [stripe] }), 1);
  t.strictSame(copiesOf({ ...PLAIN, parts: [mirror('away', 'in-sync')] }).notBackedUp.where, ['/m1']);
});

t.test('under recovery the home holds what was written since, and not all that is backed up', async (t) => {
  const recovery = {
    missingTracks: 5,
    trackCount: 9,
    startedMs: 0,
    point: 'p',
    side: { kind: 'device' as const, uri: 'nbd://side' },
    mirror: 'nbd://m',
  };
  t.match(copiesOf({ ...PLAIN, recovery, consumers: [STORE] }), {
    backedUp: { count: 1, where: ['store feed'] },
    notBackedUp: { count: 2, where: ['/h', 'nbd://m'] },
  });
  t.equal(countOf({ recovery: { ...recovery, mirrorLost: 'gone' } }), 1);
});
