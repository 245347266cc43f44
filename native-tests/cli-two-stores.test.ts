/**
 * Goal: one volume is backed up to two stores at once, each session is seen and cancelled by itself, and a dry run
 * tells beforehand what a backup reads.
 *
 * Method: backups that read slowly (`--rate`), so that they run for some ten seconds; commands in processes of their own
 * against one server; each set restored and compared.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';

const SIZE_BYTES = 64 * 1_048_576;

interface Seen {
  readonly session: string;
  readonly store: string;
}

function makeHome(path: string): void {
  const descriptor = openSync(path, 'w');
  const piece = randomBytes(1_048_576);
  for (let offset = 0; offset < SIZE_BYTES; offset += piece.length) {
    piece.writeUInt32LE(offset / piece.length, 0);
    writeSync(descriptor, piece, 0, piece.length, offset);
  }
  closeSync(descriptor);
}

t.test('two stores at once', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  makeHome(at('home.raw'));
  await mustCowbell(['volume', 'create', at('vol'), '--size', String(SIZE_BYTES), '--home', at('home.raw')]);
  for (const store of ['one', 'two']) await mustCowbell(['store', 'init', at(store)]);
  const asked = await mustCowbell(['backup', '--dry-run', '--store', at('one'), at('vol')]);
  t.match(asked, /A full backup of vol would be taken: the store has no set/);
  t.match(asked, /look at 1024 tracks, 0 of them known to be zero, read 64 MiB and store that at most/);

  const server = startCowbell(['serve', at('vol')]);
  await server.waitForLine(/^ready /);
  const start = async (store: string) => {
    const backup = startCowbell([
      '--json',
      'backup',
      '--rate',
      '6M',
      '--store',
      at(store),
      '--level',
      'full',
      at('vol'),
    ]);
    await backup.waitForLine(/"event":"progress"/);
    return backup;
  };
  const [one, two] = await Promise.all([start('one'), start('two')]);
  const line = (await mustCowbell(['--json', 'status', at('vol')])).split('\n')[0] ?? '';
  const { sessions }: { readonly sessions: readonly Seen[] } = JSON.parse(line);
  t.strictSame(sessions.map(({ store }) => store).sort(), [at('one'), at('two')]);
  t.match(sessions, [
    { level: 'full', state: 'running', containerSlots: 1024, writesWaiting: 0 },
    { level: 'full', state: 'running', containerSlots: 1024, writesWaiting: 0 },
  ]);
  const idOf = (store: string): string => sessions.find((one) => one.store === at(store))?.session ?? '';
  const again = await cowbell(['backup', '--store', at('two'), at('vol')]);
  t.equal(again.status, 1);
  t.match(again.stderr, new RegExp(`already runs backup session ${idOf('two')}`));
  const unclear = await cowbell(['cancel', at('vol')]);
  t.equal(unclear.status, 2);
  for (const store of ['one', 'two']) t.match(unclear.stderr, new RegExp(idOf(store)));
  await mustCowbell(['cancel', at('vol'), idOf('one')]);
  t.match(await one.wait(), { status: 1, stdout: /"code":"cancelled"/ });
  t.match(await two.wait(), { status: 0, stdout: /"event":"done"/ }, 'the other goes on');
  await mustCowbell(['backup', '--store', at('one'), at('vol')]);
  const plan = await mustCowbell(['--json', 'backup', '--dry-run', '--store', at('two'), at('vol')]);
  t.match(
    plan,
    /^\{"event":"plan","volume":"vol","level":"incremental".*"tracks":0,"zeroTracks":0,"bytes":0\}/,
  );
  await server.stop();
  for (const store of ['one', 'two']) {
    await mustCowbell(['restore', at(store), 'latest', at(`${store}.raw`)]);
    await must('cmp', [at('home.raw'), at(`${store}.raw`)]);
  }
});
