/**
 * Goal: copies are counted as what is there, never more: a part of a home with fewer copies counts for all of it, and
 * what is not in sync, lost or not a set is none.
 *
 * Method: statuses as the rooms give them, or part of them.
 */
import t from 'tap';
import { copiesOf } from './copies.ts';

const STORE = { name: 'feed', set: '01M', point: 'p' };

t.test('a plain home is one copy, stores are further ones of what is backed up', async (t) => {
  t.strictSame(copiesOf({ home: '/h', consumers: [] }), {
    backedUp: { count: 1, where: ['/h'] },
    notBackedUp: { count: 1, where: ['/h'] },
  });
  const consumers = [
    STORE,
    { name: 'medium tape', set: '02' },
    { name: 'copy 0', set: '', copy: { targets: [] } },
  ];
  t.strictSame(copiesOf({ home: '/h', consumers }).backedUp, {
    count: 3,
    where: ['/h', 'store feed', 'medium tape'],
  });
});

t.test('healthy members of the delta store are copies of what is not backed up yet', async (t) => {
  const deltas = {
    members: ['healthy', 'lost', 'recreating'].map((state, index) => ({ state, place: `/d${index}` })),
  };
  t.match(copiesOf({ home: '/h', deltas }), {
    backedUp: { count: 1 },
    notBackedUp: { count: 2, where: ['/h', '/d0'] },
  });
});

t.test('a mirror counts once it equals the home, and no more when it is lost', async (t) => {
  const home = '/h';
  const count = (mirroring: object): number => copiesOf({ home, mirroring }).notBackedUp.count;
  t.equal(count({ mirror: 'nbd://m', missingTracks: 1 }), 1);
  t.equal(count({ mirror: 'nbd://m', missingTracks: 0 }), 2);
  t.equal(count({ mirror: 'nbd://m', missingTracks: 0, lost: 'gone' }), 1);
});

t.test('of a layout the part with the fewest copies counts', async (t) => {
  const mirror = (...states: readonly string[]): object => ({
    kind: 'mirror',
    members: states.map((state, index) => ({ state, place: `/m${index}` })),
  });
  const plain = { kind: 'plain', members: [{ place: '/p' }] };
  const count = (home: object): number => copiesOf({ home }).notBackedUp.count;
  t.equal(count({ extents: [mirror('in-sync', 'in-sync', 'in-sync')] }), 3);
  t.equal(count({ extents: [mirror('in-sync', 'in-sync'), plain] }), 1);
  t.equal(count({ extents: [mirror('in-sync', 'in-sync'), mirror('in-sync', 'away')] }), 1);
  t.equal(count({ extents: [{ kind: 'stripe', members: [{ place: '/a' }, { place: '/b' }] }] }), 1);
  t.equal(
    count({
      members: [
        { state: 'in-sync', place: '/a' },
        { state: 'rebuilding', place: '/b' },
      ],
    }),
    1,
  );
  t.equal(copiesOf({ home: '/x', layout: { extents: [mirror('in-sync', 'in-sync')] } }).notBackedUp.count, 2);
});

t.test('a home under recovery holds what was written since, and not all that is backed up', async (t) => {
  const recovery = { missingTracks: 5, trackCount: 9 };
  t.match(copiesOf({ home: '/h', recovery, consumers: [STORE] }), {
    backedUp: { count: 1, where: ['store feed'] },
    notBackedUp: { count: 1, where: ['/h'] },
  });
});
