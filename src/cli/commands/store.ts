/** `cowbell store init|list|show|verify`, and further ones beside this file: stores are opened by the command itself, never by a server. */

import type { Argv } from 'yargs';
import { CorruptionError, formatSize } from '../../base/index.ts';
import { Store, type StoredSet, type VerifiedSet, verify } from '../../blockset/index.ts';
import { mediaOfSet } from '../../media/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions, type KeyOptions, namesKey, readFirstKey, storeKey } from '../key-options.ts';
import { describe, table } from '../output.ts';
import { addStoreKey } from './store-key.ts';
import { addStoreMedia } from './store-media.ts';

interface StoreOptions extends GlobalOptions, KeyOptions {
  readonly store: string;
}

interface InitOptions extends StoreOptions {
  readonly encrypt: boolean;
}

interface SetOptions extends StoreOptions {
  readonly set: string;
}

interface VerifyOptions extends StoreOptions {
  readonly set: string | undefined;
}

const STORE = { type: 'string', demandOption: true, describe: 'Directory of the store' } as const;
const SET = {
  type: 'string',
  describe: 'Set id or unique prefix, or latest, or latest:<volume id or name>',
} as const;

export const addStore: AddCommand = (parser, run) =>
  parser.command('store', 'Make stores and look into them', (command) =>
    [addInit, addList, addShow, addVerify, addStoreKey, addStoreMedia]
      .reduce((stores, add) => add(stores, run), command)
      .demandCommand(1, 'No store command is given'),
  );

function addInit(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'init <store>',
    'Make a store in a new or empty directory',
    (command) =>
      addKeyOptions(
        command.positional('store', STORE).option('encrypt', {
          type: 'boolean',
          default: false,
          describe: 'Encrypt all that the store will hold; without its key everything in it is lost',
        }),
      )
        .example('$0 store init /backup/store', '')
        .example('$0 store init /backup/store --encrypt', 'The passphrase is asked for'),
    (options) => run<InitOptions>(options, init),
  );
}

function addList(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'list <store>',
    'List the sets of a store, oldest first',
    (command) => addKeyOptions(command.positional('store', STORE)).example('$0 store list /backup/store', ''),
    (options) => run<StoreOptions>(options, list),
  );
}

function addShow(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'show <store> <set>',
    'Show one set and the chain it builds on',
    (command) =>
      addKeyOptions(
        command.positional('store', STORE).positional('set', { ...SET, demandOption: true }),
      ).example('$0 store show /backup/store latest', ''),
    (options) => run<SetOptions>(options, show),
  );
}

function addVerify(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'verify <store> [set]',
    'Read every byte of a set, or of all sets, and check it; exit status 3 where one is damaged',
    (command) =>
      addKeyOptions(command.positional('store', STORE).positional('set', SET))
        .example('$0 store verify /backup/store', '')
        .example('$0 store verify /backup/store latest:vol', ''),
    (options) => run<VerifyOptions>(options, verifySets),
  );
}

async function init(context: CommandContext, options: InitOptions): Promise<void> {
  const { clock, output } = context;
  const path = absolutePath('The store', options.store, context.directory);
  if (!options.encrypt && namesKey(options)) {
    throw new UsageError('A key is given for a store that is not encrypted, wanted --encrypt too');
  }
  const key = options.encrypt ? { key: await readFirstKey(context, path, options) } : {};
  await Store.init(path, { clock, ...key });
  const note = options.encrypt ? `, encrypted; keep a copy of ${path}/keys.json elsewhere` : '';
  output.report({ event: 'store', store: path, encrypted: options.encrypt }, `Made store ${path}${note}`);
}

/** Looking changes nothing, not even what a crash left. */
async function openStore(context: CommandContext, options: StoreOptions): Promise<Store> {
  const path = absolutePath('The store', options.store, context.directory);
  return await Store.open(path, { readOnly: true, ...(await storeKey(context, path, options)) });
}

async function list(context: CommandContext, options: StoreOptions): Promise<void> {
  const { output } = context;
  const store = await openStore(context, options);
  const sets = await store.list();
  if (output.json) for (const set of sets) output.report({ event: 'set', ...memberOf(set) });
  else if (sets.length === 0) output.report({ event: 'none' }, `Store ${store.path} has no sets`);
  else
    output.report(
      { event: 'none' },
      ...table(['SET', 'VOLUME', 'LEVEL', 'CREATED', 'TRACKS', 'STORED', ''], sets.map(rowOf)),
    );
}

/** A set as programs see it. */
function memberOf(set: StoredSet): Readonly<Record<string, unknown>> {
  const { header, counters } = set;
  return {
    set: set.id,
    volume: header?.volumeName ?? null,
    volumeId: header?.volumeId ?? null,
    level: header?.level ?? null,
    createdMs: header?.createdMs ?? null,
    point: header?.point ?? null,
    base: header?.base ?? null,
    previous: header?.previous ?? null,
    sizeBytes: header?.sizeBytes ?? null,
    trackSizeBytes: header?.trackSizeBytes ?? null,
    codec: header?.codec ?? null,
    ...counters,
    fileBytes: set.lengthBytes,
    damage: set.damage ?? null,
  };
}

function rowOf(set: StoredSet): readonly string[] {
  const { header, counters } = set;
  return [
    set.id,
    header?.volumeName ?? '?',
    header?.level ?? '?',
    header === undefined ? '?' : new Date(header.createdMs).toISOString(),
    counters === undefined ? '?' : String(counters.tracks),
    counters === undefined ? '?' : formatSize(counters.bytesStored),
    set.damage === undefined ? '' : `damaged: ${set.damage}`,
  ];
}

async function show(context: CommandContext, options: SetOptions): Promise<void> {
  const store = await openStore(context, options);
  const set = await store.find(options.set);
  const chain = await store.chain(set.id);
  try {
    const member = {
      ...memberOf(set),
      chain: chain.sets,
      tracksNotZero: chain.tracks().size,
      media: await mediaOfSet(store.path, set.id),
    };
    context.output.report({ event: 'set', ...member }, ...describe(member));
  } finally {
    await chain.close();
  }
}

async function verifySets(context: CommandContext, options: VerifyOptions): Promise<void> {
  const { output, signal } = context;
  const store = await openStore(context, options);
  const wanted = options.set === undefined ? await store.list() : [await store.find(options.set)];
  const total = wanted.reduce((sum, { header }) => sum + (header?.sizeBytes ?? 0), 0);
  let done = 0;
  let damaged: VerifiedSet | undefined;
  let damagedCount = 0;
  const onProgress = (bytes: number): void => {
    signal.throwIfAborted();
    done += bytes;
    output.progress({ title: `Verifying ${store.path}`, done, total, event: { bytesChecked: done } });
  };
  const selection = options.set === undefined ? {} : { selector: options.set };
  for await (const verified of verify(store, { ...selection, onProgress })) {
    signal.throwIfAborted();
    reportVerified(context, verified);
    if (verified.sound) continue;
    damaged ??= verified;
    damagedCount += 1;
  }
  if (damaged !== undefined) throw damageOf(damaged, damagedCount);
}

function reportVerified(context: CommandContext, verified: VerifiedSet): void {
  const { set, ...result } = verified;
  const sentence = verified.sound
    ? `Set ${set.id} is sound: ${formatSize(verified.checkedBytes)} checked`
    : `Set ${set.id} is damaged${trackNote(verified.damagedTracks)}`;
  const findings = verified.findings.map((finding) => `  ${finding}`);
  const volume = set.header?.volumeName ?? null;
  context.output.report({ event: 'verified', set: set.id, volume, ...result }, sentence, ...findings);
}

function damageOf(damaged: VerifiedSet, count: number): CorruptionError {
  const more = count > 1 ? `, and ${count - 1} more sets are` : '';
  const finding = damaged.damagedTracks.length > 0 ? '' : `: ${damaged.findings[0] ?? 'unreadable'}`;
  return new CorruptionError(
    `Set ${damaged.set.id} is damaged${trackNote(damaged.damagedTracks)}${more}${finding}`,
    { where: damaged.set.path, tracks: damaged.damagedTracks },
  );
}

/** Tracks named in a sentence, as ranges, and not without end. */
const RANGES_SHOWN_MAX = 8;

function trackNote(tracks: readonly number[]): string {
  if (tracks.length === 0) return '';
  const ranges: { first: number; last: number }[] = [];
  for (const track of tracks) {
    const open = ranges.at(-1);
    if (open !== undefined && track <= open.last + 1) open.last = track;
    else ranges.push({ first: track, last: track });
  }
  const shown = ranges
    .slice(0, RANGES_SHOWN_MAX)
    .map(({ first, last }) => (first === last ? String(first) : `${first} to ${last}`));
  const rest = ranges.length > shown.length ? ' and others' : '';
  return ` in track${tracks.length === 1 ? '' : 's'} ${shown.join(', ')}${rest}`;
}
