/**
 * Backups of several volumes at one instant, all or none: where they wait for each other.
 *
 *     each member's child asks to begin  ->  all are there: the hooks, and one freeze of all volumes
 *     each member has saved everything   ->  all have: each seals its set
 *
 * A member that fails before all have saved everything fails the others. After that each one's set is sealed by
 * itself, and a store that fails just then leaves the others' sets.
 */

import { deferred, type Deferred } from '../base/index.ts';
import { type BackupSession, beginSessions, type SessionRequest, type Volume } from '../volume/index.ts';

interface Wish {
  readonly volume: Volume;
  readonly request: SessionRequest;
  readonly begun: Deferred<BackupSession>;
}

export interface FreezeGroupOptions {
  /** Members, at least 1. */
  readonly count: number;
  /** Runs around the one freeze. */
  readonly around: (freeze: () => Promise<void>) => Promise<void>;
}

export class FreezeGroup {
  readonly #options: FreezeGroupOptions;
  readonly #freezes: (() => Promise<void>)[] = [];
  readonly #wishes: Wish[] = [];
  readonly #frozen: Deferred = deferred();
  #savedCount = 0;
  readonly #saved: Deferred = deferred();
  readonly #failed = new AbortController();

  constructor(options: FreezeGroupOptions) {
    this.#options = options;
    // Each member hears of a failure by itself.
    this.#frozen.promise.catch(() => undefined);
    this.#saved.promise.catch(() => undefined);
  }

  /** Fires when a member has failed. */
  get signal(): AbortSignal {
    return this.#failed.signal;
  }

  /** A member wants to freeze; finishes when what runs around the freeze of all has. */
  async arrive(freeze: () => Promise<void>): Promise<void> {
    this.#failed.signal.throwIfAborted();
    this.#freezes.push(freeze);
    if (this.#freezes.length === this.#options.count) {
      const freezeAll = async (): Promise<void> => {
        await Promise.all(this.#freezes.map((one) => one()));
      };
      this.#options.around(freezeAll).then(this.#frozen.resolve, this.#frozen.reject);
    }
    return this.#frozen.promise;
  }

  /** A member's session begins, with those of all others. Snapshots need no freeze. */
  async begin(volume: Volume, request: SessionRequest): Promise<BackupSession> {
    const wish: Wish = { volume, request, begun: deferred() };
    this.#wishes.push(wish);
    if (this.#failed.signal.aborted) await this.#giveUp(this.#failed.signal.reason);
    else if (this.#wishes.length === this.#options.count) void this.#beginAll();
    return wish.begun.promise;
  }

  /** A member has saved everything; finishes when all have. */
  async save(): Promise<void> {
    this.#failed.signal.throwIfAborted();
    this.#savedCount += 1;
    if (this.#savedCount === this.#options.count) this.#saved.resolve();
    await this.#saved.promise;
  }

  /** A member has failed: so have all. */
  fail(error: unknown): void {
    if (this.#failed.signal.aborted) return;
    this.#failed.abort(error);
    // Without effect on what has happened already.
    if (this.#freezes.length < this.#options.count) this.#frozen.reject(error);
    if (this.#wishes.length < this.#options.count) void this.#giveUp(error);
    this.#saved.reject(error);
  }

  /** The freeze will not be: what was brought for it is given back. */
  async #giveUp(error: unknown): Promise<void> {
    for (const wish of this.#wishes.splice(0)) await giveBack(wish, error);
  }

  async #beginAll(): Promise<void> {
    const live = this.#wishes.filter(({ request }) => request.snapshot === undefined);
    const ofSnapshots = this.#wishes.filter(({ request }) => request.snapshot !== undefined);
    try {
      const sessions = await beginSessions(live);
      for (const [index, { begun }] of live.entries()) {
        const session = sessions[index];
        if (session !== undefined) begun.resolve(session);
      }
      for (let next = ofSnapshots[0]; next !== undefined; next = ofSnapshots[0]) {
        // From here on the areas are the volume's.
        ofSnapshots.shift();
        try {
          next.begun.resolve(await next.volume.beginSession(next.request));
        } catch (error) {
          next.begun.reject(error);
          throw error;
        }
      }
    } catch (error) {
      // Those that have begun ignore it, and end when the group fails.
      for (const { begun } of live) begun.reject(error);
      for (const wish of ofSnapshots) await giveBack(wish, error);
    }
  }
}

async function giveBack({ request, begun }: Wish, error: unknown): Promise<void> {
  for (const area of request.areas) await area.close();
  begun.reject(error);
}
