/** Goal: a volume has one owner; a second is told who the first is. Method: a server, then other owners. */
import { join } from 'node:path';
import t from 'tap';
import { cowbell, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';

t.test('a second owner is refused with the pid and the activity of the first', async (t) => {
  const volume = join(temporaryDirectory(t), 'vol');
  await mustCowbell(['volume', 'create', volume, '--size', '1M']);
  const server = startCowbell(['serve', volume]);
  await server.waitForLine(/^ready /);
  for (const words of [
    ['serve', volume],
    ['volume', 'check', volume],
  ]) {
    const second = await cowbell(words);
    t.equal(second.status, 1);
    t.match(second.stderr, new RegExp(`in use by process ${server.child.pid} \\(serving\\)`));
  }
  t.match(await mustCowbell(['status', volume]), /^served: +yes$/m, 'the server still answers');

  // A killed server leaves its sockets; the next owner takes their place.
  await server.stop('SIGKILL');
  t.match(await mustCowbell(['status', volume]), /^served: +no$/m);
  const next = startCowbell(['serve', volume]);
  await next.waitForLine(/^ready /);
  t.equal((await next.stop()).status, 0);
});
