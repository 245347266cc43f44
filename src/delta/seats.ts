/**
 * The members of a delta store, and what becomes of them: healthy, lost, being made anew.
 *
 * One that fails is lost at once, and nothing is put on it any more. The loss is told, and what only the others have is
 * acknowledged when that is durable.
 */

import { messageOf } from '../base/index.ts';
import { DeltaError } from './errors.ts';
import type { Member } from './member.ts';
import type { MemberWriter } from './member-writer.ts';
import type { DeltaMemberState, DeltaMemberStatus, DeltaPlace } from './types.ts';

/** One place, as the store sees it. */
export interface Seat {
  readonly place: DeltaPlace;
  state: DeltaMemberState;
  reason: string | undefined;
  member: Member | undefined;
  writer: MemberWriter | undefined;
  /** Settles when its loss is durable. */
  loss: Promise<void> | undefined;
}

export interface SeatsOptions {
  readonly members: readonly DeltaPlace[];
  readonly lostMembers: readonly string[];
  readonly onMemberLost: (place: string, error: unknown) => Promise<void>;
  /** A member was lost: who waits for room looks again. */
  readonly onChange: () => void;
}

export class Seats {
  readonly all: readonly Seat[];
  readonly #options: SeatsOptions;
  #writers: readonly MemberWriter[] = [];
  #losing = 0;
  #failure: { readonly reason: unknown } | undefined;

  constructor(options: SeatsOptions) {
    this.#options = options;
    this.all = options.members.map((place) => {
      const isLost = options.lostMembers.includes(place.place);
      return {
        place,
        state: isLost ? 'lost' : 'healthy',
        reason: isLost ? 'it was lost before' : undefined,
        member: undefined,
        writer: undefined,
        loss: undefined,
      };
    });
  }

  get healthy(): readonly Seat[] {
    return this.all.filter(({ state }) => state === 'healthy');
  }

  /** Of the healthy ones. */
  get writers(): readonly MemberWriter[] {
    return this.#writers;
  }

  /** Losses are not durable yet. */
  get isLosing(): boolean {
    return this.#losing > 0;
  }

  /** A loss could not be made durable: nothing may be acknowledged any more. */
  get hasFailed(): boolean {
    return this.#failure !== undefined;
  }

  /** Writers, or states, are others now. */
  changed(): void {
    this.#writers = this.healthy.flatMap(({ writer }) => (writer === undefined ? [] : [writer]));
  }

  /**
   * Loses members whose open segment is not found any more: what is written to a file that was deleted nobody finds again.
   *
   * @throws what `onMemberLost` failed with.
   */
  async look(): Promise<void> {
    for (const seat of this.healthy) {
      const { member, writer } = seat;
      const key = writer?.key;
      if (member === undefined || (await member.has(key))) continue;
      // The log may have ended meanwhile, and gone.
      if (seat.writer !== writer || writer?.key !== key) continue;
      const { place } = seat.place;
      await this.lose(
        seat,
        new DeltaError('member-unusable', `What was written to ${place} is gone: ${key ?? 'all of it'}`, {
          place,
        }),
      );
    }
  }

  /** Goes on without a member; resolves when that is durable. @throws what `onMemberLost` failed with. */
  lose(seat: Seat, error: unknown): Promise<void> {
    if (seat.state !== 'healthy') return seat.loss ?? Promise.resolve();
    seat.state = 'lost';
    seat.reason = messageOf(error);
    this.changed();
    this.#losing += 1;
    seat.loss = this.#tell(seat, error).finally(() => {
      this.#losing -= 1;
      seat.loss = undefined;
      this.#options.onChange();
    });
    // Whoever acknowledges waits for it; nobody has to.
    seat.loss.catch(() => undefined);
    return seat.loss;
  }

  /** As `lose`. @throws {DeltaError} 'no-members' too, where it was the last. */
  async loseWriter(writer: MemberWriter, error: unknown): Promise<void> {
    const seat = this.all.find((one) => one.writer === writer);
    if (seat !== undefined) await this.lose(seat, error);
    this.assertSome();
  }

  /** Waits until all losses are durable. @throws {DeltaError} 'no-members'; what `onMemberLost` failed with. */
  async settled(): Promise<void> {
    while (this.#losing > 0) for (const { loss } of this.all) await loss;
    this.assertSome();
  }

  /** @throws {DeltaError} 'no-members'; what `onMemberLost` failed with. */
  assertSome(): void {
    if (this.#failure !== undefined) throw this.#failure.reason;
    if (this.#writers.length > 0) return;
    const places = this.all.map(({ place }) => place.place);
    const why = this.all.map(({ place, reason }) => `${place.place}: ${reason ?? 'lost'}`).join('; ');
    throw new DeltaError('no-members', `No delta member is left of ${places.length} (${why})`, { places });
  }

  status(): DeltaMemberStatus[] {
    return this.all.map(({ place, state, reason, member }) => {
      const bytesMax = member?.bytesMax ?? place.bytesMax;
      return {
        place: place.place,
        state,
        ...(reason === undefined ? {} : { reason }),
        bytesUsed: member?.usedBytes ?? 0,
        ...(bytesMax === undefined ? {} : { bytesMax }),
      };
    });
  }

  async #tell(seat: Seat, error: unknown): Promise<void> {
    try {
      await this.#options.onMemberLost(seat.place.place, error);
    } catch (reason) {
      this.#failure = { reason };
      throw reason;
    }
  }
}

/** A member has no room. */
export function fullError({ place }: Seat, what: string): DeltaError {
  return new DeltaError('full', `Delta member ${place.place} has no room ${what}`, { place: place.place });
}
