/**
 * Goal: an encrypted store does through the command line what any other does: backup served and at rest, in
 * several lanes, list, verify, restore; a wrong key is refused by name; keys change without the sets; and nothing
 * of a volume can be read in the store, nor of a passphrase anywhere.
 *
 * Method: `cowbell` processes, with the key given in each way that needs no terminal; the bytes of all files of
 * the store and the volume are searched, as are those that the processes print and the arguments of a backup's
 * child while it runs.
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

const PASSPHRASE = 'a passphrase of the test';
const CONTENT = 'the content of the volume is a secret. ';

t.test('a volume is kept in an encrypted store', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const env = { COWBELL_PASSPHRASE: PASSPHRASE };
  writeFileSync(at('source.raw'), Buffer.alloc(8 * 1024 * 1024, CONTENT));
  writeFileSync(at('wrong'), 'another passphrase\n');
  writeFileSync(at('next'), 'the next passphrase\n');
  writeFileSync(at('file.key'), createHash('sha256').update(String(Math.random())).digest());
  await mustCowbell(['volume', 'create', at('payroll'), '--size', '8M']);
  await mustCowbell(['store', 'init', at('store'), '--encrypt'], { env });

  const server = startCowbell(['serve', at('payroll')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  await must('nbdcopy', ['--flush', at('source.raw'), uri]);
  const backup = ['backup', '--store', at('store'), at('payroll')];
  // Incompressible or not, the frames are stored as they were encrypted.
  const online = await mustCowbell([...backup, '--codec', 'none', '--json'], { env });
  t.match(online, /"level":"full"/);
  t.match(await mustCowbell(['store', 'verify', at('store')], { env }), /is sound/);

  await t.test('a wrong key, and none, are refused by name', async (t) => {
    const before = setFiles(at('store'));
    const wrong = ['--passphrase-file', at('wrong')];
    for (const words of [
      backup,
      ['store', 'list', at('store')],
      ['restore', at('store'), 'latest', at('no')],
    ]) {
      const refused = await cowbell([...words, ...wrong]);
      t.equal(refused.status, 1);
      t.match(refused.stderr, /cowbell: The passphrase does not open store/);
      const none = await cowbell(words);
      t.match(none.stderr, /is encrypted, wanted its key: --key-file/);
      t.equal(none.status, 2);
    }
    t.strictSame(setFiles(at('store')), before);
  });

  await t.test('keys are added and changed, and the sets stay as they are', async (t) => {
    const before = setFiles(at('store'));
    const key = (...words: string[]): Promise<string> => mustCowbell(['store', 'key', ...words], { env });
    await key('add', at('store'), '--new-key-file', at('file.key'));
    await key('change', at('store'), '--new-passphrase-file', at('next'));
    t.match(await key('list', at('store')), /^2 +key-file .*\n3 +passphrase /m);
    t.equal((await cowbell(['store', 'list', at('store')], { env })).status, 1, 'the old passphrase');
    t.strictSame(setFiles(at('store')), before);
  });

  await t.test('an incremental at rest, with the key file, and restores with either key', async (t) => {
    await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 64k', uri]);
    await must('nbdcopy', [uri, at('wanted.raw')]);
    t.equal((await server.stop()).status, 0);
    const keyed = ['--key-file', at('file.key')];
    t.match(await mustCowbell([...backup, ...keyed]), /incremental backup of payroll, 1 tracks/);
    t.match(
      await mustCowbell(['store', 'list', at('store'), ...keyed]),
      /payroll .*full[^]*payroll .*incremental/,
    );
    await mustCowbell(['restore', at('store'), 'latest:payroll', at('one.raw'), ...keyed]);
    await mustCowbell(['restore', at('store'), 'latest', at('two.raw'), '--passphrase-file', at('next')]);
    await must('cmp', [at('wanted.raw'), at('one.raw')]);
    await must('cmp', [at('wanted.raw'), at('two.raw')]);
  });

  const secrets = ['payroll', CONTENT, PASSPHRASE, 'the next passphrase'];
  for (const name of filesOf(at('store'))) {
    const bytes = readFileSync(join(at('store'), name));
    for (const secret of secrets) t.notOk(bytes.includes(secret), `${secret} in ${name}`);
  }
  for (const secret of [PASSPHRASE, 'the next passphrase']) {
    for (const name of filesOf(at('payroll'))) {
      t.notOk(readFileSync(join(at('payroll'), name)).includes(secret), `${secret} in ${name}`);
    }
    t.notOk(`${online}${server.stdout}${server.stderr}`.includes(secret));
  }
});

t.test('hooks and children do not get the passphrase', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const env = { COWBELL_PASSPHRASE: PASSPHRASE };
  await mustCowbell(['volume', 'create', at('vol'), '--size', '1M']);
  await mustCowbell(['store', 'init', at('store'), '--encrypt'], { env });
  const look = `env > ${at('env')}; cat /proc/$PPID/cmdline /proc/[0-9]*/cmdline 2>/dev/null > ${at('cmdlines')}`;
  await mustCowbell(['backup', '--store', at('store'), at('vol'), '--pre-freeze', look], { env });
  t.match(readFileSync(at('env'), 'utf8'), /COWBELL_HOOK=pre/);
  t.ok(readFileSync(at('cmdlines'), 'latin1').includes('session-worker'), 'the child was seen');
  for (const name of ['env', 'cmdlines']) t.notOk(readFileSync(at(name)).includes(PASSPHRASE), name);
});

function filesOf(directory: string): string[] {
  const names = readdirSync(directory, { recursive: true, encoding: 'utf8' }).sort();
  return names.filter((name) => statSync(join(directory, name)).isFile());
}

/** The files of the sets and what is in them. */
function setFiles(store: string): readonly (readonly [string, string])[] {
  const sets = join(store, 'sets');
  return filesOf(sets).map((name) => [
    name,
    createHash('sha256')
      .update(readFileSync(join(sets, name)))
      .digest('hex'),
  ]);
}
