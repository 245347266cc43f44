/** `cowbell recover`: a lost volume serves again at once, and is filled from its backup side behind its clients. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { createDeviceRegistry, type PreparedRecovery, prepareRecovery, Serving } from '../../daemon/index.ts';
import { absolutePath, absolutePlace, isUri, readRange, readSize, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addDeltaOptions, type DeltaOptions, logsOf } from '../delta-options.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';
import { aborted, addListenOptions, listenersOf, type ListenOptions, tlsOf } from '../listen-options.ts';
import { takeStartedReader } from '../started-reader.ts';
import { mediumFeedPath, storeReaderPath, workerPath } from '../worker-path.ts';

interface Options extends GlobalOptions, KeyOptions, ListenOptions, DeltaOptions {
  readonly store: string;
  readonly set: string;
  readonly volume: string;
  readonly mirror: string | undefined;
  readonly home: string | undefined;
  readonly trackSize: string | undefined;
  readonly range: string | readonly string[] | undefined;
  readonly first: string | readonly string[] | undefined;
  readonly rate: string | undefined;
  readonly asCopy: boolean;
  readonly again: boolean;
}

/** Stands for the set where the backup side is no store. */
const LIVE = 'live';

export const addRecover: AddCommand = (parser, run) =>
  parser.command(
    'recover <store> <set> <volume>',
    'Serve a lost volume again at once, and restore it behind its clients',
    (command) =>
      addDeltaOptions(addRecoveryOptions(addListenOptions(addKeyOptions(command))), 'the lost volume')
        .positional('store', {
          type: 'string',
          demandOption: true,
          describe: 'Directory of the store, or the NBD URI of a live backup side',
        })
        .positional('set', {
          type: 'string',
          demandOption: true,
          describe: `Set id or unique prefix, or latest, or latest:<volume id or name>; ${LIVE} where the backup side is an NBD URI`,
        })
        .positional('volume', {
          type: 'string',
          demandOption: true,
          describe:
            'Directory of the volume: a new one, or that of the volume whose home is lost, or one under recovery already',
        })
        .example(
          '$0 recover /backup/store latest:vol /srv/vol',
          'Serve vol again, in its old directory or a new one',
        )
        .example(
          '$0 recover nbd://10.0.0.2/vol live /srv/vol --mirror nbd://10.0.0.2/vol',
          'From a live backup side, which gets every write too',
        )
        .example('$0 recover /backup/store 01K3 /srv/vol --range 1G+64M', 'Only what a bad disk has lost')
        .example(
          '$0 recover /backup/store latest:vol /srv/vol --delta /disk2/deltas --delta /disk3/deltas',
          'With everything since the backup',
        ),
    (options) => run<Options>(options, recover),
  );

/** What is special to a recovery. */
function addRecoveryOptions<T>(command: Argv<T>) {
  return command
    .option('mirror', {
      type: 'string',
      requiresArg: true,
      describe:
        'NBD URI, file or device that gets every write too, acknowledged when both have it; it may be the backup side itself',
    })
    .option('home', {
      type: 'string',
      requiresArg: true,
      describe:
        'Where a volume that is made has its home; default in its directory, or where the lost one was',
    })
    .option('track-size', {
      type: 'string',
      requiresArg: true,
      describe: 'Of a volume recovered from a live backup side; default 64K',
    })
    .option('range', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe:
        'Only these bytes are lost, <offset>+<length> in whole tracks, of a volume that is there; may be given again',
    })
    .option('first', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'Bytes that are restored before the rest, <offset>+<length>; may be given again',
    })
    .option('rate', {
      type: 'string',
      requiresArg: true,
      describe:
        'Bytes a second that are restored behind at the most, such as 100M; clients never wait for it',
    })
    .option('again', {
      type: 'boolean',
      default: false,
      describe: 'Recover the same ranges once more: what was written to them since is lost',
    })
    .option('as-copy', {
      type: 'boolean',
      default: false,
      describe:
        'Make another volume with an id of its own, whose first backup is a full one; without it the volume is the lost one again',
    });
}

async function recover(context: CommandContext, options: Options): Promise<void> {
  const { output, signal, clock, directory } = context;
  const startedMs = clock.monotonicMs();
  const wanted = rangesOf('--first', options.first);
  const prepared = await prepare(context, options);
  const { volume, set = null, how, putAside = null } = prepared;
  const first = withinVolume(wanted, prepared, output);
  if (putAside !== null) output.warn(`What was left of the lost volume is in ${putAside}`);
  if (how === 'resumed') warnOfIgnored(context, options, volume);
  let serving: Serving;
  try {
    serving = await Serving.start({
      volumes: [absolutePath('The volume', options.volume, directory)],
      listeners: listenersOf(context, options),
      tls: tlsOf(options, directory),
      readOnly: false,
      clock,
      workerPath: workerPath(),
      readerPath: storeReaderPath(),
      feedPath: mediumFeedPath(),
      recovery: {
        openSide: prepared.openSide,
        first: [...first, ...prepared.recent],
        rateBytesPerSecond: rateOf(options),
        onProgress: (_name, { missingTracks, trackCount }) => {
          const done = trackCount - missingTracks;
          output.progress({
            title: `Recovering ${volume}`,
            done,
            total: trackCount,
            event: { volume, missingTracks, trackCount },
          });
        },
        onRecovered: () => {
          const durationMs = Math.round(clock.monotonicMs() - startedMs);
          output.report(
            { event: 'recovered', volume, set, durationMs },
            `Recovered ${volume}: everything is in its home, ${(durationMs / 1000).toFixed(1)} s`,
          );
        },
      },
      warn: (sentence) => output.warn(sentence),
    });
  } catch (error) {
    await prepared.close();
    throw error;
  }
  try {
    output.report({ event: 'recovering', volume, set, how, putAside }, describe(prepared));
    for (const uri of serving.uris) output.report({ event: 'ready', uri }, `ready ${uri}`);
    await aborted(signal);
  } finally {
    await serving.stop();
  }
}

/** A recovery that goes on is what it was begun as. */
function warnOfIgnored({ output }: CommandContext, options: Options, volume: string): void {
  const given = Object.entries({
    '--range': options.range,
    '--mirror': options.mirror,
    '--home': options.home,
    '--track-size': options.trackSize,
    '--as-copy': options.asCopy || undefined,
  }).flatMap(([option, value]) => (value === undefined ? [] : [option]));
  if (given.length === 0) return;
  output.warn(
    `${volume} is under recovery already and goes on as it began, without regard to ${given.join(', ')}`,
  );
}

function describe({ volume, set, how, sizeBytes }: PreparedRecovery): string {
  const from = set === undefined ? 'its live backup side' : `set ${set}`;
  const what = how === 'in-part' ? `ranges of ${volume}` : `${volume}, ${formatSize(sizeBytes)},`;
  return `Recovering ${what} from ${from}${how === 'resumed' ? ', where it was' : ''}`;
}

async function prepare(context: CommandContext, options: Options): Promise<PreparedRecovery> {
  const { directory, clock, output, signal } = context;
  const isLive = isUri(options.store);
  if (isLive !== (options.set === LIVE)) {
    const wanted = isLive
      ? `wanted ${LIVE} with the URI ${options.store}`
      : 'wanted a set of the store, such as latest';
    throw new UsageError(`The set is '${options.set}', ${wanted}`);
  }
  const mirror = single('--mirror', options.mirror);
  const home = single('--home', options.home);
  const trackSize = single('--track-size', options.trackSize);
  const storePath = isLive ? '' : absolutePath('The store', options.store, directory);
  const logs = logsOf(options, directory);
  if (logs !== undefined && isLive)
    throw new UsageError('--delta goes with a set of a store, and the backup side is live');
  // Checked before anything is opened.
  rateOf(options);
  if (options.again && several(options.range).length === 0)
    throw new UsageError('--again is given without --range, wanted both');
  return await prepareRecovery({
    from: isLive ? { uri: options.store } : { storePath, set: options.set, logs },
    ...(isLive ? {} : await storeKey(context, storePath, options)),
    directory: absolutePath('The volume', options.volume, directory),
    home: home === undefined ? undefined : absolutePlace(home, directory),
    mirror: mirror === undefined ? undefined : absolutePlace(mirror, directory),
    ranges: rangesOf('--range', options.range),
    isCopy: options.asCopy,
    again: options.again,
    trackSizeBytes: trackSize === undefined ? undefined : readSize('--track-size', trackSize),
    registry: createDeviceRegistry(),
    clock,
    readerPath: storeReaderPath(),
    started: takeStartedReader(),
    warn: (sentence) => output.warn(sentence),
    signal,
  });
}

function rateOf(options: Options): number | undefined {
  const rate = single('--rate', options.rate);
  return rate === undefined ? undefined : Math.max(1, readSize('--rate', rate));
}

type Range = ReturnType<typeof readRange>;

/** Those of `--first` that begin in the volume. */
function withinVolume(
  ranges: readonly Range[],
  { volume, sizeBytes }: PreparedRecovery,
  output: CommandContext['output'],
): readonly Range[] {
  return ranges.filter(({ offsetBytes, lengthBytes }) => {
    if (offsetBytes < sizeBytes) return true;
    output.warn(`--first ${offsetBytes}+${lengthBytes} is behind the end of ${volume}, and is left out`);
    return false;
  });
}

/** @throws {UsageError} */
function rangesOf(option: string, texts: string | readonly string[] | undefined): readonly Range[] {
  return several(texts).map((text) => {
    const range = readRange(option, text);
    if (range.lengthBytes > 0) return range;
    throw new UsageError(`${option} is '${text}', wanted at least one byte`);
  });
}
