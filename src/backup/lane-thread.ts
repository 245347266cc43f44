/**
 * A lane in a thread of its own: the thread's side (`runLaneThread`) and the session's (`ThreadLane`).
 *
 * Reading, hashing, packing and LMDB's commits hold the thread and nobody else. A thread that dies is a failed
 * session: every call that waits, and every later one, is refused.
 */

import { type MessagePort, Worker } from 'node:worker_threads';
import {
  allFinished,
  answerCalls,
  assert,
  LIMITS,
  present,
  ThreadCalls,
  unreachable,
} from '../base/index.ts';
import type { LaneCounts, LaneParts, SetCounters } from '../blockset/index.ts';
import { type BlockDevice, openFileDevice } from '../device/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { LaneCall, LaneCallName, LaneCalls, LaneThreadData, WireHeld } from './lane-messages.ts';
import { type HeldTracks, type LaneWorker, LocalLane } from './lane-worker.ts';
import type { HomeReader } from './source.ts';

/** The thread's program: serves one lane until it was released or aborted. */
export async function runLaneThread(port: MessagePort, { parts, homePath }: LaneThreadData): Promise<void> {
  let home: BlockDevice | undefined;
  await answerCalls(port, async () => {
    if (homePath !== undefined) {
      home = await openFileDevice({
        path: homePath,
        readOnly: true,
        syncName: 'home',
        // The thread has nobody else to serve, and what it reads itself is in its processor's cache.
        smallBytesMax: LIMITS.sessionRunBytesMax,
      });
    }
    const lane = new LocalLane(parts, home ?? NO_HOME);
    return async (call: LaneCall) => {
      const gives = await perform(lane, call);
      return { gives, isLast: call.name === 'release' || call.name === 'abort' };
    };
  });
  await home?.close();
}

const NO_HOME: HomeReader = {
  read: () => assert(false, 'A lane without a home was asked to read'),
  extents: () => Promise.resolve([]),
};

function perform(lane: LocalLane, call: LaneCall): Promise<LaneCalls[LaneCallName]['gives']> {
  switch (call.name) {
    case 'read':
      return lane.read(call.takes);
    case 'hold':
      return lane.hold(call.takes.tracks, call.takes.contents.map(asBuffer));
    case 'store':
      return ignoring(lane.store(call.takes.ticket, call.takes.keep));
    case 'storeAliases':
      return ignoring(lane.storeAliases(call.takes));
    case 'storeZeroes':
      return ignoring(lane.storeZeroes(call.takes));
    case 'flush':
      return ignoring(lane.flush());
    case 'finish':
      return lane.finish();
    case 'settle':
      return lane.settle(call.takes);
    case 'seal':
      return ignoring(lane.seal(asBuffer(call.takes)));
    case 'release':
      return ignoring(lane.release());
    case 'abort':
      return ignoring(lane.abort());
    default:
      return unreachable(call);
  }
}

async function ignoring(work: Promise<void>): Promise<undefined> {
  await work;
  return undefined;
}

export class ThreadLane implements LaneWorker {
  readonly #calls: ThreadCalls;

  private constructor(worker: Worker) {
    this.#calls = new ThreadCalls(worker, 'A lane of the backup');
  }

  /**
   * Starts the lanes' threads, which begin their files; all or none. Those in other directories come after lane 0,
   * whose file says where they are: what a crash leaves of them could not be found otherwise.
   *
   * @param program the module that the threads run; it calls `runLaneThread`.
   */
  static async startAll(
    program: string,
    parts: readonly LaneParts[],
    homePath: string | undefined,
  ): Promise<readonly ThreadLane[]> {
    const lanes = new Map<number, ThreadLane>();
    const start = (some: readonly LaneParts[]): Promise<unknown> =>
      allFinished(
        some.map((part) => {
          const workerData: LaneThreadData = { parts: part, homePath };
          const lane = new ThreadLane(new Worker(program, { workerData }));
          lanes.set(part.lane, lane);
          return lane.#calls.ready;
        }),
      );
    try {
      await start(parts.filter(isBesideLane0));
      await start(parts.filter((part) => !isBesideLane0(part)));
      return parts.map(({ lane }) => present(lanes.get(lane), 'A lane was started'));
    } catch (error) {
      await Promise.allSettled([...lanes.values()].toReversed().map((lane) => lane.abort()));
      throw error;
    }
  }

  read(run: TrackRun): Promise<HeldTracks> {
    return this.#call('read', run).then(heldOf);
  }

  hold(tracks: readonly number[], contents: readonly Buffer[]): Promise<HeldTracks> {
    return this.#call('hold', { tracks, contents }).then(heldOf);
  }

  async store(ticket: number, keep: readonly number[]): Promise<void> {
    await this.#call('store', { ticket, keep });
  }

  async storeAliases(aliases: readonly { readonly track: number; readonly of: number }[]): Promise<void> {
    await this.#call('storeAliases', aliases);
  }

  async storeZeroes(tracks: readonly number[]): Promise<void> {
    await this.#call('storeZeroes', tracks);
  }

  async flush(): Promise<void> {
    await this.#call('flush', undefined);
  }

  finish(): Promise<LaneCounts> {
    return this.#call('finish', undefined);
  }

  async settle(counters: SetCounters | undefined): Promise<Buffer> {
    return asBuffer(await this.#call('settle', counters));
  }

  async seal(record: Buffer): Promise<void> {
    await this.#call('seal', record);
  }

  async release(): Promise<void> {
    await this.#call('release', undefined);
    await this.#calls.ended();
  }

  async abort(): Promise<void> {
    if (this.#calls.isDead) return;
    await this.#call('abort', undefined).catch(() => undefined);
    await this.#calls.ended();
  }

  #call<Name extends LaneCallName>(
    name: Name,
    takes: LaneCalls[Name]['takes'],
  ): Promise<LaneCalls[Name]['gives']>;
  #call(name: LaneCallName, takes: unknown): Promise<unknown> {
    return this.#calls.call({ name, takes });
  }
}

function isBesideLane0({ lane, directories }: LaneParts): boolean {
  return (directories[lane] ?? '') === '';
}

function heldOf({ ticket, hashes, zeroes }: WireHeld): HeldTracks {
  return { ticket, hashes: asBuffer(hashes), zeroes };
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
