/**
 * A lane at work: reads tracks, hashes them, and, once it is told which of them to keep, packs and writes those.
 *
 *     read or hold  ->  hashes, zeroes  ->  (who decides: hit, unchanged, double?)  ->  store  ->  frame
 *
 * The deciding is the session's, since it takes what all lanes know; the lane does what takes time. It may be
 * in this process (`LocalLane`) or in a thread of its own (`ThreadLane`), and its users cannot tell.
 */

import { assert, present } from '../base/index.ts';
import {
  type LaneCounts,
  type LaneEnd,
  LaneWriter,
  type LaneParts,
  type SetCounters,
} from '../blockset/index.ts';
import { digest, DIGEST_BYTES } from '../records/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { HomeReader } from './source.ts';

/** What a lane has in hand, waiting for `store`. */
export interface HeldTracks {
  /** For `store`. */
  readonly ticket: number;
  /** The BLAKE3 of each track in turn, 32 bytes each; of no meaning for zero tracks. */
  readonly hashes: Buffer;
  /** For each track 1 where it is zeroes throughout. */
  readonly zeroes: Uint8Array;
}

/** Calls may overlap, and take effect in their order. */
export interface LaneWorker extends LaneEnd {
  /** Reads a run from the home. */
  read(run: TrackRun): Promise<HeldTracks>;
  /** Takes over tracks that were read elsewhere; the buffers are the lane's until it has stored them. */
  hold(tracks: readonly number[], contents: readonly Buffer[]): Promise<HeldTracks>;
  /**
   * Stores those tracks of a ticket and forgets the others.
   *
   * @param keep places in the ticket's order.
   */
  store(ticket: number, keep: readonly number[]): Promise<void>;
  /** Tracks have the content of others that this lane stored, or was told to, before. */
  storeAliases(aliases: readonly { readonly track: number; readonly of: number }[]): Promise<void>;
  /** Tracks are zeroes, where the base has something else. */
  storeZeroes(tracks: readonly number[]): Promise<void>;
  /** Everything stored so far is handed to the file. */
  flush(): Promise<void>;
}

export function tracksOf({ first, count }: TrackRun): number[] {
  return Array.from({ length: count }, (_, index) => first + index);
}

/** The content of tracks in a row, one by one; the last may be shorter. */
export function partsOf(content: Buffer, trackSizeBytes: number): Buffer[] {
  const parts: Buffer[] = [];
  for (let at = 0; at < content.length; at += trackSizeBytes) {
    parts.push(content.subarray(at, at + trackSizeBytes));
  }
  return parts;
}

interface Held {
  readonly tracks: readonly number[];
  readonly contents: readonly Buffer[];
  readonly hashes: Buffer;
  /** The lane's own buffer with the contents, to be used again. */
  readonly buffer: Buffer | undefined;
}

/** Buffers kept; more are never in use at once. */
const SPARE_MAX = 4;

export class LocalLane implements LaneWorker {
  readonly #writer: LaneWriter;
  readonly #home: HomeReader;
  readonly #zero: Buffer;
  readonly #held = new Map<number, Held>();
  /** Read buffers to be used again, all of one length. */
  readonly #spare: Buffer[] = [];
  #lastTicket = 0;

  /**
   * @param writer where it has been begun already.
   * @throws {StoreError} where the lane's file cannot be begun.
   */
  constructor(parts: LaneParts, home: HomeReader, writer: LaneWriter = new LaneWriter(parts)) {
    this.#writer = writer;
    this.#home = home;
    this.#zero = Buffer.alloc(parts.header.trackSizeBytes);
  }

  async read({ first, count }: TrackRun): Promise<HeldTracks> {
    const { trackSizeBytes, sizeBytes } = this.#writer.header;
    const offsetBytes = first * trackSizeBytes;
    const content = this.#buffer(Math.min(count * trackSizeBytes, sizeBytes - offsetBytes));
    await this.#home.read(content, offsetBytes);
    return this.#take(tracksOf({ first, count }), partsOf(content, trackSizeBytes), content);
  }

  async hold(tracks: readonly number[], contents: readonly Buffer[]): Promise<HeldTracks> {
    return this.#take(tracks, contents, undefined);
  }

  async store(ticket: number, keep: readonly number[]): Promise<void> {
    const held = this.#held.get(ticket);
    assert(held !== undefined, `Ticket ${ticket} is not held`);
    this.#held.delete(ticket);
    for (const index of keep) {
      const track = present(held.tracks[index], 'A place in the ticket');
      const hash = held.hashes.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
      this.#writer.add(track, present(held.contents[index], 'A place in the ticket'), hash);
    }
    if (held.buffer !== undefined && this.#spare.length < SPARE_MAX) this.#spare.push(held.buffer);
  }

  async storeAliases(aliases: readonly { readonly track: number; readonly of: number }[]): Promise<void> {
    for (const { track, of } of aliases) this.#writer.addAlias(track, of);
  }

  async storeZeroes(tracks: readonly number[]): Promise<void> {
    for (const track of tracks) this.#writer.addZero(track);
  }

  async flush(): Promise<void> {
    this.#writer.flush();
  }

  finish(): Promise<LaneCounts> {
    return this.#writer.finish();
  }

  settle(counters: SetCounters | undefined): Promise<Buffer> {
    return this.#writer.settle(counters);
  }

  seal(record: Buffer): Promise<void> {
    return this.#writer.seal(record);
  }

  release(): Promise<void> {
    return this.#writer.release();
  }

  abort(): Promise<void> {
    return this.#writer.abort();
  }

  #take(tracks: readonly number[], contents: readonly Buffer[], buffer: Buffer | undefined): HeldTracks {
    const hashes = Buffer.alloc(tracks.length * DIGEST_BYTES);
    const zeroes = new Uint8Array(tracks.length);
    for (const [index, content] of contents.entries()) {
      if (content.equals(this.#zero.subarray(0, content.length))) zeroes[index] = 1;
      else digest(content).copy(hashes, index * DIGEST_BYTES);
    }
    this.#lastTicket += 1;
    this.#held.set(this.#lastTicket, { tracks, contents, hashes, buffer });
    return { ticket: this.#lastTicket, hashes, zeroes };
  }

  /** A spare one of that length, or a new one; spare ones of another length are of no use any more. */
  #buffer(lengthBytes: number): Buffer {
    const spare = this.#spare.pop();
    return spare?.length === lengthBytes ? spare : Buffer.allocUnsafeSlow(lengthBytes);
  }
}
