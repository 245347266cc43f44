/**
 * The key of an encrypted store, for every command that opens one: a key file, a file with a passphrase, the
 * environment, or a question on the terminal, in this order. A passphrase is never an argument, since every
 * user of the machine can read those.
 */

import { readFileSync, statSync } from 'node:fs';
import type { Argv } from 'yargs';
import { LIMITS, messageOf } from '../base/index.ts';
import { Store, type StoreKey } from '../blockset/index.ts';
import type { KeyPlace } from '../daemon/index.ts';
import { absolutePath, single } from './arguments.ts';
import type { CommandContext } from './command.ts';
import { UsageError } from './exit.ts';

export interface KeyOptions {
  readonly keyFile: string | undefined;
  readonly passphraseFile: string | undefined;
}

/** Options of what opens a store from now on. */
export interface NewKeyOptions {
  readonly newKeyFile: string | undefined;
  readonly newPassphraseFile: string | undefined;
}

/** Adds the options to a command that opens a store. */
export function addKeyOptions<T>(command: Argv<T>) {
  return command
    .option('key-file', {
      type: 'string',
      requiresArg: true,
      describe: 'Key file of an encrypted store',
    })
    .option('passphrase-file', {
      type: 'string',
      requiresArg: true,
      describe: 'File with the passphrase of an encrypted store; or COWBELL_PASSPHRASE, or it is asked for',
    });
}

/** Adds the options to a command that gives a store one more key. */
export function addNewKeyOptions<T>(command: Argv<T>) {
  return command
    .option('new-key-file', {
      type: 'string',
      requiresArg: true,
      describe: 'Key file that opens the store from now on: 32 random bytes or more',
    })
    .option('new-passphrase-file', {
      type: 'string',
      requiresArg: true,
      describe:
        'File with the passphrase that opens the store from now on; it is asked for where neither is given',
    });
}

/**
 * The key to open a store with; undefined where none is given, and the store does not ask for one or nobody can
 * be asked.
 *
 * @param store the store's directory, absolute.
 * @throws {UsageError} where options contradict each other or a passphrase's file cannot be read.
 */
export async function readStoreKey(
  context: CommandContext,
  store: string,
  options: KeyOptions,
): Promise<StoreKey | undefined> {
  const given = givenKey(context, options);
  if (given !== undefined) return given;
  const { askSecret } = context;
  if (askSecret === undefined || !Store.isEncrypted(store)) return undefined;
  return { passphrase: await askSecret(`Passphrase of ${store}: `) };
}

/** As `StoreOptions` has it. */
export async function storeKey(
  context: CommandContext,
  store: string,
  options: KeyOptions,
): Promise<{ readonly key?: StoreKey }> {
  const key = await readStoreKey(context, store, options);
  return key === undefined ? {} : { key };
}

/**
 * The first key of a store that is to be encrypted.
 *
 * @throws {UsageError} as `readStoreKey`, and where there is none or it is typed differently the second time.
 */
export async function readFirstKey(
  context: CommandContext,
  store: string,
  options: KeyOptions,
): Promise<StoreKey> {
  const wanted = '--key-file, --passphrase-file or COWBELL_PASSPHRASE';
  return givenKey(context, options) ?? (await askTwice(context, `New passphrase of ${store}: `, wanted));
}

/** The key that a store is to have from now on. @throws {UsageError} as `readFirstKey`. */
export async function readNewKey(
  context: CommandContext,
  store: string,
  options: NewKeyOptions,
): Promise<StoreKey> {
  const given = keyFromFiles(context, [
    ['--new-key-file', options.newKeyFile],
    ['--new-passphrase-file', options.newPassphraseFile],
  ]);
  const wanted = '--new-key-file or --new-passphrase-file';
  return given ?? (await askTwice(context, `New passphrase of ${store}: `, wanted));
}

/** Whether a key is named on the command line. */
export function namesKey(options: KeyOptions): boolean {
  return options.keyFile !== undefined || options.passphraseFile !== undefined;
}

function givenKey(context: CommandContext, options: KeyOptions): StoreKey | undefined {
  const named = keyFromFiles(context, [
    ['--key-file', options.keyFile],
    ['--passphrase-file', options.passphraseFile],
  ]);
  if (named !== undefined || context.passphrase === undefined) return named;
  if (context.passphrase === '') throw new UsageError('COWBELL_PASSPHRASE is empty, wanted a passphrase');
  return { passphrase: context.passphrase };
}

type Named = readonly [option: string, value: string | undefined];

function keyFromFiles(
  { directory }: CommandContext,
  [keyFile, passphraseFile]: readonly [Named, Named],
): StoreKey | undefined {
  const key = single(...keyFile);
  const passphrase = single(...passphraseFile);
  if (key !== undefined && passphrase !== undefined) {
    throw new UsageError(`${keyFile[0]} and ${passphraseFile[0]} are both given, wanted one of them`);
  }
  if (key !== undefined) return { keyFile: absolutePath(keyFile[0], key, directory) };
  if (passphrase === undefined) return undefined;
  return {
    passphrase: readPassphrase(passphraseFile[0], absolutePath(passphraseFile[0], passphrase, directory)),
  };
}

/** The key that a config names. @throws {UsageError} where the passphrase's file cannot be read. */
export function keyAt(place: KeyPlace): StoreKey {
  if ('keyFile' in place) return { keyFile: place.keyFile };
  return { passphrase: readPassphrase('passphraseFile', place.passphraseFile) };
}

/** The file's only line. */
function readPassphrase(option: string, path: string): string {
  let text: string;
  try {
    const { size } = statSync(path);
    if (size > LIMITS.passphraseBytesMax) {
      throw new RangeError(`it has ${size} bytes, wanted at most ${LIMITS.passphraseBytesMax}`);
    }
    text = readFileSync(path, 'utf8').replace(/\r?\n$/, '');
  } catch (error) {
    throw new UsageError(`${option} ${path} cannot be used: ${messageOf(error)}`, { cause: error });
  }
  if (text === '') throw new UsageError(`${option} ${path} is empty, wanted a passphrase`);
  if (text.includes('\n')) throw new UsageError(`${option} ${path} has several lines, wanted one`);
  return text;
}

async function askTwice(context: CommandContext, question: string, wanted: string): Promise<StoreKey> {
  const { askSecret } = context;
  if (askSecret === undefined) throw new UsageError(`No key is given, wanted ${wanted}`);
  const passphrase = await askSecret(question);
  if (passphrase === '') throw new UsageError('The passphrase is empty, wanted at least one character');
  if ((await askSecret('The same again: ')) === passphrase) return { passphrase };
  throw new UsageError('The passphrase is another the second time, wanted the same twice');
}
