/**
 * Writes a block set of one lane in this process: what merge, copy, import and small incrementals need. A set
 * of several lanes is written by `LaneWriter`s side by side and ended by the same `SetAssembly`.
 */

import type { PackedFrame } from './frame-codec.ts';
import type { LaneWriter } from './lane-writer.ts';
import type { StoredObject } from './ordering.ts';
import type { SetAssembly } from './set-assembly.ts';
import type { SealedSet, SessionCounters, SetCounters, SetHeader } from './set-format.ts';
import type { TrackSet } from '../tracks/index.ts';

export class SetWriter {
  readonly #lane: LaneWriter;
  readonly #assembly: SetAssembly;

  /** @param assembly of this one lane. */
  constructor(lane: LaneWriter, assembly: SetAssembly) {
    this.#lane = lane;
    this.#assembly = assembly;
  }

  get header(): SetHeader {
    return this.#assembly.header;
  }

  get id(): string {
    return this.#assembly.id;
  }

  /** Bytes of frames stored so far; what `bytesStored` will say. */
  get bytesStored(): number {
    return this.#lane.bytesStored;
  }

  /** The tracks added so far. Not to be changed. */
  get tracks(): TrackSet {
    return this.#lane.tracks;
  }

  /** See `LaneWriter.add`. */
  add(track: number, content: Buffer, hash?: Buffer): void {
    this.#lane.add(track, content, hash);
  }

  /** See `LaneWriter.addZero`. */
  addZero(track: number): void {
    this.#lane.addZero(track);
  }

  /** See `LaneWriter.addAlias`. */
  addAlias(track: number, of: number): void {
    this.#lane.addAlias(track, of);
  }

  /** See `LaneWriter.addPacked`. */
  addPacked(frame: PackedFrame): void {
    this.#lane.addPacked(frame);
  }

  /** See `LaneWriter.putObject`. */
  putObject(object: StoredObject): void {
    this.#lane.putObject(object);
  }

  /** See `LaneWriter.flush`. */
  flush(): void {
    this.#lane.flush();
  }

  /** See `SetAssembly.finish`. */
  finish(session: SessionCounters): Promise<SetCounters> {
    return this.#assembly.finish(session);
  }

  /** See `SetAssembly.seal`. */
  seal(): Promise<SealedSet> {
    return this.#assembly.seal();
  }

  /** See `SetAssembly.abort`. */
  abort(): Promise<void> {
    return this.#assembly.abort();
  }
}
