/** `cowbell volume deltas`: where what is not backed up of a volume is kept a second time. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { changeDeltas } from '../../volume/index.ts';
import { absolutePath, absolutePlace, readSize, several, single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { readSpan } from '../time-arguments.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
  readonly add: readonly (string | number)[] | undefined;
  readonly remove: readonly (string | number)[] | undefined;
  readonly deltaSize: string | undefined;
  readonly keepLog: string | undefined;
}

export function addDeltas(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'deltas <volume>',
    'Give a volume that is not served other places for its deltas, its first ones, or none',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .option('add', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe:
            'Directory, block device or NBD URI that gets every change from now on; one that is a member already gets the given size; may be given again',
        })
        .option('remove', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe:
            'A place that gets none any more; what it holds stays, and may be deleted; may be given again',
        })
        .option('delta-size', {
          type: 'string',
          requiresArg: true,
          describe:
            'Room that deltas may take in each directory that is added, such as 20G; as much as there is when left out',
        })
        .option('keep-log', {
          type: 'string',
          requiresArg: true,
          describe: 'How long deltas stay after they were backed up, such as 48h; 0h for not at all',
        })
        .example('$0 volume deltas /srv/vol --add /disk2/deltas', 'From now on new data is there twice')
        .example('$0 volume deltas /srv/vol --add /disk5/deltas --remove /disk2/deltas', 'On another disk')
        .example('$0 volume deltas /srv/vol --keep-log 48h', 'Any point in time of the last two days')
        .epilogue(
          'What a volume was before its first deltas is in none: until the next backup they do not make up for a lost home.',
        ),
    (options) => run<Options>(options, deltas),
  );
}

async function deltas({ directory, clock, output }: CommandContext, options: Options): Promise<void> {
  const volume = absolutePath('The volume', options.volume, directory);
  const size = single('--delta-size', options.deltaSize);
  const keepLog = single('--keep-log', options.keepLog);
  const places = (given: Options['add']): string[] =>
    several(given).map((place) => absolutePlace(place, directory));
  const [add, remove] = [places(options.add), places(options.remove)];
  if (add.length === 0 && size !== undefined)
    throw new UsageError('--delta-size is of places that are added, and there is no --add');
  if (add.length === 0 && remove.length === 0 && keepLog === undefined)
    throw new UsageError('Nothing is to be changed, wanted --add, --remove or --keep-log');
  const bytesMax = size === undefined ? undefined : readSize('--delta-size', size);
  const after = await changeDeltas(
    volume,
    {
      add: add.map((place) => ({ place, ...(bytesMax === undefined ? {} : { bytesMax }) })),
      remove,
      ...(keepLog === undefined ? {} : { keepLogMs: readSpan('--keep-log', keepLog) }),
    },
    clock,
  );
  const lines = (after?.places ?? []).map(
    (one) => `${one.place}${one.bytesMax === undefined ? '' : ` (${formatSize(one.bytesMax)})`}`,
  );
  output.report(
    { event: 'deltas', volume, places: after?.places ?? [], keepLogMs: after?.keepLogMs ?? 0 },
    lines.length === 0 ? `${volume} has no deltas` : `${volume} has its deltas in ${lines.join(' and ')}`,
  );
}
