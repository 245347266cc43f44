/**
 * Goal: a schedule comes when its fields say so in its time zone, once where a clock change repeats the hour and at
 * the end of the gap where it skips it; what is none, or never comes, is refused.
 *
 * Method: times whose answers are known from the calendar.
 */
import t from 'tap';
import { Schedule } from './schedule.ts';

function next(pattern: string, timeZone: string, from: string, count = 3): readonly string[] {
  const schedule = new Schedule(pattern, timeZone);
  const times: string[] = [];
  for (let at = Date.parse(from); times.length < count;) {
    at = schedule.nextAfter(at);
    times.push(new Date(at).toISOString().replace(':00.000Z', 'Z'));
  }
  return times;
}

t.test('the time itself has passed', async (t) => {
  t.strictSame(next('0 * * * *', 'UTC', '2026-01-01T00:00:00Z', 1), ['2026-01-01T01:00Z']);
  t.strictSame(next('0 * * * *', 'UTC', '2025-12-31T23:59:59.999Z', 1), ['2026-01-01T00:00Z']);
  t.strictSame(next('@daily', 'UTC', '2026-02-28T12:00:00Z', 2), ['2026-03-01T00:00Z', '2026-03-02T00:00Z']);
});

t.test('in Berlin an hour is skipped in March', async (t) => {
  t.strictSame(next('30 2 * * *', 'Europe/Berlin', '2026-03-28T00:00:00Z'), [
    '2026-03-28T01:30Z',
    '2026-03-29T01:00Z',
    '2026-03-30T00:30Z',
  ]);
});

t.test('and one is there twice in October', async (t) => {
  t.strictSame(next('30 2 * * *', 'Europe/Berlin', '2026-10-24T12:00:00Z'), [
    '2026-10-25T00:30Z',
    '2026-10-26T01:30Z',
    '2026-10-27T01:30Z',
  ]);
});

t.test('what is none is refused, and what never comes', async (t) => {
  for (const pattern of ['', 'daily', '* * *', '0 0 0 * * *', '60 * * * *', '0 0 31 2 *', '@reboot'])
    t.throws(() => new Schedule(pattern, 'UTC'), { code: 'bad-schedule' }, pattern);
});
