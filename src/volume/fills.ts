/**
 * The recovery that an open volume is in, and what fills it: any number at once, the side's fill and media. Whichever
 * finds that nothing is missing any more ends the recovery.
 */

import { assert } from '../base/index.ts';
import type { VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import type { HomeMirrors } from './home-mirrors.ts';
import type { Mirroring } from './mirroring.ts';
import type { Recovery } from './recovery.ts';
import type { VolumeStatus } from './volume-status.ts';

export interface FillsOptions {
  readonly identity: Pick<VolumeIdentity, 'name' | 'directory' | 'home'>;
  /** Undefined where everything is in the home. */
  readonly recovery: Recovery | undefined;
  /** Undefined where no mirror is brought up. */
  readonly mirroring: Mirroring | undefined;
  /** Of a home that has a layout. */
  readonly mirrors: HomeMirrors | undefined;
  /** Throws where the home may not be written. */
  readonly refuse: () => void;
  readonly flush: () => Promise<void>;
}

export class Fills {
  readonly #options: FillsOptions;
  #recovery: Recovery | undefined;
  /** One that began while the volume was open. */
  #begun: Recovery | undefined;
  readonly #stop = new AbortController();
  readonly #running = new Set<Promise<unknown>>();

  constructor(options: FillsOptions) {
    this.#options = options;
    this.#recovery = options.recovery;
  }

  /** Undefined once it is over. */
  get recovery(): Recovery | undefined {
    return this.#recovery;
  }

  /** The volume goes on in a home that is being filled. */
  begin(recovery: Recovery): void {
    assert(this.#recovery === undefined, 'A volume under recovery begins another one');
    this.#recovery = recovery;
    this.#begun = recovery;
  }

  /** What a change may have to wait for before it passes the gate; see `FillingDevice`. */
  isReadyFor(offsetBytes: number, lengthBytes: number): boolean {
    return this.#recovery?.filling.isReadyFor(offsetBytes, lengthBytes) !== false;
  }

  async makeReadyFor(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#recovery?.filling.makeReadyFor(offsetBytes, lengthBytes);
  }

  get mirroring(): Mirroring | undefined {
    return this.#options.mirroring;
  }

  /**
   * Of what goes around the device that fills or mirrors.
   *
   * @param what a clause: what the volume cannot do.
   * @throws {VolumeError} `recovering`, `mirrored`
   */
  refuseAny(what: string): void {
    const { name, directory } = this.#options.identity;
    if (this.#recovery !== undefined) {
      const missingTracks = this.#recovery.filling.missingCount;
      const message = `Volume ${name} is being recovered, ${missingTracks} tracks are missing, and ${what} before that is over`;
      throw new VolumeError('recovering', message, { directory, missingTracks });
    }
    if (this.#options.mirroring === undefined) return;
    const message = `Volume ${name} is mirrored, and ${what} meanwhile; serve it without the mirror`;
    throw new VolumeError('mirrored', message, { directory });
  }

  /** See `Volume.fill`. */
  async run(body: (recovery: Recovery, signal: AbortSignal) => Promise<void>): Promise<void> {
    const recovery = this.#recovery;
    if (recovery === undefined) return;
    await this.#track(body(recovery, this.#stop.signal).then(() => this.#end(recovery)));
  }

  /** See `Volume.fillMirror`. */
  async runMirror(body: (mirroring: Mirroring, signal: AbortSignal) => Promise<void>): Promise<void> {
    const { mirroring } = this.#options;
    if (mirroring === undefined) return;
    await this.#track(body(mirroring, this.#stop.signal));
  }

  /** For the volume's status. */
  status(): Pick<VolumeStatus, 'recovery' | 'mirroring' | 'parts'> {
    const { mirroring } = this.#options;
    const { mirrors } = this;
    return {
      // Another device may be a member by now.
      ...mirrors?.home(),
      recovery: this.#recovery?.status(),
      mirroring: mirroring?.status(),
      parts: mirrors?.status(),
    };
  }

  /** Those of the home that the volume was opened with, as long as it is in it. */
  get mirrors(): HomeMirrors | undefined {
    return this.#begun === undefined ? this.#options.mirrors : undefined;
  }

  /** See `Volume.careForMirrors`. */
  care<T>(body: (mirrors: HomeMirrors, signal: AbortSignal) => Promise<T>): Promise<T> {
    const { identity } = this.#options;
    const { mirrors } = this;
    if (mirrors !== undefined) return this.#track(body(mirrors, this.#stop.signal));
    const message = `The home of volume ${identity.name} is ${identity.home} alone, wanted one with a mirror`;
    throw new VolumeError('unknown-member', message, { place: identity.home });
  }

  async #track<T>(filling: Promise<T>): Promise<T> {
    this.#running.add(filling);
    try {
      return await filling;
    } finally {
      this.#running.delete(filling);
    }
  }

  /** Ends what fills; the recovery goes on at the next opening. */
  async stop(reason: unknown): Promise<void> {
    this.#stop.abort(reason);
    await Promise.allSettled(this.#running);
  }

  /** Nothing may be in flight any more. */
  async close(): Promise<void> {
    await this.#options.recovery?.closeSide();
    await this.#begun?.closeSide();
    await this.#options.mirroring?.close();
  }

  async #end(recovery: Recovery): Promise<void> {
    this.#stop.signal.throwIfAborted();
    if (!recovery.isComplete || this.#recovery === undefined) return;
    this.#options.refuse();
    await this.#options.flush();
    await recovery.end();
    this.#recovery = undefined;
    // A mirror is written for as long as the volume is open, and one that was lost a moment ago perhaps still is.
    if (recovery.record.mirror === undefined) await recovery.closeSide();
  }
}
