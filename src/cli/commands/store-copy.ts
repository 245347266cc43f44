/** `cowbell store copy|rebuild-catalog`: sets as they are into another store; the index of a store made anew. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { copySets } from '../../blockset/index.ts';
import { several, single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions } from '../key-options.ts';
import { openForChange, openStore, STORE, type StoreOptions } from '../store-options.ts';

interface CopyOptions extends StoreOptions {
  readonly set: readonly string[];
  readonly to: string;
  readonly chain: boolean;
  readonly toKeyFile: string | undefined;
  readonly toPassphraseFile: string | undefined;
}

export function addCopy(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'copy <store> <set..>',
    'Copy sets to another store, verified; what it has already is left out',
    (command) =>
      addKeyOptions(command.positional('store', STORE))
        .positional('set', {
          type: 'string',
          array: true,
          demandOption: true,
          describe: 'Set ids or unique prefixes, or latest, or latest:<volume id or name>',
        })
        .option('to', {
          type: 'string',
          requiresArg: true,
          demandOption: true,
          describe: 'Directory of the other store',
        })
        .option('chain', { type: 'boolean', default: false, describe: 'Copy what the sets build on too' })
        .option('to-key-file', { type: 'string', requiresArg: true, describe: 'Key file of the other store' })
        .option('to-passphrase-file', {
          type: 'string',
          requiresArg: true,
          describe: 'File whose first line is the passphrase of the other store',
        })
        .example('$0 store copy /backup/store latest:vol --to /mnt/usb/store --chain', ''),
    (options) => run<CopyOptions>(options, copy),
  );
}

async function copy(context: CommandContext, options: CopyOptions): Promise<void> {
  const { output, signal } = context;
  const { toKeyFile: keyFile, toPassphraseFile: passphraseFile } = options;
  const to = single('--to', options.to) ?? '';
  if (to === '') throw new UsageError('--to is empty, wanted the directory of a store');
  const source = await openStore(context, options);
  const target = await openForChange(context, { ...options, store: to, keyFile, passphraseFile });
  const ids: string[] = [];
  for (const selector of several(options.set)) ids.push((await source.find(selector)).id);
  let done = 0;
  const onProgress = (bytes: number): void => {
    done += bytes;
    output.progress({ title: `Copying to ${target.path}`, done, total: 0, event: { bytesDone: done } });
  };
  for await (const { set, isPresent } of copySets(source, target, ids, {
    chain: options.chain,
    signal,
    onProgress,
  })) {
    const sentence = isPresent
      ? `Set ${set.id} is there already`
      : `Set ${set.id} is copied and verified, ${formatSize(set.lengthBytes)}`;
    output.report({ event: 'copied', set: set.id, isPresent, fileBytes: set.lengthBytes }, sentence);
  }
}

export function addRebuildCatalog(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'rebuild-catalog <store>',
    'Make the catalog of a store anew from its sets; sets whose files are missing are forgotten',
    (command) => addKeyOptions(command.positional('store', STORE)),
    (options) => run<StoreOptions>(options, rebuildCatalog),
  );
}

async function rebuildCatalog(context: CommandContext, options: StoreOptions): Promise<void> {
  const store = await openForChange(context, options);
  await store.rebuildCatalog();
  const sets = await store.list();
  context.output.report(
    { event: 'catalog', store: store.path, sets: sets.length },
    `The catalog of ${store.path} is made anew: ${sets.length} sets`,
  );
}
