/** `cowbell volume create|show|grow|check`, and where its other commands are added. */

import type { Argv } from 'yargs';
import { CorruptionError, formatSize, LIMITS } from '../../base/index.ts';
import { checkVolume, createDeviceRegistry, reachVolume } from '../../daemon/index.ts';
import { DeviceError } from '../../device/index.ts';
import {
  createVolume,
  type Finding,
  FULL_POLICIES,
  type FullPolicy,
  SNAPSHOT_KINDS,
  type SnapshotKind,
  readVolumeIdentity,
  VolumeError,
} from '../../volume/index.ts';
import { absolutePath, absolutePlace, readSize, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { LAYOUT_KINDS, readHome } from '../layout-options.ts';
import { describe } from '../output.ts';
import { readSpan } from '../time-arguments.ts';
import { storeReaderPath } from '../worker-path.ts';
import { addDeltas } from './volume-deltas.ts';
import { addHistory } from './volume-history.ts';
import { addReplace, addScrub } from './volume-mirror.ts';
import { addRebuild } from './volume-rebuild.ts';

interface VolumeOptions extends GlobalOptions {
  readonly volume: string;
}

interface GrowOptions extends VolumeOptions {
  readonly size: string;
}

interface CheckOptions extends VolumeOptions {
  readonly moved: boolean;
  readonly dryRun: boolean;
}

interface CreateOptions extends VolumeOptions {
  readonly size: string;
  readonly trackSize: string | undefined;
  readonly home: string | readonly string[] | undefined;
  readonly layout: (typeof LAYOUT_KINDS)[number] | undefined;
  readonly layoutFile: string | undefined;
  readonly delta: readonly (string | number)[] | undefined;
  readonly deltaSize: string | undefined;
  readonly keepLog: string | undefined;
  readonly snapshotFull: FullPolicy | undefined;
  readonly snapshotBy: SnapshotKind | undefined;
}

export const addVolume: AddCommand = (parser, run) =>
  parser.command(
    'volume',
    'Create, show, grow, check and rebuild volumes; their mirrors, deltas and history',
    (command) =>
      ADDING.reduce<Argv<GlobalOptions>>((added, add) => add(added, run), command).demandCommand(
        1,
        'No volume command is given',
      ),
  );

const ADDING = [
  addCreate,
  addShow,
  addGrow,
  addCheck,
  addDeltas,
  addScrub,
  addReplace,
  addRebuild,
  addHistory,
] as const;

function addCreate(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'create <volume>',
    'Create a volume in a new or empty directory; it reads as zeroes unless its home existed before',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'The directory to make' })
        .option('size', { type: 'string', demandOption: true, requiresArg: true, describe: 'Such as 10G' })
        .option('track-size', {
          type: 'string',
          requiresArg: true,
          describe: `Unit of change tracking: a power of two from ${formatSize(LIMITS.trackSizeBytesMin)} to ${formatSize(LIMITS.trackSizeBytesMax)}; ${formatSize(LIMITS.trackSizeBytesDefault)} when left out`,
        })
        .option('home', {
          type: 'string',
          requiresArg: true,
          describe:
            'File, block device or NBD URI for the bytes, or a piece of one (@offset+length); a file in the directory when left out. Several with --layout',
        })
        .option('layout', {
          choices: LAYOUT_KINDS,
          describe: 'How several homes are used: one behind the other, in stripes, or each a copy of all',
        })
        .option('layout-file', {
          type: 'string',
          requiresArg: true,
          describe: 'A JSON file that lays the home out, in place of --home and --layout; see docs/homes.md',
        })
        .option('delta', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe:
            'Directory, block device or NBD URI that gets every change a second time until it is backed up; may be given several times',
        })
        .option('delta-size', {
          type: 'string',
          requiresArg: true,
          describe:
            'Room that the deltas may take in each directory, such as 20G; as much as there is when left out',
        })
        .option('keep-log', {
          type: 'string',
          requiresArg: true,
          describe:
            'How long deltas stay after they were backed up, such as 48h, for any point in time; they go at once when left out',
        })
        .option('snapshot-by', {
          choices: SNAPSHOT_KINDS,
          describe:
            'How snapshots keep what is replaced: copy it themselves, or clone the home where its filesystem shares blocks, as xfs and btrfs do; copy when left out',
        })
        .option('snapshot-full', {
          choices: FULL_POLICIES,
          describe:
            'What is done with a write whose old content snapshots need and have no room for: refuse it, or drop the oldest snapshot; refuse when left out',
        })
        .example('$0 volume create /srv/vol --size 10G', '')
        .example('$0 volume create /srv/vol --size 10G --home /dev/sdb', '')
        .example('$0 volume create /srv/vol --size 1T --layout mirror --home /dev/sdb --home /dev/sdc', '')
        .example(
          '$0 volume create /srv/vol --size 10G --delta /disk2/deltas --delta /disk3/deltas',
          'Two more copies of what is not backed up',
        ),
    (options) => run<CreateOptions>(options, create),
  );
}

function addShow(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'show <volume>',
    'Show what a volume is; see status for what it does',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .example('$0 volume show /srv/vol', ''),
    (options) => run<VolumeOptions>(options, show),
  );
}

function addGrow(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'grow <volume>',
    'Make a volume larger, also while it is served; its clients see the new size when they connect again',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .option('size', {
          type: 'string',
          demandOption: true,
          requiresArg: true,
          describe:
            'The new size, such as 20G. A home that is a file grows with it; any other must be that large already',
        })
        .example('$0 volume grow /srv/vol --size 20G', ''),
    (options) => run<GrowOptions>(options, grow),
  );
}

function addCheck(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'check <volume>',
    'Verify a volume that is not served, read it through, and repair what needs no guessing; also the way out after a failed flush. Exit status 3 where damage stays',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .option('moved', {
          type: 'boolean',
          default: false,
          describe: 'The directory was moved here, not copied: the volume keeps its id and its points',
        })
        .option('dry-run', {
          type: 'boolean',
          default: false,
          describe: 'Report only: change nothing; exit status 3 where there is damage',
        })
        .example('$0 volume check /srv/vol', '')
        .example('$0 volume check --dry-run /srv/vol', 'What would it do?'),
    (options) => run<CheckOptions>(options, check),
  );
}

async function create(context: CommandContext, options: CreateOptions): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const trackSize = single('--track-size', options.trackSize);
  const snapshotFull = single('--snapshot-full', options.snapshotFull);
  const snapshotBy = single('--snapshot-by', options.snapshotBy);
  const home = await readHome(options, context.directory);
  const sizeBytes = readSize('--size', single('--size', options.size) ?? '');
  if (home.kind === 'plain') await assertHome(home.place, sizeBytes);
  // Before anything is opened or made.
  if (home.kind === 'layout' && snapshotBy === 'clone')
    throw new UsageError('--snapshot-by clone is given with a layout, wanted a home of one file');
  const identity = await createVolume(directory, {
    sizeBytes,
    trackSizeBytes:
      trackSize === undefined ? LIMITS.trackSizeBytesDefault : readSize('--track-size', trackSize),
    ...(home.kind === 'plain' ? { home: home.place } : {}),
    ...(home.kind === 'layout'
      ? { layout: home.layout, layoutFrom: home.from, registry: createDeviceRegistry() }
      : {}),
    ...deltasOf(context, options),
    ...(snapshotFull === undefined ? {} : { snapshotFull }),
    ...(snapshotBy === undefined ? {} : { snapshotBy }),
    clock: context.clock,
  });
  context.output.report(
    { event: 'volume', ...identity },
    `Created volume ${identity.name} of ${formatSize(identity.sizeBytes)} in ${identity.directory}`,
  );
}

/** The delta store that is asked for. */
function deltasOf(
  { directory }: CommandContext,
  options: CreateOptions,
): Pick<Parameters<typeof createVolume>[1], 'deltas'> {
  const places = several(options.delta).map((place) => absolutePlace(place, directory));
  const size = single('--delta-size', options.deltaSize);
  const keepLog = single('--keep-log', options.keepLog);
  if (places.length === 0) {
    const stray = size === undefined ? keepLog && '--keep-log' : '--delta-size';
    if (stray !== undefined && stray !== '')
      throw new UsageError(`${stray} is of deltas, and there is no --delta`);
    return {};
  }
  const twice = places.find((place, index) => places.indexOf(place) !== index);
  if (twice !== undefined) throw new UsageError(`--delta names ${twice} twice: a second copy there is none`);
  const bytesMax = size === undefined ? undefined : readSize('--delta-size', size);
  return {
    deltas: {
      places: places.map((place) => ({ place, ...(bytesMax === undefined ? {} : { bytesMax }) })),
      ...(keepLog === undefined ? {} : { keepLogMs: readSpan('--keep-log', keepLog) }),
    },
  };
}

/** A home that exists must be reachable and large enough now, rather than at the first `serve`. */
async function assertHome(home: string, wantedBytes: number): Promise<void> {
  let foundBytes: number;
  try {
    const device = await createDeviceRegistry().open(home, { readOnly: true, syncName: 'home' });
    foundBytes = device.sizeBytes;
    await device.close();
  } catch (error) {
    // A file that is not there yet is made with the volume.
    if (error instanceof DeviceError && error.code === 'not-found') return;
    throw error;
  }
  if (foundBytes >= wantedBytes) return;
  const message = `Home ${home} has ${foundBytes} bytes, wanted at least the volume's ${wantedBytes}`;
  throw new VolumeError('home-unusable', message, { home });
}

async function show(context: CommandContext, options: VolumeOptions): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const identity = await readVolumeIdentity(directory);
  context.output.report({ event: 'volume', ...identity }, ...describe({ ...identity }));
}

async function grow(context: CommandContext, options: GrowOptions): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const sizeBytes = readSize('--size', single('--size', options.size) ?? '');
  const access = await reachVolume(directory, {
    activity: 'volume grow',
    clock: context.clock,
    readerPath: storeReaderPath(),
  });
  try {
    const outcome = await access.grow(sizeBytes);
    const { volume, sizeBytesBefore } = outcome;
    const [before, after] = [formatSize(sizeBytesBefore), formatSize(sizeBytes)];
    const sentence =
      sizeBytesBefore === sizeBytes
        ? `Volume ${volume} has ${after} already: nothing is changed`
        : `Grew volume ${volume} from ${before} to ${after}`;
    context.output.report({ event: 'grow', ...outcome }, sentence);
  } finally {
    await access.close();
  }
}

async function check(context: CommandContext, options: CheckOptions): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const { output, signal, clock } = context;
  const { dryRun, moved } = options;
  const { identity, findings, startedClean, clearedFailure } = await checkVolume(directory, {
    clock,
    moved,
    dryRun,
    readerPath: storeReaderPath(),
    onFinding: (finding) =>
      output.report({ event: 'finding', volume: directory, ...finding }, lineOf(finding)),
    onProgress: (done, total) => {
      signal.throwIfAborted();
      const event = { volume: directory, bytesRead: done, bytesTotal: total };
      output.progress({ title: `Checking ${directory}`, done, total, event });
    },
  });
  const left = findings.filter(({ severity, repaired }) => severity === 'damage' && !repaired);
  const outcome = {
    ...identity,
    startedClean: startedClean ?? null,
    clearedFailure: clearedFailure ?? null,
    findings: findings.length,
    damageLeft: left.length,
  };
  const event = { event: 'check', ...outcome };
  if (left[0] !== undefined) {
    output.report(event);
    throw damageOf(directory, left[0], left.length);
  }
  const cleared = clearedFailure === undefined ? '' : `; it takes writes again after: ${clearedFailure}`;
  const mended = findings.some(({ severity }) => severity === 'damage') ? ', all damage is repaired' : '';
  output.report(event, `Checked ${directory}: it reads through${mended}${cleared}`);
}

function lineOf({ where, what, how, isRepairable, repaired }: Finding): string {
  const state = repaired ? 'done: ' : isRepairable ? 'would be done: ' : '';
  return `${where}: ${what}; ${state}${how}`;
}

function damageOf(directory: string, first: Finding, count: number): CorruptionError {
  const more = count > 1 ? `, and ${count - 1} more` : '';
  const message = `Volume ${directory} is damaged: ${first.where}: ${first.what}${more}`;
  return new CorruptionError(message, { where: first.where });
}
