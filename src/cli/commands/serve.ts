/**
 * `cowbell serve`: the serving process, of volumes or of sets of a store, until Ctrl-C or SIGTERM. What it does with a
 * config file is in `../serve-config.ts`.
 */

import { tmpdir } from 'node:os';
import type { Argv } from 'yargs';
import { Serving, type ServingMirror, type ServingSurvival, StoreServing } from '../../daemon/index.ts';
import { absolutePath, absolutePlace, readSize, several, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addDeltaOptions, type DeltaOptions, logsOf } from '../delta-options.ts';
import { addKeyOptions, type KeyOptions, storeKey } from '../key-options.ts';
import { aborted, addListenOptions, listenersOf, type ListenOptions, tlsOf } from '../listen-options.ts';
import { recoveredTo, serveConfig } from '../serve-config.ts';
import { takeStartedReader } from '../started-reader.ts';
import { mediumFeedPath, storeReaderPath, workerPath } from '../worker-path.ts';

interface Options extends GlobalOptions, KeyOptions, ListenOptions, DeltaOptions {
  readonly volume: readonly string[] | undefined;
  readonly store: string | readonly string[] | undefined;
  readonly set: readonly string[] | undefined;
  readonly writable: boolean;
  readonly overlayDir: string | undefined;
  readonly readOnly: boolean;
  readonly mirror: string | undefined;
  readonly mirrorRate: string | undefined;
  readonly rebuildRate: string | undefined;
  readonly config: string | undefined;
  readonly survive: string | undefined;
  readonly spare: string | undefined;
}

export const addServe: AddCommand = (parser, run) =>
  parser.command(
    'serve [volume..]',
    'Serve volumes, or points in time from a store, over NBD until Ctrl-C or SIGTERM',
    (command) =>
      addSurvivalOptions(addListenOptions(addStoreOptions(command)))
        .positional('volume', {
          type: 'string',
          array: true,
          describe:
            'Directories of volumes; each gets <volume>/nbd.sock, and its base name is the export name',
        })
        .option('read-only', { type: 'boolean', default: false, describe: 'Refuse writes' })
        .option('mirror', {
          type: 'string',
          requiresArg: true,
          describe:
            'NBD URI, file or device that is made equal to the volume, whatever it holds, and gets every write from then on',
        })
        .option('mirror-rate', {
          type: 'string',
          requiresArg: true,
          implies: 'mirror',
          describe: 'Bytes a second that are copied to the mirror behind at the most, such as 100M',
        })
        .option('rebuild-rate', {
          type: 'string',
          requiresArg: true,
          describe:
            'Bytes a second that are read at the most to rebuild members of mirrored homes, such as 100M; as fast as it goes behind the clients when left out',
        })
        .option('config', {
          type: 'string',
          requiresArg: true,
          describe:
            'Serve the volumes of this file and run their policies; it is read again at SIGHUP (docs/policy.md)',
        })
        .example('$0 serve /srv/vol', 'Only on /srv/vol/nbd.sock')
        .example('$0 serve /srv/a /srv/b --listen 127.0.0.1:10809', 'Two volumes over TCP too')
        .example('$0 serve /srv/a /srv/b --listen 127.0.0.1:10809=a', 'Only the first over TCP')
        .example('$0 serve /srv/vol --listen 0.0.0.0:10809 --tls /etc/pki/cowbell', 'Over TCP with TLS')
        .example('$0 serve /srv/vol --survive /backup/store --spare /disk4', 'Goes on when its home is lost')
        .example('$0 serve --config /etc/cowbell/cowbell.yaml', 'Volumes, sockets and policies of a file')
        .example(
          '$0 serve --store /backup/store --set latest:vol --socket /run/then.sock',
          'The newest set of vol, at once',
        )
        .example(
          '$0 serve --store /backup/store --set 01K3 --writable --socket /run/try.sock',
          'To try something on it; the store does not change',
        )
        .example(
          '$0 serve --store /backup/store --set latest:vol --delta /disk2/deltas --at 2030-01-31T18:00 --socket /run/then.sock',
          'As it was then',
        )
        .epilogue(
          'Sockets handed over by systemd (socket activation) are served like those of --socket and --listen.',
        ),
    (options) => run<Options>(options, serve),
  );

/** How volumes go on that lose their home. */
function addSurvivalOptions<T>(command: Argv<T>) {
  return command
    .option('survive', {
      type: 'string',
      requiresArg: true,
      describe:
        'Go on without a home that is lost: onto a new one, filled from this store and the deltas while it is served. For volumes with deltas',
    })
    .option('spare', {
      type: 'string',
      requiresArg: true,
      implies: 'survive',
      describe: "Directory for the new home; the volume's own when left out",
    });
}

/** Options that make of it a server of a store's sets. */
function addStoreOptions<T>(command: Argv<T>) {
  return addDeltaOptions(addKeyOptions(command), 'its volume, with --store')
    .option('store', {
      type: 'string',
      requiresArg: true,
      describe: 'Serve sets of the store in this directory instead of volumes, read-only',
    })
    .option('set', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe:
        'With --store: a set id or unique prefix, latest, or latest:<volume>; may be given again. The export is named as the volume, or <volume>@<set id> where two would have one name',
    })
    .option('writable', {
      type: 'boolean',
      default: false,
      describe: 'With --store: let clients write, to a temporary file that is thrown away at the end',
    })
    .option('overlay-dir', {
      type: 'string',
      requiresArg: true,
      describe: 'With --writable: directory of that file; default the one for temporary files',
    });
}

async function serve(context: CommandContext, options: Options): Promise<void> {
  const config = single('--config', options.config);
  if (config !== undefined) {
    assertAlone(options);
    return await serveConfig(context, absolutePath('--config', config, context.directory));
  }
  const store = single('--store', options.store);
  assertTogether(options, store);
  return store === undefined
    ? await serveVolumes(context, options)
    : await serveSets(context, options, store);
}

/** @throws {UsageError} where something is given that the config file says. */
function assertAlone(options: Options): void {
  const [volume] = several(options.volume);
  const stray = [
    [`volume ${volume}`, volume !== undefined],
    ['--store', options.store !== undefined],
    ['--set', several(options.set).length > 0],
    ['--socket', several(options.socket).length > 0],
    ['--listen', several(options.listen).length > 0],
    ['--tls', options.tls !== undefined],
    ['--mirror', options.mirror !== undefined],
    ['--rebuild-rate', options.rebuildRate !== undefined],
    ['--survive', options.survive !== undefined],
    ['--read-only', options.readOnly],
    ['--writable', options.writable],
    ['--overlay-dir', options.overlayDir !== undefined],
    ['--delta', several(options.delta).length > 0],
    ['--at', options.at !== undefined],
    ['--key-file', options.keyFile !== undefined],
    ['--passphrase-file', options.passphraseFile !== undefined],
  ].find(([, isGiven]) => isGiven);
  if (stray !== undefined)
    throw new UsageError(`--config and ${stray[0]} are both given, wanted one of them`);
}

/** @throws {UsageError} where options are given that do not go together. */
function assertTogether(options: Options, store: string | undefined): void {
  const volumes = several(options.volume);
  const sets = several(options.set);
  if (store === undefined) {
    const stray = [
      ['--set', sets.length > 0],
      ['--writable', options.writable],
      ['--overlay-dir', options.overlayDir !== undefined],
      ['--delta', several(options.delta).length > 0],
      ['--at', options.at !== undefined],
      ['--key-file', options.keyFile !== undefined && options.survive === undefined],
      ['--passphrase-file', options.passphraseFile !== undefined && options.survive === undefined],
    ].find(([, isGiven]) => isGiven);
    if (stray !== undefined) throw new UsageError(`${stray[0]} is given without --store, wanted both`);
    if (volumes.length > 0) return;
    throw new UsageError(
      'No volume is given, wanted at least one, or --store <store> --set <set>, or --config <file>',
    );
  }
  const [volume] = volumes;
  if (volume !== undefined) {
    const message = `Volume ${volume} and --store ${store} are both given; serve them from two processes`;
    throw new UsageError(message);
  }
  if (options.survive !== undefined)
    throw new UsageError('--survive and --store are both given: sets have no home that could be lost');
  if (options.mirror !== undefined)
    throw new UsageError('--mirror and --store are both given: only volumes are mirrored');
  if (sets.length === 0) {
    throw new UsageError(`No set of store ${store} is given, wanted --set <set>, such as --set latest`);
  }
  if (options.readOnly && options.writable) {
    throw new UsageError('--read-only and --writable are both given, wanted one of them');
  }
  if (options.overlayDir !== undefined && !options.writable) {
    throw new UsageError('--overlay-dir is given without --writable, wanted both');
  }
}

async function serveSets(context: CommandContext, options: Options, store: string): Promise<void> {
  const { output, signal, directory } = context;
  const listeners = listenersOf(context, options);
  if (listeners.length === 0) {
    const message = 'Nobody could reach the sets, wanted --socket <path> or --listen <host:port>';
    throw new UsageError(message);
  }
  const storePath = absolutePath('--store', store, directory);
  const overlayDir = single('--overlay-dir', options.overlayDir);
  const overlay = overlayDir === undefined ? tmpdir() : absolutePath('--overlay-dir', overlayDir, directory);
  const serving = await StoreServing.start({
    storePath,
    sets: several(options.set),
    logs: logsOf(options, directory),
    ...(await storeKey(context, storePath, options)),
    listeners,
    tls: tlsOf(options, directory),
    ...(options.writable ? { overlay: { directory: overlay } } : {}),
    program: storeReaderPath(),
    started: takeStartedReader(),
    clock: context.clock,
    warn: (sentence) => output.warn(sentence),
    signal,
  });
  try {
    for (const { uri, set } of serving.reached) {
      const { set: id, volumeName: volume, volumeId, point, createdMs } = set;
      output.report({ event: 'ready', uri, set: id, volume, volumeId, point, createdMs }, `ready ${uri}`);
    }
    await aborted(signal);
  } finally {
    await serving.stop();
  }
}

/** @throws {UsageError} */
function mirrorOf(context: CommandContext, options: Options): ServingMirror | undefined {
  const mirror = single('--mirror', options.mirror);
  if (mirror === undefined) return undefined;
  const volumes = several(options.volume);
  if (volumes.length > 1)
    throw new UsageError(`--mirror is given with ${volumes.length} volumes, wanted one`);
  if (options.readOnly) throw new UsageError('--mirror and --read-only are both given, wanted one of them');
  const { output, clock, directory } = context;
  const uri = absolutePlace(mirror, directory);
  const rate = single('--mirror-rate', options.mirrorRate);
  const startedMs = clock.monotonicMs();
  return {
    uri,
    rateBytesPerSecond: rate === undefined ? undefined : Math.max(1, readSize('--mirror-rate', rate)),
    onProgress: (volume, { missingTracks, trackCount }) =>
      output.progress({
        title: `Mirroring ${volume}`,
        done: trackCount - missingTracks,
        total: trackCount,
        event: { volume, missingTracks, trackCount },
      }),
    onEqual: (volume) => {
      const durationMs = Math.round(clock.monotonicMs() - startedMs);
      output.report({ event: 'mirrored', volume, mirror: uri, durationMs }, `Mirror ${uri} equals ${volume}`);
    },
  };
}

async function survivalOf(context: CommandContext, options: Options): Promise<ServingSurvival | undefined> {
  const { directory } = context;
  const store = single('--survive', options.survive);
  if (store === undefined) return undefined;
  if (options.readOnly) throw new UsageError('--survive and --read-only are both given, wanted one of them');
  const storePath = absolutePath('--survive', store, directory);
  const spare = single('--spare', options.spare);
  return {
    storePath,
    ...(await storeKey(context, storePath, options)),
    ...(spare === undefined ? {} : { spareDirectory: absolutePath('--spare', spare, directory) }),
  };
}

function rebuildRateOf(options: Options): number | undefined {
  const rate = single('--rebuild-rate', options.rebuildRate);
  return rate === undefined ? undefined : Math.max(1, readSize('--rebuild-rate', rate));
}

async function serveVolumes(context: CommandContext, options: Options): Promise<void> {
  const { output, signal, directory } = context;
  const serving = await Serving.start({
    volumes: several(options.volume).map((volume) => absolutePath('The volume', volume, directory)),
    listeners: listenersOf(context, options),
    tls: tlsOf(options, directory),
    readOnly: options.readOnly,
    mirror: mirrorOf(context, options),
    rebuildRateBytesPerSecond: rebuildRateOf(options),
    survive: await survivalOf(context, options),
    recovery: { onRecovered: recoveredTo(output) },
    clock: context.clock,
    workerPath: workerPath(),
    readerPath: storeReaderPath(),
    feedPath: mediumFeedPath(),
    warn: (sentence) => output.warn(sentence),
  });
  try {
    for (const uri of serving.uris) output.report({ event: 'ready', uri }, `ready ${uri}`);
    await aborted(signal);
  } finally {
    await serving.stop();
  }
}
