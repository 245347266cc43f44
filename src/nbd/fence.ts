/**
 * The order of changes between the connections of one export.
 *
 * Why: a client may lose its connection, make a new one and send its requests again, while the old ones
 * still run against the device. If an old write landed after a new one was acknowledged, the new content
 * would be lost without a word. And the server cannot rely on hearing of the loss: a machine that lost its
 * power says no goodbye. Therefore, whether the other connection is dead or alive:
 *
 * - a change (write, zeroes, trim) that overlaps an unfinished change of another connection is held until
 *   that one has finished. Two overlapping changes in flight have no order in the protocol, so a client
 *   with several connections cannot tell;
 * - a flush is held until all orphans have finished: changes whose connection has gone. Flushes do not wait
 *   for changes of living connections, which may be waiting for a backup.
 *
 * Changes of one connection are not ordered among each other, and reads are never held: a read may see an
 * orphan's range before or after it lands, as after any crash.
 *
 * Only changes that did not finish at once are remembered, so an export whose device answers synchronously,
 * or with one connection, pays one comparison. An operation counts its blockers once, when it arrives; each
 * of them tells it when it has finished.
 */

import { COMMAND } from './codec.ts';
import type { Operation } from './operation.ts';

/** A connection that does not read its client's requests for now, because of its bounds. */
export interface StalledReader {
  /** The client has closed its side: nobody waits for the answers. */
  isClientGone(): boolean;
  /** Drops the requests that were sent and not begun, with the connection. */
  giveUp(): void;
}

export class Fence {
  readonly #stalled = new Set<StalledReader>();
  /** Changes that run or are held, in order of arrival. */
  readonly #changes = new Set<Operation>();
  #released: Operation[] = [];
  #isReleasing = false;

  /** Unfinished changes of all connections. */
  get changeCount(): number {
    return this.#changes.size;
  }

  /** A connection leaves requests unread, until `readsOn`. */
  stalls(reader: StalledReader): void {
    this.#stalled.add(reader);
  }

  readsOn(reader: StalledReader): void {
    this.#stalled.delete(reader);
  }

  /**
   * Drops what the clients of other connections had sent and nobody has read, where those clients are gone: one that
   * sends its requests again over `reader` has done so by then. To be called before the changes of a batch of input.
   */
  dropStale(reader: StalledReader): void {
    for (const other of this.#stalled) {
      if (other !== reader && other.isClientGone()) other.giveUp();
    }
  }

  /**
   * Asks for a change or a flush to run now.
   *
   * @returns false when it is held: its owner hears `operationReleased` later, unless it is finished first.
   */
  admit(operation: Operation): boolean {
    if (this.#changes.size === operation.owner.fencedCount) return true;
    let blockerCount = 0;
    for (const other of this.#changes) {
      if (other.owner === operation.owner || !blocks(other, operation)) continue;
      (other.dependents ??= []).push(operation);
      blockerCount += 1;
    }
    if (blockerCount === 0) return true;
    operation.blockerCount = blockerCount;
    operation.isUsedUp = true;
    if (operation.command !== COMMAND.flush) this.enter(operation);
    return false;
  }

  /** Remembers a change that has not finished, so that others wait for it. */
  enter(operation: Operation): void {
    if (operation.isFenced) return;
    operation.isFenced = true;
    operation.owner.fencedCount += 1;
    this.#changes.add(operation);
  }

  /** Forgets an operation that has finished, or that was held and is given up, and releases what waited. */
  leave(operation: Operation): void {
    if (operation.isFenced) {
      operation.isFenced = false;
      operation.owner.fencedCount -= 1;
      this.#changes.delete(operation);
    }
    const dependents = operation.dependents;
    if (dependents === undefined) return;
    operation.dependents = undefined;
    for (const dependent of dependents) {
      dependent.blockerCount -= 1;
      if (dependent.blockerCount === 0) this.#released.push(dependent);
    }
    this.#release();
  }

  /** A loop instead of recursion: a released change may finish at once and release the next of a long chain. */
  #release(): void {
    if (this.#isReleasing) return;
    this.#isReleasing = true;
    try {
      for (let next = this.#released.shift(); next !== undefined; next = this.#released.shift()) {
        if (!next.isSettled) next.owner.operationReleased(next);
      }
    } finally {
      this.#isReleasing = false;
    }
  }
}

function blocks(earlier: Operation, later: Operation): boolean {
  if (later.command === COMMAND.flush) return earlier.owner.isGone;
  return (
    earlier.offsetBytes < later.offsetBytes + later.lengthBytes &&
    later.offsetBytes < earlier.offsetBytes + earlier.lengthBytes
  );
}
