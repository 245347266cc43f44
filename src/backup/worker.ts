/**
 * The child's side of a backup session: opens the store and the home, and backs up through the channel to the
 * serving process. The process around it (signals, priority, exit) is the command line's.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { systemClock, toWireError } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { type BlockDevice, openFileDevice } from '../device/index.ts';
import { backUp } from './backup.ts';
import { baseCandidates } from './candidates.ts';
import { type ChildMessage, isHostMessage, type StartMessage, type WriteStyle } from './messages.ts';
import { LaneThreads } from './lane-threads.ts';
import { RateLimit } from './rate-limit.ts';
import { RemoteSource } from './remote-source.ts';

/** The channel to the serving process. */
export interface WorkerChannel {
  /** Resolves when the message is on its way. */
  send(message: unknown): Promise<void>;
  onMessage(listener: (message: unknown) => void): void;
}

export interface WorkerOptions {
  /** The module that the threads of lanes run; it calls `runLaneThread`. */
  readonly laneProgram: string;
}

/** How often progress is reported at the most. */
const PROGRESS_MS = 200;

/** Serves one session; resolves when its result has been sent. Never rejects for a failed session. */
export async function runWorker(channel: WorkerChannel, options: WorkerOptions): Promise<void> {
  const abort = new AbortController();
  const worker: { source?: RemoteSource } = {};
  const start = await new Promise<StartMessage>((resolve) => {
    channel.onMessage((message) => {
      if (!isHostMessage(message)) return;
      if (message.kind === 'start') resolve(message);
      else if (message.kind === 'cancel') abort.abort(new Error('The session was cancelled'));
      else worker.source?.settle(message);
    });
  });
  const send = (message: ChildMessage): Promise<void> => channel.send(message);
  const result = await runSession(start, { ...options, signal: abort.signal, send, worker });
  await channel.send(result);
}

interface SessionRun extends WorkerOptions {
  readonly signal: AbortSignal;
  readonly send: (message: ChildMessage) => Promise<void>;
  readonly worker: { source?: RemoteSource };
}

async function runSession(
  start: StartMessage,
  { signal, send, worker, laneProgram }: SessionRun,
): Promise<ChildMessage> {
  const { style } = start;
  let home: BlockDevice | undefined;
  try {
    const key = start.key === undefined ? {} : { key: start.key };
    if (start.isDryRun === true) {
      const store = await Store.open(start.storePath, { ...key, readOnly: true });
      const offered = await baseCandidates(store, start.volume.volumeId, start.level);
      return { kind: 'offer', request: { consumer: store.id, level: start.level, ...offered } };
    }
    const store = await Store.open(start.storePath, key);
    if (start.homePath !== undefined) {
      home = await openFileDevice({ path: start.homePath, readOnly: true, syncName: 'home' });
    }
    // The channel's end ends the process, so a message that could not be sent needs no answer.
    const source = new RemoteSource({ volume: start.volume, home, send: (message) => void send(message) });
    worker.source = source;
    let reportedMs = 0;
    const outcome = await backUp({
      source,
      store,
      level: start.level,
      codec: style.codec,
      compressionLevel: style.compressionLevel,
      lanes: new LaneThreads({
        program: laneProgram,
        source,
        homePath: start.homePath,
        directories: style.lanes ?? [],
      }),
      rate: rateOf(style),
      onStep: (step) => void send({ kind: 'step', step }),
      signal,
      onProgress: (progress) => {
        const nowMs = performance.now();
        if (nowMs - reportedMs < PROGRESS_MS && progress.tracksDone < progress.tracksTotal) return;
        reportedMs = nowMs;
        void send({ kind: 'progress', progress });
      },
    });
    return { kind: 'done', outcome };
  } catch (error) {
    return { kind: 'failed', error: toWireError(error) };
  } finally {
    await home?.close();
  }
}

function rateOf({ rateBytesPerSecond }: WriteStyle): RateLimit | undefined {
  if (rateBytesPerSecond === undefined) return undefined;
  return new RateLimit({ bytesPerSecond: rateBytesPerSecond, clock: systemClock, wait: (ms) => delay(ms) });
}
