/**
 * Goal: instants and spans are read as they are meant, and nothing else is taken for one.
 *
 * Method: examples of each form, and of what resembles one.
 */

import t from 'tap';
import { UsageError } from './exit.ts';
import { parseInstant, readUntil } from './time-arguments.ts';

t.test('instants are UTC unless they name a zone', (t) => {
  t.equal(parseInstant('2026-01-31'), Date.UTC(2026, 0, 31));
  t.equal(parseInstant('2026-01-31T18:30'), Date.UTC(2026, 0, 31, 18, 30));
  t.equal(parseInstant('2026-01-31 18:30:05'), Date.UTC(2026, 0, 31, 18, 30, 5));
  t.equal(parseInstant('2026-01-31T18:30+02:00'), Date.UTC(2026, 0, 31, 16, 30));
  for (const text of ['2026', '31.1.2026', '2026-13-01', '2026-01-31T25:00', '01K3ABC', '']) {
    t.equal(parseInstant(text), undefined, text);
  }
  t.end();
});

t.test('until: a date, a span from now, for ever', (t) => {
  const nowMs = Date.UTC(2026, 0, 1);
  t.equal(readUntil('--until', 'forever', nowMs), null);
  t.equal(readUntil('--until', '12h', nowMs), nowMs + 43_200_000);
  t.equal(readUntil('--until', '2w', nowMs), Date.UTC(2026, 0, 15));
  t.equal(readUntil('--until', '2026-02-01', nowMs), Date.UTC(2026, 1, 1));
  for (const text of ['2025-12-31', '0d', '3m', 'soon', '']) {
    t.throws(() => readUntil('--until', text, nowMs), UsageError, text);
  }
  t.end();
});
