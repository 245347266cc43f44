/** `cowbell volume rebuild`: the home of a volume again, from the newest backup and the delta logs. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { type Blueprint, createDeviceRegistry, rebuildVolume } from '../../daemon/index.ts';
import { absolutePath, absolutePlace, several, single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';
import { readInstant } from '../time-arguments.ts';

interface Options extends GlobalOptions, KeyOptions {
  readonly volume: string;
  readonly store: string | undefined;
  readonly home: string | undefined;
  readonly delta: string | readonly (string | number)[] | undefined;
  readonly at: string | undefined;
  readonly dryRun: boolean;
  readonly yes: boolean;
}

export function addRebuild(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'rebuild <volume>',
    'Make the lost home of a volume again from the newest backup and its delta logs, while it is not served',
    (command) =>
      addKeyOptions(command)
        .positional('volume', {
          type: 'string',
          demandOption: true,
          describe: 'Directory of the volume; where it is lost too it is made again, and --delta is needed',
        })
        .option('store', {
          type: 'string',
          requiresArg: true,
          describe: 'Directory of the store with its backups; not needed where everything is in the logs',
        })
        .option('home', {
          type: 'string',
          requiresArg: true,
          describe: 'File, block device or NBD URI for the new home; where the old one was when left out',
        })
        .option('delta', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe: 'Place with its delta logs, in place of those that the volume names; may be given again',
        })
        .option('at', {
          type: 'string',
          requiresArg: true,
          describe:
            'As it was after the last write before this time, such as 2030-01-31T18:00:00, in UTC; see volume history. What was written since is undone',
        })
        .option('dry-run', {
          type: 'boolean',
          default: false,
          describe: 'Show what would come from where, and write nothing',
        })
        .option('yes', {
          type: 'boolean',
          default: false,
          describe: 'Write over a home that is there, and undo what was written since --at',
        })
        .example('$0 volume rebuild /srv/vol --store /backup/store --dry-run', 'What would come from where?')
        .example('$0 volume rebuild /srv/vol --store /backup/store', '')
        .example(
          '$0 volume rebuild /srv/vol --store /backup/store --at 2030-01-31T18:00 --yes',
          'As it was then',
        )
        .example(
          '$0 volume rebuild /srv/vol --store /backup/store --delta /disk2/deltas',
          'Where its directory is lost too',
        ),
    (options) => run<Options>(options, rebuild),
  );
}

async function rebuild(context: CommandContext, options: Options): Promise<void> {
  const { output, clock, signal, directory } = context;
  const startedMs = clock.monotonicMs();
  const store = single('--store', options.store);
  const storePath = store === undefined ? undefined : absolutePath('--store', store, directory);
  const home = single('--home', options.home);
  const at = single('--at', options.at);
  const deltas = several(options.delta).map((place) => absolutePlace(place, directory));
  const { blueprint, bytesWritten, tracksUndone } = await rebuildVolume({
    directory: absolutePath('The volume', options.volume, directory),
    storePath,
    ...(storePath === undefined ? {} : await storeKey(context, storePath, options)),
    home: home === undefined ? undefined : absolutePlace(home, directory),
    ...(deltas.length === 0 ? {} : { deltas }),
    beforeMs: at === undefined ? undefined : readInstant('--at', at),
    dryRun: options.dryRun,
    registry: createDeviceRegistry(),
    clock,
    signal,
    warn: (sentence) => output.warn(sentence),
    onBlueprint: (planned) => {
      output.report({ event: 'blueprint', ...planned }, ...linesOf(planned));
      if (!options.dryRun && !options.yes) assertHarmless(planned);
    },
    onProgress: ({ bytesDone: done, bytesTotal: total }) =>
      output.progress({
        title: `Rebuilding ${options.volume}`,
        done,
        total,
        bytes: done,
        event: { bytesDone: done, bytesTotal: total },
      }),
  });
  if (options.dryRun) return;
  const durationMs = Math.round(clock.monotonicMs() - startedMs);
  const { volume, volumeId } = blueprint;
  output.report(
    { event: 'rebuilt', volume, volumeId, home: blueprint.home, bytesWritten, tracksUndone, durationMs },
    `Rebuilt ${volume} in ${blueprint.home}: ${formatSize(bytesWritten)} written, ${(durationMs / 1000).toFixed(1)} s`,
  );
}

/** @throws {UsageError} */
function assertHarmless({ isInPlace, home, tracksUndone }: Blueprint): void {
  if (isInPlace)
    throw new UsageError(
      `The home ${home} is there, and would be written over where it differs; say --yes, or name another with --home`,
    );
  if (tracksUndone > 0)
    throw new UsageError(
      `Later changes of ${tracksUndone} tracks would be undone; say --yes, or leave --at away`,
    );
}

function linesOf(blueprint: Blueprint): readonly string[] {
  const { volume, home, set, sets, beforeMs, tracks, bytes, tracksUndone } = blueprint;
  const when = beforeMs === null ? '' : ` as it was before ${new Date(beforeMs).toISOString()}`;
  const base = set === null ? 'the beginning of its logs' : `set ${set}`;
  const from = sets.length === 0 ? 'the store' : `the store (sets ${sets.join(', ')})`;
  const rows: readonly (readonly [string, keyof Blueprint['tracks']])[] = [
    ['the delta logs', 'deltas'],
    ['the old home', 'home'],
    [from, 'store'],
    [`${from} and the delta logs`, 'storeAndDeltas'],
    ['zeroes', 'zero'],
  ];
  return [
    `Volume ${volume}${when} from ${base}, in ${home}:`,
    ...rows.flatMap(([what, share]) =>
      tracks[share] === 0 ? [] : [`  ${formatSize(bytes[share])} in ${tracks[share]} tracks from ${what}`],
    ),
    ...(tracksUndone === 0 ? [] : [`  later changes of ${tracksUndone} tracks are undone`]),
  ];
}
