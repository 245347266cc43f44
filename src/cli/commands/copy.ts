/** `cowbell copy`: a volume or a snapshot onto other devices, while it is served or at rest, with no store between. */

import { formatSize } from '../../base/index.ts';
import { type CopyForecast, type CopyOutcome, type CopyParams, reachVolume } from '../../daemon/index.ts';
import { readRemapFile, requestsOf } from '../../restore/index.ts';
import {
  absolutePath,
  absolutePlace,
  readContainer,
  readSize,
  readVolumeOrSnapshot,
  several,
  single,
} from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { addContainerOptions, type ContainerOptions, readMaxWait } from '../container-options.ts';
import { UsageError } from '../exit.ts';
import { storeReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions, ContainerOptions {
  readonly volume: string;
  readonly target: readonly string[] | undefined;
  readonly remap: string | undefined;
  readonly full: boolean | undefined;
  readonly rate: string | undefined;
  readonly dryRun: boolean | undefined;
}

export const addCopy: AddCommand = (parser, run) =>
  parser.command(
    'copy <volume> [target..]',
    'Copy what a volume or a snapshot holds to other devices; repeated, only what changed',
    (command) =>
      addContainerOptions(command)
        .positional('volume', {
          type: 'string',
          demandOption: true,
          describe: 'Directory of the volume; <volume>@<snapshot> for a snapshot',
        })
        .positional('target', {
          type: 'string',
          array: true,
          describe:
            'Where it goes, in sequence: a file, made when it is missing, a block device or an NBD URI',
        })
        .option('remap', {
          type: 'string',
          requiresArg: true,
          describe: 'File that says what goes where; it names the targets where none are given',
        })
        .option('full', {
          type: 'boolean',
          describe: 'Send everything, also where the targets hold an earlier copy',
        })
        .option('rate', {
          type: 'string',
          requiresArg: true,
          describe: 'Bytes a second that are read at the most, such as 100M; clients never wait for it',
        })
        .option('dry-run', {
          type: 'boolean',
          describe: 'Tell what would be sent at most, and neither freeze nor write anything',
        })
        .example('$0 copy /srv/vol /srv/copy.raw', 'A file of its own; again, and it gets what changed')
        .example('$0 copy /srv/vol nbd://other:10809/disk --rate 100M', 'To an export of another machine')
        .example('$0 copy /srv/vol@monday /dev/sdb', 'What the snapshot monday holds')
        .example('$0 copy /srv/vol --remap plan.json', 'As plan.json says'),
    (options) => run<Options>(options, copy),
  );

async function copy(context: CommandContext, options: Options): Promise<void> {
  const { directory } = context;
  const maxWaitMs = readMaxWait(options);
  const rate = single('--rate', options.rate);
  const { volume, snapshot } = await readVolumeOrSnapshot(options.volume, directory);
  const params: CopyParams = {
    ...(await readTargets(context, options)),
    full: options.full === true,
    container: readContainer(several(options.container), directory),
    ...(snapshot === undefined ? {} : { snapshot }),
    ...(maxWaitMs === undefined ? {} : { maxWaitMs }),
    ...(rate === undefined ? {} : { rateBytesPerSecond: Math.max(1, readSize('--rate', rate)) }),
  };
  if (options.dryRun === true) await plan(context, volume, params);
  else await copyNow(context, volume, params);
}

/** The places are absolute, also those that the file names: the server has another directory. */
async function readTargets(
  { directory }: CommandContext,
  options: Options,
): Promise<Pick<CopyParams, 'targets' | 'remap'>> {
  const targets = several(options.target).map((target) => {
    if (target === '') throw new UsageError('A target is empty, wanted a path or a URI');
    return absolutePlace(target, directory);
  });
  const file = single('--remap', options.remap);
  if (file === undefined) {
    if (targets.length > 0) return { targets };
    throw new UsageError('No target is given, wanted at least one, or --remap <file>');
  }
  const remap = absolutePath('--remap', file, directory);
  const requests = requestsOf(await readRemapFile(remap), targets, remap);
  return { targets: requests.map(({ uri }) => absolutePlace(uri, directory)), remap };
}

async function plan(context: CommandContext, volume: string, params: CopyParams): Promise<void> {
  const { output, clock } = context;
  const access = await reachVolume(volume, {
    activity: 'copy --dry-run',
    readOnly: true,
    clock,
    readerPath: storeReaderPath(),
  });
  try {
    const { reason, base, snapshot, ...forecast } = await access.copyPlan(params);
    output.report(
      { event: 'plan', ...forecast, snapshot: snapshot ?? null, base: base ?? null, reason: reason ?? null },
      ...reasonNote(forecast.volume, reason),
      `A copy of ${nameOf({ ...forecast, snapshot })} to ${forecast.targets.join(', ')}, ${forecast.level}, would look at ${forecast.tracks} tracks, ${forecast.zeroTracks} of them known to be zero, and send ${formatSize(forecast.bytes)} at most`,
    );
  } finally {
    await access.close();
  }
}

async function copyNow(context: CommandContext, volume: string, params: CopyParams): Promise<void> {
  const { output, signal, clock } = context;
  signal.throwIfAborted();
  const warn = (sentence: string): void => {
    output.endProgress();
    output.warn(sentence);
  };
  const access = await reachVolume(volume, { activity: 'copy', clock, warn, readerPath: storeReaderPath() });
  // Ctrl-C cancels this command's own session, wherever it runs; one that has just not begun is met when it tells its id.
  let session: string | undefined;
  const cancel = (): void => {
    if (session !== undefined) access.cancel(session).catch(() => undefined);
  };
  signal.addEventListener('abort', cancel);
  try {
    const outcome = await access.copy(params, {
      session: (id) => {
        session = id;
        if (signal.aborted) cancel();
      },
      progress: (progress) =>
        output.progress({
          title: `Copying ${volume}`,
          done: progress.tracksDone,
          total: progress.tracksTotal,
          bytes: progress.bytesRead,
          event: { volume, ...progress },
        }),
      warning: warn,
    });
    report(context, outcome);
  } finally {
    signal.removeEventListener('abort', cancel);
    await access.close();
  }
}

function report({ output }: CommandContext, { snapshot, base, reason, ...outcome }: CopyOutcome): void {
  const durationMs = Math.round(outcome.durationMs);
  // A pause is often shorter than a millisecond; microseconds are as far as the clock can be believed.
  const freezeMs = Math.round(outcome.freezeMs * 1000) / 1000;
  output.report(
    {
      event: 'copied',
      ...outcome,
      snapshot: snapshot ?? null,
      base: base ?? null,
      reason: reason ?? null,
      freezeMs,
      durationMs,
    },
    ...reasonNote(outcome.volume, reason),
    `Copied ${nameOf({ ...outcome, snapshot })} to ${outcome.targets.join(', ')}: ${outcome.level}, ${outcome.tracks} tracks, ${formatSize(outcome.bytesWritten)} written, ${formatSize(outcome.bytesZeroed)} zeroed, ${(durationMs / 1000).toFixed(1)} s, writes paused ${freezeMs} ms`,
  );
}

function nameOf({ volume, snapshot }: Pick<CopyForecast, 'volume' | 'snapshot'>): string {
  return snapshot === undefined ? volume : `${volume}@${snapshot}`;
}

function reasonNote(volume: string, reason: string | undefined): string[] {
  return reason === undefined ? [] : [`A full copy of ${volume} is made: ${reason}`];
}
