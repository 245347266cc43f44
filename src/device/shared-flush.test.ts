/**
 * Goal: a sync serves only callers that arrived before it was issued, and after a failure nobody is told that
 * data is durable. Method: syncs that the test finishes by hand.
 */

import t from 'tap';
import { deferred, type Deferred } from '../base/index.ts';
import { SharedFlush } from './shared-flush.ts';

function manual(): { readonly syncs: Deferred[]; readonly flush: SharedFlush } {
  const syncs: Deferred[] = [];
  const flush = new SharedFlush(() => {
    const sync = deferred();
    syncs.push(sync);
    return sync.promise;
  });
  return { syncs, flush };
}

/** Lets everything run that waits for nothing else. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

t.test('callers that arrive while a sync runs share the next one', async (t) => {
  const { syncs, flush } = manual();
  const answered: string[] = [];
  const call = (name: string) => flush.flush().then(() => answered.push(name));
  call('a');
  t.equal(syncs.length, 1, 'the first is issued at once');
  call('b');
  call('c');
  await settle();
  t.equal(syncs.length, 1);
  syncs[0]?.resolve();
  await settle();
  t.same(answered, ['a'], 'the sync that was issued before b and c came does not answer them');
  t.equal(syncs.length, 2, 'one sync for both');
  call('d');
  syncs[1]?.resolve();
  await settle();
  t.same(answered, ['a', 'b', 'c']);
  t.equal(syncs.length, 3);
  syncs[2]?.resolve();
  await settle();
  t.same(answered, ['a', 'b', 'c', 'd']);
  call('e');
  t.equal(syncs.length, 4, 'an idle device syncs at once again');
  syncs[3]?.resolve();
});

t.test('after a failed sync all that follow fail untried', async (t) => {
  const { syncs, flush } = manual();
  const first = flush.flush();
  const second = flush.flush();
  syncs[0]?.reject(new Error('lost'));
  await t.rejects(first, { message: 'lost' });
  await t.rejects(second, { message: 'lost' }, 'it may have written before the failed sync was issued');
  await t.rejects(flush.flush(), { message: 'lost' });
  await t.rejects(flush.flush(), { message: 'lost' });
  t.equal(syncs.length, 1);
});
