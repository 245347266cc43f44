/** `cowbell restore`: what a set holds, through its chain, onto other devices. */

import { statSync } from 'node:fs';
import { formatSize, LIMITS } from '../../base/index.ts';
import { type ChainView, Store, ThreadedChain } from '../../blockset/index.ts';
import { createDeviceRegistry } from '../../daemon/index.ts';
import { MediaChain } from '../../media/index.ts';
import {
  readRemapFile,
  requestsOf,
  restore,
  type RestoreProgress,
  type RestoreResult,
  type TargetLayout,
  type TargetRequest,
} from '../../restore/index.ts';
import { isVolumeHome } from '../../volume/index.ts';
import { absolutePath, absolutePlace, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';
import { addMediaOptions, failureTeller, inputsAt, type MediaOptions, STANDARD } from '../media-places.ts';
import { chainReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions, KeyOptions, MediaOptions {
  readonly store: string;
  readonly set: string;
  readonly target: readonly string[] | undefined;
  readonly remap: string | undefined;
  readonly medium: string | readonly string[] | undefined;
}

export const addRestore: AddCommand = (parser, run) =>
  parser.command(
    'restore <store> <set> [target..]',
    'Restore a set onto files, block devices or NBD exports',
    (command) =>
      addKeyOptions(addMediaOptions(command))
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
        .option('remap', {
          type: 'string',
          requiresArg: true,
          describe: 'File that says what goes where; it names the targets where none are given',
        })
        .option('medium', {
          type: 'string',
          requiresArg: true,
          describe: 'Further media, in any order, where the first argument is one',
        })
        .example('$0 restore /backup/store latest:vol /srv/copy.raw', 'The newest set of vol into a file')
        .example('$0 restore /backup/store 01K3 --remap plan.json', 'As plan.json says')
        .example('$0 restore backup.tar latest copy.raw --medium backup.tar.2', 'Straight from media'),
    (options) => run<Options>(options, restoreSet),
  );

async function restoreSet(context: CommandContext, options: Options): Promise<void> {
  const { output, clock, directory } = context;
  const startedMs = clock.monotonicMs();
  const path = absolutePath('The store', options.store, directory);
  const { requests, layout } = await readTargets(context, options);
  const source = await openSource(context, path, options);
  try {
    const result = await restoreFrom(source, context, { requests, layout });
    const durationMs = Math.round(clock.monotonicMs() - startedMs);
    const targets = requests.map((request) => request.uri);
    const { id: set, volumeName: volume, volumeId, point } = source.header;
    output.report(
      { event: 'restored', set, volume, volumeId, point, targets, ...result, durationMs },
      `Restored set ${set} of ${volume} to ${targets.join(', ')}: ${result.tracks} tracks, ${formatSize(result.bytesWritten)} written, ${(durationMs / 1000).toFixed(1)} s`,
    );
  } finally {
    await source.close();
  }
}

type Source = ChainView | ThreadedChain | MediaChain;

/** A store is a directory; anything else that is there, or is loaded, is a medium. */
async function openSource(context: CommandContext, path: string, options: Options): Promise<Source> {
  if (options.store === STANDARD || options.load !== undefined || isMedium(path)) {
    const first = options.store === STANDARD ? STANDARD : path;
    const further = several(options.medium).map((place) =>
      absolutePath('--medium', place, context.directory),
    );
    return await MediaChain.open(options.set, {
      clock: context.clock,
      signal: context.signal,
      openInput: inputsAt(context, [first, ...further], options),
      onFailure: failureTeller(context, options, { action: 'restore', label: first, store: undefined }),
    });
  }
  const key = await storeKey(context, path, options);
  const store = await Store.open(path, { readOnly: true, ...key });
  const chain = await store.chain((await store.find(options.set)).id);
  // Threads take a moment to start, which little is restored in.
  if (chain.tracks().size * chain.trackSizeBytes < LIMITS.laneBytesMin) return chain;
  return await ThreadedChain.start(chain, { program: chainReaderPath(), storePath: path, ...key });
}

function isMedium(path: string): boolean {
  try {
    return !statSync(path).isDirectory();
  } catch {
    return false;
  }
}

function restoreFrom(
  source: Source,
  context: CommandContext,
  to: { readonly requests: readonly TargetRequest[]; readonly layout: TargetLayout | undefined },
): Promise<RestoreResult> {
  const { output, signal } = context;
  const { id: set, volumeName } = source.header;
  const registry = createDeviceRegistry();
  const options = {
    registry: {
      open: (uri: string) => registry.open(uri, { readOnly: false, syncName: 'restore-target' as const }),
    },
    isVolumeHome,
    signal,
    onProgress: (progress: RestoreProgress) => {
      const { bytesWritten: done, bytesTotal: total } = progress;
      output.progress({
        title: `Restoring ${volumeName}`,
        done,
        total,
        bytes: done,
        event: { set, ...progress },
      });
    },
    ...(to.layout === undefined ? {} : { layout: to.layout }),
  };
  if (source instanceof MediaChain) return restore(source, to.requests, options);
  if (source instanceof ThreadedChain) return restore(source, to.requests, options);
  return restore(source, to.requests, options);
}

async function readTargets(
  context: CommandContext,
  options: Options,
): Promise<{ readonly requests: readonly TargetRequest[]; readonly layout: TargetLayout | undefined }> {
  const { directory } = context;
  const places = several(options.target).map((target) => {
    if (target === '') throw new UsageError('A target is empty, wanted a path or a URI');
    return absolutePlace(target, directory);
  });
  const remap = single('--remap', options.remap);
  if (remap === undefined) {
    if (places.length === 0)
      throw new UsageError('No target is given, wanted at least one, or --remap <file>');
    return { requests: places.map((uri) => ({ name: uri, uri })), layout: undefined };
  }
  const file = absolutePath('--remap', remap, directory);
  const read = await readRemapFile(file);
  return { requests: requestsOf(read, places, file), layout: { table: read.table } };
}
