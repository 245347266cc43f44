/**
 * Goal: what happened to a descriptor is told for that descriptor, and without koffi what the comments say for
 * that case. Method: descriptors of which the kernel's answer is known: a file is always readable, an idle socket
 * has nothing to tell, one of streams that was never connected is hung up, a number that is not open is invalid.
 */

import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { AssertionError } from './assert.ts';
import { hasPeerClosed, openSocket, POLL, pollDescriptors } from './native-sockets.ts';
import { forcePlainNode } from './native.ts';

/** A Unix socket that nobody is connected to: the kernel calls it hung up if its kind knows connections. */
function openUnixSocket(t: Test, type: 'stream' | 'datagram'): number {
  const descriptor = openSocket({ domain: 1, type: type === 'stream' ? 1 : 2, protocol: 0 });
  t.teardown(() => closeSync(descriptor));
  return descriptor;
}

t.test('a socket that has hung up is known, one that is idle is not', (t) => {
  t.equal(hasPeerClosed(openUnixSocket(t, 'stream')), true);
  t.equal(hasPeerClosed(openUnixSocket(t, 'datagram')), false);
  t.throws(() => hasPeerClosed(-1), AssertionError);
  t.end();
});

t.test('each descriptor of a poll is told what happened to it', async (t) => {
  const file = openSync(join(t.testdir(), 'file'), 'w+');
  t.teardown(() => closeSync(file));
  const events = POLL.readable;
  const watched = [openUnixSocket(t, 'datagram'), file, openUnixSocket(t, 'stream'), 4000];
  t.same(
    await pollDescriptors(
      watched.map((descriptor) => ({ descriptor, events })),
      1000,
    ),
    [0, POLL.readable, POLL.hangUp, POLL.invalid],
  );
  await t.rejects(pollDescriptors([], 0.5), AssertionError);
  await t.rejects(pollDescriptors([{ descriptor: -1, events }], 0), AssertionError);
});

t.test('without koffi no peer is known to be gone, and nothing can be waited for', async (t) => {
  const descriptor = openUnixSocket(t, 'stream');
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  t.equal(hasPeerClosed(descriptor), false);
  await t.rejects(pollDescriptors([{ descriptor, events: POLL.readable }], 0), { code: 'ENOSYS' });
});
