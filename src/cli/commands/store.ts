/**
 * `cowbell store`: stores are opened by the command itself, never by a server. One file beside this one for each group of
 * its commands.
 */

import type { Argv } from 'yargs';
import { Store } from '../../blockset/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, namesKey, readFirstKey } from '../key-options.ts';
import { STORE, type StoreOptions } from '../store-options.ts';
import { addCopy, addRebuildCatalog } from './store-copy.ts';
import { addStoreKey } from './store-key.ts';
import { addList, addShow } from './store-list.ts';
import { addStoreMedia } from './store-media.ts';
import { addLog } from './store-log.ts';
import { addMerge } from './store-merge.ts';
import { addProtect } from './store-protect.ts';
import { addPrune } from './store-prune.ts';
import { addVerify } from './store-verify.ts';

interface InitOptions extends StoreOptions {
  readonly encrypt: boolean;
}

const COMMANDS = [
  addInit,
  addList,
  addShow,
  addLog,
  addVerify,
  addMerge,
  addPrune,
  addProtect,
  addCopy,
  addRebuildCatalog,
  addStoreKey,
  addStoreMedia,
];

export const addStore: AddCommand = (parser, run) =>
  parser.command('store', 'Make stores, look into them and look after them', (command) =>
    COMMANDS.reduce((stores, add) => add(stores, run), command).demandCommand(1, 'No store command is given'),
  );

function addInit(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'init <store>',
    'Make a store in a new or empty directory',
    (command) =>
      addKeyOptions(
        command.positional('store', STORE).option('encrypt', {
          type: 'boolean',
          default: false,
          describe: 'Encrypt all that the store will hold; without its key everything in it is lost',
        }),
      )
        .example('$0 store init /backup/store', '')
        .example('$0 store init /backup/store --encrypt', 'The passphrase is asked for'),
    (options) => run<InitOptions>(options, init),
  );
}

async function init(context: CommandContext, options: InitOptions): Promise<void> {
  const { clock, output } = context;
  const path = absolutePath('The store', options.store, context.directory);
  if (!options.encrypt && namesKey(options)) {
    throw new UsageError('A key is given for a store that is not encrypted, wanted --encrypt too');
  }
  const key = options.encrypt ? { key: await readFirstKey(context, path, options) } : {};
  await Store.init(path, { clock, ...key });
  const note = options.encrypt ? `, encrypted; keep a copy of ${path}/keys.json elsewhere` : '';
  output.report({ event: 'store', store: path, encrypted: options.encrypt }, `Made store ${path}${note}`);
}
