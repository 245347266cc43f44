/**
 * Goal: a policy keeps what restic and borg would keep.
 *
 * Method: a calendar whose answer can be counted by hand, then properties over any times and counts.
 */

import fc from 'fast-check';
import t from 'tap';
import { isEmptyPolicy, retain, type RetentionPolicy } from './retention.ts';

const at = (text: string): number => Date.parse(text);

t.test('the newest of each hour, day, week, month and year', (t) => {
  const times = [
    '2026-03-02T12:30Z', // a Monday
    '2026-03-02T12:00Z',
    '2026-03-02T11:59Z',
    '2026-03-01T23:59Z', // the Sunday before: another day, week and the same month
    '2026-02-28T10:00Z',
    '2025-12-31T10:00Z',
    '2024-12-31T10:00Z',
  ].map(at);
  const kept = (policy: RetentionPolicy): number[] =>
    retain(times, policy).flatMap((reasons, index) => (reasons.length > 0 ? [index] : []));
  t.same(kept({}), [0], 'the latest always');
  t.same(kept({ keepLast: 3 }), [0, 1, 2]);
  t.same(kept({ keepHourly: 2 }), [0, 2]);
  t.same(kept({ keepDaily: 3 }), [0, 3, 4]);
  t.same(kept({ keepWeekly: 2 }), [0, 3], 'a week begins on Monday');
  t.same(kept({ keepMonthly: 3 }), [0, 4, 5]);
  t.same(kept({ keepYearly: 9 }), [0, 5, 6], 'as many as there are');
  t.same(retain(times, { keepLast: 1, keepDaily: 1, keepYearly: 2 })[0], [
    'latest',
    'last',
    'daily',
    'yearly',
  ]);
  t.same(retain([], { keepLast: 1 }), []);
  t.ok(isEmptyPolicy({ keepLast: 0 }));
  t.notOk(isEmptyPolicy({ keepYearly: 1 }));
  t.end();
});

t.test('any times: as many slots as asked for, the first point of each', (t) => {
  const DAY_MS = 86_400_000;
  const seed = Number(process.env['COWBELL_SEED'] ?? Date.now() % 1_000_000);
  t.comment(`seed ${seed}`);
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 400 * DAY_MS }), { maxLength: 60 }),
      fc.nat(20),
      (times, keepDaily) => {
        const daily = retain(times, { keepDaily }).map((reasons) => reasons.includes('daily'));
        const slots = times.map((timeMs) => Math.floor(timeMs / DAY_MS));
        const wanted = [...new Set(slots)].slice(0, keepDaily);
        const found = slots.filter((_, index) => daily[index]);
        const areFirst = slots.every((slot, index) => daily[index] !== true || slots.indexOf(slot) === index);
        const more = retain(times, { keepDaily: keepDaily + 1, keepYearly: 1 });
        return (
          found.join() === wanted.join() &&
          areFirst &&
          daily.every((isKept, index) => !isKept || more[index]?.includes('daily') === true)
        );
      },
    ),
    { seed },
  );
  t.end();
});
