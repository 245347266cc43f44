/** `cowbell store prune`: removes what a policy does not keep, merging what kept sets need of it. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import {
  isEmptyPolicy,
  prune,
  type PruneResult,
  type RetentionPolicy,
  type StoredSet,
} from '../../blockset/index.ts';
import { single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions } from '../key-options.ts';
import { table } from '../output.ts';
import { openForChange, openStore, STORE, type StoreOptions } from '../store-options.ts';
import { refusal } from './store-merge.ts';

interface PruneOptions extends StoreOptions {
  readonly volume: string | undefined;
  readonly dryRun: boolean;
  readonly keepLast: number | undefined;
  readonly keepHourly: number | undefined;
  readonly keepDaily: number | undefined;
  readonly keepWeekly: number | undefined;
  readonly keepMonthly: number | undefined;
  readonly keepYearly: number | undefined;
}

const RULES = ['Last', 'Hourly', 'Daily', 'Weekly', 'Monthly', 'Yearly'] as const;

export function addPrune(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  const keep = (describe: string) => ({ type: 'number', requiresArg: true, describe }) as const;
  return parser.command(
    'prune <store>',
    'Remove the sets that a policy does not keep; what kept ones need of them is merged first',
    (command) =>
      addKeyOptions(command.positional('store', STORE))
        .option('keep-last', keep('Keep so many of the newest sets of each volume'))
        .option('keep-hourly', keep('Keep the newest set of so many hours that have one'))
        .option('keep-daily', keep('... of so many days (UTC)'))
        .option('keep-weekly', keep('... of so many weeks'))
        .option('keep-monthly', keep('... of so many months'))
        .option('keep-yearly', keep('... of so many years'))
        .option('volume', {
          type: 'string',
          requiresArg: true,
          describe: 'Only sets of this volume id or name',
        })
        .option('dry-run', {
          type: 'boolean',
          default: false,
          describe: 'Tell what would be done, and do nothing',
        })
        .example('$0 store prune /backup/store --keep-daily 7 --keep-weekly 4 --keep-monthly 12', ''),
    (options) => run<PruneOptions>(options, pruneStore),
  );
}

async function pruneStore(context: CommandContext, options: PruneOptions): Promise<void> {
  const { output, signal } = context;
  const policy = policyOf(options);
  const volume = single('--volume', options.volume);
  const store = await (options.dryRun ? openStore : openForChange)(context, options);
  const sets = await store.list();
  const wish = { policy, ...(volume === undefined ? {} : { volume }) };
  const { plan } = await prune(store, { ...wish, dryRun: true });
  reportPlan(context, plan, sets);
  if (options.dryRun) return;
  const byId = new Map(sets.map((set) => [set.id, set]));
  // An upper bound: what several sets have of a track is merged once.
  const total = plan.merges.flat().reduce((sum, id) => sum + 2 * contentBytes(byId.get(id)), 0);
  let done = 0;
  const onProgress = (bytes: number): void => {
    done += bytes;
    output.progress({
      title: `Pruning ${store.path}`,
      done,
      total,
      event: { bytesDone: done, bytesTotal: total },
    });
  };
  reportDone(context, await prune(store, { ...wish, signal, onProgress }));
}

function policyOf(options: PruneOptions): RetentionPolicy {
  const policy = Object.fromEntries(
    RULES.flatMap((rule) => {
      const count: unknown = options[`keep${rule}`];
      if (count === undefined) return [];
      if (typeof count === 'number' && Number.isSafeInteger(count) && count >= 0)
        return [[`keep${rule}`, count]];
      throw new UsageError(
        `--keep-${rule.toLowerCase()} is '${JSON.stringify(count)}', wanted a whole number, once`,
      );
    }),
  );
  if (!isEmptyPolicy(policy)) return policy;
  throw new UsageError('No rule keeps a set, wanted at least one such as --keep-daily 7');
}

function contentBytes(set: StoredSet | undefined): number {
  if (set?.header === undefined || set.counters === undefined) return 0;
  return (set.counters.tracks - set.counters.zeroTracks) * set.header.trackSizeBytes;
}

function reportPlan(context: CommandContext, plan: PruneResult['plan'], sets: readonly StoredSet[]): void {
  const reasons = new Map(plan.kept.map((kept) => [kept.set.id, kept.reasons]));
  const going = new Set(plan.going);
  const merges = new Map(plan.merges.map((ids) => [ids[0] ?? '', ids]));
  const rows = sets
    .filter(({ id }) => reasons.has(id) || going.has(id))
    .map((set) => {
      const why = reasons.get(set.id);
      const count = merges.get(set.id)?.length ?? 0;
      const merged = count > 0 ? `, merged with the ${count - 1} before it` : '';
      const fate = why === undefined ? 'remove' : `keep: ${why.join(', ')}${merged}`;
      const created = set.header === undefined ? '?' : new Date(set.header.createdMs).toISOString();
      return [set.id, set.header?.volumeName ?? '?', created, fate];
    });
  const kept = plan.kept.map(({ set, reasons: why }) => ({
    set: set.id,
    point: set.header?.point ?? null,
    reasons: why,
  }));
  context.output.report(
    { event: 'plan', kept, merges: plan.merges, going: plan.going },
    ...table(['SET', 'VOLUME', 'CREATED', ''], rows),
  );
}

function reportDone(context: CommandContext, { merged, removed, refused }: PruneResult): void {
  const freed = removed.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  context.output.report(
    {
      event: 'pruned',
      merged,
      removed: removed.map(({ id }) => id),
      bytesFreed: freed,
      refused: refused.map(refusal),
    },
    `Removed ${removed.length} sets of ${formatSize(freed)}, merged ${merged.length}`,
    ...refused.map(({ message }) => `  ${message}`),
  );
}
