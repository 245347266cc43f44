/**
 * One backup from freeze to sealed set, on the side of the store. The flow reads top to bottom:
 *
 *     freeze -> plan -> lanes: read, hash, compress -> block set -> seal -> catalog -> consumer's point
 *
 * Write order (DESIGN section 5): the set's data and metadata are durable, then the volume confirms that the
 * point is, then the seal, the names and the catalog; the consumer's point moves last. Cut anywhere, the set is
 * complete or invisible and the changes are still known.
 */

import { type Clock, messageOf, systemClock } from '../base/index.ts';
import {
  chainOf,
  type ChainView,
  type LaneParts,
  type LaneWish,
  type SetAssembly,
  type Store,
  StoreError,
  verify,
} from '../blockset/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { SessionStates, type SessionStep } from '../media/index.ts';
import type { PlannedDeltas, SessionPlan } from '../volume/index.ts';
import { offerBases } from './candidates.ts';
import { type LaneWorker, LocalLane } from './lane-worker.ts';
import type { Codec, Level, SetOutcome } from './messages.ts';
import { outcomeOf } from './outcome.ts';
import { Saving, type SavingOptions } from './saving.ts';
import { SessionLogs } from './session-logs.ts';
import type { SessionSource } from './source.ts';

/** How many lanes a set gets, and how they are begun. */
export interface LaneStart {
  /** @param bytes what the session may have to read. */
  wish(bytes: number): LaneWish;
  /** All or none; called under the store's lock. */
  begin(parts: readonly LaneParts[]): Promise<readonly LaneWorker[]>;
  /** Loops of the main pass for each lane. */
  readonly loopsPerLane: number;
}

export interface BackUpOptions extends Pick<
  SavingOptions,
  'signal' | 'onProgress' | 'runBytesMax' | 'drainBytesMax' | 'rate'
> {
  readonly source: SessionSource;
  readonly store: Store;
  readonly level: Level;
  readonly codec: Codec;
  /** Of zstd; the store's default where left out. */
  readonly compressionLevel?: number | undefined;
  /** One lane in this process where left out. */
  readonly lanes?: LaneStart;
  /** Opens the members of a delta store; directories alone where left out. */
  readonly registry?: Pick<DeviceRegistry, 'open'>;
  /** Each step of the session's states (MISSION M17); a store counts as one medium. */
  readonly onStep?: (step: SessionStep) => void;
  readonly clock?: Clock;
}

/**
 * Takes a backup of the source's volume into the store.
 *
 * @throws what the source and the store throw; no set is visible then, unless its seal was durable already.
 */
export async function backUp(options: BackUpOptions): Promise<SetOutcome> {
  const { source, store, level, onStep } = options;
  const clock = options.clock ?? systemClock;
  const startedMs = clock.monotonicMs();
  const states = new SessionStates('write', { clock, ...(onStep === undefined ? {} : { onStep }) });
  const { plan, base } = await begin(source, store, level);
  try {
    const outcome = await saveSet(options, { plan, base, states });
    return { ...outcome, durationMs: clock.monotonicMs() - startedMs };
  } finally {
    await base?.close();
  }
}

/** Freezes the volume, and opens what its set builds on. */
async function begin(
  source: SessionSource,
  store: Store,
  level: Level,
): Promise<{ readonly plan: SessionPlan; readonly base: ChainView | undefined }> {
  const { volumeId } = source.volume;
  // A full set builds on none of them, but must not be of an older point than they are.
  const { offered, chain } = await offerBases(store, volumeId, level);
  let base: ChainView | undefined;
  try {
    const plan = await source.begin({ consumer: store.id, level, takesLogs: true, ...offered });
    // Nearly always it is the newest, which stays open.
    if (plan.base !== undefined && plan.base === chain?.header.point) base = chain;
    else if (plan.base !== undefined) base = await openBase(store, volumeId, plan.base);
    return { plan, base };
  } finally {
    if (base !== chain) await chain?.close();
  }
}

interface Begun {
  readonly plan: SessionPlan;
  readonly base: ChainView | undefined;
  readonly states: SessionStates;
}

async function saveSet(
  options: BackUpOptions,
  { plan, base, states }: Begun,
): Promise<Omit<SetOutcome, 'durationMs'>> {
  const { source } = options;
  const start = options.lanes ?? oneLaneHere(source);
  const { assembly: set, lanes } = await beginSet(options, plan, start);
  // The lanes have begun their files with what is known of the set: the medium's headers.
  states.beginMedium(1);
  states.transfer();
  let logs: SessionLogs | undefined;
  try {
    logs = await SessionLogs.open(source, plan, options.registry);
    const saving = new Saving({ ...options, plan, lanes, base, logs, loopsPerLane: start.loopsPerLane });
    const counters = await set.finish(await saving.run());
    await source.mayComplete();
    await set.seal();
    states.endMedium();
    await source.complete(set.id);
    states.closeMedium();
    if (plan.deltas !== undefined) await tellCovered(options, plan.deltas, set.id);
    return outcomeOf(source, plan, { set: set.id, counters, lanes: lanes.length });
  } catch (error) {
    if (states.state === 'write') {
      states.fail(messageOf(error));
      states.closeMedium();
    }
    throw error;
  } finally {
    await logs?.close();
    // Without effect on a set that was sealed.
    await set.abort();
  }
}

/**
 * Reads back what was written, so that the delta logs of it may go: until then these are the second copy (promise 6). A
 * set that is damaged stays for `store verify` to tell of; the logs stay, too.
 */
async function tellCovered(
  { store, source, signal }: BackUpOptions,
  { isBaseReadable }: PlannedDeltas,
  set: string,
): Promise<void> {
  const chain = isBaseReadable ? [set] : chainOf(await store.list(), set).map(({ id }) => id);
  for (const selector of chain) {
    for await (const { sound } of verify(store, { selector, onProgress: () => signal?.throwIfAborted() }))
      if (!sound) return;
  }
  await source.covered();
}

function beginSet(
  { source, store, codec, compressionLevel }: BackUpOptions,
  { level, base, point, sizeBytes, tracks }: SessionPlan,
  start: LaneStart,
): Promise<{ readonly assembly: SetAssembly; readonly lanes: readonly LaneWorker[] }> {
  const { volumeId, name, trackSizeBytes } = source.volume;
  return store.beginSet(
    {
      volumeId,
      volumeName: name,
      level,
      base: base ?? null,
      point,
      sizeBytes,
      trackSizeBytes,
      codec,
      ...(compressionLevel === undefined ? {} : { compressionLevel }),
    },
    start.wish(tracks.size * trackSizeBytes),
    (parts) => start.begin(parts),
  );
}

/** The effective content at the base point: what the new set may leave out against. */
async function openBase(store: Store, volumeId: string, point: string): Promise<ChainView> {
  const set = await store.setWithPoint(volumeId, point);
  if (set === undefined) {
    throw new StoreError('missing-base', `Store ${store.path} no longer has a set with point ${point}`, {
      set: '',
      base: point,
    });
  }
  return store.chain(set.id);
}

function oneLaneHere(source: SessionSource): LaneStart {
  return {
    wish: () => ({ count: 1, directories: [] }),
    begin: async (parts) => parts.map((part) => new LocalLane(part, source.home)),
    loopsPerLane: 1,
  };
}
