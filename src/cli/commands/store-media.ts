/** `cowbell store export|import`: sets to sequential media, and back into a store. */

import { existsSync } from 'node:fs';
import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { chainOf, Store, type StoredSet } from '../../blockset/index.ts';
import {
  exportSets,
  type ImportResult,
  importMedia,
  incompleteError,
  type OpenStore,
  recordMedia,
} from '../../media/index.ts';
import { absolutePath, several } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, storeKey } from '../key-options.ts';
import {
  addMediaOptions,
  failureTeller,
  inputsAt,
  type MediaOptions,
  outputsAt,
  readPlaces,
  STANDARD,
} from '../media-places.ts';
import { LABEL_DEFAULT, MEDIUM_SIZE, readMediumForm } from '../medium-options.ts';
import { openStore, STORE, type StoreOptions } from '../store-options.ts';

interface ExportOptions extends StoreOptions, MediaOptions {
  readonly set: readonly string[];
  readonly to: string | readonly string[];
  readonly chain: boolean;
  readonly label: string;
  readonly mediumSize: string | undefined;
  readonly overwrite: boolean;
}

interface ImportOptions extends StoreOptions, MediaOptions {
  readonly from: string | readonly string[];
}

/** Commands of `store` that work with media. */
export const addStoreMedia: AddCommand = (parser, run) => addImport(addExport(parser, run), run);

function addExport(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'export <store> <set..>',
    'Write sets to sequential media: files, pipes or tapes, as tar archives',
    (command) =>
      addKeyOptions(addMediaOptions(command))
        .positional('store', STORE)
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
          describe: 'Where media go, in turn: a new file ({n} is the number), a pipe, a device, or -',
        })
        .option('chain', { type: 'boolean', default: false, describe: 'With all sets that they build on' })
        .option('label', {
          type: 'string',
          default: LABEL_DEFAULT,
          requiresArg: true,
          describe: 'Name of the media',
        })
        .option('medium-size', MEDIUM_SIZE)
        .option('overwrite', { type: 'boolean', default: false, describe: 'Replace files that exist' })
        .example('$0 store export /backup/store latest --chain --to /mnt/usb/backup.tar', '')
        .example('$0 store export /backup/store latest --to - | tar -tv', 'List what a medium holds')
        .example('$0 store export /backup/store latest --to /dev/nst0 --load ./load-tape', 'To tapes'),
    (options) => run<ExportOptions>(options, exportToMedia),
  );
}

function addImport(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'import <store>',
    'Take sets from sequential media into a store, which is made where there is none',
    (command) =>
      addKeyOptions(addMediaOptions(command))
        .positional('store', STORE)
        .option('from', {
          type: 'string',
          requiresArg: true,
          demandOption: true,
          describe: 'Where media are, in any order: a file, a pipe, a device, or -',
        })
        .example('$0 store import /backup/store --from backup.tar --from backup.tar.2', ''),
    (options) => run<ImportOptions>(options, importFromMedia),
  );
}

async function exportToMedia(context: CommandContext, options: ExportOptions): Promise<void> {
  const { output, clock, signal, directory } = context;
  const path = absolutePath('The store', options.store, directory);
  const places = readPlaces('--to', several(options.to), directory);
  const isPiped = places.includes(STANDARD);
  if (isPiped && output.json) throw new UsageError('--to - and --json both want standard output, wanted one');
  const { label, sizeBytes: mediumSizeBytes } = readMediumForm(options);
  const store = await openStore(context, options);
  const sets = await chosenSets(store, several(options.set), options.chain);
  const result = await exportSets(store, sets, {
    clock,
    signal,
    label,
    ...(mediumSizeBytes === undefined ? {} : { mediumSizeBytes }),
    openOutput: outputsAt(context, places, options),
    onMedium: (catalog) => recordMedia(path, catalog),
    onFailure: failureTeller(context, options, { action: 'export', label, store: path }),
    onProgress: ({ bytesDone: done, bytesTotal: total, medium }) => {
      output.progress({ title: `Exporting to ${label}`, done, total, event: { bytesDone: done, medium } });
    },
  });
  const media = result.catalog.media.length;
  const sentence = `Exported ${counted(sets.length, 'set')} to ${counted(media, 'medium', 'media')} of ${label}: ${formatSize(result.bytesWritten)}`;
  const { writing } = result.catalog;
  if (isPiped) output.warn(sentence);
  else {
    const event = {
      event: 'exported',
      writing,
      label,
      media,
      sets: result.sets,
      bytesWritten: result.bytesWritten,
    };
    output.report(event, sentence);
  }
}

/** The sets that are named, each once, oldest first; with their chains. */
async function chosenSets(
  store: Store,
  selectors: readonly string[],
  withChain: boolean,
): Promise<readonly StoredSet[]> {
  const all = await store.list();
  const chosen = new Set<string>();
  for (const selector of selectors) {
    const { id } = await store.find(selector);
    for (const set of withChain ? chainOf(all, id) : [{ id }]) chosen.add(set.id);
  }
  return all.filter(({ id }) => chosen.has(id));
}

async function importFromMedia(context: CommandContext, options: ImportOptions): Promise<void> {
  const { output, clock, signal, directory } = context;
  const path = absolutePath('The store', options.store, directory);
  const places = readPlaces('--from', several(options.from), directory);
  const title = `Importing into ${path}`;
  const openTarget: OpenStore = async (from) => {
    const key = await storeKey(context, path, options);
    if (existsSync(path)) return await Store.open(path, key);
    return await Store.init(path, { clock, ...key, ...(from === undefined ? {} : { lost: from }) });
  };
  const result = await importMedia(openTarget, {
    clock,
    signal,
    openInput: inputsAt(context, places, options),
    onFailure: failureTeller(context, options, { action: 'import', label: 'the media', store: path }),
    onProgress: ({ framesDone: done, framesTotal: total, medium }) => {
      output.progress({ title, done, total, event: { framesDone: done, framesTotal: total, medium } });
    },
  });
  if (result.catalog !== undefined) await recordMedia(path, result.catalog);
  reportImport(context, path, result);
}

function reportImport({ output }: CommandContext, store: string, result: ImportResult): void {
  const { writing, label, imported, skipped, missingMedia, findings } = result;
  for (const finding of findings) output.warn(finding);
  const incomplete = result.incomplete.map(({ set, missingTracks, ...rest }) => ({
    set,
    missingTracks: missingTracks?.toArray() ?? null,
    ...rest,
  }));
  const known = skipped.length === 0 ? '' : `, ${counted(skipped.length, 'set')} were there already`;
  output.report(
    { event: 'imported', store, writing, label, imported, skipped, incomplete, missingMedia, findings },
    `Imported ${counted(imported.length, 'set')} from ${label} into ${store}${known}`,
  );
  const error = incompleteError(result);
  if (error !== undefined) throw error;
}

function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
