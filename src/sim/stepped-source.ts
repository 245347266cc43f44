/**
 * A session's source for simulations: the volume's own session in the same process, each call a step that a
 * test can hold, fail and count. Reads are torn on purpose: the content of a run comes in pieces with steps
 * between, as a disk may give it.
 *
 * Calls and their replies are separate steps: what travels through a socket arrives later than it was sent.
 */

import type { BeginRequest, SessionSource } from '../backup/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { BackupSession, ContainerArea, SessionPlan, Volume } from '../volume/index.ts';

export type SourceStep =
  'begin' | 'read' | 'confirm' | 'take' | 'acknowledge' | 'mayComplete' | 'complete' | 'covered';

export interface SteppedSourceOptions {
  readonly volume: Volume;
  readonly areas: readonly ContainerArea[];
  /** Called before a call and before its reply; what it returns is waited for, what it throws fails the call. */
  readonly step: (step: SourceStep, side: 'call' | 'reply') => Promise<void>;
  /** The freeze, around the volume's own call; returns its plan. */
  readonly freeze?: (begin: () => Promise<BackupSession>) => Promise<BackupSession>;
  /** Tracks that the volume has just declared saved. */
  readonly onSaved?: (tracks: readonly number[]) => void;
  /** Where the home is zero, as it tells at this moment; nowhere where left out. */
  readonly extents?: SessionSource['home']['extents'];
  /** Where reads of the home are cut; one piece where left out. */
  readonly readBytes?: number;
}

export class SteppedSource implements SessionSource {
  readonly volume: SessionSource['volume'];
  readonly home: SessionSource['home'];
  readonly isHomeWhole = true;
  readonly #options: SteppedSourceOptions;
  /** Once the freeze has been asked for, the areas are the volume's to close. */
  hasBegun = false;
  session: BackupSession | undefined;

  constructor(options: SteppedSourceOptions) {
    const { volume } = options;
    this.#options = options;
    this.volume = volume.identity;
    this.home = {
      read: (target, offsetBytes) => this.#read(target, offsetBytes),
      extents:
        options.extents ??
        (async (offsetBytes, lengthBytes) => [{ offsetBytes, lengthBytes, hole: false, zero: false }]),
    };
  }

  async begin(request: BeginRequest): Promise<SessionPlan> {
    const { volume, areas } = this.#options;
    await this.#step('begin', 'call');
    this.hasBegun = true;
    const begin = (): Promise<BackupSession> => volume.beginSession({ ...request, areas });
    this.session = await (this.#options.freeze ?? ((freeze) => freeze()))(begin);
    await this.#step('begin', 'reply');
    return this.session.plan;
  }

  async confirm(runs: readonly TrackRun[]): Promise<readonly number[]> {
    await this.#step('confirm', 'call');
    const hits = new Set(this.#running().confirm(runs));
    const tracks = runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, at) => first + at));
    this.#options.onSaved?.(tracks.filter((track) => !hits.has(track)));
    await this.#step('confirm', 'reply');
    return [...hits];
  }

  async take(countMax: number): ReturnType<SessionSource['take']> {
    await this.#step('take', 'call');
    const taken = await this.#running().take(countMax);
    // As a socket would carry it: the container may use the slot again only after it was acknowledged.
    await this.#step('take', 'reply');
    return taken;
  }

  async acknowledge(ids: readonly number[]): Promise<void> {
    await this.#step('acknowledge', 'call');
    this.#running().acknowledge(ids);
    await this.#step('acknowledge', 'reply');
  }

  async mayComplete(): Promise<void> {
    await this.#step('mayComplete', 'call');
    await this.#running().mayComplete();
    await this.#step('mayComplete', 'reply');
  }

  async complete(set: string): Promise<void> {
    await this.#step('complete', 'call');
    await this.#running().complete(set);
    await this.#step('complete', 'reply');
  }

  async covered(): Promise<void> {
    await this.#step('covered', 'call');
    await this.#running().covered();
    await this.#step('covered', 'reply');
  }

  async logsDamaged(reason: string): Promise<void> {
    this.#running().logsDamaged(reason);
  }

  async #read(target: Buffer, offsetBytes: number): Promise<void> {
    const { volume, readBytes = target.length } = this.#options;
    for (let at = 0; at < target.length; at += readBytes) {
      await this.#step('read', 'call');
      await volume.read(target.subarray(at, at + readBytes), offsetBytes + at);
    }
    await this.#step('read', 'reply');
  }

  #running(): BackupSession {
    if (this.session === undefined) throw new Error('The session has not begun');
    return this.session;
  }

  #step(step: SourceStep, side: 'call' | 'reply'): Promise<void> {
    return this.#options.step(step, side);
  }
}
