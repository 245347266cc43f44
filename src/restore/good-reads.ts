/**
 * Reads the frames of a plan; where salvage was asked for, what is damaged of a frame is passed over and the rest of
 * it is read.
 *
 * Which tracks were not read is not kept here: whoever knows what was asked for and what came knows that.
 */

import { CorruptionError } from '../base/index.ts';
import type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';

/** Findings kept; a disk that fails throughout would otherwise fill the memory. */
const FINDINGS_MAX = 100;

export class GoodReads<Entry extends ReadPlanEntry> {
  /** What was found damaged, one sentence each, the first hundred. */
  readonly findings: string[] = [];
  readonly #source: RestoreSource<Entry>;
  readonly #salvage: boolean;
  /** A source that tells its tracks only as it reads them has said that some are missing. */
  #isLacking = false;

  constructor(source: RestoreSource<Entry>, options: { readonly salvage: boolean }) {
    this.#source = source;
    this.#salvage = options.salvage;
  }

  /**
   * The tracks of the entry that are good; all of them without salvage.
   *
   * @returns `ended` where the source has nothing more to give, whatever its plan says.
   * @throws {CorruptionError} without salvage.
   */
  async read(entry: Entry): Promise<readonly RestoredTrack[] | 'ended'> {
    try {
      const read = await this.#source.readFrame(entry);
      return this.#isLacking && read.length === 0 ? 'ended' : read;
    } catch (error) {
      if (!this.#salvage || !(error instanceof CorruptionError)) throw error;
      if (this.findings.length < FINDINGS_MAX) this.findings.push(error.message);
      if (entry.tracks.length === 0) {
        // What it gives from here on is all there is.
        this.#isLacking = true;
        return [];
      }
      const damaged = new Set(error.place.tracks);
      const tracks = entry.tracks.filter((track) => !damaged.has(track));
      // Where the damage names no track of the frame, the frame as a whole is not to be trusted.
      if (tracks.length === 0 || tracks.length === entry.tracks.length) return [];
      return await this.read({ ...entry, tracks });
    }
  }
}
