/**
 * Goal: the key of a store comes from the option, the file, the environment or the terminal that was meant, keys
 * are listed and changed, and no message tells a passphrase.
 *
 * Method: whole command lines in this process, against stores in a temporary directory; passphrases cost what
 * they cost, so the stores are few.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import t from 'tap';
import { ManualClock, observeSyncs } from '../base/index.ts';
import { runCommandLine } from './command-line.ts';

interface Surroundings {
  readonly passphrase?: string;
  /** What is typed at each question. */
  readonly answers?: readonly string[];
}

async function cowbell(directory: string, words: readonly string[], surroundings: Surroundings = {}) {
  const stdout = new PassThrough().setEncoding('utf8');
  const stderr = new PassThrough().setEncoding('utf8');
  const questions: string[] = [];
  const { passphrase, answers } = surroundings;
  const status = await runCommandLine(words, {
    stdout,
    stderr,
    directory,
    clock: new ManualClock(),
    signal: new AbortController().signal,
    version: '9.9.9',
    passphrase,
    askSecret:
      answers === undefined
        ? undefined
        : async (question) => {
            questions.push(question);
            return answers[questions.length - 1] ?? '';
          },
    onHangup: () => () => undefined,
    takeHandedSockets: () => [],
    startSupervisor: () => Promise.reject(new Error('Nothing is attached here')),
  });
  const read = (stream: PassThrough): string => String(stream.read() ?? '');
  return { status, text: read(stdout) + read(stderr), questions };
}

observeSyncs({ before: () => 'skip' });
t.teardown(() => observeSyncs(undefined));

t.test(
  'a store is encrypted with a passphrase that is asked for, and opens with what is given',
  async (t) => {
    const directory = t.testdir({
      right: 'correct horse\n',
      wrong: 'battery staple',
      empty: '\n',
      two: 'a\nb\n',
    });
    const init = await cowbell(directory, ['store', 'init', 's', '--encrypt'], {
      answers: ['correct horse', 'correct horse'],
    });
    t.equal(init.status, 0);
    t.match(init.text, /Made store .*\/s, encrypted; keep a copy of .*keys.json elsewhere/);
    t.match(init.questions, [/New passphrase/, /again/]);

    const list = ['store', 'list', 's'];
    const asked = await cowbell(directory, list, { answers: ['correct horse'] });
    t.match(asked, { status: 0, questions: [/^Passphrase of .*\/s: $/] });
    t.match(await cowbell(directory, list, { passphrase: 'correct horse' }), { status: 0 });
    const ofFile = await cowbell(directory, [...list, '--passphrase-file', 'right'], {
      passphrase: 'wrong',
      answers: [],
    });
    t.match(ofFile, { status: 0, questions: [] }, 'an option comes before the environment');

    const none = await cowbell(directory, list);
    t.equal(none.status, 2);
    t.match(none.text, /is encrypted, wanted its key: --key-file, --passphrase-file or COWBELL_PASSPHRASE/);
    const wrong = await cowbell(directory, [...list, '--passphrase-file', 'wrong']);
    t.equal(wrong.status, 1);
    t.match(wrong.text, /^cowbell: The passphrase does not open store/);
    t.notMatch(wrong.text, /battery/);
    const refusals: readonly (readonly [readonly string[], RegExp])[] = [
      [['--passphrase-file', 'empty'], /empty is empty/],
      [['--passphrase-file', 'two'], /several lines/],
      [['--passphrase-file', 'missing'], /cannot be used/],
      [['--passphrase-file', 'right', '--key-file', 'right'], /are both given/],
    ];
    for (const [words, pattern] of refusals) {
      const refused = await cowbell(directory, [...list, ...words]);
      t.equal(refused.status, 2, words.join(' '));
      t.match(refused.text, pattern);
    }
    t.match(await cowbell(directory, list, { passphrase: '' }), {
      status: 2,
      text: /COWBELL_PASSPHRASE is empty/,
    });
  },
);

t.test('a store is made with a key only where it is to be encrypted', async (t) => {
  const directory = t.testdir({ short: 'too short', key: 'x'.repeat(32) });
  const init = ['store', 'init', 's'];
  t.match(await cowbell(directory, [...init, '--key-file', 'key']), {
    status: 2,
    text: /wanted --encrypt too/,
  });
  t.match(await cowbell(directory, [...init, '--encrypt']), {
    status: 2,
    text: /No key is given, wanted --key-file/,
  });
  const different = await cowbell(directory, [...init, '--encrypt'], { answers: ['one', 'two'] });
  t.match(different, { status: 2, text: /another the second time/ });
  t.notMatch(different.text, /one'|two'/);
  t.match(await cowbell(directory, [...init, '--encrypt'], { answers: ['', ''] }), {
    status: 2,
    text: /is empty/,
  });
  const short = await cowbell(directory, ['store', 'init', 'x', '--encrypt', '--key-file', 'short']);
  t.match(short, { status: 1, text: /short has 9 bytes, wanted at least 32 random ones/ });

  t.equal((await cowbell(directory, init)).status, 0);
  const keyed = await cowbell(directory, ['store', 'list', 's', '--key-file', 'key']);
  t.match(keyed, { status: 2, text: /is not encrypted, wanted no key/ });
  t.match(await cowbell(directory, ['store', 'key', 'list', 's']), { status: 2, text: /is not encrypted/ });
  const asked = await cowbell(directory, ['store', 'list', 's'], { answers: [] });
  t.match(asked, { status: 0, questions: [] }, 'nobody is asked for the key of a store that has none');
});

t.test('keys are listed, added, changed and removed', async (t) => {
  const directory = t.testdir({ first: 'x'.repeat(32), second: 'y'.repeat(32), words: 'correct horse\n' });
  const keyed = ['--key-file', 'first'];
  t.equal((await cowbell(directory, ['store', 'init', 's', '--encrypt', ...keyed])).status, 0);
  const key = (...words: readonly string[]) => cowbell(directory, ['store', 'key', ...words, '--json']);
  const added = await key('add', 's', ...keyed, '--new-passphrase-file', 'words');
  t.match(JSON.parse(added.text.split('\n')[0] ?? ''), {
    event: 'key',
    store: join(directory, 's'),
    slot: 2,
    kind: 'passphrase',
  });
  t.match(await key('change', 's', ...keyed, '--new-key-file', 'second'), { status: 0 });
  t.match(await cowbell(directory, ['store', 'list', 's', ...keyed]), {
    status: 1,
    text: /first does not open store/,
  });
  const listed = await cowbell(directory, ['store', 'key', 'list', 's']);
  t.match(listed, { status: 0, text: /^KEY +KIND +CREATED\n2 +passphrase .*\n3 +key-file .*\n/ });
  t.match(await key('remove', 's', '3', '--key-file', 'second'), {
    status: 1,
    text: /is the one that was given/,
  });
  t.match(await key('remove', 's', '2', '--key-file', 'second'), { status: 0 });
  t.match(await key('remove', 's', '2', '--key-file', 'second'), {
    status: 1,
    text: /has no key 2, wanted one of 3/,
  });
  t.match(await key('remove', 's', 'two', '--key-file', 'second'), { status: 2 });
  t.match(await key('add', 's', '--new-key-file', 'first'), {
    status: 2,
    text: /No key of store .* is given/,
  });
  t.match(await key('add', 's', '--key-file', 'second'), { status: 2, text: /wanted --new-key-file or/ });
  writeFileSync(join(directory, 's', 'keys.json'), 'damaged');
  t.match(await key('list', 's'), { status: 3, text: /are damaged/ });
});
