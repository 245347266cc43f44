/** `cowbell fill`: a volume under recovery takes what it lacks from a medium that has arrived. */

import { reachVolume } from '../../daemon/index.ts';
import { absolutePath, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { LOAD, readPlaces, STANDARD } from '../media-places.ts';
import { UsageError } from '../exit.ts';
import { mediumFeedPath, storeReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
  readonly medium: readonly string[];
  readonly set: string;
  readonly load: string | undefined;
}

export const addFill: AddCommand = (parser, run) =>
  parser.command(
    'fill <volume> <medium..>',
    'Restore what a volume under recovery still lacks from a medium that has arrived',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('medium', {
          type: 'string',
          array: true,
          demandOption: true,
          describe:
            'Media that were exported from a store or backed up to, in any order: files, pipes, devices',
        })
        .option('set', {
          type: 'string',
          requiresArg: true,
          default: 'latest',
          describe: 'Set id or unique prefix, or latest, or latest:<volume id or name>',
        })
        .option('load', LOAD)
        .example('$0 fill /srv/vol /media/usb/vol.tar', 'Newer content of the volume stays')
        .epilogue(
          'The set must hold the point that the volume is recovered from, or a point of its live backup side that was fixed after the recovery began.',
        ),
    (options) => run<Options>(options, fill),
  );

async function fill(context: CommandContext, options: Options): Promise<void> {
  const { output, clock, directory } = context;
  const volume = absolutePath('The volume', options.volume, directory);
  const places = readPlaces('The medium', options.medium, directory);
  if (places.includes(STANDARD))
    throw new UsageError(`A medium is ${STANDARD}, wanted a path: the serving process reads it`);
  const load = single('--load', options.load);
  const access = await reachVolume(volume, {
    activity: 'fill',
    clock,
    warn: (sentence) => output.warn(sentence),
    readerPath: storeReaderPath(),
    feedPath: mediumFeedPath(),
  });
  try {
    const set = single('--set', options.set) ?? 'latest';
    const outcome = await access.fillFromMedia(
      { places, set, ...(load === undefined ? {} : { load }) },
      {
        session: (session) => context.signal.addEventListener('abort', () => void access.cancel(session)),
        progress: ({ tracksDone, tracksTotal }) =>
          output.progress({
            title: `Filling ${volume}`,
            done: tracksDone,
            total: tracksTotal,
            event: { volume, tracksDone, tracksTotal },
          }),
        warning: (sentence) => output.warn(sentence),
      },
    );
    const { tracks, missingTracks } = outcome;
    output.report(
      { event: 'filled', ...outcome },
      `Filled ${outcome.volume} from set ${outcome.set}: ${tracks} tracks taken, ${missingTracks} are missing still`,
    );
  } finally {
    await access.close();
  }
}
