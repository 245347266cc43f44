/**
 * How many lanes a session takes, and where they run. Little is saved soonest by one lane in the session's own
 * thread; from some size on each lane has a thread, as many as there are processors, up to a limit. One lane at
 * least goes to the store and to each further directory, however little is saved.
 */

import { availableParallelism } from 'node:os';
import { LIMITS } from '../base/index.ts';
import type { LaneParts, LaneWish } from '../blockset/index.ts';
import type { LaneStart } from './backup.ts';
import { ThreadLane } from './lane-thread.ts';
import { type LaneWorker, LocalLane } from './lane-worker.ts';
import type { SessionSource } from './source.ts';

export interface LaneThreadsOptions {
  /** The module that the threads run. */
  readonly program: string;
  readonly source: SessionSource;
  readonly homePath: string | undefined;
  readonly directories: readonly string[];
}

export class LaneThreads implements LaneStart {
  /** While one loop waits for an answer, the lane's thread works for the other. */
  readonly loopsPerLane = 2;
  readonly #options: LaneThreadsOptions;

  constructor(options: LaneThreadsOptions) {
    this.#options = options;
  }

  wish(bytes: number): LaneWish {
    const { directories } = this.#options;
    const threads =
      bytes < LIMITS.laneBytesMin ? 1 : Math.min(availableParallelism(), LIMITS.laneThreadCountMax);
    return { count: Math.max(threads, 1 + directories.length), directories };
  }

  async begin(parts: readonly LaneParts[]): Promise<readonly LaneWorker[]> {
    const { program, source, homePath } = this.#options;
    if (parts.length === 1) return parts.map((part) => new LocalLane(part, source.home));
    return ThreadLane.startAll(program, parts, source.isHomeWhole ? homePath : undefined);
  }
}
