/**
 * Goal: never more calls in flight than allowed, and none left in flight after an end of any kind.
 * Method: calls that a test finishes by hand.
 */

import t from 'tap';
import { deferred, type Deferred } from '../base/index.ts';
import { WriteWindow } from './write-window.ts';

t.test('a call beyond the window waits for a place; one that finishes at once takes none', async (t) => {
  const window = new WriteWindow(2);
  const calls: Deferred[] = [];
  const started: number[] = [];
  const begin = (index: number): Promise<void> =>
    window.start(() => {
      started.push(index);
      const call = deferred();
      calls.push(call);
      return call.promise;
    });
  await begin(0);
  await begin(1);
  const third = begin(2);
  await Promise.resolve();
  t.same(started, [0, 1]);
  calls[1]?.resolve();
  await third;
  t.same(started, [0, 1, 2]);
  calls[0]?.resolve();
  calls[2]?.resolve();
  await window.drain();
  for (let index = 0; index < 5; index += 1) await window.start(() => undefined);
  await window.drain();
});

t.test('after a failure nothing new starts and the running calls are waited for', async (t) => {
  const window = new WriteWindow(2);
  const [failing, other] = [deferred(), deferred()];
  await window.start(() => failing.promise);
  await window.start(() => other.promise);
  failing.reject(new Error('the first failure'));
  await t.rejects(
    window.start(() => {
      t.fail('must not start');
    }),
    { message: 'the first failure' },
  );
  let settled = false;
  const settling = window.settle().then(() => {
    settled = true;
  });
  await Promise.resolve();
  t.notOk(settled);
  other.reject(new Error('a later failure'));
  await settling;
  await t.rejects(window.drain(), { message: 'the first failure' });
});
