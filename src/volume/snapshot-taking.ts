/**
 * How a snapshot is taken: prepared before the freeze, fixed at its instant, finished behind it, when its point is durable.
 */

import { type Clock, present } from '../base/index.ts';
import type { ClosedEpoch } from './epoch-history.ts';
import type { PointUse } from './freeze.ts';
import type { Points } from './points.ts';
import type { PreparedSnapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';
import type { CreatedSnapshot } from './volume-status.ts';

export interface SnapshotTakingOptions {
  readonly snapshots: Snapshots;
  readonly points: Points;
  readonly clock: Clock;
}

export class SnapshotTaking {
  readonly #options: SnapshotTakingOptions;
  /** Snapshots whose point is on its way to the disk. */
  readonly #finishing = new Set<Promise<CreatedSnapshot>>();

  constructor(options: SnapshotTakingOptions) {
    this.#options = options;
  }

  /** What a freeze does for a snapshot. @param refuse throws where none can be taken now. */
  part(name: string, refuse: () => void): PointUse<Promise<CreatedSnapshot>> {
    const { snapshots, points, clock } = this.#options;
    let prepared: PreparedSnapshot | undefined;
    let closed: ClosedEpoch | undefined;
    const made = (): PreparedSnapshot => present(prepared, 'A snapshot was not prepared');
    return {
      prepare: async () => {
        refuse();
        prepared = await snapshots.prepare(name, clock.now());
      },
      whileClosed: () => snapshots.takeClone(made()),
      fix: () => {
        closed = points.fix();
        snapshots.fix(made(), closed.point);
      },
      abandon: async () => {
        if (prepared !== undefined) await snapshots.abandon(prepared);
      },
      begin: (freezeMs) => {
        const epoch = present(closed, 'A snapshot was not fixed');
        const finished = this.#finish(made(), epoch, freezeMs).finally(() =>
          this.#finishing.delete(finished),
        );
        this.#finishing.add(finished);
        return finished;
      },
    };
  }

  /** Finishes when none is on its way to the disk any more. */
  async whenFinished(): Promise<void> {
    await Promise.allSettled(this.#finishing);
  }

  async #finish(prepared: PreparedSnapshot, closed: ClosedEpoch, freezeMs: number): Promise<CreatedSnapshot> {
    const { snapshots, points } = this.#options;
    try {
      await points.makeDurable(closed);
      await snapshots.finish(prepared);
    } catch (error) {
      await snapshots.abandon(prepared);
      throw error;
    }
    return { name: prepared.record.name, point: closed.point, createdMs: closed.createdMs, freezeMs };
  }
}
