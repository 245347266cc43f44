/** `cowbell backup`: a set of each volume in a store, while the volumes are served or at rest. */

import { formatSize, LIMITS } from '../../base/index.ts';
import type { SavingProgress } from '../../backup/index.ts';
import {
  type BackupMember,
  type BackupOutcome,
  type BackupParams,
  type Level,
  LEVELS,
  reachVolumes,
} from '../../daemon/index.ts';
import { absolutePath, readContainer, readVolumeOrSnapshot, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { addContainerOptions, type ContainerOptions, readMaxWait } from '../container-options.ts';
import { UsageError } from '../exit.ts';
import { addFreezeOptions, type FreezeOptions, readFreezeHooks } from '../freeze-options.ts';
import { addKeyOptions, type KeyOptions, namesKey, storeKey } from '../key-options.ts';
import { addMediumOptions, type MediumOptions, readMedium, refuseWithMedium } from '../medium-options.ts';
import type { Output } from '../output.ts';
import { addStyleOptions, readStyle, type StyleOptions } from '../style-options.ts';
import { storeReaderPath, workerPath } from '../worker-path.ts';

interface Options
  extends GlobalOptions, FreezeOptions, KeyOptions, StyleOptions, ContainerOptions, MediumOptions {
  readonly volume: readonly string[];
  readonly store: string;
  readonly level: Level;
  readonly fullEvery: string | undefined;
  readonly notify: string | undefined;
  readonly dryRun: boolean | undefined;
}

const DEFAULT_LEVEL: Level = 'auto';

export const addBackup: AddCommand = (parser, run) =>
  parser.command(
    'backup <volume..>',
    'Back volumes or their snapshots up into a store, all of one instant, served or not',
    (command) =>
      addFreezeOptions(
        addMediumOptions(addContainerOptions(addStyleOptions(addKeyOptions(command))))
          .positional('volume', {
            type: 'string',
            array: true,
            demandOption: true,
            describe: 'Directories of volumes; <volume>@<snapshot> for a snapshot',
          })
          .option('store', {
            type: 'string',
            demandOption: true,
            requiresArg: true,
            describe:
              'Directory of the store; or a medium, which gets a full set: a pipe, a device, a file that ends in .tar ({n} is the number)',
          })
          .option('level', {
            choices: LEVELS,
            default: DEFAULT_LEVEL,
            describe:
              'differential: since the last full; incremental: since the last of any level; auto: incremental where the store has a base for it, full where not, and on media, which get full sets only',
          })
          .option('full-every', {
            type: 'string',
            requiresArg: true,
            describe: `With level auto a full is taken when the chain has so many sets, ${LIMITS.chainSetCountDefault} unless told`,
          })
          .option('notify', {
            type: 'string',
            requiresArg: true,
            describe:
              'A command that is run when the backup has ended; COWBELL_EVENT tells it how: backup-done, backup-failed or backup-cancelled',
          })
          .option('dry-run', {
            type: 'boolean',
            describe: 'Tell what would be read and stored at most, and neither freeze nor write anything',
          }),
      )
        .example('$0 backup --store /backup/store /srv/vol', '')
        .example(
          '$0 backup --store /backup/store /srv/data /srv/log@monday',
          'Both at once, of one a snapshot',
        )
        .example(
          '$0 backup --store /dev/nst0 /srv/vol --label monday --load ./load-tape',
          'Straight to tapes, without a store',
        )
        .example(
          '$0 backup --store /backup/store /srv/vol --level full --container memory:64M --container /var/tmp:4G',
          'A full one, with room in a file when memory is full',
        )
        .example(
          '$0 backup --store /backup/store /srv/vol --pre-freeze "/etc/cowbell/freeze web1 /data" --post-freeze "/etc/cowbell/freeze web1 /data"',
          'With commands around each freeze; COWBELL_HOOK tells them which they are, pre or post',
        ),
    (options) => run<Options>(options, backup),
  );

async function backup(context: CommandContext, options: Options): Promise<void> {
  const { directory } = context;
  const hooks = readFreezeHooks(options);
  const maxWaitMs = readMaxWait(options);
  const notify = single('--notify', options.notify);
  const fullEvery = readFullEvery(single('--full-every', options.fullEvery));
  const store = absolutePath('--store', single('--store', options.store) ?? '', directory);
  const medium = readMedium(store, options);
  const params: BackupParams = {
    store,
    ...medium,
    ...(medium.medium === undefined ? await storeKey(context, store, options) : {}),
    level: single('--level', options.level) ?? DEFAULT_LEVEL,
    style: readStyle(options, directory),
    container: readContainer(several(options.container), directory),
    ...(fullEvery === undefined ? {} : { fullEvery }),
    ...(maxWaitMs === undefined ? {} : { maxWaitMs }),
    ...(hooks === undefined ? {} : { hooks }),
    ...(notify === undefined ? {} : { notify }),
  };
  const members = await readMembers(options.volume, directory);
  if (medium.medium !== undefined) {
    refuseWithMedium(medium.medium, params, {
      // Who has a key in the environment expects it to be used.
      hasKey: namesKey(options) || context.passphrase !== undefined,
      isDryRun: options.dryRun === true,
      volumeCount: members.length,
    });
  }
  if (options.dryRun === true) await planAll(context, members, params);
  else await backUpAll(context, members, params);
}

function readFullEvery(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = /^[0-9]{1,4}$/.test(text) ? Number(text) : 0;
  if (count >= 1 && count <= LIMITS.chainSetCountMax) return count;
  throw new UsageError(
    `--full-every is ${text}, wanted a whole number of sets from 1 to ${LIMITS.chainSetCountMax}`,
  );
}

/** `<volume>` or `<volume>@<snapshot>`; a directory that exists wins over the snapshot of another. */
async function readMembers(texts: readonly string[], directory: string): Promise<readonly BackupMember[]> {
  const members = await Promise.all(texts.map((text) => readVolumeOrSnapshot(text, directory)));
  const volumes = members.map(({ volume }) => volume);
  const twice = volumes.find((volume, index) => volumes.indexOf(volume) !== index);
  if (twice !== undefined) throw new UsageError(`Volume ${twice} is named twice, wanted once`);
  return members;
}

/** The first volume is the one that is asked, the others are named. */
function paramsOf(members: readonly BackupMember[], common: BackupParams): BackupParams {
  const [first, ...others] = members;
  if (first === undefined) throw new UsageError('No volume is given, wanted at least one');
  return {
    ...common,
    ...(first.snapshot === undefined ? {} : { snapshot: first.snapshot }),
    ...(others.length === 0 ? {} : { others }),
  };
}

async function planAll(
  { output, clock }: CommandContext,
  members: readonly BackupMember[],
  common: BackupParams,
): Promise<void> {
  const params = paramsOf(members, common);
  const volumes = members.map(({ volume }) => volume);
  const reach = {
    activity: 'backup --dry-run',
    readOnly: true,
    clock,
    workerPath: workerPath(),
    readerPath: storeReaderPath(),
  };
  const access = await reachVolumes(volumes, reach);
  try {
    for (const plan of await access.backupPlan(params)) {
      const { volume, level, reason, tracks, zeroTracks, bytes } = plan;
      const base = plan.base ?? null;
      output.report(
        { event: 'plan', volume, level, base, reason: reason ?? null, tracks, zeroTracks, bytes },
        ...(reason === undefined ? [] : [`A full backup of ${volume} would be taken: ${reason}`]),
        `A backup of ${volume}, ${level}${base === null ? '' : ` since point ${base}`}, would look at ${tracks} tracks, ${zeroTracks} of them known to be zero, read ${formatSize(bytes)} and store that at most`,
      );
    }
  } finally {
    await access.close();
  }
}

async function backUpAll(
  context: CommandContext,
  members: readonly BackupMember[],
  common: BackupParams,
): Promise<void> {
  const { output, signal, clock } = context;
  signal.throwIfAborted();
  const params = paramsOf(members, common);
  const volumes = members.map(({ volume }) => volume);
  const warn = (sentence: string): void => {
    output.endProgress();
    output.warn(sentence);
  };
  const access = await reachVolumes(volumes, {
    activity: 'backup',
    clock,
    warn,
    workerPath: workerPath(),
    readerPath: storeReaderPath(),
  });
  // Ctrl-C cancels this command's own session, wherever it runs; one that has just not begun is met when it tells its id.
  let session: string | undefined;
  const cancel = (): void => {
    if (session !== undefined) access.cancel(session).catch(() => undefined);
  };
  signal.addEventListener('abort', cancel);
  try {
    const outcomes = await access.backup(params, {
      session: (id) => {
        session = id;
        if (signal.aborted) cancel();
      },
      progress: (progress) => showProgress(output, volumes, progress),
      warning: warn,
    });
    for (const outcome of outcomes) reportSet(output, outcome);
  } finally {
    signal.removeEventListener('abort', cancel);
    await access.close();
  }
}

function showProgress(output: Output, volumes: readonly string[], progress: SavingProgress): void {
  const volume = volumes.join(', ');
  output.progress({
    title: `Backing up ${volume}`,
    done: progress.tracksDone,
    total: progress.tracksTotal,
    bytes: progress.bytesRead,
    event: { volume, ...progress },
  });
}

function reportSet(output: Output, summary: BackupOutcome): void {
  const durationMs = Math.round(summary.durationMs);
  // A pause is often shorter than a millisecond; microseconds are as far as the clock can be believed.
  const freezeMs = Math.round(summary.freezeMs * 1000) / 1000;
  const hookMs = summary.hookMs === undefined ? undefined : Math.round(summary.hookMs);
  const hooks = hookMs === undefined ? '' : `, hooks around it ${hookMs} ms`;
  const seconds = (durationMs / 1000).toFixed(1);
  output.report(
    { event: 'set', ...summary, freezeMs, ...(hookMs === undefined ? {} : { hookMs }), durationMs },
    ...(summary.reason === undefined
      ? []
      : [`A full backup of ${summary.volume} is taken: ${summary.reason}`]),
    `Set ${summary.set}: ${summary.level} backup of ${summary.volume}, ${summary.tracks} tracks, ${formatSize(summary.bytesRead)} read, ${formatSize(summary.bytesStored)} stored, ${seconds} s, writes paused ${freezeMs} ms${hooks}${mediaNote(summary)}`,
  );
}

function mediaNote({ media, label }: BackupOutcome): string {
  if (media === undefined) return '';
  return `, on ${media === 1 ? '1 medium' : `${media} media`} of ${label}`;
}
