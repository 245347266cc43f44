/** `cowbell restore`: what a set holds, through its chain, onto other devices. */

import { formatSize } from '../../base/index.ts';
import { Store } from '../../blockset/index.ts';
import { createDeviceRegistry } from '../../daemon/index.ts';
import {
  readRemapFile,
  requestsOf,
  restore,
  type TargetLayout,
  type TargetRequest,
} from '../../restore/index.ts';
import { isVolumeHome } from '../../volume/index.ts';
import { absolutePath, absolutePlace, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';

interface Options extends GlobalOptions, KeyOptions {
  readonly store: string;
  readonly set: string;
  readonly target: readonly string[] | undefined;
  readonly remap: string | undefined;
}

export const addRestore: AddCommand = (parser, run) =>
  parser.command(
    'restore <store> <set> [target..]',
    'Restore a set onto files, block devices or NBD exports',
    (command) =>
      addKeyOptions(command)
        .positional('store', { type: 'string', demandOption: true, describe: 'Directory of the store' })
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
        .example('$0 restore /backup/store latest:vol /srv/copy.raw', 'The newest set of vol into a file')
        .example('$0 restore /backup/store 01K3 --remap plan.json', 'As plan.json says'),
    (options) => run<Options>(options, restoreSet),
  );

async function restoreSet(context: CommandContext, options: Options): Promise<void> {
  const { output, signal, clock, directory } = context;
  const startedMs = clock.monotonicMs();
  const path = absolutePath('The store', options.store, directory);
  const { requests, layout } = await readTargets(context, options);
  const store = await Store.open(path, { readOnly: true, ...(await storeKey(context, path, options)) });
  const set = await store.find(options.set);
  const chain = await store.chain(set.id);
  try {
    const registry = createDeviceRegistry();
    const title = `Restoring ${chain.header.volumeName}`;
    const result = await restore(chain, requests, {
      registry: { open: (uri) => registry.open(uri, { readOnly: false, syncName: 'restore-target' }) },
      isVolumeHome,
      signal,
      onProgress: (progress) => {
        const { bytesWritten: done, bytesTotal: total } = progress;
        output.progress({ title, done, total, event: { set: set.id, ...progress } });
      },
      ...(layout === undefined ? {} : { layout }),
    });
    const durationMs = Math.round(clock.monotonicMs() - startedMs);
    const targets = requests.map((request) => request.uri);
    const { volumeName: volume, volumeId, point } = chain.header;
    output.report(
      { event: 'restored', set: set.id, volume, volumeId, point, targets, ...result, durationMs },
      `Restored set ${set.id} of ${volume} to ${targets.join(', ')}: ${result.tracks} tracks, ${formatSize(result.bytesWritten)} written, ${(durationMs / 1000).toFixed(1)} s`,
    );
  } finally {
    await chain.close();
  }
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
