/**
 * Asks for a line on a terminal without showing it: in raw mode the terminal echoes nothing. Raw mode also
 * turns off what Ctrl-C does, so that is done here, as are the keys that correct a line.
 */

import { InterruptedError } from './exit.ts';

/** The keyboard; `process.stdin` is one. */
export interface SecretInput extends AsyncIterableSource {
  readonly isTTY?: boolean;
  setRawMode?(mode: boolean): unknown;
}

interface AsyncIterableSource {
  on(event: 'data', listener: (chunk: Buffer) => void): unknown;
  on(event: 'end', listener: () => void): unknown;
  off(event: 'data', listener: (chunk: Buffer) => void): unknown;
  off(event: 'end', listener: () => void): unknown;
  resume(): unknown;
  pause(): unknown;
}

/** The screen. */
export interface SecretOutput {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

const ENTER = /[\r\n]/;
const END = '\u0004';
const INTERRUPT = '\u0003';
const ERASE = new Set(['\u007f', '\b']);
const ERASE_LINE = '\u0015';

/**
 * A function that asks one question at a time; undefined where there is no terminal on both sides.
 *
 * @throws InterruptedError, from what is returned, after Ctrl-C or where the input ended.
 */
export function secretPrompt(
  input: SecretInput,
  output: SecretOutput,
): ((question: string) => Promise<string>) | undefined {
  if (input.isTTY !== true || output.isTTY !== true) return undefined;
  return async (question) => {
    // First the echo goes, so that nothing is shown to whoever types at once.
    input.setRawMode?.(true);
    try {
      output.write(question);
      return await readLine(input);
    } finally {
      input.setRawMode?.(false);
      input.pause();
      output.write('\n');
    }
  };
}

function readLine(input: SecretInput): Promise<string> {
  const decoder = new TextDecoder();
  let typed: string[] = [];
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      input.off('data', read);
      input.off('end', interrupt);
    };
    const interrupt = (): void => {
      stop();
      reject(new InterruptedError());
    };
    const read = (chunk: Buffer): void => {
      for (const character of decoder.decode(chunk, { stream: true })) {
        if (character === INTERRUPT) return interrupt();
        if (ENTER.test(character) || character === END) {
          stop();
          return resolve(typed.join(''));
        }
        if (ERASE.has(character)) typed.pop();
        else if (character === ERASE_LINE) typed = [];
        else typed.push(character);
      }
      return undefined;
    };
    input.on('data', read);
    input.on('end', interrupt);
    input.resume();
  });
}
