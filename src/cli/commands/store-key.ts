/** `cowbell store key list|add|change|remove`: what opens an encrypted store. Sets are not touched. */

import type { Argv } from 'yargs';
import { type KeySlot, type StoreKey, StoreKeys } from '../../blockset/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import {
  addKeyOptions,
  addNewKeyOptions,
  type KeyOptions,
  type NewKeyOptions,
  readNewKey,
  readStoreKey,
} from '../key-options.ts';
import { table } from '../output.ts';
import { STORE } from '../store-options.ts';

interface ListOptions extends GlobalOptions {
  readonly store: string;
}

interface ChangeOptions extends ListOptions, KeyOptions, NewKeyOptions {}

interface RemoveOptions extends ListOptions, KeyOptions {
  readonly slot: number;
}

export const addStoreKey: AddCommand = (parser, run) =>
  parser.command('key', 'List and change the keys that open an encrypted store', (command) =>
    [addList, addAdd, addChange, addRemove]
      .reduce((keys, addTo) => addTo(keys, run), command)
      .demandCommand(1, 'No key command is given'),
  );

function addList(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'list <store>',
    'List the keys of a store by number; needs none of them',
    (command) => command.positional('store', STORE).example('$0 store key list /backup/store', ''),
    (options) => run<ListOptions>(options, list),
  );
}

function addAdd(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'add <store>',
    'Let one more passphrase or key file open a store',
    (command) =>
      addNewKeyOptions(addKeyOptions(command.positional('store', STORE))).example(
        '$0 store key add /backup/store --new-key-file /root/store.key',
        'A key file beside the passphrase, which is asked for',
      ),
    (options) => run<ChangeOptions>(options, add),
  );
}

function addChange(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'change <store>',
    'Put a new passphrase or key file in the place of the one that is given',
    (command) =>
      addNewKeyOptions(addKeyOptions(command.positional('store', STORE))).example(
        '$0 store key change /backup/store',
        'Another passphrase; both are asked for',
      ),
    (options) => run<ChangeOptions>(options, change),
  );
}

function addRemove(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'remove <store> <slot>',
    'Remove a passphrase or key file; the key that is given must be another one',
    (command) =>
      addKeyOptions(
        command.positional('store', STORE).positional('slot', {
          type: 'number',
          demandOption: true,
          describe: 'Number of the key, as listed',
        }),
      ).example('$0 store key remove /backup/store 2', ''),
    (options) => run<RemoveOptions>(options, remove),
  );
}

async function list(context: CommandContext, options: ListOptions): Promise<void> {
  const { output } = context;
  const slots = new StoreKeys(absolutePath('The store', options.store, context.directory)).list();
  if (output.json) for (const slot of slots) output.report({ event: 'key', ...slot });
  else output.report({ event: 'none' }, ...table(['KEY', 'KIND', 'CREATED'], slots.map(rowOf)));
}

function rowOf(slot: KeySlot): readonly string[] {
  return [String(slot.slot), slot.kind, new Date(slot.createdMs).toISOString()];
}

async function add(context: CommandContext, options: ChangeOptions): Promise<void> {
  const { store, keys, key } = await openKeys(context, options);
  reportSlot(context, store, await keys.add(key, await readNewKey(context, store, options)), 'opens');
}

async function change(context: CommandContext, options: ChangeOptions): Promise<void> {
  const { store, keys, key } = await openKeys(context, options);
  const slot = await keys.change(key, await readNewKey(context, store, options));
  reportSlot(context, store, slot, 'in the place of the one that was given opens');
}

async function remove(context: CommandContext, options: RemoveOptions): Promise<void> {
  const { store, keys, key } = await openKeys(context, options);
  const { slot } = options;
  if (!Number.isSafeInteger(slot)) throw new UsageError(`The key's number is ${slot}, wanted a whole number`);
  await keys.remove(key, slot);
  context.output.report({ event: 'key-removed', store, slot }, `Key ${slot} of store ${store} is removed`);
}

async function openKeys(
  context: CommandContext,
  options: ListOptions & KeyOptions,
): Promise<{ readonly store: string; readonly keys: StoreKeys; readonly key: StoreKey }> {
  const store = absolutePath('The store', options.store, context.directory);
  const keys = new StoreKeys(store, { clock: context.clock });
  // Where there are no keys, or the file is damaged, nobody is asked for one.
  keys.list();
  const key = await readStoreKey(context, store, options);
  if (key !== undefined) return { store, keys, key };
  throw new UsageError(
    `No key of store ${store} is given, wanted --key-file, --passphrase-file or COWBELL_PASSPHRASE`,
  );
}

function reportSlot(context: CommandContext, store: string, slot: KeySlot, does: string): void {
  const { slot: number, kind, createdMs } = slot;
  const name = kind === 'passphrase' ? 'passphrase' : 'key file';
  context.output.report(
    { event: 'key', store, slot: number, kind, createdMs },
    `Key ${number}, a ${name}, ${does} store ${store}`,
  );
}
