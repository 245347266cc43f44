/** `cowbell store list|show`: what a store holds, what builds on what, and what is stored where. */

import { statSync } from 'node:fs';
import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import type { SetReader, StoredSet } from '../../blockset/index.ts';
import { mediaOfSet } from '../../media/index.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { addKeyOptions } from '../key-options.ts';
import { describe, table } from '../output.ts';
import { openStore, SET, type SetOptions, STORE, type StoreOptions } from '../store-options.ts';

export function addList(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'list <store>',
    'List the sets of a store as chains, oldest first',
    (command) => addKeyOptions(command.positional('store', STORE)).example('$0 store list /backup/store', ''),
    (options) => run<StoreOptions>(options, list),
  );
}

export function addShow(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'show <store> <set>',
    'Show one set: what it builds on, and what of it is stored where',
    (command) =>
      addKeyOptions(
        command.positional('store', STORE).positional('set', { ...SET, demandOption: true }),
      ).example('$0 store show /backup/store latest', ''),
    (options) => run<SetOptions>(options, show),
  );
}

async function list(context: CommandContext, options: StoreOptions): Promise<void> {
  const { output } = context;
  const store = await openStore(context, options);
  const sets = await store.list();
  if (output.json) for (const set of sets) output.report({ event: 'set', ...memberOf(set) });
  else if (sets.length === 0) output.report({ event: 'none' }, `Store ${store.path} has no sets`);
  else {
    const rows = chainRows(sets).map(({ set, prefix }) => rowOf(set, prefix));
    output.report(
      { event: 'none' },
      ...table(['SET', 'VOLUME', 'LEVEL', 'CREATED', 'TRACKS', 'STORED', ''], rows),
    );
  }
}

interface ChainRow {
  readonly set: StoredSet;
  /** Signs that lead from the set that this one builds on. */
  readonly prefix: string;
}

/**
 * The sets so that each stands below the one it builds on. The one set that builds on the row above it gets an arrow
 * and no further indentation, since chains are long; where several build on one set, each begins a branch.
 */
export function chainRows(sets: readonly StoredSet[]): ChainRow[] {
  const keyOf = (set: StoredSet, point: string | null | undefined): string =>
    `${set.header?.volumeId} ${point}`;
  const holders = new Map<string, StoredSet>();
  for (const set of sets) {
    const key = keyOf(set, set.header?.point);
    const holder = holders.get(key);
    if (holder === undefined || set.header?.level === 'full') holders.set(key, set);
  }
  const children = new Map<StoredSet, StoredSet[]>();
  const roots: StoredSet[] = [];
  for (const set of sets) {
    const base = set.header?.base ?? null;
    const parent = base === null ? undefined : holders.get(keyOf(set, base));
    if (parent === undefined || parent === set) roots.push(set);
    else children.set(parent, [...(children.get(parent) ?? []), set]);
  }
  const rows: ChainRow[] = [];
  const open: { set: StoredSet; prefix: string; indent: string }[] = roots
    .toReversed()
    .map((set) => ({ set, prefix: '', indent: '' }));
  const seen = new Set<StoredSet>();
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { set, prefix, indent } = next;
    if (seen.has(set)) continue;
    seen.add(set);
    rows.push({ set, prefix });
    const below = children.get(set) ?? [];
    for (const [index, child] of [...below.entries()].toReversed()) {
      const isLast = index === below.length - 1;
      if (below.length === 1) open.push({ set: child, prefix: `${indent}↳ `, indent });
      else
        open.push({
          set: child,
          prefix: `${indent}${isLast ? '└' : '├'} `,
          indent: `${indent}${isLast ? ' ' : '│'} `,
        });
    }
  }
  // A ring of points, which no session makes, has no root.
  for (const set of sets) if (!seen.has(set)) rows.push({ set, prefix: '? ' });
  return rows;
}

/** A set as programs see it. */
export function memberOf(set: StoredSet): Readonly<Record<string, unknown>> {
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
    protectedUntil: protectedUntil(set),
  };
}

/** An instant, `forever`, or null. */
function protectedUntil({ protection }: StoredSet): string | null {
  if (protection === undefined) return null;
  return protection.untilMs === null ? 'forever' : new Date(protection.untilMs).toISOString();
}

function rowOf(set: StoredSet, prefix: string): readonly string[] {
  const { header, counters } = set;
  const until = protectedUntil(set);
  const notes = [
    ...(set.damage === undefined ? [] : [`damaged: ${set.damage}`]),
    ...(until === null ? [] : [until === 'forever' ? 'protected for ever' : `protected until ${until}`]),
  ];
  return [
    `${prefix}${set.id}`,
    header?.volumeName ?? '?',
    header?.level ?? '?',
    header === undefined ? '?' : new Date(header.createdMs).toISOString(),
    counters === undefined ? '?' : String(counters.tracks),
    counters === undefined ? '?' : formatSize(counters.bytesStored),
    notes.join('; '),
  ];
}

async function show(context: CommandContext, options: SetOptions): Promise<void> {
  const store = await openStore(context, options);
  const set = await store.find(options.set);
  const reader = store.openSet(set);
  const chain = await store.chain(set.id);
  try {
    const member = {
      ...memberOf(set),
      ...contentOf(reader),
      lanes: lanesOf(reader),
      chain: chain.sets,
      tracksNotZero: chain.tracks().size,
      media: await mediaOfSet(store.path, set.id),
    };
    context.output.report({ event: 'set', ...member }, ...describe(member));
  } finally {
    await chain.close();
    await reader.close();
  }
}

/** What the frames hold, and what they take. */
function contentOf({ counters, header }: SetReader): Readonly<Record<string, unknown>> {
  const distinct = counters.tracks - counters.zeroTracks - counters.aliases;
  const contentBytes = distinct * header.trackSizeBytes;
  const ratio = counters.bytesStored === 0 ? null : Number((contentBytes / counters.bytesStored).toFixed(2));
  return { contentBytes, compressionRatio: ratio };
}

function lanesOf(reader: SetReader): readonly Readonly<Record<string, unknown>>[] {
  return reader.paths.map((path, lane) => ({
    lane,
    path,
    tracks: reader.tracksOfLane(lane).size,
    fileBytes: statSync(path).size,
  }));
}
