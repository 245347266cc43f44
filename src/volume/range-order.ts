/**
 * Keeps overlapping pieces apart: a piece starts when every earlier piece that overlaps it has finished, so
 * the home sees them in one order. Pieces that do not overlap never wait for each other.
 *
 * The list is scanned: it holds what is in flight, a few hundred pieces at the most (LIMITS).
 */

import { type Deferred, deferred } from '../base/index.ts';

interface Ticket {
  readonly start: number;
  readonly end: number;
  readonly finished: Deferred;
}

export interface Turn {
  /** Finishes when the piece may start; undefined where it may start at once. */
  readonly ready: Promise<unknown> | undefined;
  /** The piece has finished, whatever its outcome. */
  readonly release: () => void;
}

export class RangeOrder {
  readonly #tickets = new Set<Ticket>();

  get size(): number {
    return this.#tickets.size;
  }

  /** The bytes of each piece that has not finished: from `start` to `end - 1`. */
  ranges(): Iterable<{ readonly start: number; readonly end: number }> {
    return this.#tickets;
  }

  /** Whether a piece over bytes `start` to `end - 1` would have to wait. */
  conflicts(start: number, end: number): boolean {
    for (const ticket of this.#tickets) {
      if (ticket.start < end && start < ticket.end) return true;
    }
    return false;
  }

  /** Takes a place in the order for bytes `start` to `end - 1`. */
  acquire(start: number, end: number): Turn {
    const earlier: Promise<void>[] = [];
    for (const ticket of this.#tickets) {
      if (ticket.start < end && start < ticket.end) earlier.push(ticket.finished.promise);
    }
    const ticket: Ticket = { start, end, finished: deferred() };
    this.#tickets.add(ticket);
    return {
      ready: earlier.length === 0 ? undefined : Promise.all(earlier),
      release: () => {
        this.#tickets.delete(ticket);
        ticket.finished.resolve();
      },
    };
  }

  /** Finishes when every piece that is in the order now has finished. */
  async whenIdle(): Promise<void> {
    await Promise.all([...this.#tickets].map((ticket) => ticket.finished.promise));
  }
}
