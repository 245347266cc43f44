/**
 * The intermediate container: bounded room for old content that a client's write would have replaced before
 * the backup had saved it (`seeds/3`, Fig. 8-12).
 *
 * A writer reserves one slot, puts the track's old content there and goes on. The backup drains entries all
 * the time, newest first while content is in memory, and a slot is free again only when the store has
 * acknowledged the content. When every slot is taken, a writer waits in order of arrival; the first slot
 * that comes free goes to the first waiter, however full the rest still is.
 *
 * It knows nothing of protection or sessions; `volume/` decides who must reserve and when.
 */

import { assert, deferred, type MaybePromise } from '../base/index.ts';
import type { ContainerArea } from './area.ts';

/** A reserved slot; unused until something is put into it. */
export interface Slot {
  readonly area: ContainerArea;
  readonly index: number;
}

/** Diverted content, from its arrival to its acknowledgement. */
export interface ContainerEntry {
  /** Number of arrival, counting from 1. */
  readonly id: number;
  readonly track: number;
}

export interface SlotWaiter {
  /** The slot, or undefined where the container was closed or the wait cancelled. */
  readonly slot: Promise<Slot | undefined>;
  /** Gives the place in the queue up. Safe at any time: a slot that was already granted is not taken back. */
  cancel(): void;
}

interface StoredEntry extends ContainerEntry {
  readonly slot: Slot;
  isTaken: boolean;
}

/** Free slots of one area: those given back, and behind `unusedFrom` those never used. */
interface FreeSlots {
  readonly area: ContainerArea;
  readonly returned: number[];
  unusedFrom: number;
}

type Wake = (slot: Slot | undefined) => void;

export class IntermediateContainer {
  readonly slotCount: number;
  readonly #free: readonly FreeSlots[];
  readonly #waiters: Wake[] = [];
  readonly #entries = new Map<number, StoredEntry>();
  /** Entries nobody has taken, oldest first, by where their content lies. */
  readonly #inMemory: StoredEntry[] = [];
  readonly #onDevices: StoredEntry[] = [];
  #lastId = 0;
  #isClosed = false;
  #entryCountMax = 0;
  /** Puts and gets that run, so that closing can wait for them. */
  readonly #running = new Set<Promise<unknown>>();

  /** @param areas in the order in which they fill; memory first is the caller's choice to make. */
  constructor(areas: readonly ContainerArea[]) {
    this.slotCount = areas.reduce((count, area) => count + area.slotCount, 0);
    this.#free = areas.map((area) => ({ area, returned: [], unusedFrom: 0 }));
  }

  get entryCount(): number {
    return this.#entries.size;
  }

  /** Entries that `take` would hand out. */
  get untakenCount(): number {
    return this.#inMemory.length + this.#onDevices.length;
  }

  /** The most entries there ever were at once, for `status` and the closing report. */
  get entryCountMax(): number {
    return this.#entryCountMax;
  }

  /** A slot at once, or undefined where all are taken or others wait already. */
  tryReserve(): Slot | undefined {
    if (this.#isClosed || this.#waiters.length > 0) return undefined;
    for (const free of this.#free) {
      const returned = free.returned.pop();
      if (returned !== undefined) return { area: free.area, index: returned };
      if (free.unusedFrom < free.area.slotCount) {
        free.unusedFrom += 1;
        return { area: free.area, index: free.unusedFrom - 1 };
      }
    }
    return undefined;
  }

  /** Queues for a slot behind those who wait already. */
  waitForSlot(): SlotWaiter {
    const { promise, resolve } = deferred<Slot | undefined>();
    if (this.#isClosed) {
      resolve(undefined);
      return { slot: promise, cancel: () => undefined };
    }
    this.#waiters.push(resolve);
    const cancel = (): void => {
      const place = this.#waiters.indexOf(resolve);
      if (place < 0) return;
      this.#waiters.splice(place, 1);
      resolve(undefined);
    };
    return { slot: promise, cancel };
  }

  /** Gives back a slot that was reserved and not used. */
  unreserve(slot: Slot): void {
    if (this.#isClosed) return;
    const wake = this.#waiters.shift();
    if (wake !== undefined) {
      wake(slot);
      return;
    }
    const free = this.#free.find((candidate) => candidate.area === slot.area);
    assert(free !== undefined, `Slot ${slot.index} is not of this container`);
    free.returned.push(slot.index);
  }

  /**
   * Stores one track's old content in a reserved slot; the entry can be taken when the call has finished.
   * `content` stays the caller's.
   *
   * @throws what the area throws; the slot is then still reserved and its content undefined.
   */
  put(slot: Slot, track: number, content: Buffer): MaybePromise<void> {
    const stored = slot.area.put(slot.index, content);
    if (stored === undefined) {
      this.#record(slot, track);
      return undefined;
    }
    return this.#tracked(stored).then(() => this.#record(slot, track));
  }

  /**
   * The newest entries that nobody has taken, memory before devices, at most `countMax`, marked as taken.
   * They keep their slots until `acknowledge`.
   */
  take(countMax: number): ContainerEntry[] {
    const taken: ContainerEntry[] = [];
    while (taken.length < countMax) {
      const entry = this.#inMemory.pop() ?? this.#onDevices.pop();
      if (entry === undefined) break;
      entry.isTaken = true;
      taken.push({ id: entry.id, track: entry.track });
    }
    return taken;
  }

  /** The content of an entry; the buffer is the caller's until the entry is acknowledged. */
  content(id: number): MaybePromise<Buffer> {
    const entry = this.#entries.get(id);
    assert(entry !== undefined, `Container has no entry ${id}`);
    const content = entry.slot.area.get(entry.slot.index);
    return content instanceof Promise ? this.#tracked(content) : content;
  }

  /** The store has the entry's content: its slot goes to the first waiter, or is free. */
  acknowledge(id: number): void {
    const entry = this.#entries.get(id);
    assert(entry !== undefined, `Container has no entry ${id}`);
    assert(entry.isTaken, `Entry ${id} was acknowledged before it was taken`);
    this.#entries.delete(id);
    entry.slot.area.free(entry.slot.index);
    this.unreserve(entry.slot);
  }

  /** Drops everything and wakes every waiter without a slot. Idempotent; waits for running puts and gets. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const wake of this.#waiters.splice(0)) wake(undefined);
    this.#entries.clear();
    this.#inMemory.length = 0;
    this.#onDevices.length = 0;
    await Promise.allSettled(this.#running);
    for (const { area } of this.#free) await area.close();
  }

  #record(slot: Slot, track: number): void {
    if (this.#isClosed) return;
    this.#lastId += 1;
    const entry: StoredEntry = { id: this.#lastId, track, slot, isTaken: false };
    this.#entries.set(entry.id, entry);
    (slot.area.isMemory ? this.#inMemory : this.#onDevices).push(entry);
    this.#entryCountMax = Math.max(this.#entryCountMax, this.#entries.size);
  }

  async #tracked<T>(work: Promise<T>): Promise<T> {
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }
}
