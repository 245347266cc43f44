/**
 * The simplest receiver of a session, for tests: takes what was diverted, stores each track once by its label, and
 * acknowledges when the test says so.
 */

import { MemoryArea } from '../container/index.ts';
import { labelOf, TEST_TRACK_BYTES } from '../sim/index.ts';
import type { BaseCandidate } from './base-choice.ts';
import type { BackupSession } from './session.ts';
import type { SessionRequest } from './sessions.ts';
import type { Volume } from './volume.ts';

/** A point that a store has a full set of. */
export function full(point: string): BaseCandidate {
  return { point, isFull: true, chainSetCount: 1 };
}

export class Receiver {
  readonly session: BackupSession;
  /** By track, the label of what was stored. */
  readonly stored = new Map<number, string>();
  /** Tracks in the order in which they came, those that came twice as well. */
  readonly came: number[] = [];
  readonly #volume: Volume;
  #unacknowledged: number[] = [];

  private constructor(volume: Volume, session: BackupSession) {
    this.#volume = volume;
    this.session = session;
  }

  /** @param slots of memory. */
  static async begin(
    volume: Volume,
    slots: number,
    request: Partial<SessionRequest> & { readonly consumer: string },
  ): Promise<Receiver> {
    const { trackSizeBytes } = volume.geometry;
    const area = new MemoryArea({ sizeBytes: slots * trackSizeBytes, trackSizeBytes });
    const areas = slots === 0 ? [] : [area];
    return new Receiver(
      volume,
      await volume.beginSession({ level: 'full', candidates: [], areas, ...request }),
    );
  }

  /** Takes up to so many tracks, which there must be, and stores them. */
  async take(countMax = 100): Promise<number[]> {
    const taken = await this.session.take(countMax);
    for (const { id, track, content } of taken) {
      this.came.push(track);
      this.#unacknowledged.push(id);
      if (!this.stored.has(track)) this.stored.set(track, labelOf(content ?? (await this.#readHome(track))));
    }
    return taken.map(({ track }) => track);
  }

  /** Acknowledges everything that was taken since it last did. */
  acknowledge(): void {
    this.session.acknowledge(this.#unacknowledged.splice(0));
  }

  /** The connection was lost and has come back. */
  reconnect(): void {
    this.#unacknowledged = [];
    this.session.resend();
  }

  /** Reads these tracks from the home and asks. @returns those that were hit. */
  async mainPass(first: number, count: number): Promise<number[]> {
    const read: [number, string][] = [];
    for (let track = first; track < first + count; track += 1)
      read.push([track, labelOf(await this.#readHome(track))]);
    const hits = this.session.confirm([{ first, count }]);
    for (const [track, label] of read) if (!hits.includes(track)) this.stored.set(track, label);
    return hits;
  }

  async finish(): Promise<void> {
    await this.session.mayComplete();
    await this.session.complete(`set of ${this.session.consumer}`);
  }

  async #readHome(track: number): Promise<Buffer> {
    const content = Buffer.alloc(TEST_TRACK_BYTES);
    await this.#volume.read(content, track * TEST_TRACK_BYTES);
    return content;
  }
}
