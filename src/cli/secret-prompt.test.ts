/**
 * Goal: a passphrase is asked for without being shown, with the keys that people use while they type.
 *
 * Method: a terminal made of two streams; what is typed comes in whole or byte by byte.
 */

import { PassThrough } from 'node:stream';
import t from 'tap';
import { present } from '../base/index.ts';
import { secretPrompt } from './secret-prompt.ts';

function terminal(isTTY = true) {
  const modes: boolean[] = [];
  const input = Object.assign(new PassThrough(), { isTTY, setRawMode: (mode: boolean) => modes.push(mode) });
  const shown: string[] = [];
  const output = { isTTY, write: (text: string) => shown.push(text) };
  return { input, output, modes, shown };
}

async function typed(bytes: Buffer | string, options: { oneByOne?: boolean } = {}) {
  const { input, output, modes, shown } = terminal();
  const ask = present(secretPrompt(input, output), 'There is a terminal');
  const answer = ask('Passphrase: ');
  if (options.oneByOne === true) for (const byte of Buffer.from(bytes)) input.write(Buffer.from([byte]));
  else input.write(bytes);
  return { answer: await answer, modes, shown };
}

t.test('a line is read and not shown', async (t) => {
  for (const end of ['\r', '\n', '\u0004']) {
    const { answer, modes, shown } = await typed(`secret${end}`);
    t.equal(answer, 'secret');
    t.strictSame(modes, [true, false]);
    t.strictSame(shown, ['Passphrase: ', '\n']);
  }
  t.equal((await typed('\r')).answer, '');
});

t.test('letters of several bytes, and the keys that correct a line', async (t) => {
  t.equal((await typed('grün€\r', { oneByOne: true })).answer, 'grün€');
  t.equal((await typed('grün€\u007f\b\u007fx\r')).answer, 'grx');
  t.equal((await typed('\u007fwrong\u0015right\r')).answer, 'right');
});

t.test('Ctrl-C and the end of the input interrupt', async (t) => {
  const { input, output, modes } = terminal();
  const ask = present(secretPrompt(input, output), 'There is a terminal');
  const answer = ask('Passphrase: ');
  input.write('sec\u0003');
  await t.rejects(answer, { code: 'cancelled' });
  t.strictSame(modes, [true, false], 'the terminal is as it was');
  const ended = ask('Passphrase: ');
  input.end();
  await t.rejects(ended, { code: 'cancelled' });
});

t.test('without a terminal nobody is asked', (t) => {
  const { input, output } = terminal(false);
  t.equal(secretPrompt(input, output), undefined);
  t.equal(secretPrompt(terminal().input, output), undefined);
  t.end();
});
