/**
 * The child's side of a backup session: opens the store and the home, and backs up through the channel to the
 * serving process. The process around it (signals, priority, exit) is the command line's.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { present, systemClock, toWireError } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { type BlockDevice, openFileDevice } from '../device/index.ts';
import type { OpenOutput, SessionStep } from '../media/index.ts';
import { backUp } from './backup.ts';
import { offerBases } from './candidates.ts';
import {
  type ChildMessage,
  isHostMessage,
  type MediumTarget,
  type StartMessage,
  type SetOutcome,
  type WriteStyle,
} from './messages.ts';
import { LaneThreads } from './lane-threads.ts';
import { backUpToMedium, type MediumBackupOptions } from './medium-backup.ts';
import { RateLimit } from './rate-limit.ts';
import { RemoteSource } from './remote-source.ts';
import type { SavingProgress } from './saving.ts';

/** The channel to the serving process. */
export interface WorkerChannel {
  /** Resolves when the message is on its way. */
  send(message: unknown): Promise<void>;
  onMessage(listener: (message: unknown) => void): void;
}

export interface WorkerOptions {
  /** The module that the threads of lanes run; it calls `runLaneThread`. */
  readonly laneProgram: string;
  /** Opens the media of a session that goes to media. */
  readonly openMedia: (target: MediumTarget, signal: AbortSignal) => OpenOutput;
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

async function runSession(start: StartMessage, run: SessionRun): Promise<ChildMessage> {
  let home: BlockDevice | undefined;
  try {
    if (start.isDryRun === true) return await offer(start);
    // What the session needs is opened before the home: an error of the store is the one to be told.
    const store = start.medium === undefined ? await openStore(start) : undefined;
    if (start.homePath !== undefined) {
      home = await openFileDevice({ path: start.homePath, readOnly: true, syncName: 'home' });
    }
    // The channel's end ends the process, so a message that could not be sent needs no answer.
    const send = (message: ChildMessage): void => void run.send(message);
    const source = new RemoteSource({ volume: start.volume, home, send });
    run.worker.source = source;
    const common = {
      source,
      codec: start.style.codec,
      compressionLevel: start.style.compressionLevel,
      rate: rateOf(start.style),
      onStep: (step: SessionStep) => send({ kind: 'step', step }),
      signal: run.signal,
      onProgress: reporter(send),
    };
    if (store === undefined) return { kind: 'done', outcome: await toMedium(start, run, common) };
    const lanes = new LaneThreads({
      program: run.laneProgram,
      source,
      homePath: start.homePath,
      directories: start.style.lanes ?? [],
    });
    return { kind: 'done', outcome: await backUp({ ...common, store, level: start.level, lanes }) };
  } catch (error) {
    return { kind: 'failed', error: toWireError(error) };
  } finally {
    await home?.close();
  }
}

async function offer(start: StartMessage): Promise<ChildMessage> {
  const store = await openStore(start, { readOnly: true });
  const { offered, chain } = await offerBases(store, start.volume.volumeId, start.level);
  await chain?.close();
  return { kind: 'offer', request: { consumer: store.id, level: start.level, ...offered } };
}

function openStore({ storePath, key }: StartMessage, options: { readOnly?: boolean } = {}): Promise<Store> {
  return Store.open(storePath, { ...(key === undefined ? {} : { key }), ...options });
}

function toMedium(
  { medium }: StartMessage,
  { openMedia, signal }: SessionRun,
  common: Omit<MediumBackupOptions, 'openOutput' | 'label'>,
): Promise<SetOutcome> {
  const target = present(medium, 'A session without a store has a medium');
  return backUpToMedium({
    ...common,
    label: target.label,
    ...(target.sizeBytes === undefined ? {} : { mediumSizeBytes: target.sizeBytes }),
    openOutput: openMedia(target, signal),
  });
}

/** Tells of progress now and then, and of the last. */
function reporter(send: (message: ChildMessage) => void): (progress: SavingProgress) => void {
  let reportedMs = 0;
  return (progress) => {
    const nowMs = performance.now();
    if (nowMs - reportedMs < PROGRESS_MS && progress.tracksDone < progress.tracksTotal) return;
    reportedMs = nowMs;
    send({ kind: 'progress', progress });
  };
}

function rateOf({ rateBytesPerSecond }: WriteStyle): RateLimit | undefined {
  if (rateBytesPerSecond === undefined) return undefined;
  return new RateLimit({ bytesPerSecond: rateBytesPerSecond, clock: systemClock, wait: (ms) => delay(ms) });
}
