/**
 * Goal: a default socket serves its own volume, further sockets and addresses serve all, each export and
 * listener is announced once, and two volumes of one name are refused.
 *
 * Method: two volumes in one process, asked for their exports.
 */
import { mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

t.test('two volumes, own sockets and shared ones', async (t) => {
  if (!requireTools(t, ['nbdinfo'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  for (const name of ['a', 'b']) await mustCowbell(['volume', 'create', at(name), '--size', '1M']);
  const server = startCowbell([
    'serve',
    at('a'),
    at('b'),
    '--read-only',
    '--socket',
    at('all.sock'),
    '--listen',
    '127.0.0.1:0',
  ]);
  await server.waitForLine(/^ready nbd:.*\/b$/);
  const uris = server.stdout
    .trim()
    .split('\n')
    .map((line) => line.slice('ready '.length));
  t.match(uris, [
    `nbd+unix:///a?socket=${at('a/nbd.sock')}`,
    `nbd+unix:///b?socket=${at('b/nbd.sock')}`,
    `nbd+unix:///a?socket=${at('all.sock')}`,
    `nbd+unix:///b?socket=${at('all.sock')}`,
    /^nbd:\/\/127\.0\.0\.1:\d+\/a$/,
    /^nbd:\/\/127\.0\.0\.1:\d+\/b$/,
  ]);
  for (const uri of uris) t.match(await must('nbdinfo', ['--json', uri]), /"is_read_only": true/);
  t.match(
    await must('nbdinfo', ['--list', `nbd+unix:///?socket=${at('all.sock')}`]),
    /export="a"[^]*export="b"/,
  );
  t.notMatch(await must('nbdinfo', ['--list', `nbd+unix:///?socket=${at('a/nbd.sock')}`]), /export="b"/);
  t.equal(statSync(at('all.sock')).mode & 0o777, 0o600);

  const taken = await cowbell(['serve', at('a'), '--socket', at('all.sock')]);
  t.equal(taken.status, 1);
  t.equal((await server.stop('SIGINT')).status, 0);
  t.throws(() => statSync(at('all.sock')), { code: 'ENOENT' });
});

t.test('two volumes of one name are a usage error', async (t) => {
  const directory = temporaryDirectory(t);
  mkdirSync(join(directory, 'x'));
  const volumes = [join(directory, 'vol'), join(directory, 'x/vol')];
  for (const volume of volumes) await mustCowbell(['volume', 'create', volume, '--size', '1M']);
  const refused = await cowbell(['serve', ...volumes]);
  t.equal(refused.status, 2);
  t.match(refused.stderr, /would both be exported as vol/);
});

t.test('a volume in a directory with a long path is served all the same', async (t) => {
  const parent = join(temporaryDirectory(t), 'd'.repeat(100));
  mkdirSync(parent);
  const volume = join(parent, 'vol');
  await mustCowbell(['volume', 'create', volume, '--size', '1M']);
  const server = startCowbell(['serve', volume]);
  await server.waitForLine(/^ready /);
  t.match(await mustCowbell(['status', volume]), /^served: +yes$/m);
  t.equal((await server.stop()).status, 0);
});
