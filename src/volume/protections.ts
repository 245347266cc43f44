/**
 * Copy-before-write for all sessions of a volume: how a write that hits a track gets past those that protect it, with
 * one copy for all of them.
 *
 *     a write hits a track --> a slot in the container of any session that protects it; where none has a free one, a
 *     place in the queue of each --> the first slot: the home is read, once --> the slot is filled --> every session
 *     that still protects the track gets an entry for it --> the write goes on
 *
 * Sessions have points of different times. A track that several still protect has not been written since the oldest
 * of these points, so its content is the same at all of them; who protects it is looked at when the slot is filled,
 * and until then no write has passed. A session whose lane confirms the track meanwhile needs no entry, and one
 * that begins meanwhile gets one.
 *
 * What several sessions need takes one slot, of the room of one of them. Where only one protects a track, only its own
 * room is used, whatever the others have free.
 *
 * A container of no slots has no queue: the lane takes the track out of turn from the home, and the write waits for
 * it (`protection.ts`). Where another session has room, both take it from there.
 */

import { type Deferred, deferred, type MaybePromise } from '../base/index.ts';
import type { Slot } from '../container/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';
import type { Protection } from './protection.ts';
import type { Protector, WritePath } from './write-path.ts';

/** One track on its way from protected to saved because a write hit it. */
interface Copy {
  readonly track: number;
  readonly saved: Deferred;
  stage: 'waiting' | 'copying';
}

export interface ProtectionsOptions {
  /** Of the volume as it is now. */
  readonly geometry: Geometry;
  /** Reads one whole track, as far as it lies in the volume, from the home. */
  readonly readHome: (target: Buffer, track: number) => MaybePromise<void>;
  readonly writePath: Pick<WritePath, 'protect' | 'unprotect' | 'released'>;
}

export class Protections implements Protector {
  readonly #options: ProtectionsOptions;
  readonly #members = new Set<Protection>();
  readonly #copies = new Map<number, Copy>();
  /** Containers of sessions that have ended, which hold what others need. */
  readonly #closing = new Set<Promise<void>>();

  constructor(options: ProtectionsOptions) {
    this.#options = options;
  }

  /** Tracks of the run may be written again, as far as this member is concerned. */
  released(run: TrackRun): void {
    this.#options.writePath.released(run);
  }

  /** From here on no write passes one of the member's tracks unsaved. Called with the gate closed. */
  join(member: Protection): void {
    this.#members.add(member);
    this.#options.writePath.protect(this);
    for (const copy of this.#copies.values()) if (copy.stage === 'waiting') this.#seekRoom(copy, [member]);
  }

  /** The member has ended and protects nothing any more. */
  leave(member: Protection): void {
    this.#members.delete(member);
    if (this.#members.size === 0) this.#options.writePath.unprotect(this);
    for (const track of this.#copies.keys()) this.unneeded(track);
  }

  /** One of the members protects the track no more: where none does, the writes to it go on. */
  unneeded(track: number): void {
    const copy = this.#copies.get(track);
    if (copy !== undefined && !this.#isNeeded(track)) this.#over(copy);
  }

  /** The lowest track of the run that no write may touch yet. */
  firstProtected(run: TrackRun): number | undefined {
    let lowest: number | undefined;
    for (const member of this.#members) {
      const track = member.firstProtected(run);
      if (track !== undefined && (lowest === undefined || track < lowest)) lowest = track;
    }
    return lowest;
  }

  /**
   * Has a protected track's content saved so that a write may replace it. Every write to the track shares one copy.
   * Never rejects: where the sessions end or fail, the track is free to be written. Somebody may still protect it
   * when this is over, or again.
   *
   * @param onWaiting called where there is no room and the write must wait for a backup.
   */
  save(track: number, onWaiting: () => void): Promise<void> {
    const running = this.#copies.get(track);
    const copy: Copy = running ?? { track, saved: deferred(), stage: 'waiting' };
    if (running === undefined) {
      this.#copies.set(track, copy);
      this.#seekRoom(copy, [...this.#members]);
    }
    if (copy.stage === 'waiting') onWaiting();
    return copy.saved.promise;
  }

  /** Keeps in mind that a container is to be closed: its session may not wait for that. */
  closeLater(closed: Promise<void>): void {
    const tracked: Promise<void> = closed
      // An area that cannot be closed held what nobody needs any more.
      .catch(() => undefined)
      .finally(() => this.#closing.delete(tracked));
    this.#closing.add(tracked);
  }

  /** Finishes when the containers of all sessions that have ended are closed. */
  async whenClosed(): Promise<void> {
    await Promise.all(this.#closing);
  }

  #isNeeded(track: number): boolean {
    for (const member of this.#members) if (member.protects(track)) return true;
    return false;
  }

  /** A free slot of one of the members, else a place in the queue of each. */
  #seekRoom(copy: Copy, members: readonly Protection[]): void {
    const { track } = copy;
    const seeking = members.filter((member) => member.needsCopy(track));
    for (const member of seeking) {
      const slot = member.container.tryReserve();
      if (slot === undefined) continue;
      void this.#divert(copy, member, slot);
      return;
    }
    for (const member of seeking) member.wait(track, (slot) => void this.#divert(copy, member, slot));
  }

  /** @param owner whose room the slot is of. */
  async #divert(copy: Copy, owner: Protection, slot: Slot): Promise<void> {
    const { track } = copy;
    const { container } = owner;
    copy.stage = 'copying';
    for (const member of this.#members) member.stopWaiting(track);
    const content = Buffer.allocUnsafe(this.#options.geometry.lengthOf({ first: track, count: 1 }));
    try {
      await this.#options.readHome(content, track);
    } catch (error) {
      container.unreserve(slot);
      // Without its old content no session can go on that needs it.
      const losers = this.#isOver(copy) ? [] : [...this.#members].filter((member) => member.protects(track));
      for (const loser of losers) loser.fail(error);
      this.#over(copy);
      return;
    }
    try {
      if (!this.#isOver(copy)) await container.write(slot, content);
    } catch (error) {
      container.unreserve(slot);
      if (!container.isClosed) owner.fail(error);
      // The others need not fail: the write comes again and finds another's room.
      this.#over(copy);
      return;
    }
    // Where it is over, the writes have gone on; and what is closed takes nothing in.
    if (this.#isOver(copy) || container.isClosed) container.unreserve(slot);
    else this.#enter(copy, owner, slot, content.length);
    this.#over(copy);
  }

  #enter({ track }: Copy, owner: Protection, slot: Slot, lengthBytes: number): void {
    // One that began after the volume grew may need more of its last track than was read.
    const holders = [...this.#members].filter(
      (member) => member.needsCopy(track) && member.lengthOf(track) <= lengthBytes,
    );
    owner.container.enter(
      slot,
      track,
      holders.map(({ queue }) => queue),
    );
    for (const holder of holders) holder.diverted(track);
  }

  #isOver(copy: Copy): boolean {
    return this.#copies.get(copy.track) !== copy;
  }

  /** Its writes look again. */
  #over(copy: Copy): void {
    if (this.#isOver(copy)) return;
    this.#copies.delete(copy.track);
    copy.saved.resolve();
  }
}
