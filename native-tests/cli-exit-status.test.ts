/**
 * Goal: the exit statuses: 0 done, 1 operating error, 2 usage error, 3 corruption found; each error one line.
 *
 * Method: one command for each; for damage a byte is flipped in the middle of a set's file.
 */
import { closeSync, openSync, readdirSync, readSync, statSync, writeSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, mustCowbell, temporaryDirectory } from './support/process.ts';

t.test('each outcome has its exit status', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  t.equal((await cowbell(['--version'])).status, 0);
  t.equal((await cowbell(['backup', '--help'])).status, 0);

  const missing = await cowbell(['status', at('nowhere')]);
  t.equal(missing.status, 1);
  t.match(missing.stderr, /^cowbell: [^\n]*nowhere[^\n]*\n$/);
  const wrong = await cowbell(['volume', 'create', at('vol'), '--size', 'large']);
  t.equal(wrong.status, 2);
  t.match(wrong.stderr, /^cowbell: --size is 'large'[^\n]*\n$/);

  writeFileSync(at('home.raw'), randomBytes(1_048_576));
  await mustCowbell(['volume', 'create', at('vol'), '--size', '1M', '--home', at('home.raw')]);
  await mustCowbell(['store', 'init', at('store')]);
  await mustCowbell(['backup', '--store', at('store'), at('vol')]);
  await mustCowbell(['backup', '--store', at('store'), at('vol'), '--level', 'full']);
  const sound = await cowbell(['store', 'verify', at('store')]);
  t.equal(sound.status, 0, sound.stderr);

  const ambiguous = await cowbell(['restore', at('store'), '0', at('out.raw')]);
  t.equal(ambiguous.status, 2);
  t.match(ambiguous.stderr, /\(vol\), .*\(vol\)/, 'lists the candidates');

  const name = readdirSync(at('store/sets')).find((file) => file.endsWith('.cbs')) ?? '';
  flipByte(join(at('store/sets'), name));
  const damaged = await cowbell(['store', 'verify', at('store'), '--json']);
  t.equal(damaged.status, 3);
  t.match(damaged.stderr, new RegExp(`Set ${name.slice(0, 26)} is damaged in tracks? `));
  t.match(damaged.stdout, /"event":"verified".*"sound":false/);
  t.match(damaged.stdout, /\{"event":"error","code":"corruption"[^\n]*\n$/);
  const refused = await cowbell(['restore', at('store'), name.slice(0, 26), at('out.raw')]);
  t.equal(refused.status, 3);
});

function flipByte(path: string): void {
  const descriptor = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  const offset = Math.floor(statSync(path).size / 2);
  readSync(descriptor, byte, 0, 1, offset);
  byte[0] = (byte[0] ?? 0) ^ 0x10;
  writeSync(descriptor, byte, 0, 1, offset);
  closeSync(descriptor);
}
