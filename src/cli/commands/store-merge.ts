/** `cowbell store merge`: a synthetic full of a set and all it builds on, made without the volume. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { chainOf, mergeChain, type RefusedSet, type Store, StoreError } from '../../blockset/index.ts';
import { single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions } from '../key-options.ts';
import { openForChange, SET, STORE, type StoreOptions } from '../store-options.ts';
import { parseInstant } from '../time-arguments.ts';

interface MergeOptions extends StoreOptions {
  readonly set: string | undefined;
  readonly until: string | undefined;
  readonly volume: string | undefined;
  readonly keepSources: boolean;
}

export function addMerge(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'merge <store> [set]',
    'Merge a set and all it builds on into a full set, without the volume; its sources go once it is verified',
    (command) =>
      addKeyOptions(command.positional('store', STORE).positional('set', SET))
        .option('until', {
          type: 'string',
          requiresArg: true,
          describe: 'The set to merge up to, or a time (UTC): the newest set not after it',
        })
        .option('volume', {
          type: 'string',
          requiresArg: true,
          describe: 'Volume id or name, where the store has several and no set is given',
        })
        .option('keep-sources', { type: 'boolean', default: false, describe: 'Remove nothing' })
        .example('$0 store merge /backup/store latest:vol', '')
        .example('$0 store merge /backup/store --volume vol --until 2026-01-31', ''),
    (options) => run<MergeOptions>(options, merge),
  );
}

async function merge(context: CommandContext, options: MergeOptions): Promise<void> {
  const { output, signal } = context;
  const store = await openForChange(context, options);
  const set = await wantedSet(store, options);
  const chain = await store.chain(set);
  // Each byte is written once and compared once.
  const total = 2 * chain.tracks().size * chain.trackSizeBytes;
  await chain.close();
  let done = 0;
  const onProgress = (bytes: number): void => {
    done += bytes;
    output.progress({
      title: `Merging ${store.path}`,
      done,
      total,
      event: { bytesDone: done, bytesTotal: total },
    });
  };
  const { merged, removed, refused } = await mergeChain(store, set, {
    signal,
    onProgress,
    keepSources: options.keepSources,
  });
  if (merged === undefined) {
    output.report(
      { event: 'merged', set, sources: [], removed: [], refused: [] },
      `Set ${set} is a full set already`,
    );
    return;
  }
  const event = {
    event: 'merged',
    ...merged,
    removed: removed.map(({ id }) => id),
    refused: refused.map(refusal),
  };
  const stored = formatSize(merged.bytesStored);
  const how = merged.isReused ? 'stood for' : 'is made of';
  output.report(
    event,
    `Full set ${merged.set} ${how} ${merged.sources.length} sets, ${stored} stored, verified; ${removed.length} of them removed`,
    ...refused.map(({ message }) => `  ${message}`),
  );
}

/** A set that stays, as programs see it. */
export function refusal({ set, reason, message }: RefusedSet): Readonly<Record<string, unknown>> {
  return { set: set.id, reason, message };
}

async function wantedSet(store: Store, options: MergeOptions): Promise<string> {
  const until = single('--until', options.until);
  const volume = single('--volume', options.volume);
  if (options.set !== undefined && (until !== undefined || volume !== undefined)) {
    throw new UsageError('A set is given, wanted no --until and no --volume');
  }
  const latest = volume === undefined ? 'latest' : `latest:${volume}`;
  const instantMs = until === undefined ? undefined : parseInstant(until);
  if (instantMs === undefined) return (await store.find(options.set ?? until ?? latest)).id;
  const newest = await store.find(latest);
  const chain = chainOf(await store.list(), newest.id);
  const found = chain.find(({ header }) => header.createdMs <= instantMs);
  if (found !== undefined) return found.id;
  const message = `No set in the chain of ${newest.id} is as old as ${until}`;
  throw new StoreError('unknown-set', message, {
    selector: until ?? '',
    candidates: chain.map(({ id }) => id),
  });
}
