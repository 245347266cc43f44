/**
 * Goal: each kind of trouble that a status shows is found, as the problem or the warning that docs/policy.md calls it;
 * a volume that is well has none.
 *
 * Method: the status of a well volume with one thing changed at a time.
 */
import t from 'tap';
import { findingsOf } from './health.ts';

const NOW = Date.parse('2026-05-01T12:00:00Z');

const WELL = {
  home: '/h',
  trackSizeBytes: 65_536,
  consumers: [{ name: 'feed', set: '01', changedTracks: 16 }],
  snapshots: [{ name: 's', state: 'ready' }],
  writesWaiting: 0,
  poisoned: undefined,
  recovery: undefined,
  mirroring: { mirror: 'nbd://m', missingTracks: 0 },
  deltas: { members: [{ place: '/d', state: 'healthy' }] },
  minimumCopies: 2,
  copies: { notBackedUp: { count: 2, where: ['/h', '/d'] } },
  policies: [
    { name: 'p', state: 'idle', beginByMs: NOW, outcomes: [{ state: 'failed' }, { state: 'done' }] },
  ],
};

/** One policy whose last outcome is this. */
function ended(outcome: object): object {
  return {
    policies: [{ name: 'p', state: 'idle', beginByMs: null, outcomes: [{ ...outcome, endedMs: NOW }] }],
  };
}

const TROUBLES: readonly (readonly [what: string, change: object, finding: string])[] = [
  [
    'poisoned',
    { poisoned: { reason: 'EIO', atMs: 1 } },
    'problem: It takes no writes until volume check: EIO',
  ],
  [
    'recovery',
    { recovery: { missingTracks: 3, trackCount: 9 } },
    'problem: Its recovery is not complete: 3 of 9 tracks are missing',
  ],
  [
    'snapshot',
    { snapshots: [{ name: 's', state: 'damaged', reason: 'short' }] },
    'problem: Snapshot s is damaged: short',
  ],
  ['writes', { writesWaiting: 2 }, 'warning: 2 writes are waiting for room'],
  [
    'deltas broken off',
    { deltas: { members: [], brokenOff: 'no member was left' } },
    'problem: What is not backed up is in the home only, until the next backup: no member was left',
  ],
  [
    'mirror lost',
    { mirroring: { mirror: 'm', missingTracks: 4, lost: 'gone' } },
    'problem: Mirror m is lost: gone',
  ],
  [
    'mirror filled',
    { mirroring: { mirror: 'm', missingTracks: 4 } },
    'warning: Mirror m is being filled: 4 tracks are missing',
  ],
  [
    'home member',
    { parts: [{ members: [{ place: '/a', state: 'away', reason: 'EIO' }] }] },
    'problem: Member of the home /a is away: EIO',
  ],
  [
    'extent',
    { parts: [{ members: [{ place: '/a', state: 'rebuilding' }] }] },
    'warning: Member of the home /a is rebuilding',
  ],
  [
    'delta member',
    { deltas: { members: [{ place: '/d', state: 'lost', reason: 'full' }] } },
    'problem: Member of the delta store /d is lost: full',
  ],
  [
    'delta again',
    { deltas: { members: [{ place: '/d', state: 'recreating' }] } },
    'warning: Member of the delta store /d is recreating',
  ],
  [
    'copies',
    { copies: { notBackedUp: { count: 1, where: ['/h'] } } },
    'problem: What is not backed up yet, up to 1 MiB of it is there once (/h), wanted 2 copies',
  ],
  [
    'failed',
    ended({ state: 'failed', reason: 'no room' }),
    'problem: Policy p failed at 2026-05-01T12:00:00.000Z: no room',
  ],
  [
    'interrupted',
    ended({ state: 'interrupted', reason: 'killed' }),
    'problem: Policy p was broken off at 2026-05-01T12:00:00.000Z: killed',
  ],
  ['cancelled', ended({ state: 'cancelled' }), 'warning: Policy p was cancelled at 2026-05-01T12:00:00.000Z'],
  [
    'after',
    ended({ state: 'done', warning: 'Retention failed: x' }),
    'problem: Policy p was done at 2026-05-01T12:00:00.000Z, and then: Retention failed: x',
  ],
  [
    'overdue',
    { policies: [{ name: 'p', state: 'waiting', beginByMs: NOW - 1, outcomes: [] }] },
    'problem: Policy p is overdue, wanted by 2026-05-01T11:59:59.999Z',
  ],
];

t.test('a volume that is well', async (t) => {
  t.strictSame(findingsOf(WELL, NOW), []);
  t.strictSame(findingsOf({}, NOW), [], 'what a status does not have is no trouble');
  const running = { policies: [{ name: 'p', state: 'running', beginByMs: NOW - 1, outcomes: [] }] };
  t.strictSame(findingsOf({ ...WELL, ...running }, NOW), [], 'what runs is not overdue');
});

for (const [what, change, wanted] of TROUBLES) {
  t.test(what, async (t) => {
    const found = findingsOf({ ...WELL, ...change }, NOW);
    t.strictSame(
      found.map(({ severity, message }) => `${severity}: ${message}`),
      [wanted],
    );
  });
}
