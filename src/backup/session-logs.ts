/**
 * The delta logs as a session reads them: what its plan takes from there (DESIGN section 4, "Deltas").
 *
 * The side that stores opens the members by itself, beside the process that writes them: closed logs do not change, and
 * none goes away as long as the session lasts.
 */

import { messageOf } from '../base/index.ts';
import { type DeltaIndex, DeltaReader } from '../delta/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import type { SessionPlan } from '../volume/index.ts';
import type { LogReader } from './saving.ts';
import type { SessionSource } from './source.ts';

export class SessionLogs implements LogReader {
  readonly #source: SessionSource;
  readonly #reader: DeltaReader;
  readonly #index: DeltaIndex;

  private constructor(source: SessionSource, reader: DeltaReader, index: DeltaIndex) {
    this.#source = source;
    this.#reader = reader;
    this.#index = index;
  }

  /** Undefined where the plan takes nothing from logs. @throws what the session has to fail with. */
  static async open(
    source: SessionSource,
    { deltas, point }: SessionPlan,
    registry: Pick<DeviceRegistry, 'open'> = new DeviceRegistry(),
  ): Promise<SessionLogs | undefined> {
    if (deltas === undefined || deltas.tracks.isEmpty) return undefined;
    const { volumeId } = source.volume;
    return telling(source, async () => {
      const reader = await DeltaReader.open(deltas.places, { registry, volumeId });
      try {
        return new SessionLogs(source, reader, await reader.index(deltas.startPoint, { point }));
      } catch (error) {
        await reader.close();
        throw error;
      }
    });
  }

  read(track: number, target: Buffer): Promise<void> {
    return telling(this.#source, () => this.#index.read(track, target));
  }

  close(): Promise<void> {
    return this.#reader.close();
  }
}

/** The volume hears of logs that cannot be read: the next session takes nothing from there. */
async function telling<T>(source: SessionSource, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    // Whatever it is: the home may have something newer by now, so this session cannot go on.
    await source.logsDamaged(messageOf(error));
    throw error;
  }
}
