/**
 * The intermediate container: bounded room for old content that a client's write would have replaced before
 * the backup had saved it (`seeds/3`, Fig. 8-12).
 *
 * A writer reserves one slot, the track's old content is written there, and it is entered into the queue of each
 * session that needs it (`drain-queue.ts`). The slot is free again only when all of them have let the content go.
 * When every slot is taken, a writer waits in order of arrival; the first slot that comes free goes to the first
 * waiter, however full the rest still is.
 *
 * A container belongs to one session, and its room may hold what others need too. So it outlives its session, closed
 * to anything new, until the last of them has let go.
 *
 * It knows nothing of protection or sessions; `volume/` decides who must reserve and when.
 */

import { assert, deferred, type Deferred, type MaybePromise } from '../base/index.ts';
import type { ContainerArea } from './area.ts';
import { type DrainQueue, SharedContent } from './drain-queue.ts';

/** A reserved slot; unused until something is written into it. */
export interface Slot {
  readonly area: ContainerArea;
  readonly index: number;
}

/** Free slots of one area: those given back, and behind `unusedFrom` those never used. */
interface FreeSlots {
  readonly area: ContainerArea;
  readonly returned: number[];
  unusedFrom: number;
}

type OnGranted = (slot: Slot) => void;

export class IntermediateContainer {
  readonly slotCount: number;
  readonly #free: readonly FreeSlots[];
  readonly #waiters: OnGranted[] = [];
  #usedCount = 0;
  #entryCount = 0;
  /** Set from the call of `close` on. */
  #closed: Deferred | undefined;
  #isClosingAreas = false;
  /** Reads and writes of areas that run, so that closing can wait for them. */
  #runningCount = 0;

  /** @param areas in the order in which they fill; memory first is the caller's choice to make. */
  constructor(areas: readonly ContainerArea[]) {
    this.slotCount = areas.reduce((count, area) => count + area.slotCount, 0);
    this.#free = areas.map((area) => ({ area, returned: [], unusedFrom: 0 }));
  }

  /** Slots that are reserved or hold content. */
  get usedCount(): number {
    return this.#usedCount;
  }

  /** Slots that hold content which somebody needs. */
  get entryCount(): number {
    return this.#entryCount;
  }

  get isClosed(): boolean {
    return this.#closed !== undefined;
  }

  /** A slot at once, or undefined where all are taken or others wait already. */
  tryReserve(): Slot | undefined {
    if (this.isClosed || this.#waiters.length > 0) return undefined;
    for (const free of this.#free) {
      const returned = free.returned.pop();
      const index = returned ?? free.unusedFrom;
      if (returned === undefined) {
        if (free.unusedFrom === free.area.slotCount) continue;
        free.unusedFrom += 1;
      }
      this.#usedCount += 1;
      return { area: free.area, index };
    }
    return undefined;
  }

  /**
   * Queues for a slot behind those who wait already. A container that is closed grants none.
   *
   * @param onGranted called at most once, with the slot that came free; the slot is the caller's then.
   * @returns gives the place in the queue up; without effect once the slot was granted.
   */
  waitForSlot(onGranted: OnGranted): () => void {
    // Not the caller's own function: it may wait more than once.
    const waiter: OnGranted = (slot) => onGranted(slot);
    if (!this.isClosed) this.#waiters.push(waiter);
    return () => {
      const place = this.#waiters.indexOf(waiter);
      if (place >= 0) this.#waiters.splice(place, 1);
    };
  }

  /** Gives back a slot that was reserved and holds nothing that is needed: it goes to the first waiter. */
  unreserve(slot: Slot): void {
    const granted = this.#waiters.shift();
    if (granted !== undefined) {
      granted(slot);
      return;
    }
    const free = this.#free.find((candidate) => candidate.area === slot.area);
    assert(free !== undefined, `Slot ${slot.index} is not of this container`);
    free.returned.push(slot.index);
    this.#usedCount -= 1;
    this.#closeAreasWhenUnused();
  }

  /**
   * Writes one track's old content into a reserved slot. `content` stays the caller's.
   *
   * @throws what the area throws; the slot is then still reserved and its content undefined.
   */
  write(slot: Slot, content: Buffer): MaybePromise<void> {
    return this.#tracked(slot.area.put(slot.index, content));
  }

  /**
   * Hands what was written into a slot to those who need it; where nobody does, the slot is free. Not once the
   * container is closed.
   */
  enter(slot: Slot, track: number, holders: readonly DrainQueue[]): void {
    assert(!this.isClosed, 'A closed container was given content');
    if (holders.length === 0) {
      this.#freeSlot(slot);
      return;
    }
    this.#entryCount += 1;
    const content = new SharedContent({
      track,
      isMemory: slot.area.isMemory,
      holderCount: holders.length,
      read: () => this.#tracked(slot.area.get(slot.index)),
      free: () => {
        this.#entryCount -= 1;
        this.#freeSlot(slot);
      },
    });
    for (const holder of holders) holder.add(content);
  }

  /**
   * Grants no slot any more. Finishes when nothing in it is needed and the areas are closed; who only wants to stop
   * using it need not wait for that. Idempotent.
   */
  close(): Promise<void> {
    if (this.#closed === undefined) {
      this.#closed = deferred();
      this.#waiters.length = 0;
      this.#closeAreasWhenUnused();
    }
    return this.#closed.promise;
  }

  #freeSlot(slot: Slot): void {
    slot.area.free(slot.index);
    this.unreserve(slot);
  }

  #closeAreasWhenUnused(): void {
    const closed = this.#closed;
    if (closed === undefined || this.#usedCount > 0 || this.#runningCount > 0 || this.#isClosingAreas) return;
    this.#isClosingAreas = true;
    this.#closeAreas().then(closed.resolve, closed.reject);
  }

  async #closeAreas(): Promise<void> {
    for (const { area } of this.#free) await area.close();
  }

  #tracked<T>(work: MaybePromise<T>): MaybePromise<T> {
    if (!(work instanceof Promise)) return work;
    this.#runningCount += 1;
    return work.finally(() => {
      this.#runningCount -= 1;
      this.#closeAreasWhenUnused();
    });
  }
}
