/**
 * What a volume's state file keeps of a home's members that are not in sync (FORMAT.md): that they are, in the volume's
 * own record; what each of them lacks, beside it.
 *
 * It goes with every commit of the state: so what is recorded of an epoch that ends, and may be forgotten, is in what a
 * member is known to lack by then.
 */

import type { LmdbDatabaseView, LmdbFile } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { HomeLayout } from './layout.ts';

/** Begins the names of the records of what members lack. */
export const MISSED_PREFIX = 'missed ';

/** What is known of a home's members that are not in sync. */
export interface MembersRecord {
  readonly layout: HomeLayout;
  /** What each of them lacks, by its name (`memberKey`). */
  readonly missed: ReadonlyMap<string, TrackSet>;
}

export class MembersState {
  readonly #file: LmdbFile;
  readonly #state: LmdbDatabaseView;
  #source: (() => MembersRecord) | undefined;
  /** As it was put last, where that is known. */
  #layout: string | undefined;
  readonly #missed = new Set<string>();

  constructor(file: LmdbFile) {
    this.#file = file;
    this.#state = file.database('state');
  }

  /** From now on every commit records what the function tells at that instant. */
  follow(source: () => MembersRecord): void {
    this.#source = source;
    for (const key of this.#state.keys()) {
      const name = key.toString('latin1');
      if (name.startsWith(MISSED_PREFIX)) this.#missed.add(name.slice(MISSED_PREFIX.length));
    }
  }

  /** The home has no members any more. */
  stop(): void {
    this.#source = undefined;
  }

  /** What a member that is away had missed when that was recorded last; everything where that is not known. */
  missed(member: string, trackCount: number): TrackSet {
    const bytes = this.#state.get(`${MISSED_PREFIX}${member}`);
    if (bytes === undefined) return TrackSet.all(trackCount);
    return TrackSet.deserialize(bytes, `${this.#file.path} what ${member} has missed`, trackCount);
  }

  /**
   * A transaction with what is known of the members in it.
   *
   * @param putLayout puts a layout that has changed into the volume's record.
   */
  commit(body: () => void, putLayout: (layout: HomeLayout) => void): void {
    const record = this.#source?.();
    const layout = record && JSON.stringify(record.layout);
    this.#file.transaction(() => {
      body();
      if (record === undefined) return;
      if (layout !== this.#layout) putLayout(record.layout);
      this.#putMissed(record.missed);
    });
    this.#layout = layout;
  }

  /** What was committed last may not be durable: it is put again. */
  forget(): void {
    this.#layout = undefined;
  }

  #putMissed(missed: ReadonlyMap<string, TrackSet>): void {
    for (const member of this.#missed)
      if (!missed.has(member)) this.#state.remove(`${MISSED_PREFIX}${member}`);
    this.#missed.clear();
    for (const [member, tracks] of missed) {
      this.#state.put(`${MISSED_PREFIX}${member}`, tracks.serialize());
      this.#missed.add(member);
    }
  }
}
