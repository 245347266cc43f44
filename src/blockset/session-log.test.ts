/**
 * Goal: the log tells of every session, forgets the oldest when it is full, and survives a line that was cut; of an
 * encrypted store it tells no names. Method: a real directory.
 */

import { appendFileSync, readdirSync, readFileSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { scratch } from './model.fixture.ts';
import { type LoggedSession, logSession, readSessionLog } from './session-log.ts';
import { writeMarker } from './store-marker.ts';

function session(number: number, fields: Partial<LoggedSession> = {}): LoggedSession {
  return {
    session: `s${number}`,
    kind: 'backup',
    volumeId: 'v'.repeat(32),
    volume: 'payroll',
    outcome: 'done',
    startedMs: number,
    endedMs: number + 1,
    steps: [{ state: 'opened', medium: 0, atMs: number }],
    ...fields,
  };
}

async function makeStore(t: Parameters<typeof scratch>[0], isEncrypted = false): Promise<string> {
  const path = scratch(t);
  await writeMarker({ path, id: 'f'.repeat(32), isEncrypted });
  return path;
}

t.test('sessions are read as they were logged', async (t) => {
  const store = await makeStore(t);
  t.same(await readSessionLog(store), [], 'a store without a log has none');
  const failed = session(2, { outcome: 'failed', error: { code: 'no-space', message: 'No space is left' } });
  await logSession(store, session(1));
  await logSession(store, failed);
  t.same(await readSessionLog(store), [session(1), failed]);
  const nowhere = scratch(t);
  await logSession(nowhere, session(1));
  t.same(readdirSync(nowhere), [], 'nothing is written where there is no store');
});

t.test('a line that a crash has cut is passed over', async (t) => {
  const store = await makeStore(t);
  const path = join(store, 'sessions.log');
  await logSession(store, session(1));
  await logSession(store, session(2));
  truncateSync(path, statSync(path).size - 10);
  appendFileSync(path, '\n{"session":1}\nnull\n');
  await logSession(store, session(3));
  t.same(await readSessionLog(store), [session(1), session(3)]);
});

t.test('the log is bounded, and keeps the newest', async (t) => {
  const store = await makeStore(t);
  const long = { error: { code: 'io', message: 'x'.repeat(100_000) } };
  for (let number = 0; number < 30; number += 1) await logSession(store, session(number, long));
  const kept = await readSessionLog(store);
  t.equal(kept.at(-1)?.session, 's29');
  t.ok(kept.length >= 10 && kept.length < 30);
  t.ok(statSync(join(store, 'sessions.log')).size <= LIMITS.logBytesMax);
});

t.test('an encrypted store tells no names', async (t) => {
  const store = await makeStore(t, true);
  const failed = session(1, {
    error: { code: 'io', message: 'Cannot read payroll' },
    steps: [{ state: 'error', medium: 1, atMs: 5, reason: 'payroll is gone' }],
  });
  await logSession(store, failed);
  t.notMatch(readFileSync(join(store, 'sessions.log'), 'utf8'), /payroll/);
  t.match(await readSessionLog(store), [{ session: 's1', error: { code: 'io' } }]);
});
