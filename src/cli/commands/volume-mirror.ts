/** `cowbell volume scrub|replace`: the mirrors of a volume's home, served or not. */

import type { Argv } from 'yargs';
import { CorruptionError, formatSize } from '../../base/index.ts';
import { reachVolume, type VolumeAccess } from '../../daemon/index.ts';
import { absolutePath, absolutePlace, readSize, single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { storeReaderPath } from '../worker-path.ts';

interface MirrorOptions extends GlobalOptions {
  readonly volume: string;
  readonly rate: string | undefined;
}

interface ScrubOptions extends MirrorOptions {
  readonly repair: boolean;
}

interface ReplaceOptions extends MirrorOptions {
  readonly member: string;
  readonly place: string;
}

const RATE = {
  type: 'string',
  requiresArg: true,
  describe: 'Bytes read in a second at most, such as 100M; what the disks give when left out',
} as const;

export function addScrub(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'scrub <volume>',
    'Compare the members of the mirrors of a volume, also while it is served. Exit status 3 where they differ and are not repaired',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .option('repair', {
          type: 'boolean',
          default: false,
          describe:
            'Where members differ, write what the first current one holds over the others; in the order of volume show',
        })
        .option('rate', RATE)
        .example('$0 volume scrub /srv/vol --rate 50M', ''),
    (options) => run<ScrubOptions>(options, scrub),
  );
}

export function addReplace(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'replace <volume> <member> <place>',
    'Put another file, device or NBD export in the place of a member of a mirror, and bring it everything',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('member', {
          type: 'string',
          demandOption: true,
          describe: 'The member as volume show names it',
        })
        .positional('place', {
          type: 'string',
          demandOption: true,
          describe: 'The new one; a missing file is made. The same again where another disk is there now',
        })
        .option('rate', RATE)
        .example('$0 volume replace /srv/vol /dev/sdb /dev/sdd', ''),
    (options) => run<ReplaceOptions>(options, replace),
  );
}

async function scrub(context: CommandContext, options: ScrubOptions): Promise<void> {
  const { output } = context;
  const { repair } = options;
  const report = await withVolume(context, options, 'volume scrub', (access, directory) =>
    access.scrub(
      { repair, ...rateOf(options) },
      eventsOf(context, access, `Comparing ${directory}`, directory),
    ),
  );
  const { volume, bytesCompared, tracks, repairedTracks, skippedMirrors, differences } = report;
  for (const difference of differences) {
    const { first, places, reference, unreadable, repaired } = difference;
    const what =
      unreadable === undefined ? `differs from that on ${reference}` : `cannot be read (${unreadable})`;
    const state = repaired ? ', and was repaired' : '';
    output.report(
      { event: 'difference', ...difference },
      `Track ${first} on ${places.join(', ')} ${what}${state}`,
    );
  }
  if (skippedMirrors > 0)
    output.warn(
      `${skippedMirrors} mirrors of volume ${volume} have one current member, and were not compared`,
    );
  const event = { event: 'scrub', volume, bytesCompared, tracks, repairedTracks, skippedMirrors };
  const found =
    tracks === 0 ? 'all copies are equal' : `${tracks} tracks differed, ${repairedTracks} are repaired`;
  const sentence = `Compared ${formatSize(bytesCompared)} of volume ${volume}: ${found}`;
  if (tracks === repairedTracks) {
    output.report(event, sentence);
    return;
  }
  output.report(event);
  const message = `Copies of volume ${volume} differ in ${tracks - repairedTracks} tracks; volume scrub --repair makes them equal to the first`;
  throw new CorruptionError(message, { where: differences[0]?.places[0] ?? volume });
}

async function replace(context: CommandContext, options: ReplaceOptions): Promise<void> {
  const member = absolutePlace(options.member, context.directory);
  const place = absolutePlace(options.place, context.directory);
  const outcome = await withVolume(context, options, 'volume replace', (access, directory) =>
    access.replace(
      { member, place, ...rateOf(options) },
      eventsOf(context, access, `Rebuilding ${place}`, directory),
    ),
  );
  const { volume, bytesWritten } = outcome;
  context.output.report(
    { event: 'replaced', ...outcome },
    `Replaced ${member} of volume ${volume} by ${place}, ${formatSize(bytesWritten)} copied`,
  );
}

async function withVolume<T>(
  context: CommandContext,
  options: MirrorOptions,
  activity: string,
  body: (access: VolumeAccess, directory: string) => Promise<T>,
): Promise<T> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const access = await reachVolume(directory, {
    activity,
    clock: context.clock,
    warn: (sentence) => context.output.warn(sentence),
    readerPath: storeReaderPath(),
  });
  try {
    return await body(access, directory);
  } finally {
    await access.close();
  }
}

function rateOf(options: MirrorOptions): { readonly rateBytesPerSecond?: number } {
  const rate = single('--rate', options.rate);
  return rate === undefined ? {} : { rateBytesPerSecond: Math.max(1, readSize('--rate', rate)) };
}

function eventsOf(
  { output, signal }: CommandContext,
  access: VolumeAccess,
  title: string,
  volume: string,
): Parameters<VolumeAccess['scrub']>[1] {
  return {
    session: (session) => signal.addEventListener('abort', () => void access.cancel(session)),
    progress: ({ tracksDone, tracksTotal }) =>
      output.progress({
        title,
        done: tracksDone,
        total: tracksTotal,
        event: { volume, tracksDone, tracksTotal },
      }),
    warning: (sentence) => output.warn(sentence),
  };
}
