/** `cowbell restore`: what a set holds, through its chain, onto other devices. */

import { statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { CorruptionError, LIMITS, messageOf } from '../../base/index.ts';
import {
  type ChainPlanEntry,
  type ChainView,
  Store,
  StoreError,
  ThreadedChain,
} from '../../blockset/index.ts';
import { createDeviceRegistry, type LogsWish } from '../../daemon/index.ts';
import { parseDeviceAddress } from '../../device/index.ts';
import { MediaChain } from '../../media/index.ts';
import {
  formatRemapFile,
  type PlannedRestore,
  planOnly,
  type ReadPlanEntry,
  readRemapFile,
  type RemapTable,
  requestsOf,
  restore,
  RestoreError,
  type RestoreProgress,
  type RestoreSource,
  type SourceRange,
  type TargetLayout,
  type TargetRequest,
  type VolumeLayout,
  wholeVolume,
  type WholeRestoreOptions,
} from '../../restore/index.ts';
import { isVolumeHome } from '../../volume/index.ts';
import { absolutePath, absolutePlace, readRange, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addDeltaOptions, type DeltaOptions, logsOf } from '../delta-options.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';
import { LoggedRestore } from '../logged-restore.ts';
import { addMediaOptions, failureTeller, inputsAt, type MediaOptions, STANDARD } from '../media-places.ts';
import { missingError, planLines, restoredLines } from '../restore-report.ts';
import { chainReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions, KeyOptions, MediaOptions, DeltaOptions {
  readonly store: string;
  readonly set: string;
  readonly target: readonly string[] | undefined;
  readonly remap: string | undefined;
  readonly writeRemap: string | undefined;
  readonly range: string | readonly string[] | undefined;
  readonly pack: boolean;
  readonly dryRun: boolean;
  readonly verify: boolean;
  readonly salvage: boolean;
  readonly resume: boolean;
  readonly progressFile: string | undefined;
  readonly medium: string | readonly string[] | undefined;
}

export const addRestore: AddCommand = (parser, run) =>
  parser.command(
    'restore <store> <set> [target..]',
    'Restore a set onto files, block devices or NBD exports',
    (command) =>
      addDeltaOptions(addKeyOptions(addMediaOptions(command)), "the set's volume")
        .positional('store', {
          type: 'string',
          demandOption: true,
          describe:
            'Directory of the store, or a medium that was exported from one: a file, a pipe, a device, or -',
        })
        .positional('set', {
          type: 'string',
          demandOption: true,
          describe: 'Set id or unique prefix, or latest, or latest:<volume id or name>',
        })
        .positional('target', {
          type: 'string',
          array: true,
          describe:
            'Where it goes, in sequence: a file, made when it is missing, a block device or an NBD URI',
        })
        .options(RESTORE_OPTIONS)
        .example('$0 restore /backup/store latest:vol /srv/copy.raw', 'The newest set of vol into a file')
        .example(
          '$0 restore /backup/store latest:vol copy.raw --delta /disk2/deltas --at 2030-01-31T18:00',
          'As it was then',
        )
        .example('$0 restore /backup/store 01K3 --remap plan.json', 'As plan.json says')
        .example('$0 restore /backup/store 01K3 /dev/sdb --range 1M+512M', 'These bytes, where they were')
        .example('$0 restore /backup/store 01K3 /dev/sdb --dry-run --write-remap plan.json', 'Only the plan')
        .example('$0 restore backup.tar latest copy.raw --medium backup.tar.2', 'Straight from media'),
    (options) => run<Options>(options, restoreSet),
  );

const RESTORE_OPTIONS = {
  range: {
    type: 'string',
    requiresArg: true,
    describe: 'Bytes of the volume, <offset>+<length>; only these are restored, and nothing else is touched',
  },
  pack: {
    type: 'boolean',
    default: false,
    describe: 'Put the ranges one after the other from the beginning of the target',
  },
  remap: {
    type: 'string',
    requiresArg: true,
    describe: 'File that says what goes where; it names the targets where none are given',
  },
  'write-remap': {
    type: 'string',
    requiresArg: true,
    describe: 'Write what goes where into a new file, to be changed and given to --remap',
  },
  'dry-run': { type: 'boolean', default: false, describe: 'Show what would be done, and write nothing' },
  verify: {
    type: 'boolean',
    default: false,
    describe: 'Read back what was written and compare it; exit status 3 where it differs',
  },
  salvage: {
    type: 'boolean',
    default: false,
    describe:
      'Restore what is good of a damaged set and say what is missing; exit status 3 where anything is',
  },
  resume: {
    type: 'boolean',
    default: false,
    describe: 'Note in a file beside the target how far it has come, and go on from there',
  },
  'progress-file': {
    type: 'string',
    requiresArg: true,
    describe: 'The file for --resume, where the target is no file',
  },
  medium: {
    type: 'string',
    requiresArg: true,
    describe: 'Further media, in any order, where the first argument is one',
  },
} as const;

async function restoreSet(context: CommandContext, options: Options): Promise<void> {
  const { output, clock, directory } = context;
  const startedMs = clock.monotonicMs();
  const path = absolutePath('The store', options.store, directory);
  const ranges = readRanges(options);
  const to = await readTargets(context, options);
  const isFromMedia = options.store === STANDARD || options.load !== undefined || isMedium(path);
  const progress = progressFile(context, options, { requests: to.requests, isFromMedia });
  const logs = logsOf(options, directory);
  if (logs !== undefined) assertLogsFit(options, isFromMedia);
  const source =
    logs !== undefined
      ? await openLogged(context, path, options, logs)
      : isFromMedia
        ? await openMedia(context, path, options)
        : await openStored(context, path, options);
  try {
    const calls =
      source instanceof MediaChain
        ? callsOf(source)
        : source instanceof LoggedRestore
          ? callsOf(source.source)
          : callsOf<ChainPlanEntry>(source);
    const restoring: WholeRestoreOptions = {
      registry: createDeviceRegistry(),
      isVolumeHome,
      signal: context.signal,
      layout: layoutOf(calls.whole(), { ...to, ranges, pack: options.pack }),
      verify: options.verify,
      salvage: options.salvage,
      ...(progress === undefined ? {} : { resume: { path: progress, set: source.header.id } }),
      staleProgressFiles: to.requests.flatMap(({ uri }) => progressPlace(uri) ?? []),
      ...reporters(context, source.header),
      onPlanned: (planned) => writeRemap(context, options, planned),
    };
    const targets = to.requests.map((request) => request.uri);
    const { id: set, volumeName: volume, volumeId, point } = source.header;
    const about = { set, volume, volumeId, point, targets };
    if (options.dryRun) {
      const planned = await calls.plan(to.requests, restoring);
      await writeRemap(context, options, planned);
      output.report({ event: 'plan', ...about, ...planned.summary }, ...planLines(about, planned.summary));
      return;
    }
    const result = await calls.restore(to.requests, restoring);
    const durationMs = Math.round(clock.monotonicMs() - startedMs);
    const findings = [...findingsOf(source), ...result.findings];
    const restored = { ...about, ...result, findings, verified: options.verify, durationMs };
    output.report({ event: 'restored', ...restored }, ...restoredLines(restored));
    if (result.missing.length > 0) throw missingError(about, result.missing);
  } finally {
    await source.close();
  }
}

type Source = ChainView | ThreadedChain | MediaChain | LoggedRestore;

/** Each kind of source has entries of its own, which only it can read. */
function callsOf<Entry extends ReadPlanEntry>(source: RestoreSource<Entry>) {
  return {
    whole: () => wholeVolume(source),
    plan: (to: readonly TargetRequest[], options: WholeRestoreOptions) => planOnly(source, to, options),
    restore: (to: readonly TargetRequest[], options: WholeRestoreOptions) => restore(source, to, options),
  };
}

/** Anything that is no directory and is there, or is loaded, is a medium. */
function isMedium(path: string): boolean {
  try {
    return !statSync(path).isDirectory();
  } catch {
    return false;
  }
}

async function openMedia(context: CommandContext, path: string, options: Options): Promise<MediaChain> {
  const first = options.store === STANDARD ? STANDARD : path;
  const further = several(options.medium).map((place) => absolutePath('--medium', place, context.directory));
  return await MediaChain.open(options.set, {
    clock: context.clock,
    signal: context.signal,
    openInput: inputsAt(context, [first, ...further], options),
    onFailure: failureTeller(context, options, { action: 'restore', label: first, store: undefined }),
  });
}

/** @throws {UsageError} */
function assertLogsFit(options: Options, isFromMedia: boolean): void {
  if (isFromMedia) throw new UsageError('--delta goes with a store, and media are read from their beginning');
  const stray = options.salvage ? '--salvage' : options.resume ? '--resume' : undefined;
  if (stray !== undefined) throw new UsageError(`${stray} is of sets alone, wanted no --delta with it`);
}

async function openLogged(
  context: CommandContext,
  storePath: string,
  options: Options,
  logs: LogsWish,
): Promise<LoggedRestore> {
  const key = await storeKey(context, storePath, options);
  const warn = (sentence: string): void => context.output.warn(sentence);
  return await LoggedRestore.open({
    storePath,
    ...key,
    set: options.set,
    logs,
    isPlan: options.dryRun,
    warn,
  });
}

async function openStored(
  context: CommandContext,
  path: string,
  options: Options,
): Promise<ChainView | ThreadedChain> {
  const key = await storeKey(context, path, options);
  const store = await Store.open(path, { readOnly: true, ...key });
  const { id } = await store.find(options.set);
  let chain: ChainView;
  try {
    chain = await store.chain(id);
  } catch (error) {
    if (!options.salvage || !isOfTheChain(error)) throw error;
    return await store.salvage(id);
  }
  // Threads take a moment to start, which little is restored in, and a plan reads nothing.
  const isSmall = chain.tracks().size * chain.trackSizeBytes < LIMITS.laneBytesMin;
  if (isSmall || options.dryRun) return chain;
  return await ThreadedChain.start(chain, { program: chainReaderPath(), storePath: path, ...key });
}

/** Whether an error says that a part of the chain is damaged or missing. */
function isOfTheChain(error: unknown): boolean {
  if (error instanceof CorruptionError) return true;
  return error instanceof StoreError && ['missing-base', 'wrong-volume', 'removed'].includes(error.code);
}

function findingsOf(source: Source): readonly string[] {
  return 'findings' in source ? source.findings : [];
}

function layoutOf(
  whole: VolumeLayout,
  to: {
    readonly table: RemapTable | undefined;
    readonly ranges: readonly SourceRange[] | undefined;
    readonly pack: boolean;
  },
): TargetLayout {
  const ranges = to.ranges === undefined ? {} : { ranges: to.ranges };
  if (to.table !== undefined) return { table: to.table, ...ranges };
  return { ...whole, ...ranges, pack: to.pack };
}

function reporters(
  { output }: CommandContext,
  { id: set, volumeName }: { readonly id: string; readonly volumeName: string },
): Pick<WholeRestoreOptions, 'onProgress' | 'onReadBack'> {
  return {
    onProgress: (progress: RestoreProgress) => {
      const { bytesWritten: done, bytesTotal: total } = progress;
      const title = `Restoring ${volumeName}`;
      output.progress({ title, done, total, bytes: done, event: { set, ...progress } });
    },
    onReadBack: (progress) => {
      const { bytesRead: done, bytesTotal: total } = progress;
      const title = `Reading back ${volumeName}`;
      output.progress({ title, done, total, bytes: done, event: { set, ...progress } });
    },
  };
}

function readRanges(options: Options): readonly SourceRange[] | undefined {
  const texts = several(options.range);
  if (texts.length > 0) return texts.map((text) => readRange('--range', text));
  if (options.pack) throw new UsageError('--pack puts ranges in a row, wanted at least one --range');
  return undefined;
}

interface Targets {
  readonly requests: readonly TargetRequest[];
  readonly table: RemapTable | undefined;
}

async function readTargets(context: CommandContext, options: Options): Promise<Targets> {
  const { directory } = context;
  const places = several(options.target).map((target) => {
    if (target === '') throw new UsageError('A target is empty, wanted a path or a URI');
    return absolutePlace(target, directory);
  });
  const remap = single('--remap', options.remap);
  if (remap === undefined) {
    if (places.length === 0)
      throw new UsageError('No target is given, wanted at least one, or --remap <file>');
    return { requests: places.map((uri) => ({ name: uri, uri })), table: undefined };
  }
  if (options.pack) throw new UsageError('--remap says where everything goes, wanted no --pack with it');
  const file = absolutePath('--remap', remap, directory);
  const read = await readRemapFile(file);
  return { requests: requestsOf(read, places, file), table: read.table };
}

/** A file that is there already may be one that somebody has changed by hand. */
async function writeRemap(
  { directory }: CommandContext,
  options: Options,
  { targets, table }: PlannedRestore,
): Promise<void> {
  const place = single('--write-remap', options.writeRemap);
  if (place === undefined) return;
  const path = absolutePath('--write-remap', place, directory);
  try {
    await writeFile(path, formatRemapFile({ targets, table }), { flag: 'wx' });
  } catch (error) {
    throw new RestoreError(
      'bad-remap-file',
      `Remap file ${path} cannot be written: ${messageOf(error)}; wanted a name that is free`,
      { file: path, place: 'file', value: undefined },
      { cause: error },
    );
  }
}

/** Beside a target that is a file or will be one; undefined for any other, and for what is no target. */
function progressPlace(uri: string): string | undefined {
  try {
    const { scheme, target, piece } = parseDeviceAddress(uri);
    if (scheme !== 'file' || piece !== undefined) return undefined;
    const stats = statSync(target, { throwIfNoEntry: false });
    return stats === undefined || stats.isFile() ? `${target}.restore-progress` : undefined;
  } catch {
    return undefined;
  }
}

/** Where to note how far the restore has come; undefined where that is not asked for. */
function progressFile(
  { directory }: CommandContext,
  options: Options,
  of: { readonly requests: readonly TargetRequest[]; readonly isFromMedia: boolean },
): string | undefined {
  const named = single('--progress-file', options.progressFile);
  if (!options.resume) {
    if (named === undefined) return undefined;
    throw new UsageError('--progress-file is for --resume, wanted both');
  }
  if (of.isFromMedia) {
    throw new UsageError('--resume goes on in a store, and media are read from their beginning');
  }
  if (named !== undefined) return absolutePath('--progress-file', named, directory);
  for (const { uri } of of.requests) {
    const place = progressPlace(uri);
    if (place !== undefined) return place;
  }
  throw new UsageError('No target is a file, wanted --progress-file <file> with --resume');
}
