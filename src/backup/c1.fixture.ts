/**
 * The example that EXAMPLES C1 and C2 share: eight tracks, a gated main pass, a gated store.
 *
 * Two gates are set into a session's calls: one before the main pass (`confirm`), one before the store takes
 * diverted tracks (`take`, one track at a time). Both record what came through.
 */

import { setImmediate as turn } from 'node:timers/promises';
import { deferred, type Deferred } from '../base/index.ts';
import type { Store } from '../blockset/index.ts';
import { labelOf, makeTestVolume, TEST_TRACK_BYTES, type TestVolume, writeLabel } from '../sim/index.ts';
import { type ContainerArea, MemoryArea } from '../volume/index.ts';
import { backUp, type SetOutcome } from './index.ts';
import { LocalSource, makeTestStore, type Step } from './session.fixture.ts';

export const TRACK = TEST_TRACK_BYTES;
export const FROZEN = ['o0', 'o1', 'o2', 'o3', 'o4', 'o5', 'o6', 'o7'];

export function memory(slots: number): MemoryArea {
  return new MemoryArea({ sizeBytes: slots * TRACK, trackSizeBytes: TRACK });
}

class Turnstile {
  #allowed = Number.POSITIVE_INFINITY;
  readonly #waiting: Deferred[] = [];
  #onHeld: (() => void) | undefined;
  #failure: Error | undefined;

  close(allowed: number): void {
    this.#allowed = allowed;
  }

  allow(count: number): void {
    this.#allowed += count;
    while (this.#allowed > 0) {
      const waiting = this.#waiting.shift();
      if (waiting === undefined) return;
      this.#allowed -= 1;
      waiting.resolve();
    }
  }

  open(): void {
    this.allow(Number.POSITIVE_INFINITY);
  }

  /** Fails everyone who waits and everyone who comes. */
  fail(error: Error): void {
    this.#failure = error;
    for (const waiting of this.#waiting.splice(0)) waiting.reject(error);
  }

  /** Resolves as soon as someone waits. */
  held(): Promise<void> {
    if (this.#waiting.length > 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onHeld = resolve;
    });
  }

  pass(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#allowed > 0) {
      this.#allowed -= 1;
      return Promise.resolve();
    }
    const waiting = deferred();
    this.#waiting.push(waiting);
    this.#onHeld?.();
    return waiting.promise;
  }
}

export class C1Gates {
  /** What the main pass has saved from the home, in order. */
  readonly saved: number[] = [];
  /** What the store has taken out of the container, in order. */
  readonly taken: number[] = [];
  readonly #mainPass = new Turnstile();
  readonly #store = new Turnstile();

  holdMainPassAt(trackCount: number): void {
    this.#mainPass.close(trackCount);
  }

  holdStore(): void {
    this.#store.close(0);
  }

  mainPassHeld(): Promise<void> {
    return this.#mainPass.held();
  }

  letMainPassConfirm(count: number): void {
    this.#mainPass.allow(count);
  }

  releaseMainPass(): void {
    this.#mainPass.open();
  }

  letStoreTake(count: number): void {
    this.#store.allow(count);
  }

  releaseStore(): void {
    this.#store.open();
  }

  /** From now on the side of the store fails at whatever it does. */
  fail(error: Error): void {
    this.#mainPass.fail(error);
    this.#store.fail(error);
  }

  async pass(step: Step): Promise<void> {
    if (step === 'confirm') await this.#mainPass.pass();
    if (step === 'take') await this.#store.pass();
  }
}

export interface Example {
  readonly test: TestVolume;
  readonly store: Store;
  readonly gates: C1Gates;
  readonly source: LocalSource;
  readonly backup: Promise<SetOutcome>;
  readonly abort: AbortController;
}

/** Steps 0 and 1: eight tracks, the backup frozen, 0 1 2 stored, the main pass and the store held. */
export async function begin(
  t: Parameters<typeof makeTestVolume>[0],
  areas: readonly ContainerArea[],
): Promise<Example> {
  const test = await makeTestVolume(t, { trackCount: 8 });
  const store = await makeTestStore(t);
  for (const [track, label] of FROZEN.entries()) await writeLabel(test.volume, track, label);
  const gates = new C1Gates();
  const source = new LocalSource({
    volume: test.volume,
    areas,
    before: (step) => gates.pass(step),
    onConfirmed: (tracks) => gates.saved.push(...tracks),
    onTaken: (tracks) => gates.taken.push(...tracks),
  });
  gates.holdMainPassAt(3);
  gates.holdStore();
  const abort = new AbortController();
  const backup = backUp({
    signal: abort.signal,
    source,
    store,
    level: 'full',
    codec: 'none',
    runBytesMax: TRACK,
    drainBytesMax: TRACK,
  });
  backup.catch(() => undefined);
  await gates.mainPassHeld();
  return { test, store, gates, source, backup, abort };
}

/** A write, and whether it is done yet. */
export function write(
  example: Example,
  track: number,
  label: string,
): { readonly done: Promise<void>; readonly isDone: () => boolean } {
  let isDone = false;
  const done = writeLabel(example.test.volume, track, label).then(() => {
    isDone = true;
  });
  return { done, isDone: () => isDone };
}

/** Long enough for everything that can go on to have gone on: nothing here waits for time or disk. */
export async function settle(): Promise<void> {
  for (let count = 0; count < 20; count += 1) await turn();
}

export async function labelAt(example: Example, track: number): Promise<string> {
  const content = Buffer.alloc(TRACK);
  await example.test.volume.read(content, track * TRACK);
  return labelOf(content);
}
