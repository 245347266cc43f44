/** `cowbell snapshot create|list|changes|clone|rollback|delete`. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { reachVolume, reachVolumes, type VolumeAccess } from '../../daemon/index.ts';
import { absolutePath, isUri, single } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addFreezeOptions, type FreezeOptions, readFreezeHooks } from '../freeze-options.ts';
import { describe } from '../output.ts';
import { storeReaderPath } from '../worker-path.ts';

interface CreateOptions extends GlobalOptions, FreezeOptions {
  readonly name: string;
  readonly volume: readonly string[];
}

interface VolumeOptions extends GlobalOptions {
  readonly volume: string;
}

interface NamedOptions extends VolumeOptions {
  readonly name: string;
}

interface ChangesOptions extends VolumeOptions {
  readonly from: string;
  readonly to: string | undefined;
}

interface CloneOptions extends NamedOptions {
  readonly newVolume: string;
  readonly home: string | undefined;
}

export const addSnapshot: AddCommand = (parser, run) =>
  parser.command('snapshot', 'Make, list, compare, clone, roll back to and delete snapshots', (command) =>
    [addCreate, addList, addChanges, addClone, addRollback, addDelete]
      .reduce((all, add) => add(all, run), command)
      .demandCommand(1, 'No snapshot command is given'),
  );

function addCreate(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'create <name> <volume..>',
    'Keep what volumes hold at one instant, under a name; all or none',
    (command) =>
      addFreezeOptions(
        command
          .positional('name', { type: 'string', demandOption: true, describe: "The snapshot's name" })
          .positional('volume', {
            type: 'string',
            array: true,
            demandOption: true,
            describe: 'Directories of volumes',
          }),
      )
        .example('$0 snapshot create before-upgrade /srv/vol', 'Exported as vol@before-upgrade while served')
        .example('$0 snapshot create nightly /srv/data /srv/log', 'Both at one instant'),
    (options) => run<CreateOptions>(options, create),
  );
}

function addList(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'list <volume>',
    'List the snapshots of a volume, oldest first, with the space that each takes',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .example('$0 snapshot list /srv/vol', ''),
    (options) => run<VolumeOptions>(options, list),
  );
}

function addChanges(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'changes <volume> <from> [to]',
    'List the ranges that may differ between two snapshots, or between one and the volume as it is',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('from', { type: 'string', demandOption: true, describe: 'A snapshot' })
        .positional('to', { type: 'string', describe: 'Another one; the volume itself when left out' })
        .example('$0 snapshot changes /srv/vol monday tuesday', ''),
    (options) => run<ChangesOptions>(options, changes),
  );
}

function addClone(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'clone <volume> <name> <new-volume>',
    'Make a volume of its own, to be read and written, of what a snapshot holds',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('name', { type: 'string', demandOption: true, describe: 'The snapshot' })
        .positional('new-volume', { type: 'string', demandOption: true, describe: 'The directory to make' })
        .option('home', {
          type: 'string',
          requiresArg: true,
          describe: 'New file for the bytes; a file in the new directory when left out',
        })
        .example('$0 snapshot clone /srv/vol before-upgrade /srv/trial', ''),
    (options) => run<CloneOptions>(options, clone),
  );
}

function addRollback(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'rollback <volume> <name>',
    'Make a volume what a snapshot holds; refused while clients are connected to it',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('name', { type: 'string', demandOption: true, describe: 'The snapshot' })
        .example('$0 snapshot rollback /srv/vol before-upgrade', ''),
    (options) => run<NamedOptions>(options, rollback),
  );
}

function addDelete(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'delete <volume> <name>',
    'Delete a snapshot; the others keep what they hold',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .positional('name', { type: 'string', demandOption: true, describe: 'The snapshot' })
        .example('$0 snapshot delete /srv/vol before-upgrade', ''),
    (options) => run<NamedOptions>(options, remove),
  );
}

async function create(context: CommandContext, options: CreateOptions): Promise<void> {
  const { directory, clock, output } = context;
  const hooks = readFreezeHooks(options);
  const volumes = options.volume.map((volume) => absolutePath('The volume', volume, directory));
  const twice = volumes.find((volume, index) => volumes.indexOf(volume) !== index);
  if (twice !== undefined) throw new UsageError(`Volume ${twice} is named twice, wanted once`);
  const { name } = options;
  const others = volumes.slice(1);
  const warn = (sentence: string): void => output.warn(sentence);
  const readerPath = storeReaderPath();
  const access = await reachVolumes(volumes, { activity: 'snapshot', clock, warn, readerPath });
  try {
    const params = {
      name,
      ...(others.length === 0 ? {} : { others }),
      ...(hooks === undefined ? {} : { hooks }),
    };
    const made = await access.snapshotCreate(params, eventsOf(context, `Making ${name}`));
    for (const snapshot of made) {
      const freezeMs = Math.round(Number(snapshot['freezeMs']) * 1000) / 1000;
      output.report(
        { event: 'snapshot', ...snapshot, freezeMs },
        `Snapshot ${name} of ${String(snapshot['volume'])}: writes paused ${freezeMs} ms`,
      );
    }
  } finally {
    await access.close();
  }
}

async function list(context: CommandContext, options: VolumeOptions): Promise<void> {
  await withVolume(context, options.volume, true, async (access) => {
    const snapshots = await access.snapshotList();
    if (snapshots.length === 0) context.output.report({ event: 'snapshots', count: 0 }, 'No snapshots');
    for (const snapshot of snapshots)
      context.output.report(
        { event: 'snapshot', ...snapshot },
        ...describe({ ...snapshot, number: undefined, readers: undefined }),
        '',
      );
  });
}

async function changes(context: CommandContext, options: ChangesOptions): Promise<void> {
  const { from, to } = options;
  await withVolume(context, options.volume, true, async (access) => {
    const request = { from, ...(to === undefined ? {} : { to }) };
    let answer = await access.snapshotChanges(request);
    const { tracks } = answer;
    for (;;) {
      for (const { offsetBytes, lengthBytes } of extentsOf(answer))
        context.output.report(
          { event: 'changed', offsetBytes, lengthBytes },
          `${offsetBytes}+${lengthBytes}`,
        );
      const next = answer['nextOffsetBytes'];
      if (typeof next !== 'number') break;
      answer = await access.snapshotChanges({ ...request, offsetBytes: next });
    }
    const what = to === undefined ? `since snapshot ${from}` : `from snapshot ${from} to ${to}`;
    context.output.report(
      { event: 'changes', from, to: to ?? null, tracks },
      `${String(tracks)} tracks may have changed ${what}`,
    );
  });
}

interface Extent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

function extentsOf({ extents }: Readonly<Record<string, unknown>>): readonly Extent[] {
  return Array.isArray(extents) ? extents : [];
}

async function clone(context: CommandContext, options: CloneOptions): Promise<void> {
  const { output, signal, directory } = context;
  const { name } = options;
  const home = single('--home', options.home);
  if (home !== undefined && isUri(home))
    throw new UsageError(`--home is '${home}', wanted the path of a new file`);
  const wish = {
    name,
    directory: absolutePath('The new volume', options.newVolume, directory),
    ...(home === undefined ? {} : { home: absolutePath('--home', home, directory) }),
  };
  signal.throwIfAborted();
  await withVolume(context, options.volume, true, async (access) => {
    // As with a backup, Ctrl-C cancels what this command began, wherever it runs.
    let session: string | undefined;
    const cancel = (): void => {
      if (session !== undefined) access.cancel(session).catch(() => undefined);
    };
    signal.addEventListener('abort', cancel);
    try {
      const made = await access.snapshotClone(wish, {
        ...eventsOf(context, `Cloning ${name}`),
        session: (id) => {
          session = id;
          if (signal.aborted) cancel();
        },
      });
      const copied = formatSize(Number(made['copiedBytes']));
      output.report(
        { event: 'volume', ...made },
        `Made volume ${wish.directory} of snapshot ${name}: ${copied} were copied`,
      );
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  });
}

async function rollback(context: CommandContext, options: NamedOptions): Promise<void> {
  const { name } = options;
  await withVolume(context, options.volume, false, async (access) => {
    const events = eventsOf(context, `Rolling back to ${name}`);
    const { tracks } = await access.snapshotRollback(name, events);
    context.output.report(
      { event: 'rollback', volume: options.volume, name, tracks },
      `Rolled ${options.volume} back to ${name}: ${String(tracks)} tracks were written`,
    );
  });
}

async function remove(context: CommandContext, options: NamedOptions): Promise<void> {
  const { name } = options;
  await withVolume(context, options.volume, false, async (access) => {
    await access.snapshotDelete(name);
    context.output.report({ event: 'deleted', volume: options.volume, name }, `Deleted snapshot ${name}`);
  });
}

async function withVolume(
  context: CommandContext,
  volume: string,
  readOnly: boolean,
  body: (access: VolumeAccess) => Promise<void>,
): Promise<void> {
  const { clock, output } = context;
  const directory = absolutePath('The volume', volume, context.directory);
  const warn = (sentence: string): void => output.warn(sentence);
  const access = await reachVolume(directory, {
    activity: 'snapshot',
    readOnly,
    clock,
    warn,
    readerPath: storeReaderPath(),
  });
  try {
    await body(access);
  } finally {
    await access.close();
  }
}

function eventsOf({ output }: CommandContext, title: string): Parameters<VolumeAccess['snapshotCreate']>[1] {
  return {
    session: () => undefined,
    progress: ({ tracksDone, tracksTotal }) =>
      output.progress({ title, done: tracksDone, total: tracksTotal, event: { tracksDone, tracksTotal } }),
    warning: (sentence) => {
      output.endProgress();
      output.warn(sentence);
    },
  };
}
