/**
 * Reads a chain in several threads: frames are read, unpacked and checked ahead of who asks for them.
 *
 * The chain that was opened here plans; each thread has opened the same sets for itself. While a plan is walked,
 * the next frames of it are on their way in the threads already, each with whichever has least to do. Frames of
 * different lanes alternate in a plan, so all lanes are read at the same time.
 *
 * Memory is bounded by the frames ahead, `AHEAD` for each thread.
 */

import { availableParallelism } from 'node:os';
import { type MessagePort, Worker } from 'node:worker_threads';
import { allFinished, answerCalls, assert, LIMITS, ThreadCalls } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import type { ChainPlanEntry, ChainView } from './chain-view.ts';
import { reuseFrameRoom } from './frame-codec.ts';
import type { StoreKey } from './key-slots.ts';
import type { StoredTrack } from './lane-reader.ts';
import type { SetHeader } from './set-format.ts';
import { Store } from './store.ts';

/** Frames on their way for each thread. */
const AHEAD = 3;

export interface ChainThreadData {
  readonly storePath: string;
  readonly key: StoreKey | undefined;
  readonly set: string;
  /** Ids of the chain's sets, newest first. */
  readonly sets: readonly string[];
}

/** Both ends are of one version. */
export function isChainThreadData(value: unknown): value is ChainThreadData {
  return typeof value === 'object' && value !== null && 'sets' in value;
}

type Call =
  /** `room` is memory that the thread may unpack into. */
  { readonly read: ChainPlanEntry; readonly room?: ArrayBuffer | undefined } | { readonly close: true };

/** The tracks of a frame as they travel. */
interface WireFrame {
  readonly tracks: readonly number[];
  /** Where each lies in `content`. */
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
  readonly content: Uint8Array;
}

/** The thread's program: opens the chain and reads what it is asked for. */
export async function runChainThread(port: MessagePort, data: ChainThreadData): Promise<void> {
  await answerCalls(port, async () => {
    const key = data.key === undefined ? {} : { key: data.key };
    const store = await Store.open(data.storePath, { readOnly: true, ...key });
    const chain = await store.chain(data.set);
    assert(
      chain.sets.length === data.sets.length && chain.sets.every((set, index) => set === data.sets[index]),
      `The chain of set ${data.set} has changed`,
    );
    return async (call: Call) => {
      if ('close' in call) {
        await chain.close();
        return { gives: undefined, isLast: true };
      }
      if (call.room !== undefined) reuseFrameRoom(call.room);
      const frame = packed(chain.readFrame(call.read), chain.trackSizeBytes);
      return { gives: frame, transfer: [frame.content.buffer] };
    };
  });
}

function packed(
  read: readonly StoredTrack[],
  trackSizeBytes: number,
): WireFrame & { readonly content: Uint8Array<ArrayBuffer> } {
  const tracks = read.map(({ track }) => track);
  const lengths = read.map(({ content }) => content.length);
  const whole = wholeBuffer(read, trackSizeBytes);
  if (whole !== undefined) {
    return { tracks, lengths, offsets: read.map(({ content }) => content.byteOffset), content: whole };
  }
  const content = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
  const offsets: number[] = [];
  let at = 0;
  for (const { content: part } of read) {
    offsets.push(at);
    content.set(part, at);
    at += part.length;
  }
  return { tracks, lengths, offsets, content };
}

/**
 * The buffer that the tracks were unpacked into, to be handed over as it is: it holds whole tracks and nothing else, and
 * is none that Node shares among small buffers. Undefined for any other, and where less than half of it is wanted, so that
 * what is kept of it does not hold the rest: those are copied.
 */
function wholeBuffer(
  read: readonly StoredTrack[],
  trackSizeBytes: number,
): Uint8Array<ArrayBuffer> | undefined {
  const buffer = read[0]?.content.buffer;
  const isWhole =
    buffer instanceof ArrayBuffer &&
    buffer.byteLength > Buffer.poolSize &&
    buffer.byteLength % trackSizeBytes === 0 &&
    read.length * trackSizeBytes * 2 >= buffer.byteLength &&
    read.every(({ content }) => content.buffer === buffer && content.byteOffset % trackSizeBytes === 0);
  return isWhole ? new Uint8Array(buffer) : undefined;
}

function unpacked({ tracks, offsets, lengths, content }: WireFrame): StoredTrack[] {
  return tracks.map((track, index) => {
    const offset = content.byteOffset + (offsets[index] ?? 0);
    return { track, content: Buffer.from(content.buffer, offset, lengths[index]) };
  });
}

export interface ThreadedChainOptions {
  /** The module that the threads run; it calls `runChainThread`. */
  readonly program: string;
  readonly storePath: string;
  readonly key?: StoreKey | undefined;
  /** False leaves the chain the caller's, who closes it after this; also where starting fails. */
  readonly takesChain?: boolean;
}

/** A chain as `ChainView` is one, for who reads all or much of it. */
export class ThreadedChain {
  readonly header: SetHeader;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly #chain: ChainView;
  readonly #takesChain: boolean;
  readonly #threads: readonly ThreadCalls[];
  readonly #ahead = new Map<ChainPlanEntry, Promise<unknown>>();
  /** Memory for frames to come. */
  readonly #spare: ArrayBuffer[] = [];

  private constructor(chain: ChainView, threads: readonly ThreadCalls[], takesChain: boolean) {
    this.header = chain.header;
    this.sizeBytes = chain.sizeBytes;
    this.trackSizeBytes = chain.trackSizeBytes;
    this.#chain = chain;
    this.#takesChain = takesChain;
    this.#threads = threads;
  }

  /**
   * Starts the threads. The chain is the result's from now on, also where this fails, unless the options say otherwise.
   *
   * @throws {StoreError} `missing-base` or `unknown-set` where a set of the chain has gone meanwhile.
   */
  static async start(chain: ChainView, options: ThreadedChainOptions): Promise<ThreadedChain> {
    const { program, storePath, key, takesChain = true } = options;
    const workerData: ChainThreadData = { storePath, key, set: chain.header.id, sets: chain.sets };
    const count = Math.min(availableParallelism(), LIMITS.laneThreadCountMax);
    const threads = Array.from(
      { length: count },
      () => new ThreadCalls(new Worker(program, { workerData }), 'A reader of the store'),
    );
    const started = new ThreadedChain(chain, threads, takesChain);
    try {
      await allFinished(threads.map((thread) => thread.ready));
      return started;
    } catch (error) {
      await started.close();
      throw error;
    }
  }

  /** See `ChainView.tracks`. */
  tracks(): TrackSet {
    return this.#chain.tracks();
  }

  /** See `ChainView.hashOf`. */
  hashOf(track: number): Buffer | undefined {
    return this.#chain.hashOf(track);
  }

  /** See `ChainView.readPlan`. Of one plan at a time, frames are read ahead. */
  *readPlan(tracks: TrackSet): Generator<ChainPlanEntry> {
    const plan = this.#chain.readPlan(tracks);
    const next: ChainPlanEntry[] = [];
    try {
      for (;;) {
        while (next.length < AHEAD * this.#threads.length) {
          const planned = plan.next();
          if (planned.done === true) break;
          this.#ahead.set(planned.value, this.#read(planned.value));
          next.push(planned.value);
        }
        const entry = next.shift();
        if (entry === undefined) return;
        yield entry;
      }
    } finally {
      for (const entry of next) this.#ahead.delete(entry);
    }
  }

  /** See `ChainView.readFrame`. @throws {CorruptionError} naming the set and the damaged tracks. */
  async readFrame(entry: ChainPlanEntry): Promise<StoredTrack[]> {
    const reading = this.#ahead.get(entry) ?? this.#read(entry);
    this.#ahead.delete(entry);
    const frame = await reading;
    assert(isFrame(frame), 'A reader of the store gives a frame');
    return unpacked(frame);
  }

  /**
   * Nobody needs the content of a frame any more: its memory is used again.
   *
   * @param read all of what `readFrame` gave; not to be touched from now on.
   */
  recycle(read: readonly StoredTrack[]): void {
    const room = read[0]?.content.buffer;
    const isOwn = room instanceof ArrayBuffer && room.byteLength > Buffer.poolSize;
    if (isOwn && this.#spare.length < AHEAD * this.#threads.length) this.#spare.push(room);
  }

  async close(): Promise<void> {
    this.#ahead.clear();
    await Promise.allSettled(
      this.#threads.map(async (thread) => {
        await thread.ready.catch(() => undefined);
        if (!thread.isDead) await thread.call({ close: true });
        await thread.ended();
      }),
    );
    if (this.#takesChain) await this.#chain.close();
  }

  #read(entry: ChainPlanEntry): Promise<unknown> {
    const [least] = this.#threads.toSorted((a, b) => a.waitingCount - b.waitingCount);
    assert(least !== undefined, 'A threaded chain has threads');
    const room = this.#spare.pop();
    const reading = least.call({ read: entry, room }, room === undefined ? [] : [room]);
    // Where the plan is given up nobody asks for it any more.
    reading.catch(() => undefined);
    return reading;
  }
}

function isFrame(value: unknown): value is WireFrame {
  return typeof value === 'object' && value !== null && 'content' in value;
}
