/**
 * Goal: one session per volume and store, listed while it runs, cancelled by id or, where it is the only one, without,
 * and all gone after a stop.
 *
 * Method: sessions whose work the test ends by hand.
 */

import t from 'tap';
import { deferred, ManualClock } from '../base/index.ts';
import { SessionRegistry } from './sessions.ts';

function makeRegistry(): SessionRegistry {
  return new SessionRegistry({ volumeName: 'vol', clock: new ManualClock(1000) });
}

/** Work that ends only when it is cancelled. */
function untilCancelled(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('interrupted')), { once: true });
  });
}

t.test('a session is listed with its progress while it runs, and gives its result', async (t) => {
  const registry = makeRegistry();
  const work = deferred<string>();
  const running = registry.run('backup', (session) => {
    session.note({ tracksDone: 3 });
    return work.promise;
  });
  await Promise.resolve();
  const [listed] = registry.list();
  t.match(listed, { kind: 'backup', startedMs: 1000, progress: { tracksDone: 3 }, cancelling: false });
  work.resolve('result');
  t.equal(await running, 'result');
  t.strictSame(registry.list(), []);
});

t.test('a second session is refused and names the first', async (t) => {
  const registry = makeRegistry();
  const work = deferred();
  const running = registry.run('backup', () => work.promise);
  const id = registry.list()[0]?.session ?? '';
  await t.rejects(
    registry.run('backup', async () => 1),
    { code: 'session-running', message: new RegExp(id), details: { session: id, kind: 'backup' } },
  );
  work.resolve();
  await running;
  t.equal(await registry.run('backup', async () => 1), 1, 'free again');
});

t.test('one session runs for each store; a second to the same one names the first', async (t) => {
  const registry = makeRegistry();
  const run = (store: string): Promise<unknown> =>
    registry.run('backup', (session) => untilCancelled(session.signal), store);
  const refused = [t.rejects(run('/a'), { code: 'cancelled' }), t.rejects(run('/b'), { code: 'cancelled' })];
  await Promise.resolve();
  t.match(registry.list(), [{ store: '/a' }, { store: '/b' }]);
  const [a = '', b = ''] = registry.list().map(({ session }) => session);
  await t.rejects(run('/b'), { code: 'session-running', message: new RegExp(`${b} to /b`) });
  await t.rejects(registry.cancel(), {
    code: 'several-sessions',
    message: new RegExp(`2 sessions.*${a}, ${b}$`),
    details: { sessions: [a, b] },
  });
  t.equal(await registry.cancel(a), a);
  t.equal(await registry.cancel(), b, 'the only one left');
  await Promise.all(refused);
});

t.test('cancelling by id or without waits for the end and says cancelled', async (t) => {
  for (const byId of [true, false]) {
    const registry = makeRegistry();
    const running = registry.run('backup', (session) => untilCancelled(session.signal));
    await Promise.resolve();
    const id = registry.list()[0]?.session ?? '';
    const refused = t.rejects(running, { code: 'cancelled', cause: { message: 'interrupted' } });
    t.equal(await registry.cancel(byId ? id : undefined), id);
    await refused;
    t.strictSame(registry.list(), []);
  }
});

t.test('a cancel is answered only when the session has cleaned up', async (t) => {
  const registry = makeRegistry();
  const cleanedUp = deferred();
  const order: string[] = [];
  const running = registry.run('backup', async (session) => {
    await untilCancelled(session.signal).catch(() => undefined);
    await cleanedUp.promise;
    order.push('cleaned up');
    throw new Error('interrupted');
  });
  const refused = t.rejects(running, { code: 'cancelled' });
  await Promise.resolve();
  const cancelled = registry.cancel().then(() => order.push('answered'));
  await new Promise((resolve) => setImmediate(resolve));
  cleanedUp.resolve();
  await Promise.all([refused, cancelled]);
  t.strictSame(order, ['cleaned up', 'answered']);
});

t.test('a session cancelled before it began does no work', async (t) => {
  const registry = makeRegistry();
  let began = false;
  const refused = t.rejects(
    registry.run('backup', async () => {
      began = true;
    }),
    { code: 'cancelled' },
  );
  await registry.cancel();
  await refused;
  t.notOk(began);
});

t.test('an error that is no cancellation stays what it is', async (t) => {
  const registry = makeRegistry();
  await t.rejects(
    registry.run('backup', async () => {
      throw new Error('disk on fire');
    }),
    { message: 'disk on fire' },
  );
  await t.rejects(
    registry.run('backup', () => {
      throw new Error('at once');
    }),
    { message: 'at once' },
  );
});

t.test('cancelling what does not run is unknown-session', async (t) => {
  const registry = makeRegistry();
  await t.rejects(registry.cancel(), { code: 'unknown-session', message: /runs no session;/ });
  const work = deferred();
  const running = registry.run('backup', () => work.promise);
  await t.rejects(registry.cancel('other'), { code: 'unknown-session', message: /runs no session other/ });
  work.resolve();
  await running;
});

t.test('a stop cancels, waits, and admits nothing more', async (t) => {
  const registry = makeRegistry();
  const cleanedUp = deferred();
  let isOver = false;
  const running = registry.run('backup', async (session) => {
    await untilCancelled(session.signal).catch(() => undefined);
    await cleanedUp.promise;
    isOver = true;
    throw new Error('interrupted');
  });
  const refused = t.rejects(running, { code: 'cancelled' });
  await Promise.resolve();
  const stopped = registry.stop();
  t.equal(registry.list()[0]?.cancelling, true);
  t.notOk(isOver);
  cleanedUp.resolve();
  await stopped;
  t.ok(isOver);
  await refused;
  await t.rejects(
    registry.run('backup', async () => 1),
    { code: 'stopping' },
  );
});
