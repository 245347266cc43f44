/**
 * Goal: each level builds on what DESIGN section 1 says, and whoever gets a full set instead hears why. Method: a
 * table of offers and of what the volume knows.
 */

import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { type BaseCandidate, type BaseWish, chooseBase } from './base-choice.ts';

/** Newest first: two incrementals on a full, and before it another full. */
const CHAIN: readonly BaseCandidate[] = [
  { point: 'i2', isFull: false, chainSetCount: 3 },
  { point: 'i1', isFull: false, chainSetCount: 2 },
  { point: 'f2', isFull: true, chainSetCount: 1 },
  { point: 'f1', isFull: true, chainSetCount: 1 },
];

function choose(wish: Partial<BaseWish>, unknown: readonly string[] = [], lastFull?: string) {
  const knows = (point: string): boolean => !unknown.includes(point);
  return chooseBase({ level: 'auto', candidates: CHAIN, ...wish }, { knows, lastFull });
}

t.test('each level takes the newest point of its kind that the volume knows', async (t) => {
  t.match(choose({ level: 'incremental' }), { level: 'incremental', base: 'i2', lastFull: 'f2' });
  t.match(choose({ level: 'auto' }), { level: 'incremental', base: 'i2', reason: undefined });
  t.match(choose({ level: 'differential' }), { level: 'differential', base: 'f2', lastFull: 'f2' });
  t.match(choose({ level: 'incremental' }, ['i2', 'i1']), { level: 'incremental', base: 'f2' });
  t.match(choose({ level: 'differential' }, ['f2']), { level: 'differential', base: 'f1', lastFull: 'f1' });
  t.match(choose({ level: 'full' }), { level: 'full', base: undefined, reason: undefined });
});

t.test('a full set instead of what was asked for has a reason', async (t) => {
  const none = { level: 'full', base: undefined };
  t.match(choose({ candidates: [] }), { ...none, reason: /has no set of this volume yet/ });
  t.match(choose({ level: 'incremental' }, ['i2', 'i1', 'f2', 'f1']), { ...none, reason: /has a set of$/ });
  t.match(choose({ level: 'differential' }, ['f2', 'f1']), { ...none, reason: /has a full set of$/ });
  t.match(choose({ level: 'differential', candidates: CHAIN.slice(0, 2) }), {
    ...none,
    reason: 'the store has no full set of this volume',
  });
  t.match(choose({ candidates: [], reason: 'it is damaged' }), { ...none, reason: 'it is damaged' });
});

t.test('auto alone is full when the chain is long enough', async (t) => {
  t.match(choose({ fullEvery: 3 }), { level: 'full', reason: /has 3 sets, and a full one is taken every 3/ });
  t.match(choose({ fullEvery: 4 }), { level: 'incremental' });
  t.match(choose({ fullEvery: 1, level: 'incremental' }), { level: 'incremental' });
  t.match(choose({ fullEvery: 1, level: 'differential' }), { level: 'differential' });
  const long = [{ point: 'i', isFull: false, chainSetCount: LIMITS.chainSetCountDefault }];
  t.match(choose({ candidates: long }), { level: 'full' });
});

t.test('the last full is what the store says, else what the record says', async (t) => {
  t.equal(choose({}, ['f2'], 'f0').lastFull, 'f1');
  t.equal(choose({ candidates: CHAIN.slice(0, 1) }, [], 'f0').lastFull, 'f0');
  t.equal(choose({ candidates: CHAIN.slice(0, 1) }).lastFull, undefined);
});
