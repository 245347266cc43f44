/**
 * Sessions for tests: a real volume, a real container, a real store and the real lane in one process, with
 * gates before the main pass and before the store, and one list of what happened in which order.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Store } from '../blockset/index.ts';
import { labelOf } from '../sim/index.ts';
import type { BackupSession, ContainerArea, Volume } from '../volume/index.ts';
import type { SessionSource } from './source.ts';

interface Teardown {
  teardown(body: () => Promise<void>): void;
}

export async function makeTestStore(t: Teardown): Promise<Store> {
  const directory = await mkdtemp(join(tmpdir(), 'cowbell-store-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return Store.init(join(directory, 's'));
}

/** The calls a test can hold, by name. */
export type Step = 'begin' | 'read' | 'confirm' | 'take' | 'acknowledge' | 'mayComplete' | 'complete';

export interface LocalSourceOptions {
  readonly volume: Volume;
  readonly areas: readonly ContainerArea[];
  /** Called before a step; what it returns is waited for, what it throws fails the step. */
  readonly before?: (step: Step, tracks: readonly number[]) => Promise<void> | void;
  /** Tracks that the main pass has just saved. */
  readonly onConfirmed?: (tracks: readonly number[]) => void;
  /** Tracks that the store has just taken out of the container, or out of turn. */
  readonly onTaken?: (tracks: readonly number[]) => void;
}

/** A session source beside its volume. */
export class LocalSource implements SessionSource {
  readonly volume: SessionSource['volume'];
  readonly home: SessionSource['home'];
  readonly isHomeWhole = true;
  readonly #options: LocalSourceOptions;
  #session: BackupSession | undefined;

  constructor(options: LocalSourceOptions) {
    const { volume } = options;
    this.#options = options;
    this.volume = volume.identity;
    this.home = {
      read: async (target, offsetBytes) => {
        const { first, count } = volume.geometry.tracksOf(offsetBytes, target.length);
        await this.#before(
          'read',
          Array.from({ length: count }, (_, index) => first + index),
        );
        await volume.read(target, offsetBytes);
      },
      // Everything is data, so that every track passes the gates.
      extents: async (offsetBytes, lengthBytes) => [{ offsetBytes, lengthBytes, hole: false, zero: false }],
    };
  }

  get session(): BackupSession {
    if (this.#session === undefined) throw new Error('The session has not begun');
    return this.#session;
  }

  async begin(request: Parameters<SessionSource['begin']>[0]): ReturnType<SessionSource['begin']> {
    await this.#before('begin', []);
    this.#session = await this.#options.volume.beginSession({ ...request, areas: this.#options.areas });
    return this.#session.plan;
  }

  async confirm(runs: Parameters<SessionSource['confirm']>[0]): ReturnType<SessionSource['confirm']> {
    const tracks = runs.flatMap(({ first, count }) =>
      Array.from({ length: count }, (_, index) => first + index),
    );
    await this.#before('confirm', tracks);
    const hits = this.session.confirm(runs);
    this.#options.onConfirmed?.(tracks.filter((track) => !hits.includes(track)));
    return hits;
  }

  async take(countMax: number): ReturnType<SessionSource['take']> {
    await this.#before('take', []);
    const taken = await this.session.take(countMax);
    this.#options.onTaken?.(taken.map(({ track }) => track));
    return taken;
  }

  async acknowledge(ids: readonly number[]): Promise<void> {
    await this.#before('acknowledge', []);
    this.session.acknowledge(ids);
  }

  async mayComplete(): Promise<void> {
    await this.#before('mayComplete', []);
    await this.session.mayComplete();
  }

  async complete(set: string): Promise<void> {
    await this.#before('complete', []);
    await this.session.complete(set);
  }

  covered(): Promise<void> {
    return this.session.covered();
  }

  async logsDamaged(reason: string): Promise<void> {
    this.session.logsDamaged(reason);
  }

  async #before(step: Step, tracks: readonly number[]): Promise<void> {
    await this.#options.before?.(step, tracks);
  }
}

/** The labels of a set's tracks by themselves, read from the store through its chain. */
export async function labelsInStore(store: Store, set: string): Promise<string[]> {
  const chain = await store.chain(set);
  try {
    return Array.from({ length: chain.trackCount }, (_, track) => {
      const content = chain.readTrack(track);
      return content === undefined ? '0' : labelOf(content);
    });
  } finally {
    await chain.close();
  }
}

/** The tracks that one set holds, whatever it builds on. */
export async function tracksInSet(store: Store, set: string): Promise<number[]> {
  const reader = store.openSet(await store.find(set));
  try {
    return reader.present.toArray();
  } finally {
    await reader.close();
  }
}
