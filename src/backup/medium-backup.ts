/**
 * One backup from freeze to sealed set, straight to sequential media: files, pipes, tapes; there is no store. The
 * flow is that of `backup.ts`, with media in the place of lanes' files:
 *
 *     first medium -> freeze -> read, hash, compress -> pieces -> metadata -> seal, last medium's end -> point
 *
 * The first medium is opened before the freeze, since loading it, or waiting for a pipe's reader, may take long; the
 * others are loaded while the session goes on, and writers then have what room the container has.
 *
 * The set is a full one: there is no store whose sets it could build on, or whose sets one could build on it. But
 * the volume keeps the set's point, for the consumer `medium <label>`: imported into a store, the set is a base for
 * what this store gets.
 *
 * One lane, in this process: media are written one after the other. Nothing is written twice or staged as a whole;
 * what waits in memory is a piece, and what a medium has not taken yet.
 */

import { type Clock, systemClock } from '../base/index.ts';
import { compressionOf } from '../blockset/index.ts';
import { DirectSet, type DirectSetOptions, mediumName, type OpenOutput } from '../media/index.ts';
import type { SessionPlan } from '../volume/index.ts';
import { LocalLane } from './lane-worker.ts';
import type { Codec, SetOutcome } from './messages.ts';
import { outcomeOf } from './outcome.ts';
import { Saving, type SavingOptions } from './saving.ts';
import type { HomeReader, SessionSource } from './source.ts';

export interface MediumBackupOptions
  extends
    Pick<SavingOptions, 'signal' | 'onProgress' | 'runBytesMax' | 'drainBytesMax' | 'rate'>,
    Pick<
      DirectSetOptions,
      'openOutput' | 'label' | 'mediumSizeBytes' | 'threshold' | 'onStep' | 'onFailure' | 'onMedium'
    > {
  readonly source: SessionSource;
  readonly codec: Codec;
  /** Of zstd; the default of stores where left out. */
  readonly compressionLevel?: number | undefined;
  readonly clock?: Clock;
}

/** The consumer for which a volume keeps the point of its last set on media with this label. */
export function mediumConsumer(label: string): string {
  return `medium ${label}`;
}

/**
 * Takes a full backup of the source's volume. When it returns, all media have ended and those that are files are
 * durable.
 *
 * @throws {MediaError} with any code for writing, and what the source throws: media then hold no set, unless the last
 *   one had ended already.
 */
export async function backUpToMedium(options: MediumBackupOptions): Promise<SetOutcome> {
  const { source, label, openOutput } = options;
  const clock = options.clock ?? systemClock;
  const startedMs = clock.monotonicMs();
  const media = await openingFirst(openOutput, label);
  try {
    const plan = await source.begin({ consumer: mediumConsumer(label), level: 'full', candidates: [] });
    const set = new DirectSet(newSetOf(options, plan), {
      ...options,
      clock,
      openOutput: media.openOutput,
    });
    try {
      const outcome = await saveSet(options, plan, set);
      return { ...outcome, durationMs: clock.monotonicMs() - startedMs };
    } finally {
      await set.close();
    }
  } finally {
    await media.abandonUnused();
  }
}

async function saveSet(
  options: MediumBackupOptions,
  plan: SessionPlan,
  set: DirectSet,
): Promise<Omit<SetOutcome, 'durationMs'>> {
  const { source } = options;
  try {
    const saving = new Saving({
      ...options,
      plan,
      lanes: [new MediumLane(set, source.home)],
      base: undefined,
      storesAliases: false,
    });
    const counters = await set.finish(await saving.run());
    await source.mayComplete();
    const { media } = await set.seal();
    await source.complete(set.id);
    return {
      ...outcomeOf(source, plan, { set: set.id, counters, lanes: 1 }),
      media: media.length,
      label: options.label,
    };
  } catch (error) {
    await set.fail(error);
    throw error;
  }
}

function newSetOf(
  { source, codec, compressionLevel }: MediumBackupOptions,
  { point, sizeBytes }: SessionPlan,
) {
  const { volumeId, name: volumeName, trackSizeBytes } = source.volume;
  const compression = compressionOf(codec, compressionLevel);
  return { volumeId, volumeName, point, sizeBytes, trackSizeBytes, compression };
}

/** Opens the first medium now; `abandonUnused` gives it up where nobody came to ask for it. */
async function openingFirst(openOutput: OpenOutput, label: string) {
  const opened = await openOutput({ medium: 1, label, name: mediumName({ label, medium: 1 }) });
  let first: typeof opened | undefined = opened;
  return {
    openOutput: async (wanted: Parameters<OpenOutput>[0]) => {
      const unused = first;
      first = undefined;
      return unused ?? (await openOutput(wanted));
    },
    abandonUnused: async () => {
      await first?.abandon();
    },
  };
}

/** A lane that waits for the medium to take what is full. */
class MediumLane extends LocalLane {
  readonly #set: DirectSet;

  constructor(set: DirectSet, home: HomeReader) {
    super(set.set.parts, home, set.set.lane);
    this.#set = set;
  }

  override async store(ticket: number, keep: readonly number[]): Promise<void> {
    await super.store(ticket, keep);
    await this.#set.drain();
  }

  override async flush(): Promise<void> {
    await super.flush();
    await this.#set.drain();
  }
}
